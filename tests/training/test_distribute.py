"""Training on two devices, or in two processes, gives the losses of one device with the same batches."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from tfface import cli
from tfface.errors import UserError
from tfface.recipes import RECIPES
from tfface.recipes.multitask import Multitask
from tfface.training import batches
from tfface.training.distribute import ONE, Devices, join


class Small(Multitask):
    def model(self):
        inputs = keras.Input((*self.image_size, 3))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.AveragePooling2D(4)(x)
        x = keras.layers.Flatten(name="features")(x)
        x = keras.layers.Dense(8, "relu", name="hidden")(x)
        outputs = {task.name: keras.layers.Dense(task.width, "softmax", name=task.name)(x) for task in self.tasks()}
        return keras.Model(inputs, outputs)


SCRIPT = """
import json, sys
from test_distribute import Small
from tfface import cli
from tfface.recipes import RECIPES
from tfface.training.callbacks import Recorder


class Killed(BaseException):
    pass


RECIPES["multitask"] = Small
words, killed_after = json.loads(sys.argv[1]), int(sys.argv[2])
if killed_after:
    whole = Recorder.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        whole(self, epoch, logs)
        if epoch + 1 == killed_after:
            raise Killed

    Recorder.on_epoch_end = on_epoch_end
    try:
        cli.main(words)
    except Killed:
        Recorder.on_epoch_end = whole
        import tfface.training.distribute as distribute

        distribute.join = lambda *_: None  # this process has joined already
sys.exit(cli.main(words))
"""

# Its last batch of validation images is not a whole one: it is filled up.
WORDS = ["train", "multitask", "--tiny", "--set", "epochs=3", "--set", "batch_size=24", "--device", "cpu"]


@pytest.fixture
def start(data_dir, tmp_path):
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])])

    def start(name, *words, backend, killed_after=0):
        words = [*WORDS, "--data-dir", str(data_dir), "--out", str(tmp_path / name), *words]
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(words), str(killed_after)],
            env={**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def finished(*processes):
    for process in processes:
        output, error = process.communicate(timeout=300)
        assert process.returncode == 0, (output + error)[-3000:]


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def assert_same(some, others):
    assert len(some) == len(others) == 3
    for mine, other in zip(some, others, strict=True):
        assert set(mine) == set(other)
        for name in set(mine) - {"seconds"}:
            assert mine[name] == pytest.approx(other[name], abs=1e-5), name


def free_port():
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def test_two_processes_on_jax_broken_off_and_resumed(start, tmp_path):
    jobs = f"localhost:{free_port()},localhost:{free_port()}"
    # Both name one folder, as machines with a shared one do.
    pair = [
        start("pair", "--jobs", jobs, "--job-index", str(index), backend="jax", killed_after=1) for index in range(2)
    ]
    finished(*pair)
    finished(start("one", backend="jax"))
    assert_same(rows(tmp_path / "pair"), rows(tmp_path / "one"))
    # What was trained in pieces on JAX is an ordinary model.
    (trained,) = (tmp_path / "pair").glob("*.keras")
    assert keras.saving.load_model(trained, compile=False).count_params() > 0


def test_two_devices_on_tensorflow(start, data_dir, tmp_path, monkeypatch):
    pair = start("pair", "--devices", "2", backend="tensorflow")
    monkeypatch.setitem(RECIPES, "multitask", Small)
    assert cli.main([*WORDS, "--data-dir", str(data_dir), "--out", str(tmp_path / "one")]) == 0
    finished(pair)
    assert_same(rows(tmp_path / "pair"), rows(tmp_path / "one"))


def test_validation_is_filled_up_to_equal_parts_and_what_fills_weighs_nothing():
    places, shares, size = batches._filled(5, 4, Devices(2))
    assert (places.tolist(), size) == ([0, 1, 2, 3, 4, 0, 1, 2], 4)
    np.testing.assert_allclose(shares, [8 / 5] * 5 + [0] * 3)  # a mean over 8 is that over 5
    places, shares, size = batches._filled(5, 4, Devices(2, process=1, processes=2))
    assert (places.tolist(), size) == ([1, 3, 0, 2], 2)
    np.testing.assert_allclose(shares, [8 / 5, 8 / 5, 0, 0])
    assert batches._filled(3, 64, Devices(2))[2] == 4  # a batch is no larger than needed


def test_one_device_shares_nothing():
    ONE.check(7)
    assert ONE.gathered("hello") == ["hello"]
    with pytest.raises(UserError, match="--set batch_size=32"):
        Devices(count=4).check(33)


@pytest.mark.parametrize("jobs", ["a:1,a:1", "a,b", "a:1,", "a:one,b:2"])
def test_places_that_are_none_are_said_at_once(jobs, monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    monkeypatch.setattr(keras.distribution, "initialize", None)
    with pytest.raises(UserError, match=f"a place of its own each. Received: {jobs}"):
        join(jobs.split(","), 0)


def test_sigterm_still_stops_a_process_that_joined():
    script = (
        "import os, signal, sys, time; from tfface.training.distribute import join; join(sys.argv[1:], 0); "
        "signal.raise_signal(signal.SIGTERM); time.sleep(1)"
    )
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script, f"localhost:{free_port()}"]
    assert subprocess.run(command, env=environment, capture_output=True, timeout=120).returncode == -signal.SIGTERM


def test_only_jax_joins_machines():
    with pytest.raises(UserError, match="KERAS_BACKEND=jax"):
        join(["a:1", "b:1"], 0)
