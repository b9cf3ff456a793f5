"""Networks read from `.keras` files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import keras

import tfface.layers  # noqa: F401  (registers the layers that a file may hold)
from tfface.errors import UserError


def load_saved(file: str | Path) -> keras.Model:
    """Load a `.keras` file, without an optimizer.

    Raises:
        UserError: it is absent or damaged.
    """
    try:
        return keras.saving.load_model(file, compile=False)
    except Exception as error:  # keras raises many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if Path(file).is_file() and not zipfile.is_zipfile(file):  # Keras says of such a file that it is not there
            reason = "it is damaged or no .keras file"
        raise UserError(f"The model file {file} cannot be read: {reason}") from error
