"""Shared layers, in `keras.ops` only, so that they run on every Keras backend."""

from tfface.layers.attention import ChannelAttention, SpatialAttention, cbam
from tfface.layers.feature_mask import feature_mask, pattern_logits
from tfface.layers.grey import GreyImage
from tfface.layers.heads import task_head, task_heads
from tfface.layers.margin import CosineSimilarity
from tfface.layers.regroup import Regroup
from tfface.layers.standardize import StandardizeImage

__all__ = [
    "ChannelAttention",
    "CosineSimilarity",
    "GreyImage",
    "Regroup",
    "SpatialAttention",
    "StandardizeImage",
    "cbam",
    "feature_mask",
    "pattern_logits",
    "task_head",
    "task_heads",
]
