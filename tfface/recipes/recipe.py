"""What every recipe has: the choices of one paper as plain values, its network, its optimizer, published figures."""

from __future__ import annotations

import ast
import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import keras

from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.tasks import Task

AT_LEAST_0 = (lambda value: value >= 0), "0 or more"
AT_LEAST_1 = (lambda value: value >= 1), "1 or more"
ABOVE_0 = (lambda value: value > 0), "above 0"
SHARE = (lambda value: 0 <= value <= 1), "between 0 and 1"
SHARE_ABOVE_0 = (lambda value: 0 < value <= 1), "above 0 and at most 1"

RANGES = {
    "image_size": (
        lambda sides: len(sides) == 2 and all(type(side) is int and 1 <= side <= 4096 for side in sides),
        "height and width in whole pixels, 1 to 4096",
    ),
    "views": (
        lambda views: len(views) > 0 and all(0 < zoom <= 1 for zoom, _ in views),
        "one or more of (zoom, mirror), each zoom above 0 and at most 1",
    ),
    "random_crop": SHARE_ABOVE_0,
    "occluded": SHARE,
    "worn_masks": SHARE,
    "distill_share": SHARE_ABOVE_0,
    "noise": AT_LEAST_0,
    "mixup": AT_LEAST_0,
    "label_smoothing": ((lambda value: 0 <= value < 1), "at least 0 and below 1"),
    "epochs": AT_LEAST_1,
    "schedule_scale": ABOVE_0,
    "patience": AT_LEAST_0,
    "batch_size": AT_LEAST_1,
    "learning_rate": ABOVE_0,
    "seed": ((lambda value: 0 <= value < 1 << 32), "at least 0 and below 2**32"),
}
"""Field of every recipe -> whether a value is within its range, and that range in words."""


@dataclass(frozen=True)
class Recipe:
    """One paper's choices. Every field is a plain value that `--set field=value` may change.

    Attributes:
        name, title: its name on the command line and in a report.
        variants: name -> changed fields; the paper's own rows and ablations, and ours.
        published: rows (task, metric, value, where it stands), in the paper and elsewhere.
        published_pairs: rows (data set of pairs, accuracy, where it stands).
        pairs: data sets of pairs that an embedding is measured on, names as `tfface verify --data` takes them.
        licences: what the recipe stands on -> its licence.
        data: prepared data set that it trains on, `name` or `name/config`; several joined by "+"; "@" and
            a grouping of classes (`labels.GROUPINGS`) behind its name joins and leaves out classes.
        extra_data: further prepared data sets whose training faces are learnt too, named as `data`; a label that they
            lack takes no part, or is taught (`distill_from`). Validation and test are those of `data` alone. Empty for
            none.
        train_split, validation_split: its splits to train on and to choose the epoch by.
        image_size: `(height, width)` that the network takes, pixels.
        train_from: name of the layer after which the network is trained; what lies before is frozen and its output is
            computed once for each view and cached. Empty: everything is trained, from pixels.
        views: how training images are looked at: a pair `(zoom, mirror)` each; one is drawn for each image and epoch.
        test_mirror: average the outputs for an image and for its mirror image when evaluating and predicting.
        oversample: label -> how often an example of each class is shown in an epoch (training split only).
        random_crop: least share of each side that is kept by a crop at a random place, in (0, 1] (training from pixels
            only; the share is drawn for each image, 1 keeps everything).
        occluded: share of the training faces that are covered by an occluder at random, in [0, 1]; 2/3 in paper 5
            (training from pixels only).
        worn_masks: share of the covered ones that wear a mask over nose and mouth instead, in [0, 1]; for faces that
            were aligned.
        teacher: pretrained network whose embeddings are learnt by an output `embedding`: "facenet", or empty for none.
        teacher_data: prepared data set with the same photos, cut as the teacher knows faces; `data` if empty.
        distill_from: folder of a finished run whose outputs are learnt too: the targets are its outputs and the labels,
            mixed, and its outputs alone where joined data sets lack a label; empty for none.
        distill_share: share of its outputs in the targets, in (0, 1].
        noise: standard deviation of the noise added to pixels, in grey levels of 0 to 255 (training from pixels only).
        mixup: alpha of mixup (Zhang et al., ICLR 2018): two images of a batch and their targets are blended, with a
            share drawn from Beta(alpha, alpha); 0 for none (training from pixels only, where every label is known or
            taught).
        label_smoothing: share of each target that is spread evenly over all classes, of what is learnt by
            cross-entropy, in [0, 1) (Szegedy et al., CVPR 2016, section 7).
        epochs: passes over the (oversampled) training split in the paper.
        schedule_scale: share of the paper's schedule that is run: epochs, and steps of the learning rate's schedule,
            shrink alike.
        patience: epochs without a better validation score after which training ends; 0 runs all epochs.
        monitor: validation figure that chooses the epoch that is kept: the highest of an accuracy or a cosine, else the
            lowest.
        precision: Keras' dtype policy of the layers: "float32", or "mixed_bfloat16" or "mixed_float16" on devices that
            are faster so; weights, outputs and losses stay float32.
        batch_size: examples a step.
        learning_rate: learning rate at the start.
        initial: folder of a finished run, or a `.keras` file, from whose layers this one starts, wherever a layer of
            the same name has the same shapes; empty: from the network as the recipe builds it.
        seed: seed of initial values, order, views and dropout.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    variants: ClassVar[Mapping[str, Mapping]] = {}
    published: ClassVar[tuple[tuple[str, str, float, str], ...]] = ()
    published_pairs: ClassVar[tuple[tuple[str, float, str], ...]] = ()
    licences: ClassVar[Mapping[str, str]] = {}

    data: str = ""
    extra_data: str = ""
    train_split: str = "train"
    validation_split: str = "validation"
    image_size: tuple[int, int] = (224, 224)
    train_from: str = ""
    views: tuple[View, ...] = (View(), View(mirror=True))
    test_mirror: bool = False
    oversample: dict[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    random_crop: float = 1.0
    occluded: float = 0.0
    worn_masks: float = 0.0
    teacher: str = ""
    teacher_data: str = ""
    distill_from: str = ""
    distill_share: float = 0.5
    noise: float = 0.0
    mixup: float = 0.0
    label_smoothing: float = 0.0
    epochs: int = 1
    schedule_scale: float = 1.0
    patience: int = 0
    monitor: str = "val_loss"
    precision: str = "float32"
    batch_size: int = 32
    learning_rate: float = 1e-3
    initial: str = ""
    pairs: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self):
        weights = [field.name for field in dataclasses.fields(self) if field.name.endswith("_weight")]
        for name, (within, words) in {**RANGES, **dict.fromkeys(weights, AT_LEAST_0)}.items():
            if not within(getattr(self, name)):
                raise UserError(f"{name} must be {words}. Received: {getattr(self, name)}.")

    def tasks(self) -> tuple[Task, ...]:
        """What the network's outputs learn."""
        raise NotImplementedError

    def model(self) -> keras.Model:
        """The whole network, from pixels to the tasks' outputs, pretrained where the recipe says so."""
        raise NotImplementedError

    def optimizer(self, model: keras.Model, steps: int) -> keras.optimizers.Optimizer:
        """A fresh optimizer with the paper's schedule, for training `model` (or a part of it) over `steps` steps."""
        raise NotImplementedError

    def carried(self, model: keras.Model, carried: list[str], fresh: list[str]) -> None:
        """Make a network ready whose layers `carried` hold the weights of `initial`; `fresh` are its others."""

    def adapted(self, classes: Mapping[str, tuple[str, ...]]) -> Recipe:
        """The recipe for a data set with these classes.

        Args:
            classes: label -> class names of the data set, in the order of their integers.

        Raises:
            UserError: a label that the recipe learns is not there, or has other classes.
        """
        for task in self.tasks():
            names = classes.get(task.label)
            if task.classes and not task.is_age and (names is None or len(names) != len(task.targets)):
                others = f" (it has {', '.join(classes)})" if classes else ""
                received = f"{len(names)} ({', '.join(names)})" if names else f"none of that name{others}"
                raise UserError(
                    f"The recipe {self.name} learns {task.label} with {len(task.targets)} classes. Received: a data "
                    f"set with {received}. Name another data set with --data; the recipe gender learns any classes."
                )
        return self

    def search_space(self, trial) -> dict:
        """The fields that a sweep changes, each drawn from its range.

        Args:
            trial: what draws, by `suggest_float`, `suggest_int` and `suggest_categorical`: an `optuna.Trial`. What is
                drawn bears the field's name.

        Returns:
            Field -> value, for `changed`.

        Raises:
            UserError: the recipe has no search space.
        """
        raise UserError(f"The recipe {self.name} has no search space: it cannot be swept. Sweep another, such as arg.")

    @property
    def test_views(self) -> tuple[View, ...]:
        """Views whose outputs are averaged."""
        return (View(), View(mirror=True)) if self.test_mirror else (View(),)

    @property
    def run_epochs(self) -> int:
        """Epochs that are run at most: the paper's, scaled."""
        return max(1, round(self.epochs * self.schedule_scale))

    def tiny(self) -> Recipe:
        """The same recipe shrunk to seconds, for tests and the demo.

        Raises:
            UserError: the recipe has no tiny form.
        """
        raise UserError(f"The recipe {self.name} has no tiny form. Leave --tiny out, or shrink it by --set.")

    def changed(self, **changes) -> Recipe:
        """A copy with other values.

        Raises:
            UserError: a field that the recipe has not, or a value of another kind.
        """
        fields = {field.name for field in dataclasses.fields(self)}
        for name in changes:
            if name not in fields:
                near = difflib.get_close_matches(name, fields, n=1)
                hint = f" Did you mean {near[0]}?" if near else ""
                raise UserError(
                    f"The recipe {self.name} has no field {name}.{hint} Valid fields: {', '.join(sorted(fields))}."
                )
        return dataclasses.replace(self, **changes)

    def variant(self, name: str) -> Recipe:
        """The recipe as one of its named variants.

        Raises:
            UserError: no such variant.
        """
        if name not in self.variants:
            raise UserError(
                f"The recipe {self.name} has no variant {name}. Valid variants: {', '.join(self.variants)}."
            )
        return dataclasses.replace(self, **self.variants[name])

    def to_json(self) -> dict:
        """Every field as plain JSON values."""
        return {"recipe": self.name, **dataclasses.asdict(self)}

    @classmethod
    def from_json(cls, values: Mapping) -> Recipe:
        """The recipe that `to_json` described."""
        values = {key: value for key, value in values.items() if key != "recipe"}
        for field in dataclasses.fields(cls):
            if field.name in values:
                values[field.name] = _restore(field.name, values[field.name])
        return cls().changed(**values)


def _restore(name, value):
    """JSON knows no tuples: bring back those that the fields are made of."""
    if name == "views":
        return tuple(View(float(zoom), bool(mirror)) for zoom, mirror in value)
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, dict):
        return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
    return value


def parse_settings(recipe: Recipe, settings: list[str]) -> dict:
    """Turn `field=value` strings into changes of a recipe.

    Args:
        recipe: the recipe that is changed; a value must be of the same kind as the present one.
        settings: strings such as "epochs=3" or "learning_rate=3e-4"; values are Python literals, a bare word is a
            string, and several with commas between them a tuple of strings.

    Returns:
        Field -> value, for `Recipe.changed`.

    Raises:
        UserError: not of the form field=value, an unknown field, or a value of another kind.
    """
    changes = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals:
            raise UserError(f"--set expects field=value, for example --set epochs=3. Received: {setting}.")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        if name not in {field.name for field in dataclasses.fields(recipe)}:
            recipe.changed(**{name: value})  # says which fields there are
        present = getattr(recipe, name)
        if isinstance(present, float) and type(value) is int:
            value = float(value)
        if isinstance(value, str) and isinstance(present, tuple) and all(isinstance(item, str) for item in present):
            value = tuple(value.split(","))
        try:
            value = _restore(name, value)
        except (TypeError, ValueError):
            value = None
        if type(value) is not type(present):
            raise UserError(
                f"--set {name} expects a value like {present!r} ({type(present).__name__}). Received: {text}."
            )
        changes[name] = value
    return changes
