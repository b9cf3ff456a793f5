"""Paper 5: recognising occluded faces with a pruned residual network, in its three stages.

    tfface build casia_webface --manual-dir FOLDER --align five-point      # its 494,414 images are not public any more
    tfface train occluded --variant baseline1                              # the whole network, on clean faces
    tfface train occluded --variant baseline2                              # then on clean : covered = 1 : 2
    tfface prune runs/occluded-baseline1/seed-0 --ratio 0.5 --scope sensitivity --finetune 40  # stages 1 and 2
    tfface train occluded --variant masked                                 # stage 3, on from what stage 2 left
    tfface verify RUN --data lfw                                           # and occ_lfw, mask_lfw

The text prunes "the improved ResNet50" before it speaks of any training: here baseline 1 is what is pruned, as filters
drawn at random have no norm worth a ranking.

Where no identities can be had, the `distilled` variants learn the embeddings of pretrained FaceNet on unlabelled faces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import keras

from tfface import tasks
from tfface.errors import UserError
from tfface.faces.occlude import pattern_boxes
from tfface.losses import AngularMarginLoss
from tfface.models.recognition import load_backbone, recognition, with_feature_mask
from tfface.recipes.recipe import Recipe

RATIOS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)

TABLE2 = {
    "lfw": (0.9938, 0.9885, 0.9880, 0.9867, 0.9817, 0.9780),
    "mask_lfw": (0.8995, 0.8803, 0.8730, 0.8623, 0.8462, 0.8408),
}
"""Accuracy on pairs at each of `RATIOS` (table 2)."""

TABLE3 = {
    "lfw": {"baseline1": (0.76, 43.54), "baseline2": (4.38, 40.00)},
    "occ_lfw": {"baseline1": (2.47, 39.53), "baseline2": (7.80, 36.68)},
    "mask_lfw": {"baseline1": (2.52, 38.28), "baseline2": (11.41, 36.41)},
}
"""Against each baseline: error added (points) and speed gained (%) (table 3; the paper does not say at which ratio)."""

PATTERN_GRID = 4
"""The face is cut into 4 x 4 cells: 101 patterns. The paper gives no K; FROM has 4 or 5."""

PRUNED = "runs/occluded-baseline1/seed-0/pruned/pruned.keras"
"""Where `tfface prune` puts baseline 1's smaller network."""

DISTILLED = {
    "data": "fairface/padding025-five-point+utkface/five-point",
    "teacher": "facenet",
    "teacher_data": "fairface/padding025+utkface",
    "embedding_width": 128,
    "optimizer_name": "adam",
    "learning_rate": 1e-3,
    "batch_size": 64,
    "epochs": 20,
    "monitor": "val_loss",
}


@dataclass(frozen=True)
class Occluded(Recipe):
    """Who it is, from a face that may be covered in part.

    Attributes:
        network: "table1" (the paper's), "ir" (its ancestor), "facenet" (pretrained), or a `.keras` file, such as a
            pruned one; see `tfface.models.recognition.load_backbone`.
        blocks: blocks of each stage, for table1 and ir.
        embedding_width: length of the embedding, for table1 and ir.
        masked: blot out what an occluder has spoilt by a feature mask, and learn the occlusion's pattern beside.
        pattern_weight: weight of the pattern's loss.
        people: identities of the data set, each with a centre; those of validation too, whom training never shows.
        m1, m2, m3: margins of `AngularMarginLoss`; CosFace's by default, as the paper.
        scale: its scale.
        optimizer_name: "sgd" (the paper) or "adam".
        weight_decay: of SGD as PyTorch counts it, a part of the gradient, on the weights of convolutions, dense layers
            and the people's centres.
    """

    name: ClassVar[str] = "occluded"
    title: ClassVar[str] = "Paper 5: recognising occluded faces with a pruned residual network"

    # Mirror images too, as `Recipe` has it: the text names no augmentation but the occlusion.
    data: str = "casia_webface/images-five-point"
    image_size: tuple[int, int] = (112, 96)
    epochs: int = 40
    batch_size: int = 8  # a larger one goes with a learning rate scaled alike: 0.1 at 8 is what the paper ran
    learning_rate: float = 0.1
    monitor: str = "loss"  # nobody of the training stands in validation: the last epochs are the best

    pairs: tuple[str, ...] = ("lfw", "occ_lfw", "mask_lfw")
    network: str = "table1"
    blocks: tuple[int, ...] = (3, 4, 14, 3)
    embedding_width: int = 512
    masked: bool = False
    pattern_weight: float = 1.0  # FROM's lambda
    people: int = 10_575
    m1: float = 1.0
    m2: float = 0.0
    m3: float = 0.35
    scale: float = 30.0
    optimizer_name: str = "sgd"
    weight_decay: float = 5e-4

    variants: ClassVar[Mapping[str, Mapping]] = {
        # The paper's two baselines: the whole network on clean faces, then on clean : covered = 1 : 2.
        "baseline1": {},
        "baseline2": {"occluded": 2 / 3, "initial": "runs/occluded-baseline1/seed-0"},
        # Third stage: covered faces and the feature mask, on the pruned network with its identities.
        "masked": {"occluded": 2 / 3, "masked": True, "network": PRUNED, "initial": PRUNED},
        # The margins of the other two losses that the paper names.
        "sphereface": {"m1": 4.0, "m3": 0.0},
        "arcface": {"m2": 0.5, "m3": 0.0},
        "ir": {"network": "ir"},
        # No identities: the embeddings of FaceNet are learnt, of the clean face also where it is covered.
        "distilled": DISTILLED,
        "distilled-covered": {**DISTILLED, "occluded": 2 / 3},
        # FROM weighs the pattern by 1 beside a loss of ten or so; a cosine is below 1.
        "distilled-masked": {**DISTILLED, "occluded": 2 / 3, "masked": True, "pattern_weight": 0.1},
    }

    licences: ClassVar[Mapping[str, str]] = {
        "CASIA-WebFace": "non-commercial research only",
        "FairFace": "CC BY 4.0",
        "UTKFace": "non-commercial research only; the copyright of the photos stays with their owners",
        "CelebA": "non-commercial research only",
        "LFW": "research; photos from the news, their copyright stays with their owners",
        "FaceNet weights": "MIT (code and conversion); trained on MS-Celeb-1M by all signs: for research use",
        "synthetic_faces": "made by tfface from statistics of FairFace (CC BY 4.0); no real person",
    }

    published_pairs = tuple((data, values[0], "paper 5, table 2, R = 0") for data, values in TABLE2.items())

    def tasks(self):
        """Identities or a teacher's embedding, and the pattern of the occlusion where a mask is learnt."""
        if self.teacher:
            learnt = tasks.embedding(self.embedding_width)
        else:
            learnt = tasks.identity(self.people, AngularMarginLoss(self.m1, self.m2, self.m3, self.scale))
        if not self.masked:
            return (learnt,)
        patterns = len(pattern_boxes(self.image_size, PATTERN_GRID))
        return (learnt, tasks.occlusion_pattern(patterns, self.pattern_weight))

    def model(self):
        """The network with its outputs."""
        backbone = load_backbone(self.network, (*self.image_size, 3), self.embedding_width, self.blocks)
        return recognition(with_feature_mask(backbone) if self.masked else backbone, self.tasks())

    def optimizer(self, model, steps):
        """SGD with momentum 0.9 and weight decay (paper 5, section 2.3), or Adam.

        The paper calls 0.1 the initial rate and does not say how it falls: here along half a cosine.
        """
        rate = keras.optimizers.schedules.CosineDecay(self.learning_rate, steps)
        if self.optimizer_name == "adam":
            return keras.optimizers.Adam(rate)
        if self.optimizer_name != "sgd":
            raise UserError(f"optimizer_name must be sgd or adam. Received: {self.optimizer_name}.")
        momentum = 0.9
        # Keras takes weight decay beside the momentum, which in PyTorch, the paper's, adds up ten steps of it.
        decay = self.weight_decay / (1 - momentum)
        optimizer = keras.optimizers.SGD(rate, momentum=momentum, weight_decay=decay)
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias", "alpha"])
        return optimizer

    def adapted(self, classes):
        """With the number of people of the data set."""
        people = len(classes.get("identity", ()))
        return self.changed(people=people) if people and not self.teacher else self

    def tiny(self):
        """Two epochs of one block a stage at 48 pixels: the identities of a small set of synthetic faces."""
        return self.changed(
            data="synthetic_faces/small",
            pairs=("synthetic_faces/small",),
            image_size=(48, 48),
            blocks=(1, 1, 1, 1),
            embedding_width=32,
            people=210,
            epochs=2,
            batch_size=32,
        )
