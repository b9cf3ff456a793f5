"""The networks, plain functional builders, one file each; `MODELS` is their table."""

from tfface import labels, tasks
from tfface.models.alexnet import alexnet
from tfface.models.applications import applications
from tfface.models.arg import arg
from tfface.models.densenet import densenet
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.models.multitask_cnn import multitask_cnn
from tfface.models.resnet import resnet

_TASKS = (
    tasks.classification("gender", labels.GENDERS),
    tasks.classification("race", labels.UTKFACE_RACES),
    tasks.age_bins(),
)

MODELS = {
    "inception_resnet_v1": lambda: inception_resnet_v1((80, 80, 3)),
    "arg": lambda: arg(_TASKS, (80, 80, 3), weights=None),
    "resnet": lambda: resnet(_TASKS, 18, (32, 32, 3)),
    "multitask_cnn": lambda: multitask_cnn(_TASKS, (16, 16, 3)),
    "densenet": lambda: densenet(_TASKS, (32, 32, 3), blocks=(2, 2), growth=16),
    "alexnet": lambda: alexnet(_TASKS, (64, 64, 3), dense_width=64),
    "applications": lambda: applications("MobileNet", _TASKS, (32, 32, 3)),
}
"""Name -> a function of no arguments that builds the network small and with random weights, as the shared check of
every model wants it."""

__all__ = ["MODELS", *MODELS]
