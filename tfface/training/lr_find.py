"""The learning-rate range test, for any compiled Keras 3 model, and for a recipe by its name."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import math
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np
from tqdm import tqdm

from tfface import files
from tfface.errors import UserError
from tfface.evaluation import plots

if TYPE_CHECKING:
    from tfface.recipes.recipe import Recipe

FEWEST_STEPS = 10


@dataclasses.dataclass(frozen=True)
class LearningRateCurve:
    """What a range test measured: the loss at each learning rate, and the learning rates that the curve suggests.

    A suggestion is None where the loss nowhere fell, or only among the first rates. They are starting points: `valley`
    and `steepest` for a constant or falling rate, `minimum_tenth` as a bold choice and for the peak of `OneCycle`.

    Attributes:
        rates: learning rate of each step, rising, float64 of shape (n,).
        losses: training loss of each step's batch, before its update, float64 of shape (n,).
        smoothed: bias-corrected exponential average of the losses, float64 of shape (n,).
        diverged: whether the test ended because the loss grew beyond bounds or was no longer finite.
    """

    rates: np.ndarray
    losses: np.ndarray
    smoothed: np.ndarray
    diverged: bool = False

    @property
    def steepest(self) -> float | None:
        """Where the smoothed loss falls fastest over the logarithm of the rate.

        The fall is taken over a tenth of the test at a time. Left out are the first fifth, whose average rests on few
        batches, and what follows the lowest point: a loss that has blown up falls again.
        """
        half = max(1, len(self.rates) // 20)
        places = np.arange(len(self.rates) // 5, min(int(np.argmin(self.smoothed)) + 1, len(self.rates) - half))
        falls = self.smoothed[places - half] - self.smoothed[places + half]
        return float(self.rates[places[np.argmax(falls)]]) if (falls > 0).any() else None

    @property
    def valley(self) -> float | None:
        """Two thirds of the way down the longest fall of the smoothed loss.

        The longest fall is the longest sequence of points, not necessarily neighbours, each lower than the one before:
        a bump does not end it. The idea is fastai's `valley`, the default suggestion of its `lr_find`.
        """
        first, last = _longest_fall(self.smoothed)
        # The average of a loss that stays falls too, by its rounding.
        fell = self.smoothed[first] - self.smoothed[last] > 1e-9 * abs(self.smoothed[first])
        return float(self.rates[first + round(2 / 3 * (last - first))]) if fell else None

    @property
    def minimum_tenth(self) -> float | None:
        """A tenth of the rate at which the smoothed loss is lowest; at that rate itself training hardly improves."""
        rate = float(self.rates[np.argmin(self.smoothed)] / 10)
        return rate if rate >= self.rates[0] else None

    @property
    def suggestions(self) -> dict[str, float | None]:
        """All suggestions by name."""
        return {"steepest": self.steepest, "valley": self.valley, "minimum_tenth": self.minimum_tenth}

    def plot(self, path: str | Path) -> Path:
        """Draw the curve, the suggestions marked on it; the file's ending says the format (.png, .svg, .pdf)."""
        return plots.save(_drawn(self), path)

    def to_json(self, path: str | Path) -> Path:
        """Write the suggestions and the curve."""
        return files.write_json(
            path,
            {
                "suggestions": self.suggestions,
                "diverged": self.diverged,
                "rates": self.rates.tolist(),
                "losses": self.losses.tolist(),
                "smoothed": self.smoothed.tolist(),
            },
        )


def find_learning_rate(
    model: keras.Model,
    data,
    lowest: float = 1e-7,
    highest: float = 10.0,
    steps: int = 100,
    smoothing: float = 0.98,
    stop_factor: float = 4.0,
    batch_size: int = 32,
    progress: bool = True,
) -> LearningRateCurve:
    """Train for some steps while the learning rate grows exponentially, watch the loss, and put everything back.

    The test runs `model.fit`, so it sees the loss, the mixed precision and the data of the training to come. Whatever
    the optimizer's learning rate is (a number, a schedule, a function), it stands aside for the test; factors of a
    discriminative optimizer apply to the tested rate as they would to it.

    Afterwards, also after an error or Ctrl-C, weights, the statistics of batch norms, the state of dropout and other
    seeds, the optimizer's variables (its `iterations`, so schedules have not moved), the learning rate and
    `model.history` are those of before, bit for bit, and metrics are reset. Not put back: the global generators of
    Python, NumPy and the backend, and what the data set itself remembers (a shuffled `tf.data` pipeline gives another
    order the second time).

    References: Smith, Cyclical Learning Rates for Training Neural Networks (WACV 2017), section 3.3; the defaults and
    the rule for stopping are those of fastai's `lr_find`.

    Args:
        model: any compiled model that is built, or whose own `train_step` trains layers that are.
        data: what `fit` takes: a `tf.data.Dataset`, a `keras.utils.PyDataset`, or a tuple `(x, y)` or `(x, y,
            sample_weight)` of arrays (or structures of arrays), which is shuffled. Read again from its start where it
            is shorter than the test; a Python generator must be long enough.
        lowest: learning rate of the first step.
        highest: learning rate of the last step.
        steps: steps in all, at least 10.
        smoothing: weight of the past in the average of the losses, in [0, 1). The average lags behind by up to
            1 / (1 - smoothing) steps.
        stop_factor: the test ends when the smoothed loss is this many times the lowest one (for a loss below zero: when
            it has risen as far).
        batch_size: examples in a batch, where `data` is a tuple of arrays.
        progress: show a bar on standard error, where that is a terminal.

    Returns:
        The curve, up to the step at which the loss diverged.

    Raises:
        UserError: an argument out of its range, a model that is not compiled or not built, has no optimizer with one
            learning rate, or whose own `train_step` gives no `loss`, data that end too early, or a loss that diverges
            before anything was learned.

    Example:
        curve = find_learning_rate(model, training_data)
        print(curve.suggestions)
        curve.plot("lr_find.png")
    """
    if not (0 < lowest < highest and steps >= FEWEST_STEPS and 0 <= smoothing < 1 and stop_factor > 1):
        raise UserError(
            f"A range test needs 0 < lowest < highest, steps >= {FEWEST_STEPS}, 0 <= smoothing < 1 and stop_factor > 1."
            f" Received: lowest={lowest}, highest={highest}, steps={steps}, smoothing={smoothing}, "
            f"stop_factor={stop_factor}."
        )
    # What only wraps others in a `train_step` of its own is never called, so never built: its layers must be.
    layers = list(model._flatten_layers(include_self=False))
    built = model.built or (bool(layers) and all(layer.built for layer in layers))
    if not model.compiled or not built:
        raise UserError(
            "A range test needs a model that is built and compiled as for training. Received: "
            f"compiled={model.compiled}, built={built}. Call model.compile(...), and the model on one batch."
        )
    if not hasattr(model.optimizer, "learning_rate"):  # one of several optimizers has none either
        raise UserError(
            "A range test needs a model that was compiled with an optimizer of one learning rate. Received: "
            f"{type(model.optimizer).__name__}."
        )
    bar = tqdm(total=steps, desc="learning rates", unit="step", disable=None if progress else True)
    test = _RangeTest(np.geomspace(lowest, highest, steps), smoothing, stop_factor, bar)
    arrays = isinstance(data, tuple)
    x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data) if arrays else (data, None, None)
    with bar, _put_back(model), _learning_rate_settable(model), warnings.catch_warnings():
        # As many epochs as it takes: fit reads the data again, and the callback ends the training. But of a Python
        # generator that has ended Keras would repeat the first two batches.
        warnings.filterwarnings("ignore", message="Your input ran out of data")
        model.fit(
            x,
            y,
            sample_weight=sample_weight,
            batch_size=batch_size if arrays else None,
            epochs=1 if isinstance(data, types.GeneratorType) else steps,
            shuffle=arrays or isinstance(data, keras.utils.PyDataset),
            callbacks=[test],
            verbose=0,
        )
    seen = len(test.losses)
    if not test.diverged and seen < steps:
        raise UserError(
            f"The data ended after {seen} of {steps} steps and could not be read again. Give a tf.data.Dataset, a "
            "keras.utils.PyDataset or arrays, or fewer steps."
        )
    if seen < FEWEST_STEPS:
        raise UserError(
            f"The loss diverged at step {seen + 1}, at a learning rate of {test.rates[seen]:.1e}: nothing can be read "
            f"from so few steps. Give a lowest rate below {lowest:g}, and check the loss and the data."
        )
    return LearningRateCurve(test.rates[:seen], np.array(test.losses), np.array(test.smoothed), test.diverged)


def find_for_recipe(
    recipe: Recipe,
    folder: str | Path,
    data_dir: str | Path | None = None,
    device: str = "auto",
    bfloat16: bool = False,
    steps: int = 100,
) -> LearningRateCurve:
    """Run the range test on what `tfface train` would train, and write `lr_find.json` and `lr_find.png`.

    Args:
        recipe: what to train; its own learning rate does not matter.
        folder: where the two files go.
        data_dir: where data sets are prepared; TFDS's own default if None.
        device: "auto", "cpu" or "gpu".
        bfloat16: compute frozen features in bfloat16 (see `cached_features`).
        steps: steps in all.

    Returns:
        The curve.

    Raises:
        UserError: as `fit` and `find_learning_rate` do.
    """
    # Here, so that the range test itself needs neither TFDS nor, on another backend, TensorFlow.
    from tfface.data import pipeline
    from tfface.training.batch_norm import fused_batch_norms
    from tfface.training.fit import device_name, prepared

    files.check_writable(folder)
    device_name(device)
    builder = pipeline.open_dataset(recipe.data, data_dir)
    ready = prepared(recipe.adapted(pipeline.class_names(builder)), builder, bfloat16, data_dir=data_dir)
    with fused_batch_norms(ready.model):
        curve = find_learning_rate(ready.model, ready.training(0), steps=steps)
    for name, rate in curve.suggestions.items():
        print(f"{name}: {'none, the loss did not fall' if rate is None else f'{rate:.2e}'}")
    print(f"curve: {curve.plot(Path(folder) / 'lr_find.png')}")
    curve.to_json(Path(folder) / "lr_find.json")
    return curve


class _RangeTest(keras.callbacks.Callback):
    """Set the rate of each step, note the loss of its batch, and end the training."""

    def __init__(self, rates: np.ndarray, smoothing: float, stop_factor: float, bar: tqdm):
        super().__init__()
        self.rates, self.smoothing, self.stop_factor, self.bar = rates, smoothing, stop_factor, bar
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.average, self.diverged = 0.0, False

    def on_train_batch_begin(self, batch, logs=None):
        model = self.model
        model.optimizer.learning_rate = float(self.rates[len(self.losses)])
        model.reset_metrics()  # the loss that Keras reports is the mean since the last reset

    def on_train_batch_end(self, batch, logs=None):
        if "loss" not in logs:
            raise UserError(
                "A range test watches the figure `loss` that each step gives: expected it from the model's train_step. "
                f"Received: {', '.join(logs) or 'none'}."
            )
        loss = float(logs["loss"])
        if math.isfinite(loss):
            self.losses.append(loss)
            self.average = self.smoothing * self.average + (1 - self.smoothing) * loss
            self.smoothed.append(self.average / (1 - self.smoothing ** len(self.losses)))
            best = min(self.smoothed)
            self.diverged = self.smoothed[-1] > best + (self.stop_factor - 1) * abs(best)
            rate = f"{self.rates[len(self.losses) - 1]:.1e}"
            self.bar.set_postfix(rate=rate, loss=f"{self.smoothed[-1]:.3g}", refresh=False)  # update draws it
            self.bar.update()
        else:
            self.diverged = True
        if self.diverged or len(self.losses) == len(self.rates):
            self.model.stop_training = True


@contextlib.contextmanager
def _put_back(model: keras.Model):
    """Leave the model and its optimizer as they were, however the block ends."""
    if not model.optimizer.built:
        with _scope(model):
            model.optimizer.build(model.trainable_variables)
    variables = [*model.variables, *model.optimizer.variables]
    values = [np.array(keras.ops.convert_to_numpy(variable.value)) for variable in variables]
    history = getattr(model, "history", None)
    try:
        yield
    finally:
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        model.reset_metrics()
        model.stop_training = False
        model.history = history


@contextlib.contextmanager
def _learning_rate_settable(model: keras.Model):
    """Let the optimizer's learning rate be a variable that is read at every step."""
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    kept = optimizer._learning_rate  # the public property gives this step's number only
    if isinstance(kept, keras.Variable) and model.steps_per_execution == 1:
        yield
        return
    train_function, steps_per_execution = model.train_function, model.steps_per_execution
    if not isinstance(kept, keras.Variable):
        with _scope(model):
            # The property cannot be set to a number while it holds a schedule.
            optimizer._learning_rate = keras.Variable(0.0, trainable=False, name="learning_rate")
    model.steps_per_execution = 1
    model.train_function = None  # traced with the schedule
    try:
        yield
    finally:
        if not isinstance(kept, keras.Variable):
            optimizer.learning_rate = kept
        model.train_function, model.steps_per_execution = train_function, steps_per_execution


def _scope(model: keras.Model):
    """Where variables of this model's training are made: tf.distribute's scope on TensorFlow."""
    strategy = getattr(model, "distribute_strategy", None)
    return strategy.scope() if strategy else contextlib.nullcontext()


def _longest_fall(values) -> tuple[int, int]:
    """First and last place of the longest strictly falling subsequence (the earliest to end), by patience sorting."""
    lowest, places, starts = [], [], []  # for each length: the highest last value, negated; its place; where it starts
    longest = (0, 0)
    for place, value in enumerate(values):
        length = bisect.bisect_left(lowest, -value)
        start = starts[length - 1] if length else place
        if length == len(lowest):
            lowest.append(-value), places.append(place), starts.append(start)
            longest = (start, place)
        else:
            lowest[length], places[length], starts[length] = -value, place, start
    return longest


@plots.styled
def _drawn(curve: LearningRateCurve):
    figure = plots.Figure(figsize=(7.6, 3.6), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.losses, ".", color=plots.INK, alpha=0.25, markersize=4, label="batch")
    axes.plot(curve.rates, curve.smoothed, color=plots.BLUE, label="smoothed")
    for (name, rate), colour in zip(curve.suggestions.items(), plots.LIGHT[4:], strict=True):
        if rate is not None:
            axes.axvline(rate, color=colour, linewidth=1)
            height = np.interp(np.log(rate), np.log(curve.rates), curve.smoothed)
            label = f"{name.replace('minimum_tenth', 'minimum / 10')}: {rate:.1e}"
            axes.plot(rate, height, "o", color=colour, markersize=7, label=label)
    # Where the loss has blown up says nothing more: the fall before it fills the picture.
    lowest = int(np.argmin(curve.smoothed))
    low, high = curve.smoothed[lowest], curve.smoothed[: lowest + 1].max()
    margin = 0.35 * (high - low) or 0.1 * abs(high) or 1.0
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + margin))
    axes.set_title("Learning-rate range test")
    figure.legend(loc="outside right upper", fontsize=8)
    return figure
