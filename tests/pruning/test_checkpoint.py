"""`tfface prune`: a file or a run becomes a smaller network and a table; what cannot be is one line."""

import json
import shutil
from dataclasses import dataclass
from typing import ClassVar

import keras
import numpy as np
import pytest
from keras import layers

from tfface import labels, tasks
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation.evaluate import evaluate
from tfface.evaluation.predictions import predict_split
from tfface.evaluation.run_report import _learnt_from
from tfface.pruning import checkpoint
from tfface.pruning.checkpoint import prune_checkpoint, table
from tfface.pruning.retrain import Retraining
from tfface.recipes import RECIPES, Recipe
from tfface.training.fit import fit
from tfface.training.run import Run


def network(width=32):
    inputs = layers.Input((24, 24, 3))
    x = layers.Conv2D(width, 3, strides=2, name="stem")(layers.Rescaling(1 / 127.5, -1)(inputs))
    x = layers.ReLU()(layers.BatchNormalization(name="norm")(x))
    x = layers.Conv2D(width, 3, strides=2, activation="relu", name="second")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, {"gender": layers.Dense(2, activation="softmax", name="gender")(x)}, name="toy")


@dataclass(frozen=True)
class Toy(Recipe):
    """A recipe of seconds."""

    name: ClassVar[str] = "toy"
    data: str = "synthetic_faces/small"
    image_size: tuple = (24, 24)
    epochs: int = 2
    batch_size: int = 16

    def tasks(self):
        return (tasks.classification("gender", labels.GENDERS),)

    def model(self):
        return network()

    def optimizer(self, model, steps):
        return keras.optimizers.Adam(self.learning_rate)


@pytest.fixture(autouse=True)
def few_repeats(monkeypatch):
    monkeypatch.setattr(checkpoint, "REPEATS", 1)


@pytest.fixture(scope="module")
def run(data_dir, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "toy", Toy)
        yield fit(Toy(), tmp_path_factory.mktemp("runs") / "toy", data_dir, verbose=0)


@pytest.fixture
def file(tmp_path):
    keras.utils.set_random_seed(0)
    model = network(64)
    model.save(tmp_path / "toy.keras")
    return tmp_path / "toy.keras"


def rows_of(result):
    return {row["name"]: row for row in result["rows"]}


def test_a_file_becomes_a_smaller_plain_model(file, monkeypatch):
    monkeypatch.setattr(checkpoint, "model_fingerprint", None)  # of a network that nobody trains it is not needed
    monkeypatch.setattr(checkpoint, "latency", lambda *_: [0.02, 0.008])
    result = prune_checkpoint(file, 0.5)
    folder = file.parent / "toy-pruned"
    assert {path.name for path in folder.iterdir()} == {"pruned.keras", "pruned.json"}
    assert json.loads((folder / "pruned.json").read_text())["rows"] == result["rows"]
    assert result["groups"] == {"stem": [64, 32], "second": [64, 32]}
    model = keras.saving.load_model(folder / "pruned.keras")
    assert not model.compiled
    assert model.count_params() == network(32).count_params()
    rows = rows_of(result)
    assert rows["parameters"]["pruned"] == model.count_params()
    # 11 x 11 positions of 3 x 3 x 3 filters, 5 x 5 of 3 x 3 x width, and the head.
    assert rows["multiply-adds"]["base"] == 121 * 27 * 64 + 25 * 9 * 64 * 64 + 2 * 64
    assert rows["multiply-adds"]["pruned"] == 121 * 27 * 32 + 25 * 9 * 32 * 32 + 2 * 32
    assert rows["multiply-adds"]["speed_up"] == pytest.approx(1_130_816 / 335_008)
    assert rows["file, MB"]["pruned"] == pytest.approx((folder / "pruned.keras").stat().st_size / 1e6)
    assert rows["file, MB"]["base"] == pytest.approx(file.stat().st_size / 1e6, rel=0.01)
    assert rows["batch of 8, ms"] == {"name": "batch of 8, ms", "base": 20.0, "pruned": 8.0, "speed_up": 2.5}
    assert result["run"] == ""
    lines = table(result).splitlines()
    assert lines[0] == "| l1 0.5 by layer | base | pruned | delta | speed-up |"
    assert lines[3] == "| multiply-adds | 1,130,816 | 335,008 | -70.4% | 3.38 |"
    assert lines[-1].startswith("speed-up: how many times as fast as the base.")
    accuracy = {"name": "gender accuracy", "base": 0.95, "pruned": 0.9375, "speed_up": None}
    assert table({**result, "rows": [accuracy]}).splitlines()[2] == "| gender accuracy | 0.95 | 0.9375 | -0.0125 |  |"


def test_files_beside_the_results_stay(file):
    base = file.rename(file.with_name("base.keras"))
    prune_checkpoint(base, 0.5, out=file.parent)
    assert {path.name for path in file.parent.iterdir()} == {"base.keras", "pruned.keras", "pruned.json"}
    before = (file.parent / "pruned.keras").read_bytes()
    with pytest.raises(UserError, match="take the place of its source"):
        prune_checkpoint(file.parent / "pruned.keras", 0.5, out=file.parent)
    assert (file.parent / "pruned.keras").read_bytes() == before


@pytest.mark.parametrize("named", [False, True])
def test_a_model_of_several_inputs(named, tmp_path):
    image, words = layers.Input((8, 8, 3), name="image"), layers.Input((4,), name="words", dtype="int32")
    seen = layers.GlobalAveragePooling2D()(layers.Conv2D(16, 3)(image))
    both = layers.Concatenate()([seen, layers.Flatten()(layers.Embedding(5, 16)(words))])
    inputs = {"words": words, "image": image} if named else [image, words]
    keras.Model(inputs, layers.Dense(2)(both)).save(tmp_path / "two.keras")
    assert rows_of(prune_checkpoint(tmp_path / "two.keras", 0.5))["batch of 8, ms"]["speed_up"] > 0


def test_what_is_left_of_a_run_is_trained_and_measured_as_the_run_was(run, data_dir, tmp_path):
    options = {"exclude": ["stem"], "finetune": 1, "data_dir": data_dir, "out": tmp_path}
    result = prune_checkpoint(run.folder, 0.25, "taylor", "global", **options)
    assert result["groups"] == {"stem": [32, 32], "second": [32, 24]}
    assert result["data"].startswith("synthetic_faces/small")
    assert table(result).startswith("| taylor 0.25 by global, epochs: 1 | base |")
    assert len((tmp_path / "training" / "metrics.jsonl").read_text().splitlines()) == 1
    with pytest.raises(UserError, match=f"holds runs; name one of them: {result['run']}"):
        Run(tmp_path).config()
    learnt = _learnt_from(Run(result["run"]))
    assert learnt.endswith(
        ", its network pruned (method taylor, ratio 0.25, scope global, multiple_of 8, exclude ['stem'])"
    )
    accuracy = rows_of(result)["gender accuracy"]
    known = evaluate(predict_split(run, "test", data_dir=data_dir, progress=False))
    assert accuracy["base"] == known["tasks"]["gender"]["accuracy"]["value"]
    trained = keras.saving.load_model(tmp_path / "pruned.keras")
    assert not trained.compiled
    assert rows_of(result)["file, MB"]["pruned"] < rows_of(result)["file, MB"]["base"]
    cut = keras.saving.load_model(run.trained_file, compile=False)
    assert trained.get_layer("second").filters == 24
    assert np.abs(trained.get_layer("stem").get_weights()[0] - cut.get_layer("stem").get_weights()[0]).max() > 0


def test_dropout_of_a_run_that_is_trained_on_has_the_seed_of_its_recipe(run, tmp_path, monkeypatch):
    """Else a fine-tuning that was killed in its first epoch, or is made again, would come to other weights."""
    drawn = []

    class Stop(Exception):
        pass

    def model(self, float32=True):
        drawn.append(keras.ops.convert_to_numpy(layers.Dropout(0.5).seed_generator.state).tolist())
        raise Stop

    monkeypatch.setattr(Run, "model", model)
    for _ in range(2):
        with pytest.raises(Stop):
            prune_checkpoint(run.folder, 0.25, finetune=1, out=tmp_path)
    assert drawn[0] == drawn[1]


def test_what_is_left_of_another_network_is_not_the_same_training(run, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "latency", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(Retraining, "figures", lambda *_: {})
    again = Run(shutil.copytree(run.folder, tmp_path / "run"))
    prune_checkpoint(again.folder, 0.25, finetune=1, data_dir=data_dir)
    model = again.model()
    model.get_layer("stem").set_weights([2 * weight for weight in model.get_layer("stem").get_weights()])
    again.save_trained(model)
    with pytest.raises(UserError, match=r"holds a run with other choices \(model was .*network"):
        prune_checkpoint(again.folder, 0.25, finetune=1, data_dir=data_dir)


def test_what_is_left_is_fitted_to_the_whole_network(file, data_dir, tmp_path):
    keep = prune_checkpoint(file, 0.5, out=tmp_path / "plain")
    fitted = prune_checkpoint(
        file, 0.5, out=tmp_path / "fitted", reconstruct="synthetic_faces/small", faces=96, data_dir=data_dir
    )
    assert fitted["groups"] == keep["groups"]
    assert fitted["reconstruct"] == "synthetic_faces/small"
    assert table(fitted).startswith("| l1 0.5 by layer, reconstructed | base |")
    whole, plain, fitted = (
        keras.saving.load_model(each) for each in (file, keep["file"], tmp_path / "fitted" / "pruned.keras")
    )
    images = np.stack([each["image"] for each in _faces(data_dir)])
    answers = [model.predict(images, verbose=0)["gender"] for model in (whole, plain, fitted)]
    assert np.abs(answers[2] - answers[0]).mean() < 0.5 * np.abs(answers[1] - answers[0]).mean()


def _faces(data_dir):
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    rows = pipeline.examples(builder, "test").take(32)
    return rows.map(lambda row: {"image": pipeline.decode(row["image"], (24, 24))}).as_numpy_iterator()


def test_a_training_on_a_schedule_goes_on_where_it_was_killed(run, data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "latency", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(Retraining, "figures", lambda *_: {})
    save = Run.save_state

    def killed(self, model, history):
        save(self, model, history)
        raise KeyboardInterrupt

    def prune(name, ratio=0.5):
        result = prune_checkpoint(
            run.folder, ratio, schedule="polynomial", finetune=2, data_dir=data_dir, out=tmp_path / name
        )
        assert result["run"] == ""
        return keras.saving.load_model(tmp_path / name / "pruned.keras")

    unbroken = prune("unbroken")
    assert unbroken.count_params() == network(16).count_params()
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", killed)
        with pytest.raises(KeyboardInterrupt):
            prune("killed")
    # A third call has nothing left to train and comes to the same network.
    for model in (prune("killed"), prune("killed")):
        for a, b in zip(model.get_weights(), unbroken.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    with pytest.raises(UserError, match="other choices"):
        prune("killed", ratio=0.25)


@pytest.mark.parametrize("name", ["constant", "polynomial"])
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 5001])
def test_a_schedule_comes_to_its_ratio_by_half_of_the_steps(name, steps):
    schedule = checkpoint._schedule(name, 0.5, steps)
    due = 1 + np.flatnonzero(schedule(np.arange(1, steps + 1))[0])
    assert 1 <= len(due) <= checkpoint.UPDATES
    assert len(due) > checkpoint.UPDATES / 2 or steps < 2 * checkpoint.UPDATES
    assert due[-1] < steps / 2 + schedule.frequency
    assert float(schedule(due[-1])[1]) == pytest.approx(0.5)
    assert (float(schedule(due[0])[1]) < 0.49) == (name == "polynomial" and len(due) > 1)


def test_what_cannot_be_is_one_line(file, run, tmp_path, data_dir, monkeypatch):
    def refused(words, source=file, ratio=0.5, **options):
        with pytest.raises(UserError, match=words) as error:
            prune_checkpoint(source, ratio, **options)
        assert "\n" not in str(error.value)

    refused("between 0 and 1", ratio=1.0)
    refused("between 0 and 1", ratio=0.0)
    refused("no model at", source=tmp_path / "absent.keras")
    (tmp_path / "damaged.keras").write_bytes(b"PK no model")
    refused("cannot be read", source=tmp_path / "damaged.keras")
    refused("No run is in", source=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "importance", None)  # before anything is measured or trained
        refused("Nothing can be written to", out=tmp_path / "damaged.keras" / "pruned")
    refused("Unknown importance", method="l3")
    refused("Unknown scope", scope="everything")
    refused("Nothing to exclude", exclude=["absent"])
    refused("Nothing to leave untouched by 'absent'", untouched="absent")
    refused("comes to none", ratio=0.01)
    refused("--finetune", schedule="polynomial")
    refused("--finetune must be 0 epochs or more. Received: -1", source=run.folder, finetune=-1)
    refused("--faces must be 1 or more. Received: 0", reconstruct="synthetic_faces/small", faces=0, data_dir=data_dir)
    refused("constant or polynomial", schedule="linear")
    refused("without --schedule", schedule="polynomial", finetune=1, reconstruct="absent")
    with monkeypatch.context() as patch:
        patch.setattr(keras.backend, "backend", lambda: "jax")
        refused("KERAS_BACKEND is jax: unset it", schedule="polynomial", finetune=1)
    refused("is not prepared", reconstruct="absent", data_dir=data_dir)
    refused("one RGB image of a known size", reconstruct="synthetic_faces/small", input_shape=(24, 24, 1))
    for shape in ((9, 9, 3), (24, 24), (0, 0, 0)):
        refused(r"does not fit: expected \[\(24, 24, 3\)\]", input_shape=shape)
    keras.Sequential([layers.Input((None, None, 3)), layers.Conv2D(16, 3), layers.Conv2D(2, 3)]).save(
        tmp_path / "open.keras"
    )
    refused("give input_shape", source=tmp_path / "open.keras")
    refused(r"cannot take an input of shape \[\(4, 4, 3\)\]", source=tmp_path / "open.keras", input_shape=(4, 4, 3))
    for options in ({"data": "utkface"}, {"finetune": 1}, {"method": "taylor"}):
        refused("which a run has", **options)
    refused("is not prepared", source=run.folder, data="absent", data_dir=data_dir)
    keras.Sequential([layers.Input((4,)), layers.Dense(2)]).save(tmp_path / "whole.keras")
    refused("no channels to cut", source=tmp_path / "whole.keras")

    @keras.saving.register_keras_serializable("test_checkpoint")
    class Odd(layers.Layer):
        def call(self, x):
            return keras.ops.cumsum(x, -1)

    keras.Sequential([layers.Input((4,)), layers.Dense(16), Odd(name="odd"), layers.Dense(2)]).save(
        tmp_path / "odd.keras"
    )
    refused(r"'odd'.*register_rule", source=tmp_path / "odd.keras")
    assert not list(tmp_path.glob("*-pruned"))
