"""Batch norms by TensorFlow's own operation: the same network comes out."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfface.training.batch_norm import fused_batch_norms


class Own(layers.BatchNormalization):
    """Whoever makes a batch norm of their own may compute it otherwise."""


def network():
    """Batch norms that are fused, in every way and frozen, and that are not: of vectors, of a class of its own."""
    keras.utils.set_random_seed(0)
    part = keras.Sequential([layers.Conv2D(4, 3), layers.BatchNormalization(scale=False, momentum=0.9, name="inner")])
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            layers.BatchNormalization(center=False, scale=False, name="plain"),
            part,
            layers.Conv2D(5, 3, activation="relu"),
            layers.BatchNormalization(epsilon=0.1, gamma_initializer="random_normal", name="outer"),
            layers.BatchNormalization(trainable=False, name="frozen"),
            Own(name="own"),
            layers.GlobalAveragePooling2D(),
            layers.BatchNormalization(name="vectors"),
            layers.Dense(2),
        ]
    )


def fused_operations(graph) -> int:
    functions = [graph, *(function.graph for function in graph._functions.values())]
    return sum(node.type == "FusedBatchNormV3" for each in functions for node in each.get_operations())


def trained(fused, jit=False):
    """The network after four steps, its losses, and how many fused operations its training step holds."""
    model = network()
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse", jit_compile=jit)
    random = np.random.default_rng(0)
    x = random.normal(1, 2, (16, 8, 8, 3)).astype("float32")
    y = random.normal(size=(16, 2)).astype("float32")
    counted = 0
    if fused:
        with fused_batch_norms(model):
            step = tf.function(lambda: model(x, training=True)).get_concrete_function()
            counted = fused_operations(step.graph)
            history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0, epochs=1)
    else:
        history = model.fit(x, y, batch_size=4, shuffle=False, verbose=0, epochs=1)
    return model, history.history["loss"], counted, model.predict(x, verbose=0)


def test_training_is_that_of_keras():
    ours, losses, fused, outputs = trained(fused=True)
    theirs, expected, _, expected_outputs = trained(fused=False)
    assert fused == 4  # plain, inner, outer, frozen
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    np.testing.assert_allclose(outputs, expected_outputs, rtol=1e-3, atol=1e-4)
    for one, other in zip(ours.weights, theirs.weights, strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-3, atol=1e-4, err_msg=one.path)


def test_moving_statistics_by_hand():
    """Mean 2 and variance 1 of 1, 1, 3, 3: from 0 and 1 with momentum 0.9 to 0.2 and 1.0, from 5 to 4.6."""
    model = keras.Sequential([keras.Input((1, 1, 1)), layers.BatchNormalization(momentum=0.9, epsilon=1e-3)])
    model.compile("sgd", "mse", jit_compile=False)
    norm = model.layers[0]
    norm.moving_variance.assign([5.0])
    with fused_batch_norms(model):
        outputs = norm(np.reshape([1, 1, 3, 3], (4, 1, 1, 1)).astype("float32"), training=True)
    np.testing.assert_allclose(np.ravel(outputs), np.array([-1, -1, 1, 1]) / np.sqrt(1.001), rtol=1e-5)
    np.testing.assert_allclose(norm.moving_mean.numpy(), [0.2], rtol=1e-5)
    np.testing.assert_allclose(norm.moving_variance.numpy(), [4.6], rtol=1e-5)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_keeps_its_types(policy):
    norm = layers.BatchNormalization(dtype=policy)
    model = keras.Sequential([keras.Input((4, 4, 3)), norm])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(3, 2, (8, 4, 4, 3)).astype("float32")
    with fused_batch_norms(model):
        outputs = norm(x, training=True)
    assert outputs.dtype == norm.compute_dtype
    assert norm.moving_mean.dtype == "float32"
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + norm.epsilon)
    np.testing.assert_allclose(tf.cast(outputs, "float32"), expected, atol=0.03)


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["frozen", "its own statistics not asked for"])
def test_statistics_that_stand_still_by_hand(training, policy):
    """Mean 1, variance 3.999 (and 0.001), gamma 3, beta 5: 3 (x - 1) / 2 + 5, and the gradients of its sum times x."""
    norm = layers.BatchNormalization(epsilon=1e-3, trainable=not training, dtype=policy)
    model = keras.Sequential([keras.Input((1, 1, 1)), norm])
    model.compile("sgd", "mse", jit_compile=False)
    norm.set_weights([np.array([number]) for number in (3.0, 5.0, 1.0, 3.999)])
    x = tf.cast(np.reshape([1, 3, -1, 4], (4, 1, 1, 1)), norm.compute_dtype)
    with fused_batch_norms(model), tf.GradientTape() as tape:
        tape.watch(x)
        outputs = norm(x, training=training)
        total = tf.reduce_sum(tf.cast(outputs * tf.stop_gradient(x), "float32"))
    assert outputs.dtype == norm.compute_dtype
    np.testing.assert_allclose(np.ravel(tf.cast(outputs, "float32")), [5, 8, 2, 9.5], rtol=1e-6)
    by_x, by_gamma, by_beta = tape.gradient(total, [x, norm.gamma.value, norm.beta.value])
    np.testing.assert_allclose(np.ravel(tf.cast(by_x, "float32")), [1.5, 4.5, -1.5, 6], rtol=1e-6)
    # By gamma: the sum of x (x - 1) / 2 = 0 + 3 + 1 + 6; by beta that of x.
    np.testing.assert_allclose([np.ravel(by_gamma)[0], np.ravel(by_beta)[0]], [10, 7], rtol=1e-6)
    np.testing.assert_allclose(norm.moving_mean.numpy(), [1])
    np.testing.assert_allclose(norm.moving_variance.numpy(), [3.999])


def test_layers_are_left_as_they_were_and_xla_is_left_alone():
    model = network()
    model.compile("sgd", "mse", jit_compile=False)
    with contextlib.suppress(ZeroDivisionError), fused_batch_norms(model):
        assert "call" in vars(model.get_layer("outer"))
        assert "call" not in vars(model.get_layer("own"))
        raise ZeroDivisionError
    assert "call" not in vars(model.get_layer("outer"))
    model.compile("sgd", "mse", jit_compile=True)
    with fused_batch_norms(model):
        assert "call" not in vars(model.get_layer("outer"))
