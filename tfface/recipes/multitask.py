"""Paper 2: Residual Blocks-Based Convolutional Neural Network for Age, Gender, and Race Classification, on FairFace.

    tfface build fairface/padding025 --manual-dir FOLDER
    tfface reproduce multitask --device gpu                      # the paper's network
    tfface reproduce multitask --variant resnet34 --device gpu   # and its four baselines
    tfface reproduce multitask --variant gender --device gpu     # one task alone, for the gain of learning three

A step takes 2.6 thousand million multiply-adds an image at 64x64: an epoch is 10^14 and more, work for a GPU. What
transfer from FaceNet reaches on the same data on two CPU cores is the variant `fairface-tail` of the recipe `arg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import keras

from tfface import labels, tasks
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.models.alexnet import alexnet
from tfface.models.applications import applications
from tfface.models.densenet import densenet
from tfface.models.multitask_cnn import multitask_cnn
from tfface.models.resnet import resnet
from tfface.recipes.recipe import Recipe

NETWORKS = {
    "multitask_cnn": multitask_cnn,
    "resnet34": lambda tasks, shape: resnet(tasks, 34, shape),
    "densenet161": densenet,
    "alexnet": alexnet,
    "mobilenetv2": lambda tasks, shape: applications("MobileNetV2", tasks, shape),
}

TABLE = {
    # age, gender, race, accuracy; millions of parameters as printed
    "multitask_cnn": (0.563, 0.946, 0.584, 35.3),
    "resnet34": (0.532, 0.909, 0.635, 21.8),
    "densenet161": (0.535, 0.908, 0.636, 26.6),
    "alexnet": (0.445, 0.833, 0.543, 61.1),
    "mobilenetv2": (0.419, 0.803, 0.475, 3.5),
}
"""Table 1 of the paper. Its counts are those of the networks with their 1,000 classes, but that of "Densenet61", as it
is printed: 26.6 is DenseNet-161 with the three heads (28.7 with 1,000 classes). Ours, with the three heads at 64
pixels: 35.3, 21.3, 26.7, 20.4 (AlexNet at 224, whose last maps are 6x6: 57.1), 2.3."""


@dataclass(frozen=True)
class Multitask(Recipe):
    """Age group, gender and race from one network that learns from nothing.

    Attributes:
        network: one of `NETWORKS`.
        only: "age_group", "gender" or "race": learn this task alone; empty: all three.
        age_weight, gender_weight, race_weight: weights of the three losses; the paper gives none.
    """

    name: ClassVar[str] = "multitask"
    title: ClassVar[str] = "Paper 2: residual multitask network on FairFace"

    data: str = "fairface/padding025"
    image_size: tuple[int, int] = (64, 64)  # not in the paper: the size at which its count of parameters comes out
    views: tuple[View, ...] = field(default=(View(), View(mirror=True)))  # none in the paper; without it, it overfits
    epochs: int = 100
    patience: int = 10  # not in the paper, which trains for 100 epochs at most
    batch_size: int = 64
    learning_rate: float = 1e-4

    network: str = "multitask_cnn"
    only: str = ""
    age_weight: float = 1.0
    gender_weight: float = 1.0
    race_weight: float = 1.0

    variants: ClassVar[Mapping[str, Mapping]] = {
        **{network: {"network": network} for network in NETWORKS},
        **{task: {"only": task} for task in ("age_group", "gender", "race")},
    }

    licences: ClassVar[Mapping[str, str]] = {
        "FairFace": "CC BY 4.0",
        "synthetic_faces": "made by tfface from statistics of FairFace (CC BY 4.0); no real person",
    }

    @property
    def published(self):
        """The row of table 1 for this network; single tasks are set beside the paper's own network."""
        age, gender, race, _ = TABLE[self.network]
        rows = (("age_group", age), ("gender", gender), ("race", race))
        where = f"paper 2, table 1, {self.network}"
        return tuple((task, "accuracy", value, where) for task, value in rows if self.only in ("", task))

    def tasks(self):
        """FairFace's three, or the one that is learnt alone."""
        three = (
            tasks.classification("age_group", labels.FAIRFACE_AGES, self.age_weight, ordered=True),
            tasks.classification("gender", labels.GENDERS, self.gender_weight),
            tasks.classification("race", labels.FAIRFACE_RACES, self.race_weight),
        )
        chosen = tuple(task for task in three if self.only in ("", task.name))
        if not chosen:
            raise UserError(f"only must be empty, age_group, gender or race. Received: {self.only}.")
        return chosen

    def model(self):
        """The network, with fresh weights."""
        if self.network not in NETWORKS:
            raise UserError(f"network must be one of {', '.join(NETWORKS)}. Received: {self.network}.")
        try:
            return NETWORKS[self.network](self.tasks(), (*self.image_size, 3))
        except ValueError as error:
            raise UserError(str(error)) from error

    def optimizer(self, model, steps):
        """Adam at a constant rate (paper 2, section 5)."""
        return keras.optimizers.Adam(self.learning_rate)

    def search_space(self, trial):
        """Learning rate, and of three tasks the weights of age and race; Adam knows only ratios, so that of gender
        stays."""
        weights = () if self.only else ("age_weight", "race_weight")
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-5, 1e-2, log=True),
            **{name: trial.suggest_float(name, 0.1, 10.0, log=True) for name in weights},
        }

    def tiny(self):
        """Two epochs at 16 pixels on a small set of synthetic faces, gender only."""
        return self.changed(data="synthetic_faces/small", image_size=(16, 16), epochs=2, only="gender")
