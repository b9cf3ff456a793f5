"""Shared layers, in `keras.ops` only, so that they run on every Keras backend."""

from tfface.layers.attention import ChannelAttention, SpatialAttention, cbam
from tfface.layers.heads import task_head, task_heads
from tfface.layers.standardize import StandardizeImage

__all__ = ["ChannelAttention", "SpatialAttention", "StandardizeImage", "cbam", "task_head", "task_heads"]
