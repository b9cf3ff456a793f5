"""The network that comes with tfface: age, gender, race and an embedding in one pass, small and fast.

    tfface build fairface/padding025 --manual-dir FOLDER --align margin     # and utkface; celeba_identities/images
    tfface prune facenet --ratio 0.6 --reconstruct fairface/padding025-margin --input-shape 112x112x3 --out runs/60
    tfface reproduce compact --set network=runs/60/pruned.keras --seeds 0
    tfface reproduce compact --variant heads --set network=runs/compact/seed-0/trained.keras --out runs/compact-heads

FaceNet, pruned and fitted anew, learns the embeddings of the whole FaceNet on FairFace and UTKFace together with the
labels that each of them has; part of the faces are covered. Then its heads are learnt anew, on clean faces. Its crops
are FaceNet's own, with a margin that shows the hair, at 112 pixels. The shipped one learnt from CelebA's photos too;
the commands stand in its card, `tfface/assets/models/compact/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import keras

from tfface import labels, tasks
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.models.compact import compact
from tfface.models.recognition import load_backbone
from tfface.optimizers import warm_cosine
from tfface.recipes.recipe import Recipe

HEADS = {
    "all": ("gender", "race", "race_utkface", "age"),
    "fairface": ("gender", "race", "age"),
    "utkface": ("gender", "race_utkface", "age"),
}
"""Outputs with a head of their own, by the labels that are known. Where FairFace and UTKFace are joined, the five races
of UTKFace have one too: they are no sums of FairFace's seven (Others and White part otherwise), and a head that must
serve both names hardly anybody Middle Eastern."""

REGROUPED = {
    "age_group": ("age", tuple(labels.age_bin(tasks.AGES, labels.FAIRFACE_AGE_STARTS).tolist())),
    "race_utkface": ("race", labels.FAIRFACE_TO_UTKFACE),
}
"""Outputs that have none: the output that each sums, and the group of each of its classes."""


@dataclass(frozen=True)
class Compact(Recipe):
    """Attributes and an embedding from one small network.

    Attributes:
        network: backbone, as in `tfface.models.recognition.load_backbone`: a pruned FaceNet.
        blocks: blocks of each stage, for table1 and ir.
        depths: layers of it whose pooled outputs are the features of the heads.
        bottleneck_width: units of the layer that the heads share.
        dropout_rate: dropout around it.
        embedding_weight, gender_weight, race_weight, age_weight: weights of the losses; those of the five races and of
            the age groups are as that of race and of age. An embedding of the weight 0 is no output of the network.
        known: which labels are there: "all" (FairFace and UTKFace joined), "fairface", "utkface"; found from the data.
    """

    name: ClassVar[str] = "compact"
    title: ClassVar[str] = "The compact network: age, gender, race and an embedding in one pass"

    data: str = "fairface/padding025-margin+utkface/margin"
    image_size: tuple[int, int] = (112, 112)
    views: tuple[View, ...] = tuple(View(zoom, mirror) for zoom in (1.0, 0.94) for mirror in (False, True))
    occluded: float = 0.3
    teacher: str = "facenet"
    teacher_data: str = "fairface/padding025+utkface"
    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3

    pairs: tuple[str, ...] = ("lfw", "occ_lfw", "mask_lfw")
    network: str = "facenet"
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    # What a network for identities drops on its way, such as age, is not lost to heads that see its way.
    depths: tuple[str, ...] = ("Block35_5_Activation", "Block17_10_Activation", "Mixed_7a", "Block8_6_ScaleSum")
    bottleneck_width: int = 256
    dropout_rate: float = 0.2
    embedding_weight: float = 10.0
    gender_weight: float = 1.0
    race_weight: float = 0.5
    age_weight: float = 0.5
    known: str = "all"

    variants: ClassVar[Mapping[str, Mapping]] = {
        # FairFace alone, CC BY 4.0, without a teacher: fresh weights, no embedding. What a network would learn by heart
        # that has no teacher's 128 numbers a face to learn, random crops and mixup withhold.
        "fairface": {
            "data": "fairface/padding025",
            "network": "table1",
            "depths": ("stage3", "stage4"),
            "teacher": "",
            "embedding_weight": 0.0,
            "pairs": (),
            "known": "fairface",
            "views": (View(), View(mirror=True)),
            "random_crop": 0.8,
            "occluded": 0.0,
            "mixup": 0.2,
            "label_smoothing": 0.1,
        },
        # Heads alone, fresh, on the features of a trained compact network: minutes. Name it:
        # --set network=runs/compact/seed-0/trained.keras
        "heads": {
            "train_from": "features",
            "teacher": "",
            "occluded": 0.0,
            "views": (View(), View(mirror=True)),
            "epochs": 30,
            "batch_size": 256,
            "bottleneck_width": 512,
            "dropout_rate": 0.5,
        },
    }

    licences: ClassVar[Mapping[str, str]] = {
        "FairFace": "CC BY 4.0",
        "UTKFace": "non-commercial research only; the copyright of the photos stays with their owners",
        "CelebA": "non-commercial research only",
        "FaceNet weights": "MIT (code and conversion); trained on MS-Celeb-1M by all signs: for research use",
        "synthetic_faces": "made by tfface from statistics of FairFace (CC BY 4.0); no real person",
    }

    def tasks(self):
        """The embedding, and every attribute that the data set has labels of."""
        race = tasks.classification("race", labels.FAIRFACE_RACES, self.race_weight)
        five = tasks.classification("race_utkface", labels.UTKFACE_RACES, self.race_weight)
        groups = tasks.classification("age_group", labels.FAIRFACE_AGES, self.age_weight, ordered=True)
        embedding = (tasks.embedding(128, self.embedding_weight),) if self.teacher and self.embedding_weight else ()
        gender, age = (
            tasks.classification("gender", labels.GENDERS, self.gender_weight),
            tasks.age_distribution(self.age_weight),
        )
        if self.known == "all":
            return (*embedding, gender, race, five, age, groups)
        if self.known == "fairface":
            return (*embedding, gender, race, groups)
        if self.known == "utkface":
            five = tasks.classification("race_utkface", labels.UTKFACE_RACES, self.race_weight, label="race")
            return (*embedding, gender, five, age)
        raise UserError(f"known must be one of {', '.join(HEADS)}. Received: {self.known}.")

    def adapted(self, classes):
        """With the outputs that these labels teach."""
        if "race_fairface" in classes:  # its races, and with them its age groups, would be left out without a word
            raise UserError(
                f"The recipe {self.name} learns the races of FairFace and of UTKFace where FairFace is named first. "
                "Received: UTKFace first. Turn them round in --data."
            )
        if "race_utkface" in classes:
            known = "all"
        elif len(classes.get("race", ())) == len(labels.FAIRFACE_RACES):
            known = "fairface"
        else:
            known = "utkface"
        return Recipe.adapted(self.changed(known=known), classes)

    def model(self):
        """The backbone with the heads that the data set teaches, and their sums."""
        self.tasks()  # says what is wrong with `known`
        try:
            backbone = load_backbone(self.network, (*self.image_size, 3), 128, self.blocks)
            every = {task.name: task for task in self.changed(known="all").tasks()}
            heads = [every[name] for name in HEADS[self.known]]
            regrouped = {
                name: (every[source], groups)
                for name, (source, groups) in REGROUPED.items()
                if name not in HEADS[self.known] and source in HEADS[self.known]
            }
            return compact(
                backbone,
                heads,
                self.depths,
                regrouped,
                self.bottleneck_width,
                self.dropout_rate,
                self.embedding_weight > 0,
            )
        except ValueError as error:
            raise UserError(str(error)) from error

    def optimizer(self, model, steps):
        """Adam, a short warm-up, then along half a cosine to zero."""
        return keras.optimizers.Adam(warm_cosine(self.learning_rate, steps))

    def search_space(self, trial):
        """Learning rate, and the weights of race and age beside that of gender."""
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True),
            "race_weight": trial.suggest_float("race_weight", 0.05, 5.0, log=True),
            "age_weight": trial.suggest_float("age_weight", 0.05, 5.0, log=True),
        }

    def tiny(self):
        """One epoch on a small set of synthetic faces, without a teacher, from fresh weights."""
        return self.changed(
            data="synthetic_faces/small",
            image_size=(48, 48),
            views=(View(),),
            network="table1",
            blocks=(1, 1, 1, 1),
            depths=("stage3", "stage4"),
            teacher="",
            pairs=(),
            epochs=1,
            batch_size=32,
            known="utkface",
        )
