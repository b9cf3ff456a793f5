"""Paper 3: Rapid classification based on image using residual neural networks (man and woman folders).

    tfface build image_folder/men_women --manual-dir FOLDER   # FOLDER holds man/ and woman/, or any classes
    tfface lr-find gender                                     # the learning-rate range test of the paper
    tfface reproduce gender --seeds 0,1,2                     # ResNet34 from nothing, four epochs, as the paper
    tfface reproduce gender --variant plain                   # the same depth without shortcuts
    tfface reproduce gender --variant facenet                 # on pretrained features

The paper's rates suit a pretrained network; the variant `faster` has one that the range test gives from nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tfface import tasks
from tfface.errors import UserError
from tfface.models.arg import FEATURES, arg
from tfface.models.resnet import resnet
from tfface.optimizers import DiscriminativeAdam, OneCycle, discriminative_factors
from tfface.recipes.recipe import Recipe

STAGES = (("conv1", "conv2", "conv3", "Conv2d", "Block35"), ("conv4", "conv5", "Mixed", "Block17", "Block8"))
"""How the names of the layers of the first and of the second third begin, in the ResNets and in FaceNet."""


@dataclass(frozen=True)
class Gender(Recipe):
    """Classes of an image folder, by the one-cycle policy.

    Attributes:
        label: feature of the data set that is learnt.
        classes: names of its classes, in their order; taken from the data set.
        depth: of the ResNet: 10, 18, 34, 50, 101 or 152.
        shortcuts: False: the plain network of the same depth.
        pretrained: True: a head on FaceNet's frozen features instead of a ResNet.
        lowest_rate: learning rate of the layers nearest the pixels; it grows to `learning_rate` at the head.
    """

    name: ClassVar[str] = "gender"
    title: ClassVar[str] = "Paper 3: classes of faces in folders, by the one-cycle policy"

    data: str = "image_folder/men_women"
    random_crop: float = 0.75  # the paper crops "with some probability" to 224x224 from images of unnamed size
    epochs: int = 4
    batch_size: int = 64  # not in the paper; the default of the library that it uses
    learning_rate: float = 1e-4  # slice(1e-5, 1e-4), figure 2
    lowest_rate: float = 1e-5

    label: str = "label"
    classes: tuple[str, ...] = ("man", "woman")
    depth: int = 34
    shortcuts: bool = True
    pretrained: bool = False

    variants: ClassVar[Mapping[str, Mapping]] = {
        "resnet34": {},
        "plain": {"shortcuts": False},
        # The paper's rates are those for a pretrained network; from nothing, these are what the range test suggests.
        "faster": {"learning_rate": 3e-3, "lowest_rate": 3e-3},
        "facenet": {
            "pretrained": True,
            "image_size": (160, 160),
            "train_from": FEATURES,
            "random_crop": 1.0,
            "learning_rate": 3e-3,
            "lowest_rate": 3e-5,  # for FaceNet's own layers, where they are trained further
            "epochs": 10,
            "test_mirror": True,
        },
    }

    licences: ClassVar[Mapping[str, str]] = {
        "man and woman folders": "those of whoever owns the photos; the paper's set is no longer public",
        "FaceNet weights": "MIT (code and conversion); trained on MS-Celeb-1M by all signs: for research use",
    }

    @property
    def published(self):
        """The paper's one figure."""
        return ((self.label, "accuracy", 0.8950, "paper 3, section 3, 627 test images"),)

    def adapted(self, classes):
        """Takes the class names from the data set."""
        if self.label not in classes:
            named = f"Name the one to learn (--set label={next(iter(classes))}), or build" if classes else "Build"
            raise UserError(
                f"The recipe {self.name} learns the feature {self.label}. Received: a data set whose features with "
                f"classes are: {', '.join(classes) or 'none'}. {named} an image folder (`tfface build "
                "image_folder/NAME --manual-dir FOLDER`)."
            )
        return self.changed(classes=tuple(classes[self.label]))

    def tasks(self):
        """The folder's classes."""
        return (tasks.classification(self.label, self.classes),)

    def model(self):
        """A ResNet with fresh weights, or FaceNet with a fresh head."""
        shape = (*self.image_size, 3)
        try:
            if self.pretrained:
                return arg(self.tasks(), shape, bottleneck_width=128, dropout_rate=0.4)
            return resnet(self.tasks(), self.depth, shape, shortcuts=self.shortcuts)
        except ValueError as error:
            raise UserError(str(error)) from error

    def optimizer(self, model, steps):
        """Adam by the one-cycle policy, each third of the network at a rate of its own (fastai's slice)."""
        names = [layer.name for layer in model.layers if layer.weights]
        stem, middle = (([name for name in names if name.split("_")[0] in stages]) for stages in STAGES)
        head = [name for name in names if name not in stem + middle]
        groups = [group for group in (stem, middle, head) if group]
        factors = discriminative_factors(groups, self.lowest_rate, self.learning_rate)
        return DiscriminativeAdam(OneCycle(self.learning_rate, steps), beta_1=0.95, beta_2=0.99, factors=factors)

    def search_space(self, trial):
        """The peak of the cycle and, from pixels, the cropping."""
        crop = {} if self.train_from else {"random_crop": trial.suggest_float("random_crop", 0.5, 1.0)}
        return {"learning_rate": trial.suggest_float("learning_rate", self.lowest_rate, 0.1, log=True), **crop}

    def tiny(self):
        """ResNet10 at 32 pixels, FaceNet at 96; two epochs of few synthetic faces; the rate is one for so few steps."""
        side = 96 if self.pretrained else 32
        small = {"data": "synthetic_faces/small", "label": "gender", "image_size": (side, side), "depth": 10}
        return self.changed(**small, epochs=2, batch_size=16, learning_rate=3e-3, lowest_rate=3e-3)
