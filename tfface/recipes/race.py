"""Paper 1: Racial identification and classification based on improved ResNet50 (TCGF-ResNet), four races.

    tfface build bupt_balancedface/by_image --align eyes --manual-dir FOLDER
    tfface reproduce race --variant set1 --device gpu            # ResNet50 on set I
    tfface reproduce race --variant tcgf --device gpu            # TCGF-ResNet on set II, from set I's weights
    tfface reproduce race --variant relu --device gpu            # and every other row of its tables and figures

The paper's sets share people, which flatters accuracy; nobody is in two splits of by_identity:

    tfface reproduce race --variant tcgf --data bupt_balancedface/by_identity-eyes@four_races --device gpu

Where BUPT-Balancedface cannot be had, UTKFace and FairFace stand in for it, `--data utkface/eyes@four_races` or
`--data fairface/padding025-eyes@four_races`, with halves of the training split as sets I and II: `--set
"train_split=train[:50%]" --set validation_split=validation` and `--set "train_split=train[50%:]"`. So does a folder of
your own with White, Black, Asian and Indian in it, `image_folder/NAME-eyes@four_races`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import keras

from tfface import labels, tasks
from tfface.errors import UserError
from tfface.layers import GreyImage
from tfface.losses import FocalLoss
from tfface.models.applications import applications
from tfface.models.rnet import rnet
from tfface.models.tcgf_resnet import open_attention, tcgf_resnet
from tfface.optimizers import warm_cosine
from tfface.recipes.recipe import Recipe

RACES = tuple(labels.GROUPINGS["four_races"][1])

BASELINES = {"resnet50": "ResNet50", "mobilenet": "MobileNet", "vgg16": "VGG16"}
"""Their names in keras.applications; averaged over space, with a head for the four races."""

ACCURACY = {"tcgf": 0.989, "resnet50": 0.972, "mobilenet": 0.954, "vgg16": 0.966}
"""Table 2, test set."""

RECALLS = {
    "tcgf": (0.9870, 0.9875, 0.9945, 0.9850),
    "rnet": (0.9560, 0.9710, 0.9760, 0.9725),
}
"""Table 3: the diagonals of the confusion matrices over 2,000 images of each race, in the order of `RACES`. As printed,
the matrix of RNet says 0.969 where the text says 0.97."""


@dataclass(frozen=True)
class Race(Recipe):
    """Race of a face that is cut by the eyes and made grey.

    Attributes:
        network: "tcgf", "resnet50", "mobilenet", "vgg16" or "rnet".
        activation: of "tcgf": "gelu" or "relu" (table 1).
        attention: of "tcgf": False leaves CBAM out (figure 7).
        loss: "focal" (equation 4) or "crossentropy" (figure 10).
        algorithm: "sgd" or "adam" (figure 8).
        momentum: of SGD; the paper gives none, 0.9 is usual.
        open_attention: with `initial`, attention that the carried network had not begins as if it were not there
            (`tfface.models.tcgf_resnet.open_attention`); False leaves it as chance made it.
        schedule: how the learning rate goes: "constant" (the paper) or "cosine" (a short warm-up, then to zero).
    """

    name: ClassVar[str] = "race"
    title: ClassVar[str] = "Paper 1: TCGF-ResNet, attention, GELU, focal loss and transfer for four races"

    # Mirror images too, as `Recipe` has it: the text names no augmentation.
    data: str = "bupt_balancedface/by_image-eyes@four_races"
    epochs: int = 100
    batch_size: int = 32  # not in the paper
    learning_rate: float = 0.01
    monitor: str = "val_accuracy"  # all of the paper's figures are accuracies

    network: str = "tcgf"
    activation: str = "gelu"
    attention: bool = True
    loss: str = "focal"
    algorithm: str = "sgd"
    momentum: float = 0.9
    schedule: str = "constant"
    open_attention: bool = True

    variants: ClassVar[Mapping[str, Mapping]] = {
        # Set I, whose weights are carried over (figure 5); the paper does not say by which loss it learns them.
        "set1": {
            "network": "resnet50",
            "loss": "crossentropy",
            "train_split": "set1_train",
            "validation_split": "set1_validation",
        },
        # The whole system, and figure 11.
        "tcgf": {"initial": "runs/race-set1/seed-0"},
        # Figure 9: the same without transfer. What follows changes one thing of it: ResNet50 learns set I with ReLU and
        # without attention, which would favour those who go on so. --set initial=runs/race-set1/seed-0 brings it back.
        "scratch": {},
        "relu": {"activation": "relu"},  # table 1
        "no-cbam": {"attention": False},  # figure 7
        "adam": {"algorithm": "adam"},  # figure 8
        "crossentropy": {"loss": "crossentropy"},  # figure 10
        # Table 2, by cross-entropy: the focal loss is part of what is proposed.
        **{network: {"network": network, "loss": "crossentropy"} for network in BASELINES},
        # Table 3; Adam and 40 epochs as given there, the rate is Adam's own.
        "rnet": {
            "network": "rnet",
            "image_size": (40, 40),
            "loss": "crossentropy",
            "algorithm": "adam",
            "learning_rate": 1e-3,
            "epochs": 40,
        },
    }

    licences: ClassVar[Mapping[str, str]] = {
        "BUPT-Balancedface": "non-commercial research, under an agreement",
        "UTKFace": "non-commercial research only; the copyright of the photos stays with their owners",
        "FairFace": "CC BY 4.0",
        "synthetic_faces": "made by tfface from statistics of FairFace (CC BY 4.0); no real person",
    }

    @property
    def published(self):
        """The paper's figures for this row; where it has curves only, those of the whole network."""
        if self.network == "rnet":
            rows = [("race", "accuracy", 0.97, "paper 1, table 3, Ahmed et al. 2020")]
        elif self.network in BASELINES:
            rows = [("race", "accuracy", ACCURACY[self.network], f"paper 1, table 2, {self.network}")]
        elif self.activation == "relu":
            rows = [("race", "accuracy", 0.987, "paper 1, table 1, ReLU")]
        else:
            whole = bool(self.initial)
            where = "paper 1, table 2" if whole else "paper 1, the whole network (of this row it has a curve only)"
            rows = [("race", "accuracy", ACCURACY["tcgf"], where)]
            rows += [("race", "balanced_accuracy", 0.9885, "paper 1, table 3, mean recall")] * whole
        if self.network in RECALLS and (self.initial or self.network == "rnet"):
            recalls = zip(RACES, RECALLS[self.network], strict=True)
            rows += [("race", f"recall of {race}", value, "paper 1, table 3") for race, value in recalls]
        return tuple(rows)

    def adapted(self, classes):
        """The recipe, if the data set has the four races under their names."""
        if tuple(classes.get("race", ())) != RACES:
            raise UserError(
                f"The recipe {self.name} learns {', '.join(RACES)}. Received: a data set with "
                f"{', '.join(classes.get('race', ())) or 'no races'}. Put @four_races behind its name, for example "
                "--data utkface/eyes@four_races."
            )
        return self

    def tasks(self):
        """The four races."""
        if self.loss not in ("focal", "crossentropy"):
            raise UserError(f"loss must be focal or crossentropy. Received: {self.loss}.")
        task = tasks.classification("race", RACES)
        return (replace(task, loss=FocalLoss(alpha=0.25, gamma=2.0)) if self.loss == "focal" else task,)

    def model(self):
        """The network, with fresh weights."""
        shape = (*self.image_size, 3)
        try:
            if self.network == "tcgf":
                return tcgf_resnet(self.tasks(), shape, self.activation, self.attention)
            if self.network == "rnet":
                return rnet(self.tasks(), shape)
            if self.network in BASELINES:
                return applications(BASELINES[self.network], self.tasks(), shape, GreyImage(name="grey"))
        except ValueError as error:
            raise UserError(str(error)) from error
        raise UserError(f"network must be one of tcgf, rnet, {', '.join(BASELINES)}. Received: {self.network}.")

    def carried(self, model, carried, fresh):
        """With the attention open, if that is asked for and it is fresh."""
        if self.network == "tcgf" and self.open_attention:
            open_attention(model, fresh)

    def optimizer(self, model, steps):
        """SGD or Adam, at a rate that stays (the paper's 0.01) or rises shortly and falls by a cosine."""
        rates = {"constant": self.learning_rate, "cosine": warm_cosine(self.learning_rate, steps)}
        if self.schedule not in rates:
            raise UserError(f"schedule must be constant or cosine. Received: {self.schedule}.")
        if self.algorithm == "adam":
            return keras.optimizers.Adam(rates[self.schedule])
        if self.algorithm == "sgd":
            return keras.optimizers.SGD(rates[self.schedule], momentum=self.momentum)
        raise UserError(f"algorithm must be sgd or adam. Received: {self.algorithm}.")

    def search_space(self, trial):
        """The algorithm, its rate and the loss; smoothed labels are those of cross-entropy alone."""
        losses = ["crossentropy"] if self.label_smoothing else ["focal", "crossentropy"]
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 0.3, log=True),
            "algorithm": trial.suggest_categorical("algorithm", ["sgd", "adam"]),
            "loss": trial.suggest_categorical("loss", losses),
        }

    def tiny(self):
        """RNet, two epochs on a small set of synthetic faces."""
        small = {"data": "synthetic_faces/small@four_races", "network": "rnet", "image_size": (40, 40)}
        return self.changed(**small, epochs=2, algorithm="adam", learning_rate=1e-3)
