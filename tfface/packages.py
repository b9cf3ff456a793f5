"""What is installed: versions of packages, and the backend that Keras runs on; and in which process it works."""

import functools
import os
from importlib.metadata import PackageNotFoundError, packages_distributions, version

from tfface.errors import UserError


def installed_version(package: str) -> str | None:
    """Version of an installed package, such as "tensorflow", or None.

    TensorFlow goes by other names, too, such as tensorflow-cpu: the packages that bring a module of its name count.
    """
    try:
        return version(package)
    except PackageNotFoundError:  # who brings what is read from every package's list of files: a second
        others = packages_distributions().get(package.replace("-", "_"), ())
    for name in others:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def require_tensorflow(what: str, instead: str = "") -> None:
    """Say that Keras' TensorFlow backend is needed where it runs on another.

    Args:
        what: what needs it, the subject of the sentence.
        instead: what else can be done, behind "unset it".

    Raises:
        UserError: Keras runs on another backend.
    """
    import keras

    backend = keras.backend.backend()
    if backend != "tensorflow":
        raise UserError(f"{what} needs Keras' TensorFlow backend, and KERAS_BACKEND is {backend}: unset it{instead}.")


def require_channels_last(what: str) -> None:
    """Say that networks are built for images whose channels come last, where Keras is set to build others.

    Args:
        what: what is built so, the subject of the sentence.

    Raises:
        UserError: Keras' image_data_format is another.
    """
    import keras

    found = keras.config.image_data_format()
    if found != "channels_last":
        raise UserError(
            f"{what} is built with channels last, and Keras' image_data_format is {found}. Expected: channels_last, by "
            "keras.config.set_image_data_format or in keras.json."
        )


def check_not_forked(what: str) -> None:
    """Say that what computes on threads of TensorFlow or JAX would wait for them for ever.

    Args:
        what: what would wait, the subject of the sentence.

    Raises:
        UserError: this process was forked after this was asked for the first time.
    """
    if _forks():
        raise UserError(
            f"{what} cannot work in a process that was forked after it, or another of its kind, was loaded: the "
            'threads that compute are not there. Start processes by the method "spawn", or load it in them only.'
        )


@functools.cache
def _forks() -> list[int]:
    forks: list[int] = []
    os.register_at_fork(after_in_child=lambda: forks.append(os.getpid()))
    return forks
