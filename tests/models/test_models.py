"""One check over every model in MODELS, on Keras' TensorFlow backend (and on JAX: tests/test_jax.py)."""

import keras
import numpy as np
import pytest

from tfface.layers import GreyImage, StandardizeImage
from tfface.models import MODELS

ACTIVATIONS = (keras.layers.Activation, keras.layers.ReLU, keras.layers.PReLU)
KERNELS = (keras.layers.Conv2D, keras.layers.Dense)
TRAINED = sorted(MODELS.keys() - {"inception_resnet_v1"})  # arg is the same network with heads


def images(model, count=4):
    return np.random.default_rng(0).uniform(0, 255, (count, *model.input_shape[1:])).astype("float32")


def flat(outputs):
    return outputs if isinstance(outputs, dict) else {"output": outputs}


@pytest.fixture(scope="module", params=sorted(MODELS))
def model(request):
    keras.utils.set_random_seed(0)
    return MODELS[request.param]()


def test_facenet_has_its_published_count():
    assert MODELS["inception_resnet_v1"]().count_params() == 22_808_144


def test_symbolic_shape_is_eager_shape(model):
    outputs = flat(model(images(model)))
    symbolic = flat(model.output)
    for name, tensor in symbolic.items():
        assert tuple(outputs[name].shape) == (4, *tensor.shape[1:])
        assert np.isfinite(keras.ops.convert_to_numpy(outputs[name])).all()


def test_pixels_are_brought_to_one_range(model):
    """Grey about 0.5, standardised, or [-1, 1]: the first layer of every network."""
    first = model.layers[1]
    if isinstance(first, keras.layers.Rescaling):
        np.testing.assert_allclose(first(np.array([0, 127.5, 255])), [-1, 0, 1], atol=1e-6)
    else:
        assert isinstance(first, GreyImage | StandardizeImage)


def test_an_activation_stands_between_any_two_convolutions(model):
    if model.name in ("arg", "inception_resnet_v1", "recognition"):
        return  # FaceNet's last block and bottleneck, and a mask's pyramid, are linear

    def bends(tensor):
        layer = tensor._keras_history.operation
        if isinstance(layer, ACTIVATIONS) or getattr(layer, "activation", linear) is not linear:
            return True
        if isinstance(layer, (*KERNELS, keras.layers.InputLayer)):
            return False
        return all(map(bends, keras.tree.flatten(layer.input)))

    linear = keras.activations.linear
    kernels = [layer for layer in model.layers if isinstance(layer, KERNELS)]
    assert [layer.name for layer in kernels if not bends(layer.input)] == [kernels[0].name]


def test_config_round_trip(model):
    again = model.__class__.from_config(model.get_config())  # from_config empties what it is given
    assert again.get_config() == model.get_config()
    assert [w.path for w in again.weights] == [w.path for w in model.weights]


def test_save_and_load(model, tmp_path):
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")  # safe mode: no code, no pickles
    inputs = images(model)
    received = flat(again(inputs))
    for name, expected in flat(model(inputs)).items():
        np.testing.assert_allclose(received[name], expected, atol=1e-6)


def test_predict_on_arrays_is_predict_on_a_dataset(model):
    import tensorflow as tf

    inputs = images(model)
    dataset = tf.data.Dataset.from_tensor_slices(inputs).batch(4)
    expected = flat(model.predict(inputs, batch_size=4, verbose=0))
    for name, values in flat(model.predict(dataset, verbose=0)).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])  # recipes are trained in float32
@pytest.mark.parametrize("name", TRAINED)
def test_one_step_of_training(name, policy):
    keras.utils.set_random_seed(0)
    before = keras.mixed_precision.dtype_policy()
    keras.mixed_precision.set_dtype_policy(policy)
    try:
        model = MODELS[name]()
        inputs = images(model, 2)
        shapes = {key: (2, *value.shape[1:]) for key, value in flat(model.output).items()}
        targets = {key: np.full(shape, 1 / shape[-1], "float32") for key, shape in shapes.items()}
        model.compile("sgd", "mse", run_eagerly=True)  # tracing the graph would take longer than the step
        history = model.fit(
            inputs, targets if isinstance(model.output, dict) else targets["output"], batch_size=2, verbose=0
        )
        assert np.isfinite(history.history["loss"][0])
        for variable in model.weights:
            assert np.isfinite(keras.ops.convert_to_numpy(variable)).all(), variable.path
    finally:
        keras.mixed_precision.set_dtype_policy(before)
