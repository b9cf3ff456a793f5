"""Pruning during `fit`: TensorFlow Model Optimization (TFMOT) says when, how much and what, on Keras 3 layers.

TFMOT's wrappers refuse Keras 3 models. Its two parts that matter do not: the schedules (`ConstantSparsity`,
`PolynomialDecay`) and the `Pruning` engine, which keeps masks and multiplies them into `tf.Variable`s, such as stand
behind the variables of a Keras 3 layer. The callbacks here drive both at the moments at which `prune_low_magnitude`
does (before each step): the same weights and schedule give the same masks, step by step.

A step is the optimizer's, counted from 1, and what is masked is zero. Masks are therefore read back from the weights
when training goes on: pruning adds no state that a checkpoint could miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import keras
import numpy as np
import tensorflow as tf
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_impl import Pruning
from tensorflow_model_optimization.python.core.sparsity.keras.pruning_schedule import PruningSchedule

from tfface.errors import UserError
from tfface.packages import require_tensorflow
from tfface.pruning.channels import CONSUMER, held_otherwise
from tfface.pruning.graph import ChannelGroup, as_names, channel_groups, find_layers
from tfface.pruning.importance import choose, importance
from tfface.pruning.surgery import cut

KERNELS = {
    keras.layers.Conv1D: "kernel",
    keras.layers.Conv2D: "kernel",
    keras.layers.Conv3D: "kernel",
    keras.layers.Conv1DTranspose: "kernel",
    keras.layers.Conv2DTranspose: "kernel",
    keras.layers.Conv3DTranspose: "kernel",
    keras.layers.Dense: "kernel",
    keras.layers.EinsumDense: "kernel",
    keras.layers.Embedding: "embeddings",
    keras.layers.SeparableConv1D: "pointwise_kernel",
    keras.layers.SeparableConv2D: "pointwise_kernel",
}
"""Kind of layer -> the variable that TFMOT prunes in it (its registry; attention is made of EinsumDense in Keras 3)."""


class ScheduledPruning(keras.callbacks.Callback):
    """What both callbacks share: masks change when the schedule says so and are applied before each step.

    Args:
        schedule: `tfmot.sparsity.keras.ConstantSparsity`, `PolynomialDecay`, or another of TFMOT's schedules.
    """

    def __init__(self, schedule: PruningSchedule):
        super().__init__()
        if not isinstance(schedule, PruningSchedule):
            raise ValueError(f"`schedule` must be one of TFMOT's, such as PolynomialDecay. Received: {schedule!r}")
        self.schedule = schedule
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._apply = None

    def on_train_begin(self, logs=None):
        require_tensorflow("Pruning during fit", ", or take turns: prune(model, ratio), fit")
        if self.model.steps_per_execution != 1:
            raise UserError(
                "Pruning during fit needs steps_per_execution=1, as masks are applied before each step. Received: "
                f"{self.model.steps_per_execution}. Compile the model without it."
            )
        strategy = self.model.distribute_strategy
        if isinstance(strategy, tf.distribute.MirroredStrategy):
            raise UserError(
                "Pruning during fit works outside of tf.distribute. Received: a model made under "
                f"{type(strategy).__name__}. Make it outside, or take turns: prune(model, ratio), fit."
            )
        self._apply = None

    def on_train_batch_begin(self, batch, logs=None):
        done = int(self.model.optimizer.iterations)
        self._step.assign(done + 1)
        # Only now: another callback may have restored the weights when training began.
        if self._apply is None:
            self._begin(done)
        if self.schedule(self._step)[0]:
            self._update()
        self._apply()

    def on_test_begin(self, logs=None):
        if self._apply:
            self._apply()

    def on_epoch_end(self, epoch, logs=None):
        self._apply()
        if logs is not None:
            logs["sparsity"] = self.sparsity()

    def _begin(self, done: int) -> None:
        engine = self._build(resumed=done > 0)
        # An optimizer with `use_ema` puts the averages in the weights' place in the end, so they are masked too.
        optimizer = self.model.optimizer
        if not optimizer.built:
            optimizer.build(self.model.trainable_variables)
        averages = _averages(optimizer)
        pairs = [(averages[id(weight)], mask) for weight, mask in self._masked if id(weight) in averages]

        def apply():
            engine.weight_mask_op()
            for average, mask in pairs:
                average.assign(average * mask)

        self._apply = tf.function(apply, autograph=False)
        end = getattr(self.schedule, "end_step", -1)
        if 0 <= end <= done and self.sparsity() == 0:
            raise UserError(
                f"The schedule ends at step {end}, the optimizer has made {done} steps and nothing is pruned: it never "
                "would be. Compile the model again, which counts from 0, or let the schedule begin later."
            )

    def _engine(self, pairs, block_size=(1, 1), pooling="AVG") -> Pruning:
        """TFMOT's engine over pairs of `tf.Variable`s (weight, mask); the threshold is a third that it asks for."""
        self._masked = list(pairs)
        variables = [
            (weight, mask, tf.Variable(0, dtype=weight.dtype, trainable=False)) for weight, mask in self._masked
        ]
        return Pruning(lambda: self._step, variables, self.schedule, block_size, pooling)

    def _build(self, resumed: bool) -> Pruning:
        """Make the masks, from the weights' zeros if `resumed`; the engine that multiplies them into the weights."""
        raise NotImplementedError

    def _update(self) -> None:
        """Choose anew what is masked."""
        raise NotImplementedError

    def sparsity(self) -> float:
        """Share that is masked now, in [0, 1)."""
        raise NotImplementedError


class MagnitudePruning(ScheduledPruning):
    """Zero the smallest weights during `fit`, one by one or in blocks: `prune_low_magnitude` for Keras 3 models.

    This makes a model that compresses well and that sparse kernels run faster. By itself it becomes neither smaller
    nor faster: see `FilterPruning` for that. The masks are those of Zhu and Gupta, "To prune, or not to prune" (2017),
    section 3, as TFMOT computes them. List this callback before those that save the model.

    Args:
        schedule: one of TFMOT's.
        layers: names of the layers to prune; all those with a kernel (`KERNELS`) if None.
        block_size: `(height, width)` of the blocks of weights that are zeroed together; for matrices only.
        block_pooling_type: "AVG" or "MAX": which magnitude stands for a block.

    Raises:
        UserError: when training begins: a name that is no layer with a kernel, no such layer at all, or one that is
            quantised or has LoRA.

    Example:
        schedule = tfmot.sparsity.keras.PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
        model.fit(x, y, callbacks=[MagnitudePruning(schedule)])
    """

    def __init__(
        self,
        schedule: PruningSchedule,
        layers: Sequence[str] | None = None,
        block_size: tuple[int, int] = (1, 1),
        block_pooling_type: str = "AVG",
    ):
        super().__init__(schedule)
        self.layers = None if layers is None else as_names(layers)
        self.block_size, self.block_pooling_type = tuple(block_size), block_pooling_type
        self.masks: list[tf.Variable] = []

    def kernels(self) -> list[keras.Variable]:
        """The variables that are pruned."""
        found = [
            (layer, attribute)
            for layer in self.model._flatten_layers(include_self=False)
            for kind, attribute in KERNELS.items()
            if isinstance(layer, kind)
        ]
        names = {layer.name for layer, _ in found}
        unknown = set(self.layers or ()) - names
        if unknown or not found:
            raise UserError(
                f"Nothing can be pruned in {', '.join(sorted(unknown)) or self.model.name}: expected layers with a "
                f"kernel, of which {self.model.name} has: {', '.join(sorted(names)) or 'none'}."
            )
        wanted = [pair for pair in found if self.layers is None or pair[0].name in self.layers]
        for layer, _ in wanted:
            if held := held_otherwise(layer):
                raise UserError(f"Cannot prune the layer {layer.name!r}: expected plain weights. Received: {held}.")
        return [getattr(layer, attribute) for layer, attribute in wanted]

    def sparsity(self):
        return 1 - sum(float(tf.reduce_sum(mask)) for mask in self.masks) / sum(
            int(tf.size(mask)) for mask in self.masks
        )

    def _build(self, resumed):
        weights = [kernel.value for kernel in self.kernels()]
        masks = [np.asarray(weight) != 0 if resumed else np.ones(weight.shape) for weight in weights]
        self.masks = [
            tf.Variable(mask, dtype=weight.dtype, trainable=False) for mask, weight in zip(masks, weights, strict=True)
        ]
        self._magnitudes = self._engine(zip(weights, self.masks, strict=True), self.block_size, self.block_pooling_type)
        return self._magnitudes

    def _update(self):
        self._magnitudes.conditional_mask_update()


class FilterPruning(ScheduledPruning):
    """Zero whole filters during `fit`, with everything that belongs to them, so that they can then be cut out.

    The unit is a channel of a group (`tfface.pruning.channel_groups`): its filters in every layer that a shortcut
    joins, their biases, normalisations and depthwise filters. At each update channels are rated and chosen as `prune`
    does, at the sparsity that TFMOT's schedule asks for; TFMOT's engine then keeps them at zero. A channel once masked
    stays masked, and to cut it changes no output:

        pruning = FilterPruning(tfmot.sparsity.keras.PolynomialDecay(0.0, 0.5, begin_step=0, end_step=1000))
        model.fit(x, y, epochs=10, callbacks=[pruning])
        smaller = pruning.cut()

    Reference: Li et al., "Pruning Filters for Efficient ConvNets" (ICLR 2017), section 3.1, for the unit; Zhu and
    Gupta, "To prune, or not to prune" (2017), section 3, for the schedule.

    Args:
        schedule: one of TFMOT's; its sparsity is the share of channels that is masked.
        method, data, loss: how channels are rated, as in `importance`; the loss is the compiled one if None, with its
            weights.
        scope, multiple_of, minimum, exclude: how they are chosen, as in `choose`.
        untouched, exact: what can be cut, as in `channel_groups`.

    Raises:
        UserError: when training begins: an argument is wrong, or the network is not understood or has nothing to cut.
    """

    def __init__(
        self,
        schedule: PruningSchedule,
        method: str = "l1",
        scope: str = "layer",
        data=None,
        loss=None,
        multiple_of: int = 8,
        minimum: int = 1,
        exclude: Sequence[str] = (),
        untouched: Sequence[str] = (),
        exact: bool = True,
    ):
        super().__init__(schedule)
        self.method, self.data, self.loss = method, data, loss
        self.choice = {"scope": scope, "multiple_of": multiple_of, "minimum": minimum, "exclude": as_names(exclude)}
        self.untouched, self.exact = as_names(untouched), exact
        self.groups: list[ChannelGroup] = []
        self.keep: dict[str, np.ndarray] = {}
        """Group name -> indices of the channels that are not masked."""

    def on_train_batch_end(self, batch, logs=None):
        self._apply()

    def sparsity(self):
        return 1 - sum(map(len, self.keep.values())) / sum(group.width for group in self.groups)

    def cut(self) -> keras.Model:
        """The model without the channels that are masked: a new plain model, not compiled; see `tfface.pruning.cut`."""
        # From the weights: another callback may have put earlier ones back, masked by an earlier choice.
        return cut(self.model, nonzero_channels(self.model, self.groups), self.groups)

    def _build(self, resumed):
        self.groups = channel_groups(self.model, self.exact, self.untouched)
        if not self.groups:
            raise UserError(f"{self.model.name} has no channels to prune: `fixed_layers` says what holds them.")
        self._variables = _makers(self.model, self.groups)
        self.keep = {group.name: np.arange(group.width) for group in self.groups}
        if resumed:
            self.keep = nonzero_channels(self.model, self.groups)
        self._choose(0.0)  # what is wrong with an argument is said now, not at the schedule's first step
        self._masks = [tf.Variable(mask, dtype=variable.dtype) for variable, mask in self._expanded()]
        values = [variable.value for variable, _ in self._variables]
        return self._engine(zip(values, self._masks, strict=True))

    def _update(self):
        # Rounding masks more of a group than was asked for; where groups are ranked together, the next choice may take
        # less of it. What was zeroed is lost and is not given back.
        for name, kept in self._choose(float(self.schedule(self._step)[1])).items():
            if len(kept) < len(self.keep[name]):
                self.keep[name] = kept
        for mask, (_, value) in zip(self._masks, self._expanded(), strict=True):
            mask.assign(value)

    def _choose(self, ratio: float) -> dict[str, np.ndarray]:
        scores = importance(self.model, self.groups, self.method, self.data, self.loss or _compiled_loss(self.model))
        # What is masked stays so, by whatever method: it is of no importance.
        for name, values in scores.items():
            values[np.setdiff1d(np.arange(len(values)), self.keep[name])] = 0
        return choose(self.groups, scores, ratio, **self.choice)

    def _expanded(self):
        """Each variable that makes channels, with its mask: 1 where it stays, of a shape that broadcasts."""
        alive = {group.name: np.isin(np.arange(group.width), self.keep[group.name]) for group in self.groups}
        for variable, members in self._variables:
            mask = np.ones([1] * len(variable.shape), "float32")
            for name, member in members:
                stays = (member.units < 0) | alive[name][member.units]
                mask = mask * stays.reshape([-1 if axis == member.axis else 1 for axis in range(mask.ndim)])
            yield variable, mask


def _compiled_loss(model):
    """The loss that a model was compiled with, weights of its outputs included; None where there is none.

    A second one of the kind: Keras' own counts what it sees into the figures of the epoch.
    """
    own = model._compile_loss  # Keras has no public view of the weights
    return own and type(own)(own._user_loss, own._user_loss_weights, output_names=own.output_names)


def _averages(optimizer) -> dict:
    """Moving averages of an optimizer and of those inside it, by the ids of the `tf.Variable`s that they follow."""
    # Keras has no public view of any of these.
    inner = [*getattr(optimizer, "_inner_optimizers", ()), getattr(optimizer, "inner_optimizer", None)]
    found = {}
    for each in filter(None, inner):
        found |= _averages(each)
    averages = getattr(optimizer, "_model_variables_moving_average", ())
    pairs = zip(optimizer._trainable_variables, averages, strict=True) if averages else ()
    return found | {id(variable.value): average.value for variable, average in pairs if average is not None}


def nonzero_channels(model: keras.Model, groups: Sequence[ChannelGroup]) -> dict[str, np.ndarray]:
    """Group name -> indices of the channels that are not zero in everything that makes them.

    What is left out can be cut without a change: `cut(model, nonzero_channels(model, groups), groups)`, whoever set it
    to zero. A group of zeros only keeps its first channel, since none can be left without.
    """
    alive = {group.name: np.zeros(group.width, bool) for group in groups}
    for variable, members in _makers(model, groups):
        for name, member in members:
            others = tuple(axis for axis in range(len(variable.shape)) if axis != member.axis)
            found = (keras.ops.convert_to_numpy(variable) != 0).any(axis=others) & (member.units >= 0)
            alive[name][member.units[found]] = True
    return {name: np.flatnonzero(each) if each.any() else np.arange(1) for name, each in alive.items()}


def _makers(model, groups) -> list[tuple]:
    """Pairs of each variable that makes channels and its axes that do, each with the name of its group."""
    layers, makers = find_layers(model), {}
    for group in groups:
        for member in group.members:
            if member.role != CONSUMER:
                variable = attrgetter(member.variable)(layers[member.layer])
                makers.setdefault(id(variable), (variable, []))[1].append((group.name, member))
    return list(makers.values())
