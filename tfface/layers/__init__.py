"""Shared layers, in `keras.ops` only, so that they run on every Keras backend."""

from tfface.layers.standardize import StandardizeImage

__all__ = ["StandardizeImage"]
