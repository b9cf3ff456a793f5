"""How much each channel matters, and which of them stay."""

import math
import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from numbers import Integral, Real
from operator import attrgetter

import keras
import numpy as np
from keras import ops

from tfface.errors import UserError
from tfface.pruning.channels import CONSUMER, PRODUCER
from tfface.pruning.graph import ChannelGroup, as_names, find_layers

METHODS = ("l1", "l2", "group", "batchnorm", "taylor", "random")
SCOPES = ("global", "block", "layer")

SCALES = ("gamma", "scale")
"""Variables of layers that multiply each channel by a number."""

STATISTICS = ("moving_mean", "moving_variance")
"""Variables of layers that are gathered and not learnt."""


def importance(
    model: keras.Model, groups: Sequence[ChannelGroup], method: str = "l1", data=None, loss=None, seed: int = 0
) -> dict[str, np.ndarray]:
    """Rate every unit of every group; the higher, the more it matters.

    - "l1", "l2": norm of all filters that make the unit, those of all layers that a shortcut joins taken together.
      Li et al., Pruning Filters for Efficient ConvNets (ICLR 2017).
    - "group": mean over all that belongs to the unit: the filters that make it, the scales and depthwise filters that
      it passes, and the slices of the layers that read it. Each is rated by its L2 norm divided by the mean of the
      norms in that layer: so a layer of many or large weights counts no more than a scale, and what is average in
      every layer is rated 1. Fang et al., DepGraph: Towards Any Structural Pruning (CVPR 2023), rate whole groups by
      the sum of squares, without this balance.
    - "batchnorm": mean of the absolute scales of the batch normalisations that it passes. Liu et al., Learning
      Efficient Convolutional Networks through Network Slimming (ICCV 2017).
    - "taylor": first-order estimate of how far the loss moves when everything that makes the unit is set to 0, the
      absolute sum of gradient times value, averaged over the batches. Molchanov et al., Importance Estimation for
      Neural Network Pruning (CVPR 2019). The model predicts as it does in use: no dropout, moving statistics.
      Frozen layers are rated as the others are.
    - "random": uniform numbers, the baseline that any other method must beat.

    Args:
        model: the model that the groups are of.
        groups: what `channel_groups` found.
        method: one of the above.
        data: for "taylor", an iterable of batches `(inputs, targets)` or `(inputs, targets, weights)`, as `fit` takes
            them.
        loss: for "taylor", the name of a Keras loss or a function of (targets, outputs); for a model with named
            outputs a dict of them, whose sum is taken.
        seed: seed of "random".

    Returns:
        Group name -> `(width,)` float64. A group without a scale of a batch normalisation is rated infinite by
        "batchnorm", so that it stays whole, and is named in a warning.

    Raises:
        UserError: the method is unknown, or "taylor" lacks data or loss, or its data are no such batches.
    """
    if method not in METHODS:
        raise UserError(f"Unknown importance: expected one of {', '.join(METHODS)}. Received: {method!r}.")
    if method == "random":
        generator = np.random.default_rng(seed)
        return {group.name: generator.uniform(size=group.width) for group in groups}
    layers = find_layers(model)
    if method == "taylor":
        return _taylor(model, groups, layers, data, loss)
    if method == "batchnorm":
        return _batchnorm(groups, layers)
    if method == "group":
        return {group.name: _group(group, layers) for group in groups}
    power = int(method[1])
    scores = {}
    for group in groups:
        total = np.zeros(group.width)
        for member in group.members:
            if member.role == PRODUCER:
                total += _by_unit(member, np.abs(_value(layers, member)) ** power, group.width)
        scores[group.name] = total ** (1 / power)
    return scores


def choose(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, np.ndarray],
    ratio: float | Mapping[str, float],
    scope: str = "layer",
    multiple_of: int = 8,
    minimum: int = 1,
    exclude: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Choose the units that stay.

    Units are ranked together in the whole model, in each block or in each group, and the lowest go. Where several
    groups are ranked together, each group's scores are divided by their mean first, since norms of filters of
    different sizes do not compare. The number that stays of a group that loses any is then rounded to a multiple of
    `multiple_of` channels, which fast kernels want, at least one such multiple, and no layer loses all of its channels.

    Args:
        groups: what `channel_groups` found.
        scores: what `importance` gave.
        ratio: share of the units that goes, in [0, 1); or a dict of shares by the names of blocks or of groups, for
            `scope` "block" and "layer": what it does not name stays whole.
        scope: "global", "block" or "layer": where units are ranked together.
        multiple_of: integer >= 1; 1 for no rounding.
        minimum: least number of channels that stay of each group, >= 1.
        exclude: names or patterns ("stem_*") of groups or of layers that make a group's channels; they stay whole. A
            plain string is one name.

    Returns:
        Group name -> sorted indices of the units that stay, for all groups.

    Raises:
        UserError: an argument is out of range, or a name is unknown.
    """
    if scope not in SCOPES:
        raise UserError(f"Unknown scope: expected one of {', '.join(SCOPES)}. Received: {scope!r}.")
    if not all(isinstance(number, Integral) and number >= 1 for number in (multiple_of, minimum)):
        raise UserError(
            f"Numbers of channels are out of range: expected multiple_of >= 1 and minimum >= 1, integers. Received: "
            f"multiple_of={multiple_of!r}, minimum={minimum!r}."
        )
    buckets = {}
    for group in groups:
        buckets.setdefault({"global": "", "block": group.block, "layer": group.name}[scope], []).append(group)
    ratios = _ratios(ratio, buckets, scope)
    exclude = as_names(exclude)
    _check_patterns(groups, exclude)
    keep = {}
    for bucket, members in buckets.items():
        members = [group for group in members if not excluded(group, exclude)]
        if not members:
            continue
        relative = [_relative(scores[group.name]) for group in members]
        owner = np.repeat(np.arange(len(members)), [group.width for group in members])
        # Among equals, those go first that stand low in their group, so that equal groups lose equal shares.
        standing = np.concatenate([np.argsort(np.argsort(each, kind="stable")) / len(each) for each in relative])
        order = np.lexsort((standing, np.concatenate(relative)))
        lost = np.bincount(owner[order[: round(ratios[bucket] * len(order))]], minlength=len(members))
        for group, own, gone in zip(members, relative, lost, strict=True):
            own[_best_of_each_layer(group, own)] = np.inf
            rounded = _rounded(group, group.width - gone, multiple_of, minimum) if gone else group.width
            count = max(rounded, int(np.isinf(own).sum()))
            keep[group.name] = np.sort(np.argsort(-own, kind="stable")[:count])
    return {group.name: keep.get(group.name, np.arange(group.width)) for group in groups}


def _relative(scores):
    finite = scores[np.isfinite(scores)]
    return scores / ((finite.mean() if finite.size else 0.0) or 1.0)


def _best_of_each_layer(group, scores):
    """The units that no layer may lose, or it would make nothing: of channels laid side by side, one of each."""
    makers = [member.units for member in group.members if member.role == PRODUCER and (member.units >= 0).all()]
    return [units[np.argmax(scores[units])] for units in makers]


def _ratios(ratio, buckets, scope):
    if isinstance(ratio, Mapping):
        unknown = [name for name in ratio if name not in buckets]
        if unknown or scope == "global":
            raise UserError(
                f"Ratios by name need the scope 'block' or 'layer' and its names: expected among {list(buckets)[:5]}. "
                f"Received: scope={scope!r}, {unknown or list(ratio)}."
            )
    ratios = {name: ratio.get(name, 0.0) if isinstance(ratio, Mapping) else ratio for name in buckets}
    wrong = [value for value in ratios.values() if not isinstance(value, Real) or not 0 <= value < 1]
    if wrong:
        raise UserError(f"A share of channels to cut is out of range: expected [0, 1). Received: {wrong[0]!r}.")
    return ratios


def _rounded(group, wanted, multiple_of, minimum):
    producer = next(member for member in group.members if member.role == PRODUCER)
    sizes = np.unique(np.bincount(producer.units[producer.units >= 0]))
    size = int(sizes[0]) if len(sizes) == 1 else 1  # channels of a unit
    step = multiple_of // math.gcd(multiple_of, size)
    least = max(step, math.ceil(minimum / size), 1)
    return min(max(math.floor(wanted / step + 0.5) * step, least), group.width)


def excluded(group: ChannelGroup, patterns: Sequence[str]) -> bool:
    """Whether a name or pattern is that of the group, or of a layer that makes its channels."""
    return any(fnmatchcase(name, pattern) for name in (group.name, *group.layers) for pattern in patterns)


def _check_patterns(groups, patterns):
    for pattern in patterns:
        if not any(excluded(group, [pattern]) for group in groups):
            raise UserError(
                f"Nothing to exclude by {pattern!r}: expected the name or a pattern of a layer that makes channels, "
                f"such as {', '.join(group.name for group in list(groups)[:3])}."
            )


def _value(layers, member):
    variable = attrgetter(member.variable)(layers[member.layer])
    return ops.convert_to_numpy(variable.value).astype("float64")


def _by_unit(member, values, width):
    """Sum of an array of the variable's shape over everything that belongs to each unit."""
    along = values.sum(axis=tuple(axis for axis in range(values.ndim) if axis != member.axis))
    inside = member.units >= 0
    return np.bincount(member.units[inside], along[inside], minlength=width)


def _group(group, layers):
    total, count = np.zeros(group.width), np.zeros(group.width)
    for member in group.members:
        name = member.variable.split(".")[-1]
        if member.role in (PRODUCER, CONSUMER) or name in SCALES or name.endswith("kernel"):
            norms = np.sqrt(_by_unit(member, _value(layers, member) ** 2, group.width))
            own = np.unique(member.units[member.units >= 0])
            total[own] += norms[own] / (norms[own].mean() or 1.0)
            count[own] += 1
    return total / count


def _batchnorm(groups, layers):
    scores, without = {}, []
    for group in groups:
        total, count = np.zeros(group.width), np.zeros(group.width)
        for member in group.members:
            if member.variable == "gamma" and isinstance(layers[member.layer], keras.layers.BatchNormalization):
                scales = np.abs(_value(layers, member))
                total += _by_unit(member, scales, group.width)
                count += _by_unit(member, np.ones_like(scales), group.width)
        rated = count > 0
        scores[group.name] = np.where(rated, total / np.maximum(count, 1), np.inf)
        without += [] if rated.all() else [group.name]
    if without:
        warnings.warn(
            f"{len(without)} of {len(groups)} groups of channels pass no batch normalisation with a scale and stay "
            f"whole: {', '.join(without[:5])}{', ...' if len(without) > 5 else ''}",
            stacklevel=3,
        )
    return scores


def _taylor(model, groups, layers, data, loss):
    if data is None or loss is None:
        raise UserError(
            "The importance 'taylor' needs data and a loss: expected an iterable of batches (inputs, targets) and a "
            f"Keras loss. Received: data={data!r}, loss={loss!r}."
        )
    makers = [[member for member in group.members if member.role != CONSUMER] for group in groups]
    variables = {}
    for member in (each for members in makers for each in members):
        if member.variable.split(".")[-1] not in STATISTICS:
            variables[member.layer, member.variable] = attrgetter(member.variable)(layers[member.layer])
    totals = {group.name: np.zeros(group.width) for group in groups}
    batches = 0
    for batch in data:
        if not isinstance(batch, tuple | list) or len(batch) not in (2, 3):
            raise UserError(
                "The importance 'taylor' needs batches of examples: expected each to be (inputs, targets) or (inputs, "
                f"targets, weights). Received: {type(batch).__name__}."
            )
        inputs, targets, *weights = batch
        total = _total_loss(loss, *weights)
        gradients = _gradients(model, list(variables.values()), total, inputs, targets)
        moves = {
            name: ops.convert_to_numpy(variable.value).astype("float64") * gradient
            for (name, variable), gradient in zip(variables.items(), gradients, strict=True)
        }
        for group, members in zip(groups, makers, strict=True):
            along = [
                _by_unit(member, moves[member.layer, member.variable], group.width)
                for member in members
                if (member.layer, member.variable) in moves
            ]
            totals[group.name] += np.abs(np.sum(along, axis=0))
        batches += 1
    if not batches:
        raise UserError("The importance 'taylor' got no data: expected at least one batch (inputs, targets).")
    return {name: total / batches for name, total in totals.items()}


def _total_loss(loss, weights=None):
    """The loss of a batch, a function of (targets, outputs), with the weights of its examples as `fit` counts them."""
    if isinstance(loss, Mapping):
        of = weights if isinstance(weights, Mapping) else dict.fromkeys(loss, weights)
        parts = {name: _total_loss(each, of.get(name)) for name, each in loss.items()}
        return lambda targets, outputs: sum(part(targets[n], outputs[n]) for n, part in parts.items())
    function = keras.losses.get(loss)
    if isinstance(function, keras.losses.Loss):
        return lambda targets, outputs: ops.mean(function(targets, outputs, sample_weight=weights))

    def mean(targets, outputs):
        values = function(targets, outputs)
        if weights is not None:
            own = ops.cast(weights, values.dtype)
            for _ in range(len(values.shape) - len(own.shape)):
                own = ops.expand_dims(own, -1)
            values = values * own
        return ops.mean(values)

    return mean


def _gradients(model, variables, loss, inputs, targets):
    """Gradients of the loss by variables, as float64 arrays: the one thing that each backend does its own way.

    Those of frozen variables too, which stay frozen.
    """
    backend = keras.backend.backend()
    values = [variable.value for variable in variables]
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            value = loss(targets, model(inputs, training=False))
        found = tape.gradient(value, values, unconnected_gradients="zero")
    elif backend == "jax":
        import jax

        places = {id(variable): place for place, variable in enumerate(variables)}

        def of(wanted):
            state = [
                [wanted[places[id(each)]] if id(each) in places else each.value for each in part]
                for part in (model.trainable_variables, model.non_trainable_variables)
            ]
            return loss(targets, model.stateless_call(*state, inputs, training=False)[0])

        found = jax.grad(of)(values)
    elif backend == "torch":
        import torch

        frozen = [value for value in values if not value.requires_grad]
        try:
            for value in frozen:
                value.requires_grad_(True)
            moved = loss(targets, model(inputs, training=False))
            found = torch.autograd.grad(moved, values, materialize_grads=True)
        finally:
            for value in frozen:
                value.requires_grad_(False)
    else:
        raise UserError(f"The importance 'taylor' needs gradients, which the Keras backend {backend!r} does not give.")
    return [ops.convert_to_numpy(gradient).astype("float64") for gradient in found]
