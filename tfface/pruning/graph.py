"""Which channels of a network must be cut together: the channels of every tensor, followed from layer to layer.

Every position along the channel axis of every tensor gets a number, its channel. A layer that makes channels (a
convolution, a dense layer) hands out new numbers, a layer that adds two tensors declares their channels one and the
same, a concatenation lays them side by side, a flattening repeats them. What was declared one and the same in the
end can only be cut together: that is one unit of a group. The variables and the settings of the layers are written
down by the same numbers on the way, so whatever is cut, everything that belongs to it is known.

How each layer treats its channels is a rule (`tfface.pruning.rules`); a rule for a layer of one's own is a few lines.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import reduce
from operator import and_, attrgetter

import keras
import numpy as np

from tfface.errors import UserError
from tfface.pruning.channels import PRODUCER, Call, Channels, find_rule, held_otherwise, joins


@dataclass(frozen=True)
class Member:
    """One axis of one variable that shrinks with a group.

    Args:
        layer: path of the layer, "name" or "inner_model/name".
        variable: attribute of the layer that holds the variable, such as "kernel" or "dense.kernel".
        axis: axis of the variable, counted from 0.
        role: "producer" (filters that make the channels), "consumer" (weights that read them) or "parameter" (what
            belongs to a channel on its way: bias, scale, offset, statistics, a depthwise filter).
        units: `(size of the axis,)` integers, the unit of the group at each position, -1 where it is of another.
    """

    layer: str
    variable: str
    axis: int
    role: str
    units: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are made, carried and read together, so that they can be cut together.

    Args:
        name: path of the layer that first makes them.
        width: number of units that can be cut one by one; a unit is mostly one channel, more where channels are tied
            (a grouped convolution, a dense layer reshaped to a map).
        members: every axis of every variable that shrinks with the group.
        block: name of the addition or concatenation that the channels end in, where all of them end in one; else the
            group's own name. All groups inside one residual or inception block have one block name.
    """

    name: str
    width: int
    members: tuple[Member, ...] = field(repr=False)
    block: str

    @property
    def layers(self) -> tuple[str, ...]:
        """Paths of the layers that make the channels."""
        return tuple(dict.fromkeys(member.layer for member in self.members if member.role == PRODUCER))


def channel_groups(model: keras.Model, exact: bool = True, untouched: Sequence[str] = ()) -> list[ChannelGroup]:
    """Find the groups of channels of a functional model that can be cut, in the order of the graph.

    Channels of the inputs and outputs of the model are in no group, nor are those that something fixes: see
    `fixed_layers`.

    Reference: Fang et al., DepGraph: Towards Any Structural Pruning (CVPR 2023), for the question; the answer here is
    by numbers of channels and not by dependencies of layers.

    Args:
        model: a built functional or sequential `keras.Model`, nested models included. It is not changed.
        exact: leave whole what cannot be cut without a change elsewhere even where it is all zeros: channels over
            which a LayerNormalization or a mean or maximum over channels (spatial attention) is taken, and channels
            that pass through a function that is not 0 at 0 on their way to weights. With False they are cut too, and
            the statistics are then those of the channels that are left.
        untouched: names or patterns ("head_*") of layers to leave exactly as they are, their inputs' channels
            included; a layer without a rule must be named here if it stands amid channels that could be cut. A plain
            string is one name.

    Returns:
        The groups, each with at least one unit.

    Raises:
        UserError: the model is not functional, a layer amid its channels has no rule, a layer is quantised or has
            LoRA, or a name in `untouched` is no layer's.
    """
    trace = Trace(model, exact, untouched)
    trace.check()
    return trace.groups()


def fixed_layers(model: keras.Model, exact: bool = True, untouched: Sequence[str] = ()) -> dict[str, str]:
    """Say which layers keep channels that cannot be cut, and why: a dict of path and reason.

    Args and errors are those of `channel_groups`.
    """
    trace = Trace(model, exact, untouched)
    reasons = {}
    for start, stop, path in trace.origins:
        if found := [reason for number in range(start, stop) if (reason := trace.reason(number))]:
            reasons[path] = found[0]
    return reasons


def find_layers(model: keras.Model, prefix: str = "") -> dict[str, keras.layers.Layer]:
    """All layers of a model and of the models inside it, by their paths ("name" or "inner_model/name")."""
    found = {}
    for layer in model.layers:
        found[prefix + layer.name] = layer
        if is_model(layer):
            found |= find_layers(layer, f"{prefix}{layer.name}/")
    return found


def as_names(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names or patterns as a tuple, of which a plain string is one."""
    return (names,) if isinstance(names, str) else tuple(names)


def graph_of(model):
    """The functional graph of a model; of a sequential one, the graph behind it.

    Raises:
        UserError: a model without a graph, or that does more than its graph.
    """
    graph = getattr(model, "_functional", None) or model
    # Keras has no public view of the calls of a graph; this attribute is what its own `clone_model` walks over.
    if not isinstance(graph, keras.Model) or not hasattr(graph, "_nodes_by_depth"):
        raise UserError(
            f"The model {getattr(model, 'name', model)!r} has no graph to prune: expected a built functional or "
            f"sequential Keras model. Received: {type(model).__name__}."
        )
    kind = type(model)
    base = next(each for each in kind.__mro__ if each.__module__.startswith("keras."))
    if any(getattr(kind, name) is not getattr(base, name) for name in ("call", "__call__")):
        raise UserError(
            f"The model {model.name!r} does more than its graph: expected a class that leaves `call` as it is in Keras "
            f"(a `train_step` may be its own). Received: {kind.__name__}. Move what it does into layers of the graph."
        )
    return graph


def calls(graph):
    """The calls of a functional graph, in an order in which they can be run, without its inputs."""
    for depth in sorted(graph._nodes_by_depth, reverse=True):
        yield from (node for node in graph._nodes_by_depth[depth] if not node.is_input)


def given(node) -> list:
    """The tensors that a call gives to a model, in the order of the model's inputs.

    Keras lists those of a call in the order in which they stand there, which for a dict is that of its keys.
    """
    graph = graph_of(node.operation)
    tensors = node.arguments.args[0] if node.arguments.args else node.arguments.kwargs["inputs"]
    if isinstance(tensors, dict) and not isinstance(graph._inputs_struct, dict):
        tensors = [tensors[each.name] for each in graph.inputs]
    return keras.tree.flatten(tensors)[: len(graph.inputs)]


def is_model(operation) -> bool:
    """Whether a node of the graph is itself a graph."""
    return isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth")


class Trace:
    """The channels of a model, followed through its graph; the arguments are those of `channel_groups`."""

    def __init__(self, model, exact=True, untouched=()):
        self.exact = exact
        self.untouched = as_names(untouched)
        self.layers = {}
        """Path of each layer -> the layer."""
        self.variables = {}
        """(id of the variable, axis) -> (path, attribute, axis, role, numbers)."""
        self.settings = {}
        """(id of the layer, key of its config) -> (numbers, function of their new count that gives the new value)."""
        self.origins = []
        """(first number, last number + 1, path) of each layer that makes channels."""
        self._parent = []
        self._reasons = {}
        self._made = {}
        self._paths = {}
        self._unknown = []
        self._flow = []

        graph = graph_of(model)
        inputs = [self.fixed(tensor.shape, "a channel of the model's input") for tensor in graph.inputs]
        for output in self.run(model, inputs, ""):
            self.pin(output.numbers, "a channel of the model's output")
        paths = {**find_layers(model), **self.layers} if self.untouched else {}
        for pattern in self.untouched:
            if not any(fnmatchcase(path, pattern) for path in paths):
                raise UserError(
                    f"Nothing to leave untouched by {pattern!r}: expected the name or a pattern of a layer, such as "
                    f"{', '.join(list(paths)[:3])}."
                )

    def run(self, model, inputs: list[Channels], prefix: str) -> list[Channels]:
        """Follow the channels through a model, from those of its inputs to those of its outputs."""
        graph = graph_of(model)
        known = {}
        for tensor, channels in zip(graph.inputs, inputs, strict=True):
            known[id(tensor)] = channels
            layer = tensor._keras_history.operation
            self.layers[prefix + layer.name] = layer
            if prefix and tensor.shape[channels.axis] is not None:
                shape, axis = tuple(tensor.shape), channels.axis
                resize = lambda count, shape=shape, axis=axis: (*shape[:axis], count, *shape[axis + 1 :])  # noqa: E731
                self.set(layer, "batch_shape", channels.numbers, resize)
        for node in calls(graph):
            layer = node.operation
            path = self._paths.setdefault(id(layer), prefix + layer.name)
            self.layers[path] = layer
            sources = [known[id(tensor)] for tensor in node.input_tensors]
            shapes = [tuple(tensor.shape) for tensor in node.output_tensors]
            call = Call(self, layer, path, sources, shapes, node.arguments.args, node.arguments.kwargs)
            if is_model(layer) and not self._is_untouched(path):
                outputs = self.run(layer, [known[id(tensor)] for tensor in given(node)], f"{path}/")
            elif self._is_untouched(path):
                outputs = call.leave("is kept as it is")
                for source in sources:
                    self.pin(source.numbers, f"{path} reads it and is kept as it is")
            elif (rule := find_rule(layer)) is None:
                outputs = call.leave("has no rule")
                self.refuse(call)
            else:
                outputs = rule(call)
                # Copies, so that what a layer passes on as it is can be told from what it was given.
                outputs = [replace(each) for each in ([outputs] if isinstance(outputs, Channels) else outputs)]
            if not is_model(layer):
                self._flow.append((layer, path, sources, outputs))
            known.update((id(tensor), channels) for tensor, channels in zip(node.output_tensors, outputs, strict=True))
        return [known[id(tensor)] for tensor in graph.outputs]

    def new(self, count: int, path: str | None = None) -> np.ndarray:
        """Hand out `count` new numbers, for channels that the layer at `path` makes."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        if path is not None:
            self.origins.append((start, start + count, path))
        return np.arange(start, start + count)

    def fixed(self, shape, reason: str, axis: int = -1) -> Channels:
        """Channels of a tensor that cannot be cut, along its last axis unless another is given."""
        shape = tuple(shape)
        axis = axis % len(shape) if len(shape) > 1 else -1
        numbers = self.new((shape[axis] or 0) if axis > 0 else 0)
        self.pin(numbers, reason)
        return Channels(shape, axis, numbers, np.ones(len(numbers), bool))

    def pin(self, numbers, reason: str):
        """Declare that channels cannot be cut."""
        for number in np.unique(numbers):
            self._reasons.setdefault(self.root(number), reason)

    def refuse(self, call: Call):
        """Remember a call that is not understood: an error in the end, unless nothing around it can be cut anyway."""
        self._unknown.append(call)

    def reason(self, number) -> str | None:
        """Why a channel cannot be cut; None where it can."""
        return self._reasons.get(self.root(number))

    def root(self, number) -> int:
        """The number that stands for all channels declared one with this one."""
        number = int(number)
        while self._parent[number] != number:
            self._parent[number] = self._parent[self._parent[number]]
            number = self._parent[number]
        return number

    def unite(self, first: np.ndarray, second: np.ndarray):
        """Declare channels one and the same, position by position."""
        if first is second:
            return
        for a, b in set(zip(first.tolist(), second.tolist(), strict=True)):
            low, high = sorted((self.root(a), self.root(b)))
            if low != high:
                self._parent[high] = low
                if high in self._reasons:
                    self._reasons.setdefault(low, self._reasons.pop(high))

    def made(self, layer, index, count, path) -> np.ndarray:
        """The numbers that a layer makes: the same ones at every call of a shared layer."""
        key = (id(layer), index)
        if key not in self._made:
            self._made[key] = self.new(count, path)
        return self._made[key]

    def note(self, layer, path, attribute, axis, role, numbers):
        """Write down that an axis of a variable shrinks with channels."""
        variable = attrgetter(attribute)(layer)
        axis %= len(variable.shape)
        if variable.shape[axis] != len(numbers):
            raise ValueError(
                f"The rule of {path} gives {len(numbers)} channels to axis {axis} of {attribute}, whose shape is "
                f"{tuple(variable.shape)}."
            )
        entry = self.variables.setdefault((id(variable), axis), (path, attribute, axis, role, numbers))
        self.unite(entry[-1], numbers)

    def set(self, layer, key, numbers, value: Callable[[int], object]):
        """Write down that a setting of a layer depends on how many of some channels are left."""
        known, first = self.settings.setdefault((id(layer), key), (numbers, value))
        if len(known) == len(numbers) and first(1) == value(1):
            self.unite(known, numbers)
        else:
            self.pin(np.concatenate([known, numbers]), "a shared layer is called on tensors of different shapes")

    def check(self):
        """Raise a `UserError` where a layer that is not understood stands amid channels that could be cut."""
        for call in self._unknown:
            if held := held_otherwise(call.layer):
                raise UserError(
                    f"Cannot prune the {call.kind} {call.path!r}: expected plain weights. Received: {held}, or leave "
                    f"the layer and its inputs whole by untouched=({call.path!r},)."
                )
            if any(not self.reason(number) for channels in call.inputs for number in np.unique(channels.numbers)):
                raise UserError(
                    f"Cannot prune through the {call.kind} {call.path!r}, of which it is not known what it does to "
                    f"channels: expected one that has a rule. Give it one with `tfface.pruning.register_rule"
                    f"({type(call.layer).__name__})`, or leave it and its inputs whole by untouched=({call.path!r},)."
                )

    def groups(self) -> list[ChannelGroup]:
        """The groups, from all that was written down."""
        clusters = self._clusters()
        unit_of = np.full((len(self._parent), 2), -1)
        for index, (_, units) in enumerate(clusters):
            for unit, numbers in enumerate(units):
                unit_of[numbers] = index, unit
        members = [[] for _ in clusters]
        for path, attribute, axis, role, numbers in self.variables.values():
            owner, unit = unit_of[numbers].T
            for index in np.unique(owner[owner >= 0]):
                units = np.where(owner == index, unit, -1)
                members[index].append(Member(path, attribute, axis, role, units))
        ends = self._ends()
        groups = []
        for (paths, units), parts in zip(clusters, members, strict=True):
            end = {ends.get(path) for path in paths}
            block = next(iter(end)) if len(end) == 1 and None not in end else paths[0]
            groups.append(ChannelGroup(paths[0], len(units), tuple(parts), block))
        return groups

    def _clusters(self):
        """(paths of the layers, numbers of each unit) of what hangs together by at least one common unit."""
        roots = np.array([self.root(number) for number in range(len(self._parent))], int)
        leader = {}
        lead = list(range(len(self.origins)))

        def find(index):
            while lead[index] != index:
                lead[index] = lead[lead[index]]
                index = lead[index]
            return index

        for index, (start, stop, _) in enumerate(self.origins):
            for root in np.unique(roots[start:stop]):
                if root not in self._reasons:
                    a, b = find(leader.setdefault(root, index)), find(index)
                    lead[max(a, b)] = min(a, b)
        clusters = {}
        for root, index in sorted(leader.items()):
            clusters.setdefault(find(index), []).append(root)
        order = np.argsort(roots, kind="stable")
        sorted_roots = roots[order]
        result = []
        for first in sorted(clusters):
            paths = [path for index, (*_, path) in enumerate(self.origins) if find(index) == first]
            low = np.searchsorted(sorted_roots, clusters[first])
            high = np.searchsorted(sorted_roots, clusters[first], side="right")
            result.append((list(dict.fromkeys(paths)), [order[a:b] for a, b in zip(low, high, strict=True)]))
        return result

    def _ends(self) -> dict[str, str]:
        """For each layer inside a block, the addition or concatenation that ends it.

        That is the first one behind the layer, if it can also be reached past the layer: a layer that everything
        before the addition runs through (a stem) stands before the block, not in it.
        """
        maker, passed = {}, []
        for index, (_, _, sources, outputs) in enumerate(self._flow):
            common = [passed[maker[id(source)]] if id(source) in maker else 0 for source in sources]
            passed.append(
                reduce(and_, common) | 1 << index
            )  # a set of bits: the calls that every path here runs through
            maker |= {id(channels): index for channels in outputs}
        nearest, ends = {}, {}
        for index, (layer, path, sources, outputs) in reversed(list(enumerate(self._flow))):
            found = min([nearest[id(channels)] for channels in outputs if id(channels) in nearest], default=None)
            if found is not None and not passed[found] >> index & 1:
                ends[path] = self._flow[found][1]
            own = index if joins(layer, len(sources)) else found
            for source in sources if own is not None else ():
                nearest[id(source)] = min(own, nearest.get(id(source), own))
        return ends

    def _is_untouched(self, path):
        return any(fnmatchcase(path, pattern) for pattern in self.untouched)
