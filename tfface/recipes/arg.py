"""ARG: age, race and gender by transfer from FaceNet, on UTKFace (poster, Simon Fraser University).

    tfface build utkface --manual-dir FOLDER      # FOLDER holds UTKFace/
    tfface reproduce arg --variant years --seeds 0,1,2
    tfface reproduce arg --variant fairface       # the same transfer on FairFace, beside paper 2

With frozen features (the default) the backbone runs once over the images, about 20 minutes for two views on two CPU
cores; the heads then train in a few minutes. `--variant finetune` trains the whole network from pixels: for a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import keras

from tfface import labels, tasks
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.models.arg import FEATURES, arg
from tfface.optimizers import DiscriminativeAdam, warm_cosine
from tfface.recipes.recipe import Recipe

AGE_TASKS = {
    "bins": tasks.age_bins,
    "classes": tasks.age_classes,
    "exact": tasks.age_exact,
    "distribution": tasks.age_distribution,
    "groups": partial(tasks.classification, "age_group", labels.FAIRFACE_AGES, ordered=True),
}


YEARS = {
    "age": "distribution",
    "gender_weight": 3.0,
    "race_weight": 1.0,
    "age_weight": 1.0,
    "depths": ("Mixed_7a", "Block8_6_ScaleSum"),
    "bottleneck_width": 512,
    "dropout_rate": 0.4,
    "oversample": {},
    "batch_size": 256,
    "schedule": "cosine",
    "schedule_scale": 0.2,
    "test_mirror": True,
}


OTHERS = (
    ("gender", "accuracy", 0.977, "best published on UTKFace, other split"),
    ("race", "accuracy", 0.882, "best published on UTKFace, oversampled validation set"),
    ("age", "mae", 4.23, "best published on UTKFace, other split"),
)

# The poster's table prints 0.13 for binned and 0.014 for exact age, its authors' evaluator 0.73 for binned age; the
# evaluator compared age with the race label, so none of the three says how well age was predicted.
PUBLISHED = (
    ("gender", "accuracy", 0.92, "poster, results table, binning"),
    ("race", "accuracy", 0.82, "poster, results table, binning"),
    ("age_bins", "accuracy", 0.13, "poster, results table, binning (doubtful)"),
    *OTHERS,
)

PUBLISHED_EXACT = (
    ("gender", "accuracy", 0.93, "poster, results table, exact age"),
    ("race", "accuracy", 0.84, "poster, results table, exact age"),
    *OTHERS,
)

PUBLISHED_ON_FAIRFACE = (
    ("gender", "accuracy", 0.946, "paper 2, table 1, its own network"),
    ("race", "accuracy", 0.584, "paper 2, table 1, its own network"),
    ("age_group", "accuracy", 0.563, "paper 2, table 1, its own network"),
    ("gender", "accuracy", 0.964, "best published on FairFace, trained on all 86,744 images"),
    ("race", "accuracy", 0.732, "best published on FairFace, trained on all 86,744 images"),
    ("age_group", "accuracy", 0.611, "best published on FairFace, trained on all 86,744 images"),
)

TAIL = {"train_from": "Mixed_7a", "backbone_factor": 0.1, "batch_size": 128, "schedule_scale": 0.04}

FINETUNE = {
    "train_from": "",
    "views": (View(), View(mirror=True)),
    "random_crop": 0.8,
    "mixup": 0.2,
    "label_smoothing": 0.1,
    "backbone_factor": 0.2,
    "learning_rate": 1e-3,
    "batch_size": 128,
    "schedule": "warm-cosine",
    "schedule_scale": 16 / 150,
}

# FairFace's faces, two thirds of their crops, are then about as large as those of FaceNet's own crops.
LARGER = {"image_size": (192, 192)}

FAIRFACE = {"data": "fairface/padding025", "races": labels.FAIRFACE_RACES, "age": "groups", "gender_weight": 1.0}


@dataclass(frozen=True)
class ARG(Recipe):
    """Age, race and gender from one pretrained backbone.

    Attributes:
        races: class names of the data set's races, in their order.
        age: what the age head says: "bins" (the poster's nine), "classes" (its 63), "exact" (one number),
            "distribution" (over years; not in the poster), or "groups" (FairFace's nine, which has no years).
        gender_weight, race_weight, age_weight: weights of the three losses.
        age_deviation: for "distribution": standard deviation of the target about the labelled age, years.
        depths: layers of the backbone whose pooled outputs are the features; see `tfface.models.arg.arg`.
        bottleneck_width: units of the fresh bottleneck.
        dropout_rate: dropout around the bottleneck.
        schedule: how the learning rate falls: "staircase" (the paper), "cosine" (to zero at the end) or "warm-cosine"
            (a short warm-up first).
        backbone_factor: factor on the backbone's learning rate when it is trained; 0 freezes it.
    """

    name: ClassVar[str] = "arg"
    title: ClassVar[str] = "ARG: age, race and gender by transfer from FaceNet"

    data: str = "utkface"
    image_size: tuple[int, int] = (160, 160)
    train_from: str = FEATURES
    # The poster balances the data set by augmentation; the factors (White, Black, Asian, Indian, Others) are those of
    # its authors' code, which also applied them to validation images: here they touch the training split only.
    oversample: dict = field(default_factory=lambda: {"race": (1, 2, 3, 3, 4)})
    # Its authors' code adds noise, the poster names only flips; 4 grey levels are just visible. From pixels alone: what
    # is trained from cached features sees none.
    noise: float = 4.0
    epochs: int = 150  # about 200,000 steps
    schedule_scale: float = 0.1  # 15 epochs: on cached features nothing is gained after
    batch_size: int = 32
    learning_rate: float = 1e-3

    races: tuple[str, ...] = labels.UTKFACE_RACES
    age: str = "bins"
    gender_weight: float = 1.0
    race_weight: float = 1 / 5
    age_weight: float = 1 / 10
    age_deviation: float = 2.0
    depths: tuple[str, ...] = ("Block8_6_ScaleSum",)
    bottleneck_width: int = 128
    dropout_rate: float = 0.2  # the poster gives none; 0.2 is the backbone's own
    schedule: str = "staircase"
    backbone_factor: float = 1 / 100

    variants: ClassVar[Mapping[str, Mapping]] = {
        # The poster's own: nine bins, 63 classes, exact age.
        "bins": {},
        "classes": {"age": "classes"},
        "exact": {"age": "exact"},
        # Ours: a distribution over years, a wider bottleneck, the classes as they come, mirror images averaged.
        "years": YEARS,
        # As "years", on the features of the last layer alone, as the poster has them.
        "last": {**YEARS, "depths": ("Block8_6_ScaleSum",)},
        # As "years", on features from four depths: what the network for identities drops on its way is not lost.
        "depths": {
            **YEARS,
            "depths": ("Block35_5_Activation", "Block17_10_Activation", *YEARS["depths"]),
            "dropout_rate": 0.6,
        },
        # As "years", but the last six blocks (Block8_1 to Block8_6) learn too, from cached inputs.
        "tail": {**YEARS, **TAIL},
        # The same two on FairFace, whose networks of paper 2 learn the same labels from nothing.
        "fairface": {**YEARS, **FAIRFACE},
        "fairface-tail": {**YEARS, **FAIRFACE, **TAIL, "schedule_scale": 4 / 150},
        # The last blocks and the head of gender begin where those of "fairface-tail" ended:
        # --set initial=runs/arg-fairface-tail/seed-0
        "tail-after-fairface": {**YEARS, **TAIL, "schedule_scale": 4 / 150, "initial": "runs/arg-fairface-tail/seed-0"},
        # Everything learns, from pixels: for a GPU, or days on a CPU.
        "finetune": {**YEARS, **FINETUNE},
        "fairface-finetune": {**YEARS, **FAIRFACE, **FINETUNE, **LARGER},
        # The same once more, from FaceNet, with what the one before says of each face beside its label; UTKFace's faces
        # have their labels of gender, and its word on the rest.
        "fairface-distilled": {
            **YEARS,
            **FAIRFACE,
            **FINETUNE,
            **LARGER,
            "extra_data": "utkface",
            "distill_from": "runs/arg-fairface-finetune/seed-0",
            "label_smoothing": 0.0,
        },
    }

    licences: ClassVar[Mapping[str, str]] = {
        "UTKFace": "non-commercial research only; the copyright of the photos stays with their owners",
        "synthetic_faces": "made by tfface from statistics of FairFace (CC BY 4.0); no real person",
        "FairFace": "CC BY 4.0",
        "FaceNet weights": "MIT (code and conversion); trained on MS-Celeb-1M by all signs: for research use",
    }

    @property
    def published(self):
        """The poster's figures for this kind of age, or on FairFace those of others."""
        kinds = {"groups": PUBLISHED_ON_FAIRFACE, "classes": PUBLISHED_EXACT, "exact": PUBLISHED_EXACT}
        return kinds.get(self.age, PUBLISHED)

    def tasks(self):
        """Gender, race and age heads, with the weights of their losses."""
        if self.age not in AGE_TASKS:
            raise UserError(f"age must be one of {', '.join(AGE_TASKS)}. Received: {self.age}.")
        options = {"deviation": self.age_deviation} if self.age == "distribution" else {}
        return (
            tasks.classification("gender", labels.GENDERS, self.gender_weight),
            tasks.classification("race", self.races, self.race_weight),
            AGE_TASKS[self.age](self.age_weight, **options),
        )

    def model(self):
        """Inception-ResNet-v1 with FaceNet's weights, a fresh bottleneck and the heads."""
        try:
            model = arg(self.tasks(), (*self.image_size, 3), self.bottleneck_width, self.dropout_rate, self.depths)
        except ValueError as error:
            raise UserError(str(error)) from error
        # Where the backbone is trained, its batch norms keep the statistics of millions of faces: those of a few
        # thousand steps on another set would lag behind and swing.
        for layer in model.layers[: [layer.name for layer in model.layers].index(FEATURES)]:
            if isinstance(layer, keras.layers.BatchNormalization) or not self.backbone_factor:
                layer.trainable = False
        return model

    def optimizer(self, model, steps):
        """Adam; the learning rate drops by a tenth every 4,000 steps of the full schedule (the authors' code).

        Layers of the backbone, where they are trained, learn at `backbone_factor` of it.
        """
        if self.schedule == "cosine":
            rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
        elif self.schedule == "warm-cosine":
            rate = warm_cosine(self.learning_rate, steps)
        elif self.schedule == "staircase":
            drop_every = max(1, round(4000 * self.schedule_scale))
            rate = keras.optimizers.schedules.ExponentialDecay(self.learning_rate, drop_every, 0.9, staircase=True)
        else:
            raise UserError(f"schedule must be staircase, cosine or warm-cosine. Received: {self.schedule}.")
        names = [layer.name for layer in model.layers if layer.trainable_weights]
        backbone = names[: names.index("features_norm")]
        return DiscriminativeAdam(rate, factors=dict.fromkeys(backbone, self.backbone_factor))

    def search_space(self, trial):
        """Learning rate, loss weights, age encoding, and the size and dropout of the bottleneck.

        The gender's weight stays: Adam's steps do not change when all weights grow alike, so only ratios are searched.
        So does an age that the data set has in groups only, or that another run teaches as it says it.
        """
        ages = [age for age in AGE_TASKS if age != "groups"]
        if self.age == "groups" or self.distill_from:
            ages = [self.age]
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "race_weight": trial.suggest_float("race_weight", 0.03, 3.0, log=True),
            "age_weight": trial.suggest_float("age_weight", 0.03, 3.0, log=True),
            "age": trial.suggest_categorical("age", ages),
            "bottleneck_width": trial.suggest_int("bottleneck_width", 64, 1024, log=True),
            "dropout_rate": trial.suggest_float("dropout_rate", 0.0, 0.6),
        }

    def tiny(self):
        """A few epochs on a small set of synthetic faces, in one view, at 96 pixels."""
        return self.changed(
            data="synthetic_faces/small",
            image_size=(96, 96),
            views=(View(),),
            test_mirror=False,
            oversample={},
            batch_size=32,
            epochs=12,
            schedule_scale=1.0,
        )
