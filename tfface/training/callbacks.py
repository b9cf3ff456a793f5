"""What acts during `fit`."""

from __future__ import annotations

import time

import keras

from tfface.errors import UserError
from tfface.training.run import Run


class Recorder(keras.callbacks.Callback):
    """At each epoch's end: keep the best model, then save the whole state, then stop if nothing was gained for long.

    The state is saved last, so a kill in between repeats the epoch and comes to the same result. When to stop is read
    from the saved rows, so a resumed run stops where an unbroken one would.

    Args:
        run: the run to write to.
        whole: the network that is kept: the layers of the one that is trained, with every output.
        history: rows of the epochs that are done.
        monitor: the figure that chooses the best epoch; the higher the better if it is an accuracy or a cosine, else
            the lower.
        patience: epochs without a better figure after which training stops; 0: never.
        writes: False in all but the first of several processes, which stop together but write nothing.
    """

    def __init__(
        self, run: Run, whole: keras.Model, history: list[dict], monitor: str, patience: int, writes: bool = True
    ):
        super().__init__()
        self.writes = writes
        self.run, self.whole, self.history, self.monitor, self.patience = run, whole, history, monitor, patience

    def on_epoch_begin(self, epoch, logs=None):
        self.started = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        row = {name: float(value) for name, value in logs.items()}
        if self.monitor not in row:
            raise UserError(f"monitor must be one of {', '.join(sorted(row))}. Received: {self.monitor}.")
        if not all(value == value for value in row.values()):
            raise FloatingPointError(f"Epoch {epoch} ended with NaN: {row}")
        row = {"epoch": epoch, **row, "seconds": round(time.monotonic() - self.started, 3)}
        best = not self.history or self._badness(row) < min(map(self._badness, self.history))
        if best and self.writes:
            # A model around the same layers that was never compiled: the optimizer's state stays out of the file.
            bare = keras.Model(self.whole.input, self.whole.output, name=self.whole.name)
            self.run.save_trained(bare)
        self.history.append(row)
        if self.writes:
            self.run.save_state(self.model, self.history)
        if self.exhausted():  # else what another callback asked for stands
            self.model.stop_training = True

    def best_epoch(self) -> int:
        """Epoch with the best monitored figure."""
        return min(self.history, key=self._badness)["epoch"]

    def _badness(self, row: dict) -> float:
        return -row[self.monitor] if self.monitor.endswith(("accuracy", "cosine")) else row[self.monitor]

    def exhausted(self) -> bool:
        """Whether `patience` epochs went by without a better figure."""
        return bool(self.patience and self.history and self.history[-1]["epoch"] - self.best_epoch() >= self.patience)
