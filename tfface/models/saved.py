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


def copy_weights(model: keras.Model, copy: keras.Model) -> None:
    """Give a copy of a model, made by `keras.models.clone_model`, its weights, and what its layers work out of them."""
    copy.set_weights(model.get_weights())
    for layer in copy._flatten_layers():
        finalize(layer)


def finalize(layer: keras.Layer) -> None:
    """Let a layer work out anew what it computes by: Normalization keeps copies of its weights."""
    if layer.variables and hasattr(layer, "finalize_state"):
        layer.finalize_state()


def in_float32(model: keras.Model) -> keras.Model:
    """The same network computing in float32: one that was trained in mixed precision keeps that in its file.

    Args:
        model: a functional or sequential model; models inside it included.

    Returns:
        A copy with the same weights, names and outputs; the model itself where it computes in float32 already.
    """
    if all(layer.compute_dtype == layer.variable_dtype for layer in model._flatten_layers()):
        return model

    def copied(layer):
        if isinstance(layer, keras.Model):
            return keras.models.clone_model(layer, clone_function=copied)
        config = layer.get_config()
        if layer.compute_dtype != layer.variable_dtype:
            config["dtype"] = layer.variable_dtype
        return type(layer).from_config(config)

    copy = keras.models.clone_model(model, clone_function=copied)
    copy_weights(model, copy)
    return copy
