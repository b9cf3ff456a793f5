"""Structured pruning of any functional Keras model: find what must go together, rate it, choose, cut."""

from tfface.pruning import operations  # noqa: F401  (fills the table of rules)
from tfface.pruning.channels import Call, Channels, register_rule
from tfface.pruning.graph import ChannelGroup, Member, channel_groups, find_layers, fixed_layers
from tfface.pruning.importance import choose, importance
from tfface.pruning.measure import latency, multiply_adds
from tfface.pruning.recalibrate import recalibrate
from tfface.pruning.reconstruct import reconstruct
from tfface.pruning.rules import elementwise
from tfface.pruning.sensitivity import plot_sensitivity, ratios_from_sensitivity, sensitivity
from tfface.pruning.surgery import cut, prune, silence

__all__ = [
    "Call",
    "ChannelGroup",
    "Channels",
    "Member",
    "channel_groups",
    "choose",
    "cut",
    "elementwise",
    "find_layers",
    "fixed_layers",
    "importance",
    "latency",
    "multiply_adds",
    "plot_sensitivity",
    "prune",
    "ratios_from_sensitivity",
    "recalibrate",
    "reconstruct",
    "register_rule",
    "sensitivity",
    "silence",
]
