import json

import numpy as np
import pytest

from tfface import cli
from tfface.errors import UserError
from tfface.serving import export
from tfface.serving import onnx as serving_onnx


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


def test_another_backend_is_named(small_run, tmp_path, monkeypatch):
    monkeypatch.setattr(export.keras.backend, "backend", lambda: "jax")
    with pytest.raises(UserError, match=r"An ONNX file needs .* KERAS_BACKEND is jax: unset it"):
        serving_onnx.export_onnx(small_run, tmp_path / "model.onnx")
