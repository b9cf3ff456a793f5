"""The networks, plain functional builders, one file each; `MODELS` is their table."""

from tfface import labels, tasks
from tfface.models.arg import arg
from tfface.models.inception_resnet_v1 import inception_resnet_v1


def _arg():
    heads = (
        tasks.classification("gender", labels.GENDERS),
        tasks.classification("race", labels.UTKFACE_RACES),
        tasks.age_bins(),
    )
    return arg(heads, input_shape=(80, 80, 3), weights=None)


MODELS = {
    "inception_resnet_v1": lambda: inception_resnet_v1((80, 80, 3)),
    "arg": _arg,
}
"""Name -> a function of no arguments that builds the network small and with random weights, as the shared check of
every model wants it."""

__all__ = ["MODELS", "arg", "inception_resnet_v1"]
