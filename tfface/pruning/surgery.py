"""Cut channels out of a network: a smaller plain Keras model, the same graph with the same names."""

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from tempfile import TemporaryDirectory

import keras
import numpy as np

from tfface.errors import UserError
from tfface.models.saved import finalize
from tfface.pruning.channels import CONSUMER, PRODUCER
from tfface.pruning.graph import ChannelGroup, Trace, calls, channel_groups, find_layers, graph_of, is_model
from tfface.pruning.importance import choose, importance


def cut(model: keras.Model, keep: Mapping[str, Sequence[int]], groups: list[ChannelGroup] | None = None) -> keras.Model:
    """Build the smaller model that is left of a model when all but the kept units of its groups are cut out.

    Args:
        model: a functional or sequential `keras.Model`. It is left as it is.
        keep: group name -> indices of the units that stay, or `(width,)` booleans, true for those; at least one each.
            Groups that are not named stay whole.
        groups: the groups of the model, where they were found with other than the default options.

    Returns:
        A new plain model of the same inputs, outputs and layer names, not compiled, that holds the kept weights. A
        class of its own (with a `train_step`) is not kept: it is a `keras.Model` or `keras.Sequential`.

    Raises:
        UserError: a name is none of the groups', indices are no integers, out of range or none, or the model is not
            understood.
    """
    trace = Trace(model, exact=False)
    numbers = {(path, name, axis): each for path, name, axis, _, each in trace.variables.values()}
    gone = set()
    for group, kept in chosen(model, keep, groups):
        for member in group.members:
            if member.role == PRODUCER:
                lost = (member.units >= 0) & ~kept[member.units]
                gone.update(map(trace.root, numbers[member.layer, member.variable, member.axis][lost]))
    smaller = _Surgeon(trace, gone).rebuild(model)
    smaller.trainable = model.trainable
    # A model's flag falls on all its layers, so those of the layers follow, outer ones first.
    for new, old in zip(find_layers(smaller).values(), find_layers(model).values(), strict=True):
        new.trainable = old.trainable
    return smaller


def prune(
    model: keras.Model,
    ratio: float | Mapping[str, float],
    method: str = "l1",
    scope: str = "layer",
    data: Iterable | None = None,
    loss: object | None = None,
    multiple_of: int = 8,
    minimum: int = 1,
    exclude: Sequence[str] = (),
    untouched: Sequence[str] = (),
    exact: bool = True,
    seed: int = 0,
) -> keras.Model:
    """Find, rate, choose and cut in one call: `channel_groups`, `importance`, `choose` and `cut`.

        smaller = tfface.pruning.prune(model, 0.5)

    Args:
        model: a functional or sequential `keras.Model`. It is left as it is.
        ratio, scope, multiple_of, minimum, exclude: what goes, as in `choose`.
        method, data, loss, seed: how channels are rated, as in `importance`.
        untouched, exact: what can be cut, as in `channel_groups`.

    Returns:
        The smaller model, as `cut` gives it.

    Raises:
        UserError: as in those four.
    """
    groups = channel_groups(model, exact, untouched)
    scores = importance(model, groups, method, data, loss, seed)
    return cut(model, choose(groups, scores, ratio, scope, multiple_of, minimum, exclude), groups)


def silence(model: keras.Model, keep: Mapping[str, Sequence[int]], groups: list[ChannelGroup] | None = None) -> None:
    """Set everything that makes the cut units to 0, in place: the network that `cut` equals, at its full width.

    Filters, biases, scales, offsets, statistics and depthwise filters of the units that are not kept become 0; the
    weights that read them stay.

    Args:
        model: a functional or sequential `keras.Model`, changed in place.
        keep: what stays, as in `cut`.
        groups: as in `cut`.

    Raises:
        UserError: as in `cut`.
    """
    layers = find_layers(model)
    for group, kept in chosen(model, keep, groups):
        for member in group.members:
            if member.role != CONSUMER:
                variable = attrgetter(member.variable)(layers[member.layer])
                shape = [-1 if axis == member.axis else 1 for axis in range(len(variable.shape))]
                stays = (member.units < 0) | kept[member.units]
                variable.assign(variable * keras.ops.cast(stays.reshape(shape), variable.dtype))


def chosen(model, keep, groups):
    """Pairs of each group named in `keep` and a mask over its units, true for those that stay.

    Raises:
        UserError: as in `cut`.
    """
    groups = {group.name: group for group in (channel_groups(model) if groups is None else groups)}
    unknown = [name for name in keep if name not in groups]
    if unknown:
        raise UserError(
            f"The model has no group of channels {unknown[0]!r}: expected names that `channel_groups` gives, such as "
            f"{', '.join(list(groups)[:3]) or 'none here'}. Received: {len(unknown)} unknown of {len(keep)}."
        )
    pairs = []
    for name, indices in keep.items():
        group, indices = groups[name], np.asarray(indices)
        if indices.dtype == bool and indices.shape == (group.width,):
            indices = np.flatnonzero(indices)
        whole = indices.ndim == 1 and np.issubdtype(indices.dtype, np.integer)
        if not whole or not indices.size or indices.min() < 0 or indices.max() >= group.width:
            raise UserError(
                f"Wrong units to keep of group {name!r}: expected at least one index in [0, {group.width}), or a mask "
                f"of {group.width} booleans. Received: {indices.tolist()}."
            )
        mask = np.zeros(group.width, bool)
        mask[indices] = True
        pairs.append((group, mask))
    return pairs


def _without_tables(operation) -> dict:
    """The config of a layer, without initial values that are arrays: they would fit no smaller weights."""
    config = operation.get_config()
    for key in (key for key in config if key.endswith("_initializer")):
        initializer = getattr(operation, key, None)
        if isinstance(initializer, keras.initializers.Constant) and np.ndim(initializer.value):
            config[key] = "zeros"
    return config


class _Surgeon:
    """Calls every layer anew, with the settings and the weights that are left."""

    def __init__(self, trace, gone):
        self.stays = lambda numbers: np.array([trace.root(number) not in gone for number in numbers], bool)
        self.settings, self.slices, self.copies = {}, {}, {}
        for (layer, key), (numbers, value) in trace.settings.items():
            stays = self.stays(numbers)
            if not stays.all():
                self.settings.setdefault(layer, {})[key] = value(int(stays.sum()))
        for (variable, axis), (path, *_, numbers) in trace.variables.items():
            stays = self.stays(numbers)
            if not stays.any():
                raise UserError(
                    f"Nothing is left of layer {path!r}: expected at least one of its {len(stays)} channels to be kept."
                )
            if not stays.all():
                self.slices.setdefault(variable, []).append((axis, np.flatnonzero(stays)))

    def rebuild(self, model):
        """The model anew, with everything inside it."""
        graph = graph_of(model)
        known = {id(tensor): self.copy(tensor._keras_history.operation).output for tensor in graph.inputs}
        if isinstance(model, keras.Sequential):
            first = known[id(graph.inputs[0])]._keras_history.operation
            smaller = keras.Sequential([first, *map(self.copy, model.layers)], name=model.name)
        else:
            for node in calls(graph):
                arguments, keywords = node.arguments.fill_in(known)
                outputs = self.copy(node.operation)(*arguments, **keywords)
                known.update(zip(map(id, node.output_tensors), keras.tree.flatten(outputs), strict=True))
            inputs, outputs = keras.tree.map_structure(
                lambda tensor: known[id(tensor)], (graph._inputs_struct, graph._outputs_struct)
            )
            smaller = keras.Model(inputs, outputs, name=model.name)
        for layer in model.layers:
            if not is_model(layer):
                self.fill(layer)
        return smaller

    def copy(self, operation):
        """The new layer or operation in the place of an old one."""
        if id(operation) not in self.copies:
            if is_model(operation):
                copy = self.rebuild(operation)
            else:
                settings = _without_tables(operation) | self.settings.get(id(operation), {})
                try:
                    copy = type(operation).from_config(settings)
                except (TypeError, ValueError) as error:
                    raise UserError(
                        f"Cannot make the layer {operation.name!r} ({type(operation).__name__}) anew from its config: "
                        "expected nothing in it that Keras does not know. Register its functions by "
                        "`keras.saving.register_keras_serializable`, or prune inside "
                        "`keras.saving.custom_object_scope`; put a layer of your own in the place of a Lambda."
                    ) from error
                copy.name = operation.name
                if hasattr(operation, "save_assets"):  # a vocabulary, which must be known before the call
                    with TemporaryDirectory() as folder:
                        operation.save_assets(folder)
                        copy.load_assets(folder)
            self.copies[id(operation)] = copy
        return self.copies[id(operation)]

    def fill(self, layer):
        """Give the new layer what is left of the weights of the old one."""
        for old, new in zip(layer.variables, self.copies[id(layer)].variables, strict=True):
            value = keras.ops.convert_to_numpy(old.value)
            for axis, places in self.slices.get(id(old), ()):
                value = value.take(places, axis)
            if value.shape != tuple(new.shape):
                raise UserError(
                    f"The rule of layer {layer.name!r} ({type(layer).__name__}) leaves {old.path} at {value.shape}, "
                    f"but the layer wants {tuple(new.shape)}: its rule must name every axis and setting that shrinks."
                )
            new.assign(value)
        finalize(self.copies[id(layer)])
