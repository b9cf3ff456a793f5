"""TFMOT drives pruning of Keras 3 models: its masks step by step, whole filters, and going on after a kill."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_model_optimization as tfmot
import tf_keras
from keras import layers

from tfface.errors import UserError
from tfface.pruning.schedule import FilterPruning, MagnitudePruning
from tfface.training.run import Run

POLYNOMIAL = tfmot.sparsity.keras.PolynomialDecay(0.1, 0.75, begin_step=2, end_step=11, frequency=3)
CONSTANT = tfmot.sparsity.keras.ConstantSparsity(0.5, 2, frequency=4)
EPOCHS, STEPS, BATCH = 2, 6, 8

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(STEPS * BATCH, 6, 6, 3)).astype("float32")
TARGETS = RNG.normal(size=(STEPS * BATCH, 12)).astype("float32")


def fit(model, callbacks, kit=keras, epochs=EPOCHS, eager=True):
    """Train with momentum. For a few steps eager execution is faster than to compile them."""
    model.compile(kit.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=eager)
    model.fit(IMAGES, TARGETS, batch_size=BATCH, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)
    return model


def recorder(read, kit=keras):
    """A callback whose `rows` are what `read` gives after each step."""

    class Recorder(kit.callbacks.Callback):
        rows = []  # noqa: RUF012

        def on_train_batch_end(self, batch, logs=None):
            self.rows.append([np.array(value) for value in read()])

    return Recorder()


def assert_equal_steps(ours, theirs, changes):
    assert len(ours) == len(theirs) == EPOCHS * STEPS
    assert len({row[-1].tobytes() for row in ours}) >= changes, "the masks hardly changed: nothing was compared"
    for step, (mine, their) in enumerate(zip(ours, theirs, strict=True)):
        for a, b in zip(mine, their, strict=True):
            np.testing.assert_array_equal(a, b, err_msg=f"step {step + 1}")


def twins(build, wrapped, schedule, block):
    """The same network and weights twice: for TFMOT, some layers in its wrapper, and for Keras 3."""

    def wrap(layer):
        return tfmot.sparsity.keras.prune_low_magnitude(layer, pruning_schedule=schedule, block_size=block)

    theirs = tf_keras.Sequential(
        [wrap(layer) if index in wrapped else layer for index, layer in enumerate(build(tf_keras.layers))]
    )
    theirs.build((None, 6, 6, 3))
    ours = keras.Sequential([layers.Input((6, 6, 3)), *build(layers)])
    for index, (mine, their) in enumerate(zip(ours.layers, theirs.layers, strict=True)):
        mine.set_weights([weight.numpy() for weight in (their.layer if index in wrapped else their).trainable_weights])
    return ours, theirs, [theirs.layers[index] for index in wrapped]


@pytest.mark.parametrize("schedule", [POLYNOMIAL, CONSTANT], ids=["polynomial", "constant"])
@pytest.mark.parametrize("block", [(1, 1), (1, 4)], ids=["weights", "blocks"])
def test_masks_are_those_of_prune_low_magnitude(schedule, block):
    def build(kit):
        return [kit.Conv2D(8, 3, activation="relu"), kit.Flatten(), kit.Dense(12)]

    # Blocks are for matrices only, in TFMOT too.
    wrapped = (0, 2) if block == (1, 1) else (2,)
    ours, theirs, pruned = twins(build, wrapped, schedule, block)
    reference = recorder(lambda: [layer.pruning_vars[0][1] for layer in pruned], tf_keras)
    fit(theirs, [tfmot.sparsity.keras.UpdatePruningStep(), reference], tf_keras, eager=False)
    pruning = MagnitudePruning(schedule, [ours.layers[index].name for index in wrapped], block)
    record = recorder(lambda: pruning.masks)
    fit(ours, [pruning, record], eager=False)
    assert_equal_steps(record.rows, reference.rows, 2 if schedule is CONSTANT else 5)
    for mine, their in zip(ours.trainable_weights, theirs.trainable_weights, strict=True):
        np.testing.assert_allclose(np.asarray(mine), their.numpy(), rtol=1e-4, atol=1e-6)


def test_filters_are_those_of_prune_low_magnitude_where_a_filter_is_one_weight():
    # TFMOT has no filters; where a layer reads one number, its filters are its weights, and it prunes them.
    def build(kit):
        return [kit.Flatten(), kit.Dense(1), kit.Dense(24, activation="relu", use_bias=False), kit.Dense(12)]

    ours, theirs, (pruned,) = twins(build, (2,), POLYNOMIAL, (1, 1))
    reference = recorder(lambda: [pruned.pruning_vars[0][1].numpy()[0] > 0], tf_keras)
    fit(theirs, [tfmot.sparsity.keras.UpdatePruningStep(), reference], tf_keras, eager=False)
    pruning = FilterPruning(POLYNOMIAL, multiple_of=1)
    name = ours.layers[2].name
    record = recorder(lambda: [np.isin(np.arange(24), pruning.keep[name])])
    fit(ours, [pruning, record], eager=False)
    assert_equal_steps(record.rows, reference.rows, 5)


def residual(seed=0):
    """Two convolutions about a shortcut, batch norms, a depthwise convolution, a dense layer after a flattening."""
    keras.utils.set_random_seed(seed)
    inputs = layers.Input((6, 6, 3))
    x = layers.Conv2D(16, 3, padding="same", name="stem")(inputs)
    x = shortcut = layers.BatchNormalization(name="stem_norm")(x)
    x = layers.Conv2D(24, 3, padding="same", activation="relu", name="first")(x)
    x = layers.Conv2D(16, 1, name="second")(x)
    x = layers.Activation("relu")(layers.Add(name="sum")([x, shortcut]))
    x = layers.DepthwiseConv2D(3, strides=2, name="depthwise")(x)
    x = layers.BatchNormalization(name="depthwise_norm")(x)
    x = layers.Dense(20, activation="gelu", name="hidden")(layers.Flatten()(layers.ReLU()(x)))
    return keras.Model(inputs, layers.Dense(12, name="out")(x))


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_masked_filters_stay_zero_and_their_cut_changes_nothing(scope):
    model = residual()
    pruning = FilterPruning(POLYNOMIAL, scope=scope, multiple_of=1)
    shares, silent = [], []

    class Watch(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            shares.append(pruning.sparsity())
            gone = np.setdiff1d(np.arange(24), pruning.keep["first"])
            first = model.get_layer("first")
            silent.append(not np.asarray(first.kernel)[..., gone].any() and not np.asarray(first.bias)[gone].any())

    history = fit(model, [pruning, Watch()]).history.history
    assert all(silent)
    assert np.all(np.diff(shares) >= 0)
    assert shares[0] == 0
    if scope == "layer":
        assert {name: len(kept) for name, kept in pruning.keep.items()} == {"stem": 4, "first": 6, "hidden": 5}
    assert shares[-1] == pytest.approx(0.75, abs=0.02)
    assert history["sparsity"][-1] == pytest.approx(shares[-1])
    smaller = pruning.cut()
    before, after = (np.asarray(network(IMAGES)) for network in (model, smaller))
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()
    assert smaller.count_params() < 0.3 * model.count_params()
    assert {type(layer) for layer in smaller.layers} == {type(layer) for layer in model.layers}


def test_weights_that_were_put_back_are_cut_by_their_own_zeros():
    model = residual()
    pruning = FilterPruning(POLYNOMIAL, multiple_of=1)

    class PutBack(keras.callbacks.Callback):
        """What `EarlyStopping(restore_best_weights=True)` does where the first epoch was the best."""

        def on_epoch_end(self, epoch, logs=None):
            self.best = self.model.get_weights() if epoch == 0 else self.best

        def on_train_end(self, logs=None):
            self.model.set_weights(self.best)

    fit(model, [pruning, PutBack()])
    smaller = pruning.cut()
    assert smaller.get_layer("first").filters > len(pruning.keep["first"])
    before, after = (np.asarray(network(IMAGES)) for network in (model, smaller))
    assert np.abs(after - before).max() <= 1e-4 * np.abs(before).max()


def test_numbers_are_rounded_excluded_groups_stay_whole_and_dead_filters_go_first():
    model = residual()
    for name in ("kernel", "bias"):
        variable = getattr(model.get_layer("first"), name)
        value = np.array(variable)
        value[..., 3:15] = 0
        variable.assign(value)
    pruning = FilterPruning(CONSTANT, method="l2", multiple_of=8, exclude=["hid*"])
    fit(model, [pruning], epochs=1)
    # 12 of 24 are asked for, which lies between two multiples.
    assert {name: len(kept) for name, kept in pruning.keep.items()} == {"stem": 8, "first": 16, "hidden": 20}
    assert set(pruning.keep["first"]) >= {0, 1, 2, *range(15, 24)}


def test_what_was_masked_by_rounding_stays_so_where_groups_are_ranked_together():
    model = keras.Sequential(
        [layers.Input((2,)), layers.Dense(16, name="narrow"), layers.Dense(64, name="wide"), layers.Dense(1)]
    )
    for name, low in (("narrow", 5), ("wide", 13)):
        layer = model.get_layer(name)
        sizes = np.where(np.arange(layer.units) < low, 0.1, 1)
        layer.kernel.assign(np.broadcast_to(sizes, layer.kernel.shape))
    # Asked for are 18 of all; what is masked is a multiple of 8 in each, 24, of which the second choice takes 18.
    pruning = FilterPruning(tfmot.sparsity.keras.ConstantSparsity(18 / 80, 1, frequency=1), scope="global")
    kept = recorder(lambda: [len(pruning.keep[name]) for name in ("narrow", "wide")])
    model.compile(keras.optimizers.SGD(0.0), "mse", run_eagerly=True)
    model.fit(np.ones((3, 2)), np.ones((3, 1)), batch_size=1, verbose=0, callbacks=[pruning, kept])
    assert np.array(kept.rows).tolist() == [[8, 48]] * 3


@pytest.mark.parametrize("scaled", [False, True], ids=["alone", "scaled"])
@pytest.mark.parametrize("kind", [FilterPruning, MagnitudePruning])
def test_averages_of_the_optimizer_are_masked_too(kind, scaled):
    keras.utils.set_random_seed(0)
    kinds = [layers.Flatten(), layers.Dense(16, activation="relu", name="hidden"), layers.Dense(12)]
    model = keras.Sequential([layers.Input((6, 6, 3)), *kinds])
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9, use_ema=True)
    model.compile(keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer, "mse", run_eagerly=scaled)
    pruning = kind(CONSTANT)
    model.fit(IMAGES, TARGETS, batch_size=BATCH, epochs=1, verbose=0, callbacks=[pruning])
    hidden, (average, *_) = model.get_layer("hidden").kernel, optimizer._model_variables_moving_average
    np.testing.assert_array_equal(hidden, average)  # which Keras put in its place
    assert np.mean(np.array(hidden) == 0) == pytest.approx(pruning.sparsity()) == pytest.approx(0.5)


def assert_same_state(a, b):
    for one, other in zip([*a.variables, *a.optimizer.variables], [*b.variables, *b.optimizer.variables], strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=one.path)


class Kill(keras.callbacks.Callback):
    """What a power cut is to a training, amid its second epoch."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations == STEPS + 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", [FilterPruning, MagnitudePruning])
def test_a_killed_training_ends_as_an_unbroken_one(kind, tmp_path):
    unbroken = fit(residual(), [kind(POLYNOMIAL)])
    run, backup = Run(tmp_path / "run"), keras.callbacks.BackupAndRestore(tmp_path / "backup")

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            run.save_state(self.model, [{"epoch": epoch}])

    with pytest.raises(KeyboardInterrupt):
        fit(residual(), [kind(POLYNOMIAL), Save(), backup, Kill()])

    # Keras' own way. It stands after the pruning, which must read its masks from the weights that it restores.
    assert_same_state(fit(residual(seed=1), [kind(POLYNOMIAL), backup]), unbroken)

    if kind is MagnitudePruning:
        return
    # The way of a run.
    model = residual(seed=1)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    assert run.restore_state(model) == [{"epoch": 0}]
    options = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    model.fit(IMAGES, TARGETS, epochs=2, initial_epoch=1, callbacks=[kind(POLYNOMIAL)], **options)
    assert_same_state(model, unbroken)


def test_what_cannot_work_is_said():
    with pytest.raises(ValueError, match="PolynomialDecay"):
        FilterPruning(0.5)
    model = residual()
    for wrong in (["firts"], "firts"):
        with pytest.raises(UserError, match=r"in firts.*kernel.*first"):
            fit(model, [MagnitudePruning(CONSTANT, layers=wrong)])
    adapted = keras.Sequential([layers.Input((6, 6, 3)), layers.Dense(4, name="adapted"), layers.Dense(12)])
    adapted.layers[0].enable_lora(1)
    with pytest.raises(UserError, match=r"layer 'adapted'.*LoRA\. Merge it"):
        fit(adapted, [MagnitudePruning(CONSTANT)])
    late = tfmot.sparsity.keras.ConstantSparsity(0.5, 10_000)
    for wrong, words in (
        ({"scope": "network"}, "global"),
        ({"method": "l3"}, "taylor"),
        ({"exclude": ["firts"]}, "firts"),
        ({"exclude": "firts"}, "by 'firts'"),
        ({"untouched": "firts"}, "by 'firts'"),
        ({"untouched": ["*"]}, "fixed_layers"),
    ):
        with pytest.raises(UserError, match=words):
            fit(model, [FilterPruning(late, **wrong)])
    fit(model, [], epochs=2)
    # The optimizer goes on counting: the schedule has passed before training begins.
    with pytest.raises(UserError, match="Compile the model again"):
        model.fit(IMAGES, TARGETS, batch_size=BATCH, verbose=0, callbacks=[FilterPruning(POLYNOMIAL)])
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(UserError, match="steps_per_execution=1"):
        model.fit(IMAGES, TARGETS, verbose=0, callbacks=[FilterPruning(POLYNOMIAL)])
    with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
        mirrored = keras.Sequential([layers.Input((3,)), layers.Dense(12)])
        mirrored.compile("sgd", "mse")
    with pytest.raises(UserError, match="MirroredStrategy"):
        mirrored.fit(IMAGES[:, 0, 0], TARGETS, verbose=0, callbacks=[MagnitudePruning(POLYNOMIAL)])


def test_taylor_takes_the_compiled_loss_with_its_weights():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    x = layers.Dense(8, activation="relu")(inputs)
    model = keras.Model(inputs, [layers.Dense(3, name="first")(x), layers.Dense(1, name="second")(x)])
    weights = model.get_weights()
    at_once = tfmot.sparsity.keras.ConstantSparsity(0.5, 1, frequency=1)
    images, first, second = IMAGES[:, 0, :2].reshape(-1, 6), TARGETS[:, :3], 9 * TARGETS[:, :1]

    def kept(loss, loss_weights=None):
        model.set_weights(weights)
        model.compile("sgd", loss, loss_weights)
        pruning = FilterPruning(at_once, "taylor", data=[(images, (first, second))], multiple_of=1)
        pruning.set_model(model)
        pruning.on_train_begin()
        pruning.on_train_batch_begin(0)
        return {name: indices.tolist() for name, indices in pruning.keep.items()}

    assert kept(["mse", "mse"], [1.0, 0.0]) == kept(["mse", None])
    assert kept(["mse", "mse"], [0.0, 1.0]) == kept([None, "mse"]) != kept(["mse", None])
