"""Training on several devices of one machine (TensorFlow or JAX), and on several machines (JAX)."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import keras
import numpy as np

from tfface import files
from tfface.errors import UserError
from tfface.models.saved import copy_weights

NOTE = 1000  # bytes that each process says to the others at a time


@dataclass(frozen=True)
class Devices:
    """The devices that a training runs on: each takes an equal part of every batch.

    Attributes:
        count: devices of all processes together.
        process, processes: which process this is, of how many; the same number of devices belongs to each.
        scope: makes a context manager in which the network and its optimizer are made and `fit` is called.
    """

    count: int = 1
    process: int = 0
    processes: int = 1
    scope: Callable[[], AbstractContextManager] = contextlib.nullcontext

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.process == 0

    def check(self, batch_size: int) -> None:
        """Raise a UserError where a batch cannot be shared evenly."""
        if batch_size % self.count:
            raise UserError(
                f"A batch of {batch_size} examples cannot be shared evenly by {self.count} devices. Name another batch "
                f"size, such as --set batch_size={self.count * max(1, batch_size // self.count)}."
            )

    def alone(self, model: keras.Model) -> keras.Model:
        """The same network outside the scope, for what each process computes by itself; `model` on one device."""
        if self.count == 1:
            return model
        copy = keras.models.clone_model(model)
        copy_weights(model, copy)
        return copy

    @contextlib.contextmanager
    def one_at_a_time(self):
        """Let one process of a machine (or of a shared $TFFACE_HOME) fill the cache; the next ones find it filled."""
        if self.processes == 1:
            yield
            return
        lock = files.home() / "features.lock"
        lock.parent.mkdir(parents=True, exist_ok=True)
        with open(lock, "w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def gathered(self, note: str) -> list[str]:
        """What every process says here, at most `NOTE` bytes each, in their order."""
        if self.processes == 1:
            return [note]
        from jax.experimental import multihost_utils

        said = np.frombuffer(note.encode()[:NOTE].ljust(NOTE), "uint8")
        return [bytes(row).decode(errors="ignore").rstrip() for row in multihost_utils.process_allgather(said)]

    def same(self, what: str, value) -> None:
        """Raise a UserError in every process where one has another value (of what `json` can write) than the others."""
        said = self.gathered(hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest())
        if len(set(said)) > 1:
            raise UserError(f"The processes disagree on {what}: give all the same command and the same files.")

    def together(self, act: Callable):
        """Call `act` in every process; a UserError in one is raised in all, or they would wait for it for ever."""
        result, complaint = None, ""
        try:
            result = act()
        except UserError as error:
            if self.processes == 1:
                raise
            complaint = str(error)
        said = [f"Process {index}: {note}" for index, note in enumerate(self.gathered(complaint)) if note]
        if said:
            raise UserError(" ".join(said))
        return result


ONE = Devices()
"""One device: nothing is distributed."""


def join(jobs: Sequence[str], index: int) -> None:
    """Make this process one of several that train together; to be called before anything is computed.

    Args:
        jobs: `host:port` of every process, in the same order everywhere; the first one coordinates.
        index: which of them this process is, from 0.

    Raises:
        UserError: another backend than JAX, jobs that are no places or twice the same one, an index that is not one of
            them, or others that do not come.
    """
    if keras.backend.backend() != "jax":
        raise UserError(
            "Several machines train together on Keras' JAX backend. Received: the backend "
            f"{keras.backend.backend()}. Set KERAS_BACKEND=jax. (TensorFlow's MultiWorkerMirroredStrategy fails in "
            "Keras 3.15's fit and is not offered.)"
        )
    if len(set(jobs)) < len(jobs) or not all(re.fullmatch(r"\S+:[0-9]{1,5}", job) for job in jobs):
        # JAX would wait for minutes for a process that cannot come, and hear no Ctrl-C meanwhile.
        raise UserError(f"--jobs must be HOST:PORT,HOST:PORT,..., a place of its own each. Received: {','.join(jobs)}.")
    if not 0 <= index < len(jobs):
        raise UserError(f"--job-index must be in 0 to {len(jobs) - 1}, a place in --jobs. Received: {index}.")
    import jax

    jax.config.update("jax_enable_preemption_service", False)  # it takes SIGTERM for itself, and nothing ends by it
    try:
        keras.distribution.initialize(",".join(jobs), len(jobs), index)
    except RuntimeError as error:
        raise UserError(
            f"Process {index} could not join {jobs[0]}: {str(error).splitlines()[0]}. Start the same command on all "
            "machines within five minutes, and check that they reach that port."
        ) from error


def several(count: int, device: str = "auto") -> Devices:
    """Devices to train on; to be called before anything is computed.

    Args:
        count: devices of this process; in a training that `join` made one of several, all that there are.
        device: "auto" or "gpu": accelerators; "cpu": as many logical devices on the processor, which is a rehearsal of
            the real thing and no faster than one.

    Raises:
        UserError: fewer devices than asked for, or none asked for.
    """
    if count < 1:
        raise UserError(f"--devices must be 1 or more. Received: {count}.")
    if keras.backend.backend() == "jax":
        return _several_jax(count, device)
    if count == 1:
        return ONE
    import tensorflow as tf

    if device == "cpu":
        processor = tf.config.list_physical_devices("CPU")[0]
        # An error where TensorFlow has computed something already: then the devices are what they are.
        with contextlib.suppress(RuntimeError):
            tf.config.set_logical_device_configuration(processor, [tf.config.LogicalDeviceConfiguration()] * count)
    found = tf.config.list_logical_devices("CPU" if device == "cpu" else "GPU")
    _check(count, len(found), device)
    strategy = tf.distribute.MirroredStrategy([one.name for one in found[:count]])
    return Devices(count, scope=strategy.scope)


def _several_jax(count: int, device: str) -> Devices:
    import jax
    import tensorflow as tf

    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")  # TensorFlow reads the data here, and would take the GPU's memory
    kind, joined = "cpu" if device == "cpu" else None, jax.distributed.is_initialized()
    if count == 1 and not joined:
        return ONE
    if kind and not joined:
        with contextlib.suppress(RuntimeError):
            jax.config.update("jax_num_cpu_devices", count)
    names = keras.distribution.list_devices(kind)
    if not joined:
        _check(count, len(names) if kind or not names[0].startswith("cpu") else 0, device)
        names = names[:count]
    # Our batches are shared out before they are decoded; Keras would have every process decode all of them.
    distribution = keras.distribution.DataParallel(devices=names, auto_shard_dataset=False)
    return Devices(len(names), jax.process_index(), jax.process_count(), distribution.scope)


def _check(count: int, found: int, device: str) -> None:
    if found >= count:
        return
    kind = "logical devices of the processor" if device == "cpu" else "accelerators"
    hint = (
        "Ask for them before anything else is computed in this process."
        if device == "cpu"
        else "Check `tfface doctor`; `--device cpu` rehearses on the processor."
    )
    raise UserError(f"{count} devices were asked for, {found} {kind} were found. {hint}")
