import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from tfface import cli, files
from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.models.alexnet import alexnet
from tfface.recipes import load
from tfface.serving import bundle as bundles
from tfface.serving import export
from tfface.serving.export import EMBEDDING_LAYERS, export_saved_model, network_and_card
from tfface.training.run import Run

SERVE = """
import sys
for name in ("tfface", "keras", "tf_keras"):
    sys.modules[name] = None  # only TensorFlow is there
import numpy as np
import tensorflow as tf
folder, crops, out = sys.argv[1:]
served = tf.saved_model.load(folder).signatures
crops = np.load(crops)
png = tf.stack([tf.io.encode_png(crop) for crop in crops])
answers = {
    "images": served["embeddings"](images=tf.constant(crops))["embedding"],
    "png": served["jpeg_embeddings"](jpeg=png)["embedding"],
    "card": served["card"](query=tf.constant(["", ""]))["card"],
}
np.savez(out, **{key: value.numpy().astype(str if key == "card" else "float32") for key, value in answers.items()})
"""

WRAPPED = {"int64": ".google.protobuf.Int64Value", "bool": ".google.protobuf.BoolValue"}
Field = descriptor_pb2.FieldDescriptorProto


def parsed(text, name, fields):
    """Text as a message of TensorFlow Serving whose generated code its wheel lacks; field -> (number, type)."""
    file = descriptor_pb2.FileDescriptorProto(name="served.proto", syntax="proto3")
    file.dependency.append(wrappers_pb2.DESCRIPTOR.name)
    for message, kinds in fields.items():
        made = file.message_type.add(name=message)
        for field, (number, kind) in kinds.items():
            one = made.field.add(name=field, number=number, label=Field.LABEL_OPTIONAL)
            if kind in ("TYPE_BOOL", "TYPE_STRING"):
                one.type = Field.Type.Value(kind)
            else:
                one.type, one.type_name = Field.TYPE_MESSAGE, WRAPPED.get(kind, kind)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return text_format.Parse(text, message_factory.GetMessageClass(pool.FindMessageTypeByName(name))())


def labels_of(folder, name="faces"):
    text = (folder / "models.config").read_text()
    config = text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    (model,) = (model for model in config.model_config_list.config if model.name == name)
    assert (model.base_path, model.model_platform) == (f"/models/{name}", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 2
    return dict(model.version_labels)


def folders(path):
    return sorted(child.name for child in path.iterdir() if child.is_dir())


@pytest.fixture
def copies(bundle, tmp_path):
    """A bundle of one model with versions 1, 2 and 3, copies of one another."""
    for version in "123":
        shutil.copytree(bundle / "faces" / "1", tmp_path / "bundle" / "faces" / version)
    bundles._write_configuration(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_the_server_is_told_what_is_there(bundle):
    assert labels_of(bundle) == {"stable": 1}
    assert folders(bundle / "faces") == ["1"]
    assert (bundle / "faces" / "1" / "saved_model.pb").exists()


def test_batching_and_monitoring_are_the_servers_messages(bundle):
    batching = parsed(
        (bundle / "batching_parameters.txt").read_text(),
        "BatchingParameters",
        {
            "BatchingParameters": {
                "max_batch_size": (1, "int64"),
                "batch_timeout_micros": (2, "int64"),
                "max_enqueued_batches": (3, "int64"),
                "num_batch_threads": (4, "int64"),
                "pad_variable_length_inputs": (7, "TYPE_BOOL"),
                "enable_large_batch_splitting": (8, "bool"),
                "max_execution_batch_size": (9, "int64"),
            }
        },
    )
    assert batching.enable_large_batch_splitting.value
    assert 0 < batching.max_execution_batch_size.value <= batching.max_batch_size.value
    assert not batching.pad_variable_length_inputs
    monitoring = parsed(
        (bundle / "monitoring.config").read_text(),
        "MonitoringConfig",
        {
            "PrometheusConfig": {"enable": (1, "TYPE_BOOL"), "path": (2, "TYPE_STRING")},
            "MonitoringConfig": {"prometheus_config": (1, ".PrometheusConfig")},
        },
    )
    assert monitoring.prometheus_config.enable
    assert monitoring.prometheus_config.path == "/monitoring/prometheus/metrics"


def test_compose_and_docker_start_the_same_server(bundle):
    serving = yaml.safe_load((bundle / "compose.yaml").read_text())["services"]["serving"]
    assert serving["volumes"] == [".:/models:ro"]
    assert serving["ports"] == ["8500:8500", "8501:8501"]
    words = bundles.docker_command(bundle).split()
    assert serving["image"] in words
    assert words[words.index(serving["image"]) + 1 :] == serving["command"]
    for flag in serving["command"]:
        name, _, value = flag.partition("=")
        if value.startswith("/models/"):
            assert (bundle / value.removeprefix("/models/")).exists(), name


def test_warm_up_requests_are_prediction_logs_that_the_model_answers(bundle):
    folder = bundle / "faces" / "1"
    served = tf.saved_model.load(str(folder)).signatures
    asked = set()
    for request in bundles.warm_up_requests(folder):
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
        outputs = served[request.model_spec.signature_name](**inputs)
        none = served[request.model_spec.signature_name](**{name: value[:0] for name, value in inputs.items()})
        assert {name: value.shape[1:] for name, value in none.items()} == {
            name: value.shape[1:] for name, value in outputs.items()
        }
        assert {len(value) for value in none.values()} == {0}
        (count,) = {len(value) for value in inputs.values()}
        assert {len(value) for value in outputs.values()} == {count}
        assert request.model_spec.name == "faces"
        asked.add((request.model_spec.signature_name, count))
    assert {signature for signature, _ in asked} == set(served)
    assert ("jpeg", 8) in asked


def test_embeddings_are_the_networks_features_of_length_one(bundle, small_run, tmp_path):
    crops = np.stack([synthesize.face(seed).image for seed in (3_000_000, 3_000_001, 3_000_002)])
    np.save(tmp_path / "crops.npy", crops)
    arguments = [bundle / "faces" / "1", tmp_path / "crops.npy", tmp_path / "out.npz"]
    subprocess.run([sys.executable, "-c", SERVE, *map(str, arguments)], check=True, timeout=300)
    model = small_run.model()
    import keras

    from tfface.data import pipeline

    features = keras.Model(model.input, model.get_layer("avg_pool").output)
    expected = features.predict(pipeline.resize(crops, (32, 32)), verbose=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    with np.load(tmp_path / "out.npz") as answer:
        np.testing.assert_allclose(answer["images"], expected, atol=1e-5)
        np.testing.assert_allclose(answer["png"], expected, atol=1e-5)
        assert answer["card"].shape == (2,)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3


def test_versions_count_upwards_and_roll_back(copies, monkeypatch):
    monkeypatch.setattr(bundles.time, "sleep", lambda seconds: None)
    assert labels_of(copies) == {"stable": 3, "previous": 2}
    assert cli.main(["export", "--bundle", str(copies), "--rollback"]) == 0
    assert folders(copies / "faces") == ["1", "2", "withdrawn-3"]
    assert labels_of(copies) == {"stable": 2, "previous": 1}


def test_the_label_leaves_before_its_version_does(copies, monkeypatch):
    seen = []
    monkeypatch.setattr(bundles, "check_saved_model", lambda folder: None)  # loads each version: checked elsewhere
    monkeypatch.setattr(
        bundles.time, "sleep", lambda seconds: seen.append((labels_of(copies), folders(copies / "faces")))
    )
    bundles.roll_back(copies)
    # Nothing but the label on a version that the server holds: it refuses a file that names any other.
    assert seen == [({"stable": 2}, ["1", "2", "3"])]
    bundles.roll_back(copies)
    with pytest.raises(UserError, match="no version to go back to"):
        bundles.roll_back(copies)


def test_folders_of_somebody_are_no_models(copies):
    for place in ("backups/2024", "my model/7", "faces/2024"):
        (copies / place).mkdir(parents=True)
    before = (copies / "models.config").read_text()
    bundles._write_configuration(copies)
    assert (copies / "models.config").read_text() == before


def test_a_number_is_not_given_twice(copies, small_run, monkeypatch):
    def made(run, folder):
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").touch()

    monkeypatch.setattr(bundles, "check_saved_model", lambda folder: None)
    monkeypatch.setattr(bundles, "_write_warm_up", lambda *arguments: None)
    monkeypatch.setattr("tfface.serving.export.export_saved_model", made)
    bundles.roll_back(copies, wait=0)
    (copies / "faces" / "withdrawn-2-bad").mkdir()  # named by somebody
    (copies / "faces" / "..staging.7.part").mkdir()  # of a publication that was killed
    assert bundles.publish(small_run, copies, "faces").name == "4"
    assert not (copies / "faces" / "..staging.7.part").exists()
    assert labels_of(copies) == {"stable": 4, "previous": 2}
    (copies / "gender" / "6").mkdir(parents=True)  # of somebody
    (copies / "gender" / "7").touch()
    assert bundles.publish(small_run, copies) == copies / "gender" / "8"
    assert labels_of(copies, "gender") == {"stable": 8}
    with pytest.raises(UserError, match="Expected one of: faces, gender"):
        bundles.roll_back(copies)


def test_what_was_killed_before_the_server_was_told_is_finished(copies, bundle, small_run, monkeypatch):
    monkeypatch.setattr(bundles, "check_saved_model", lambda folder: None)
    shutil.copytree(bundle / "faces" / "1", copies / "faces" / "4")  # renamed, and then the command was killed
    card = copies / "faces" / "4" / "assets.extra" / "tfface.json"
    files.write_json(card, {**json.loads(card.read_text()), "trained": files.sha256(small_run.trained_file)})
    assert bundles.publish(small_run, copies, "faces").name == "4"
    assert folders(copies / "faces") == ["1", "2", "3", "4"]
    assert labels_of(copies) == {"stable": 4, "previous": 3}
    write = bundles._write_configuration
    monkeypatch.setattr(
        bundles, "_write_configuration", lambda bundle, leaving=None: leaving and write(bundle, leaving)
    )
    bundles.roll_back(copies, wait=0)  # killed when version 4 had gone
    assert labels_of(copies) == {"stable": 3}
    monkeypatch.setattr(bundles, "_write_configuration", write)
    assert bundles.roll_back(copies, wait=0).name == "3"
    assert folders(copies / "faces") == ["1", "2", "3", "withdrawn-4"]
    assert labels_of(copies) == {"stable": 3, "previous": 2}
    assert bundles.roll_back(copies, wait=0).name == "2"


def test_a_publication_that_fails_leaves_everything_as_it_was(copies, small_run, monkeypatch):
    def fails(run, folder):
        folder.mkdir(parents=True)
        (folder / "saved_model.pb").write_bytes(b"half of")

    monkeypatch.setattr("tfface.serving.export.export_saved_model", fails)
    monkeypatch.setattr(bundles, "_write_warm_up", lambda *arguments: None)
    before = (copies / "models.config").read_text()
    with pytest.raises(UserError, match="damaged"):
        bundles.publish(small_run, copies, "faces")
    assert [path.name for path in (copies / "faces").iterdir() if not path.name.isdecimal()] == []
    assert folders(copies / "faces") == ["1", "2", "3"]
    assert (copies / "models.config").read_text() == before


def test_what_somebody_tuned_stays(copies):
    (copies / "batching_parameters.txt").write_text("max_batch_size { value: 4 }\n")
    bundles._write_configuration(copies)
    assert (copies / "batching_parameters.txt").read_text() == "max_batch_size { value: 4 }\n"


@pytest.mark.parametrize("file", ["saved_model.pb", "assets.extra/tf_serving_warmup_requests"])
def test_a_truncated_version_is_not_gone_back_to(copies, file, capsys):
    path = copies / "faces" / "2" / file
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert cli.main(["export", "--bundle", str(copies), "--rollback"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfface:")]
    assert "faces/2 is damaged" in line
    assert labels_of(copies) == {"stable": 3, "previous": 2}


def test_words_that_do_not_belong_together(small_run, tmp_path, capsys):
    for words in (
        ["--bundle", str(tmp_path)],
        [str(small_run.folder), "--rollback"],
        [str(small_run.folder), "--bundle", str(tmp_path), "--name", "a/b"],
        [str(small_run.folder), "--bundle", str(tmp_path), "--rollback"],
        ["--bundle", str(tmp_path), "--rollback"],
        [str(small_run.folder), "--bundle", str(tmp_path), "--data", "utkface"],
    ):
        assert cli.main(["export", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 6


def test_an_embedding_that_nobody_taught_is_not_learnt(tmp_path):
    recipe = load("compact", "fairface", ["embedding_weight=1.0", "image_size=(32, 32)", "blocks=(1, 1, 1, 1)"])
    model = recipe.model()
    told = {}
    for name, changes in (("fresh", {}), ("taught", {"teacher": "facenet"}), ("frozen", {"train_from": "features"})):
        run = Run(tmp_path / name)
        run.begin(recipe.changed(**changes), {"name": "fairface"}, "cpu")
        run.trained_file.touch()
        run.model = lambda: model
        told[name] = network_and_card(run)[1]["embedding"]["learnt"]
    assert told == {"fresh": False, "taught": True, "frozen": True}


def test_which_layer_is_the_embedding():
    from tfface.serving.export import _with_embedding

    assert EMBEDDING_LAYERS[1] == "bottleneck_norm"
    model = load("gender", tiny=True).model()
    assert _with_embedding(model)[1] == {"layer": "avg_pool", "width": 512, "learnt": False}
    without = alexnet(load("gender", tiny=True).tasks(), (64, 64, 3), dense_width=8)
    network, about = _with_embedding(without)
    assert about is None
    assert network is without


def test_truncated_checkpoints_are_recognised(small_run, tmp_path, capsys):
    shutil.copytree(small_run.folder, tmp_path / "run")
    run = Run(tmp_path / "run")
    data = run.trained_file.read_bytes()
    for size in (0, len(data) // 2):
        run.trained_file.write_bytes(data[:size])
        for words in (
            ["export", str(run.folder), "--out", str(tmp_path / "saved")],
            ["export", str(run.folder), "--bundle", str(tmp_path / "bundle")],
            ["predict", "--model", str(run.folder), "absent.jpg"],
            ["prune", str(run.folder), "--ratio", "0.5"],
        ):
            assert cli.main(words) == 2
            lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfface:")]
            assert len(lines) == 1, words
            assert "trained.keras" in lines[0]
    assert not (tmp_path / "saved").exists()
    assert export_saved_model(small_run, tmp_path / "saved").exists()


def test_a_saved_model_of_other_outputs_is_not_kept(small_run, tmp_path, monkeypatch):
    def wrong(network, bfloat16):
        folded = right(network, bfloat16)
        layer = [layer for layer in folded.layers if layer.weights][-1]
        layer.set_weights([weight + 0.1 * np.arange(weight.shape[-1]) for weight in layer.get_weights()])
        return folded

    right = export.optimize.fold
    monkeypatch.setattr(export.optimize, "fold", wrong)
    with pytest.raises(
        UserError, match=r"saved was not written: its output gender_probabilities would differ .* 1e-02"
    ):
        export_saved_model(small_run, tmp_path / "saved")
    assert not list(tmp_path.iterdir())
