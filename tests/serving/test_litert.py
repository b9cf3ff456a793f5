import json

import numpy as np
import pytest

from tfface import cli
from tfface.data import pipeline
from tfface.serving import litert
from tfface.training.run import Run


def faces(run, count, seed=1):
    """Smooth images of the size that the run's network takes."""
    noise = np.random.default_rng(seed).uniform(0, 255, (count, 6, 6, 3)).astype("float32")
    return pipeline.resize(noise, run.recipe().image_size).numpy()


@pytest.fixture(scope="module")
def exported(small_run, tmp_path_factory):
    file = tmp_path_factory.mktemp("litert") / "model.tflite"
    assert cli.main(["export", str(small_run.folder), "--format", "litert", "--out", str(file)]) == 0
    return file


def test_outputs_are_those_of_the_keras_model(small_run, exported):
    images = faces(small_run, 5)
    expected = small_run.model()(images)
    predict = litert.load_litert(exported)
    answer = predict(images)
    np.testing.assert_allclose(answer["gender_probabilities"], expected["gender"], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(answer["embedding"], axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(predict(images[:1])["embedding"], answer["embedding"][:1], atol=1e-5)
    assert json.loads(exported.with_name("model.tflite.json").read_text())["outputs"][0]["classes"] == [
        "Male",
        "Female",
    ]


def test_int8_is_smaller_and_close(small_run, exported, tmp_path, recwarn):
    import tensorflow as tf

    file = litert.export_litert(small_run, tmp_path / "model.tflite", faces(small_run, 32, seed=2))
    assert not [warning for warning in recwarn if "is deprecated" in str(warning.message)]
    assert file.stat().st_size < 0.4 * exported.stat().st_size
    images = faces(small_run, 8)
    answer, expected = litert.load_litert(file)(images), litert.load_litert(exported)(images)
    # Random weights are the worst case: nothing was trained to be robust.
    assert np.abs(answer["gender_probabilities"] - expected["gender_probabilities"]).mean() < 0.05
    assert (answer["embedding"] * expected["embedding"]).sum(axis=1).mean() > 0.95
    interpreter = tf.lite.Interpreter(str(file))
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    assert {each["dtype"] for each in (*inputs, *outputs)} == {np.float32}
    kernels = [
        each for each in interpreter.get_tensor_details() if len(each["shape"]) == 4 and each["dtype"] == np.int8
    ]
    assert len(kernels) > 20


def test_no_card_of_an_earlier_network_stands_beside_a_new_one(small_run, tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    file = tmp_path / "model.tflite"
    for path in (file, tmp_path / "model.tflite.json"):
        path.write_text("of another run")
    monkeypatch.setattr(litert, "_quantized", lambda *_: b"new")
    monkeypatch.setattr("tfface.files.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        litert.export_litert(small_run, file, faces(small_run, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["model.tflite"]
    assert file.read_bytes() == b"new"


def test_int8_needs_litert(small_run, capsys):
    assert cli.main(["export", str(small_run.folder), "--format", "onnx", "--int8"]) == 2
    assert "--int8" in capsys.readouterr().err


def test_accuracy_is_counted_on_labelled_faces(tiny_recipe, data_dir, tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    run.begin(tiny_recipe, {"name": tiny_recipe.data}, "cpu")
    truth = pipeline.label_arrays(pipeline.open_dataset(tiny_recipe.data, data_dir), "test")
    seen = 0

    def two_years_off(images):
        nonlocal seen
        part = slice(seen, seen + len(images))
        seen += len(images)
        classes = {task.name: task.targets[truth[task.label][part]] for task in tiny_recipe.tasks() if not task.is_age}
        classes["gender"] = 1 - classes["gender"]
        return {f"{name}_probabilities": values for name, values in classes.items()} | {"age": truth["age"][part] + 2.0}

    result, faces = litert.accuracies(two_years_off, run, "test", 20, data_dir=data_dir)
    assert seen == faces == 20
    assert result == pytest.approx({"gender": 0, "race": 1, "age": 2})
    # Of joined data sets a face counts where its label is known; of a split that is smaller, all that there are.
    arrays = dict(truth)
    truth["gender"] = np.where(np.arange(len(truth["gender"])) % 2, truth["gender"], -1)
    monkeypatch.setattr(pipeline, "label_arrays", lambda *_: truth)
    known = arrays["gender"][1::2]
    says_the_first = {"gender_probabilities": np.eye(2)[np.zeros(len(truth["key"]), int)]}
    says_the_first |= {"race_probabilities": np.eye(5)[truth["race"]], "age": truth["age"] + 2.0}
    seen = 0

    def the_first(images):
        nonlocal seen
        part = slice(seen, seen + len(images))
        seen += len(images)
        return {name: values[part] for name, values in says_the_first.items()}

    result, faces = litert.accuracies(the_first, run, "test", 10_000, data_dir=data_dir)
    assert faces == len(truth["key"])
    assert result["gender"] == pytest.approx((known == 0).mean())
