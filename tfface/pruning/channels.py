"""The channels of one tensor, one call of a layer as a rule sees it, and the table of rules.

A rule is a function of a `Call`; it says which axes of the layer's variables and which of its settings shrink with
which channels, and returns the channels of the output (a list where there are several). The rule of a dense layer:

    @register_rule(keras.layers.Dense)
    def dense(call):
        call.read("kernel", 0, call.along(-1))             # weights that read the channels along the last axis
        outputs = call.new(call.layer.units)               # new channels
        call.make("kernel", 1, outputs)                    # filters that make them
        call.carry("bias", 0, outputs)                     # a value that belongs to each
        call.set("units", outputs)                         # a setting that counts them
        return outputs
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import getattr_static

import keras
import numpy as np

PRODUCER, CONSUMER, PARAMETER = "producer", "consumer", "parameter"

RULES = {}
"""Class -> rule; "module.Class" for classes that are not public, "ops.Class" for operations of `keras.ops`."""

JOINS = ("Add", "Subtract", "Average", "Maximum", "Minimum", "CustomScaleLayer", "Concatenate")
"""Classes, layers or operations, that end a block."""

HARMLESS = (
    "build_from_config",
    "compute_mask",
    "compute_output_shape",
    "compute_output_spec",
    "from_config",
    "get_build_config",
    "get_config",
    "load_own_variables",
    "save_own_variables",
)
"""What a subclass may override and still treat channels as its class does."""


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor.

    Args:
        shape: the tensor's shape with its batch axis; None where unknown.
        axis: where the channels lie, counted from 0 (the batch axis); -1 for a tensor that has no such axis.
        numbers: `(shape[axis],)` integers, the channel at each position.
        silent: `(shape[axis],)` booleans: whether the position holds 0 once everything that makes it is set to 0. It
            does not after a sigmoid, whose value at 0 is 0.5.
    """

    shape: tuple
    axis: int
    numbers: np.ndarray
    silent: np.ndarray


@dataclass(frozen=True)
class Call:
    """One call of a layer, as a rule sees it.

    Args:
        trace: where channels are followed.
        layer: the layer or operation that is called.
        path: its path in the model.
        inputs: the channels of its input tensors, in the order of the call's arguments.
        shapes: the shapes of its output tensors.
        arguments: the positional arguments of the call.
        keywords: its keyword arguments.
    """

    trace: object
    layer: object
    path: str
    inputs: list[Channels]
    shapes: list[tuple]
    arguments: tuple = ()
    keywords: dict = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Layer or operation, with the name of its class."""
        return f"{'layer' if isinstance(self.layer, keras.Layer) else 'operation'} {type(self.layer).__name__}"

    def along(self, axis: int, index: int = 0) -> Channels:
        """The channels of an input, which the layer takes to lie along `axis`; elsewhere they cannot be cut."""
        channels = self.inputs[index]
        axis %= len(channels.shape)
        if channels.axis == axis:
            return channels
        self.trace.pin(channels.numbers, f"{self.path} works along another axis")
        return self.trace.fixed(channels.shape, f"{self.path} works along another axis", axis)

    def read(self, attribute: str, axis: int, channels: Channels):
        """The weights at `axis` of a variable read these channels: a channel that is cut must have been silent."""
        self.needs_silence(channels)
        self.trace.note(self.layer, self.path, attribute, axis, CONSUMER, channels.numbers)

    def make(self, attribute: str, axis: int, channels: Channels):
        """The filters at `axis` of a variable make these channels."""
        self.trace.note(self.layer, self.path, attribute, axis, PRODUCER, channels.numbers)

    def carry(self, attribute: str, axis: int, channels: Channels):
        """The values at `axis` of a variable belong each to one of these channels."""
        self.trace.note(self.layer, self.path, attribute, axis, PARAMETER, channels.numbers)

    def new(self, count: int, axis: int = -1, shape: tuple | None = None, index: int = 0) -> Channels:
        """New channels along `axis` of a tensor of `shape`, by default the output's; `index` tells several apart."""
        shape = self.shapes[0] if shape is None else shape
        numbers = self.trace.made(self.layer, index, count, self.path)
        return Channels(shape, axis % len(shape), numbers, np.ones(count, bool))

    def set(self, key: str, channels: Channels, value: Callable[[int], object] = int):
        """The setting `key` of the layer's config becomes `value(how many of the channels are left)`."""
        self.trace.set(self.layer, key, channels.numbers, value)

    def pin(self, channels: Channels, reason: str):
        """Channels cannot be cut here, for a reason that a user understands."""
        self.trace.pin(channels.numbers, f"{self.path} {reason}")

    def unite(self, first: Channels, second: Channels):
        """Channels go together, position by position."""
        self.trace.unite(first.numbers, second.numbers)

    def needs_silence(self, channels: Channels):
        """Pin those channels that are not 0 when all that makes them is 0, where the cut must be exact."""
        if self.trace.exact and not channels.silent.all():
            self.trace.pin(
                channels.numbers[~channels.silent], f"{self.path} reads it through a function that is not 0 at 0"
            )

    def mixes(self, channels: Channels):
        """Channels are mixed in a way that counts them (a mean, a norm): they stay whole where cuts must be exact."""
        if self.trace.exact:
            self.pin(channels, "takes a statistic over its channels, which a cut would change (exact=False allows it)")

    def leave(self, reason: str) -> list[Channels]:
        """Outputs that cannot be cut."""
        return [self.trace.fixed(shape, f"{self.path} {reason}") for shape in self.shapes]


def register_rule(*classes):
    """Decorate a function as the rule of layers, so that `channel_groups` can follow channels through them.

    The rule holds for the class itself and for those subclasses that override nothing by which it computes: neither
    `call` nor `build` nor a part of them, such as `convolution_op`.

        @register_rule(MyScale)
        def my_scale(call):
            channels = call.along(-1)
            call.carry("scale", 0, channels)
            return channels

    For a layer that works on each value by itself the ready rule will do: `register_rule(MySwish)(elementwise)`.

    Args:
        *classes: subclasses of `keras.Layer`.

    Returns:
        A decorator that returns its function unchanged.
    """

    def register(rule):
        RULES.update(dict.fromkeys(classes, rule))
        return rule

    return register


def find_rule(operation):
    """The rule of a layer or operation; None where there is none."""
    kind = type(operation)
    if held_otherwise(operation):
        return None
    for base in kind.__mro__:
        if base in RULES and _computes_alike(kind, base):
            return RULES[base]
    if isinstance(operation, keras.Layer):
        return RULES.get(f"{kind.__module__}.{kind.__qualname__}")
    return RULES.get(f"ops.{kind.__name__}", RULES["ops"]) if kind.__module__.startswith("keras.") else None


def _computes_alike(kind, base) -> bool:
    # What `call` does may stand in any method or property, so all of them must be those of the base.
    names = (name for name in dir(base) if name == "__call__" or not name.startswith("__"))
    return all(getattr_static(kind, name) is getattr_static(base, name) for name in names if name not in HARMLESS)


def held_otherwise(operation) -> str:
    """How a layer holds its weights, if not each as one plain variable, and what to do; empty where it does."""
    if getattr(operation, "quantization_mode", None):
        return f"quantised weights ({operation.quantization_mode}). Prune before `quantize`"
    if getattr(operation, "lora_enabled", False):
        return "LoRA. Merge it: save the weights and load them into the same network without it"
    return ""


def joins(operation, inputs: int) -> bool:
    """Whether a call adds several tensors or lays them side by side: the end of a block."""
    return inputs > 1 and type(operation).__name__ in JOINS
