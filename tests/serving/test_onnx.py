import json
import shutil

import keras
import numpy as np
import pytest

from tfface import cli
from tfface.errors import UserError
from tfface.models.saved import load_saved
from tfface.serving import export, litert
from tfface.serving import onnx as serving_onnx
from tfface.training.fit import precision
from tfface.training.run import Run


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    file = tmp_path_factory.mktemp("onnx") / "model.onnx"
    assert cli.main(["export", str(small_run.folder), "--format", "onnx", "--out", str(file)]) == 0
    return file


def test_outputs_are_those_of_the_keras_model(small_run, exported):
    images = np.random.default_rng(1).uniform(0, 255, (5, *small_run.recipe().image_size, 3)).astype("float32")
    expected = small_run.model()(images)
    answer = serving_onnx.load_onnx(exported)(images)
    np.testing.assert_allclose(answer["gender_probabilities"], expected["gender"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), 1, atol=1e-5)
    assert set(answer) == {"gender_probabilities", "embedding"}
    np.testing.assert_allclose(
        serving_onnx.load_onnx(exported)(images[:1])["embedding"], answer["embedding"][:1], atol=1e-5
    )


def test_the_file_says_what_its_outputs_are(exported):
    import onnx

    model = onnx.load(exported)
    card = json.loads({entry.key: entry.value for entry in model.metadata_props}["tfface"])
    assert card["outputs"][0]["classes"] == ["Male", "Female"]
    assert [entry.name for entry in model.graph.input] == ["images"]
    values = (*model.graph.input, *model.graph.output)
    assert {entry.type.tensor_type.shape.dim[0].dim_param for entry in values} == {"batch"}
    assert not {node.op_type for node in model.graph.node} & {"BatchNormalization"}


def test_a_file_that_disagrees_is_not_kept(small_run, exported, tmp_path, monkeypatch):
    def wrong(file):
        predict = right(file)
        return lambda images: {name: values + 1e-3 for name, values in predict(images).items()}

    right = serving_onnx.load_onnx
    monkeypatch.setattr(serving_onnx, "load_onnx", wrong)
    with pytest.raises(
        UserError, match=r"gender_probabilities would differ from the model's by .* expected at most 1e-04"
    ):
        serving_onnx.export_onnx(small_run, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_an_embedding_of_zeros_is_no_error_of_the_converter(small_run):
    recipe, network = small_run.recipe(), export.network_and_card(small_run)[0]
    silent = keras.Model(network.input, {name: 0 * value for name, value in network.output.items()})
    numbers = export.numbers_of(silent, recipe)
    with np.errstate(all="raise"):
        export.require_parity(silent, recipe, numbers, "The file", 1e-4)


def test_another_backend_is_named(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export.keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"An ONNX file needs .* KERAS_BACKEND is jax: unset it"):
        serving_onnx.export_onnx(small_run, tmp_path / "model.onnx")


@pytest.fixture
def half_precision_run(small_run, tmp_path):
    """A run of another network with GELU, trained in mixed precision."""
    run = Run(shutil.copytree(small_run.folder, tmp_path / "half"))
    image = keras.Input((*run.recipe().image_size, 3), name="image")
    with precision("mixed_bfloat16"):
        x = keras.layers.Conv2D(8, 3, activation="gelu")(keras.layers.Rescaling(1 / 255)(image))
        x = keras.layers.GlobalAveragePooling2D(name="avg_pool")(x)
    x = keras.layers.Dense(2, "softmax", name="gender", dtype="float32")(x)
    keras.Model(image, {"gender": x}).save(run.trained_file)
    return run


def test_what_was_trained_in_half_precision_is_served_in_whole(half_precision_run, tmp_path):
    import tensorflow as tf

    run = half_precision_run
    images = np.random.default_rng(1).uniform(0, 255, (3, *run.recipe().image_size, 3)).astype("float32")
    trained = load_saved(run.trained_file)
    assert {layer.compute_dtype for layer in trained.layers} == {"bfloat16", "float32"}
    assert {layer.compute_dtype for layer in run.model().layers} == {"float32"}
    expected = run.model()(images)["gender"]
    assert 0 < np.abs(expected - trained(images)["gender"]).max() < 0.02
    onnx = serving_onnx.load_onnx(serving_onnx.export_onnx(run, tmp_path / "model.onnx"))(images)
    np.testing.assert_allclose(onnx["gender_probabilities"], expected, atol=1e-5)
    lite = litert.load_litert(litert.export_litert(run, tmp_path / "model.tflite"))(images)
    np.testing.assert_allclose(lite["gender_probabilities"], expected, atol=1e-5)
    served = tf.saved_model.load(str(export.export_saved_model(run, tmp_path / "saved"))).signatures
    answer = served["serving_default"](images=tf.constant(images.round(), tf.uint8))["gender_probabilities"]
    np.testing.assert_allclose(answer, run.model()(images.round())["gender"], atol=1e-5)
