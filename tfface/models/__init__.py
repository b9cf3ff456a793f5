"""The networks, plain functional builders, one file each; `MODELS` is their table."""

from tfface import labels, tasks
from tfface.losses import AngularMarginLoss
from tfface.models.alexnet import alexnet
from tfface.models.applications import applications
from tfface.models.arg import arg
from tfface.models.compact import compact
from tfface.models.densenet import densenet
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.models.multitask_cnn import multitask_cnn
from tfface.models.recognition import recognition, with_feature_mask
from tfface.models.recognition_resnet import recognition_resnet
from tfface.models.resnet import resnet
from tfface.models.rnet import rnet
from tfface.models.tcgf_resnet import tcgf_resnet

_STAGES = ((1, 16), (1, 24), (1, 32), (1, 40))

_TASKS = (
    tasks.classification("gender", labels.GENDERS),
    tasks.classification("race", labels.UTKFACE_RACES),
    tasks.age_bins(),
)

MODELS = {
    "inception_resnet_v1": lambda: inception_resnet_v1((80, 80, 3)),
    "arg": lambda: arg(_TASKS, (80, 80, 3), weights=None),
    "resnet": lambda: resnet(_TASKS, 18, (32, 32, 3)),
    "tcgf_resnet": lambda: tcgf_resnet(_TASKS, (32, 32, 3), depth=18),
    "rnet": lambda: rnet(_TASKS, (16, 16, 3), filters=(8, 16)),
    "recognition_resnet": lambda: recognition_resnet("table1", (32, 32, 3), 16, _STAGES),
    "recognition": lambda: recognition(
        with_feature_mask(recognition_resnet("ir", (32, 32, 3), 16, _STAGES)),
        (tasks.identity(5, AngularMarginLoss()), tasks.occlusion_pattern(101)),
    ),
    "compact": lambda: compact(
        recognition_resnet("table1", (32, 32, 3), 16, _STAGES), _TASKS, ("stage3", "stage4"), {}, 32
    ),
    "multitask_cnn": lambda: multitask_cnn(_TASKS, (16, 16, 3)),
    "densenet": lambda: densenet(_TASKS, (32, 32, 3), blocks=(2, 2), growth=16),
    "alexnet": lambda: alexnet(_TASKS, (64, 64, 3), dense_width=64),
    "applications": lambda: applications("MobileNet", _TASKS, (32, 32, 3)),
}
"""Name -> a function of no arguments that builds the network small and with random weights, as the shared check of
every model wants it."""

__all__ = ["MODELS", *MODELS]
