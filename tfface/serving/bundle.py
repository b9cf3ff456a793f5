"""The folder that TensorFlow Serving wants: numbered versions of a model, published and taken back as a whole.

    DIR/models.config             which models and versions to load, and the labels `stable` and `previous`
    DIR/batching_parameters.txt   how requests of many clients become one batch
    DIR/monitoring.config         figures for Prometheus
    DIR/compose.yaml              the server, for `docker compose up`
    DIR/NAME/VERSION/             a SavedModel, its warm-up requests in assets.extra/

`models.config` follows from the folders alone. The server loads the two highest versions by itself, whatever the labels
say: it refuses a configuration with a label on a version that is not loaded *before* it looks at what to load, so a new
version that had to be named there would never be loaded. A label moves with the first poll after its version is ready.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from tfface import files
from tfface.errors import UserError
from tfface.training.run import Run

IMAGE = "tensorflow/serving:2.21.0"
"""The server's image, of the TensorFlow that writes the SavedModel."""

MOUNT = "/models"
"""Where the server sees the bundle; `models.config` takes absolute paths only."""

CONFIG_POLL_SECONDS = 5

FLAGS = (
    f"--model_config_file={MOUNT}/models.config",
    f"--model_config_file_poll_wait_seconds={CONFIG_POLL_SECONDS}",
    # At its start the server reads the labels before a version is loaded.
    "--allow_version_labels_for_unavailable_models=true",
    "--enable_batching=true",
    f"--batching_parameters_file={MOUNT}/batching_parameters.txt",
    f"--monitoring_config_file={MOUNT}/monitoring.config",
)
"""What the server is told beside its ports."""

BATCHING = """\
# One request may hold 256 faces; what runs at once is at most 32, after which two CPU cores gain nothing more.
max_batch_size { value: 256 }
enable_large_batch_splitting { value: true }
max_execution_batch_size { value: 32 }
# How long the first of a batch waits for others: little beside the tens of milliseconds that a face takes on a CPU.
batch_timeout_micros { value: 2000 }
# As many batches are computed at once as there are cores (num_batch_threads is left open); on a GPU say 1 or 2.
# A longer queue only makes everybody late: the server answers UNAVAILABLE, and the client may come again.
max_enqueued_batches { value: 64 }
# Crops of several sizes must not be padded to one: the padding would be looked at as part of the face.
pad_variable_length_inputs: false
"""

MONITORING = """\
prometheus_config {
  enable: true
  path: "/monitoring/prometheus/metrics"
}
"""

WARM_UP = {"serving_default": (1, 8), "jpeg": (1, 8)}
"""Signature -> faces of each of its warm-up requests; one face for every other signature."""


def publish(run: Run, bundle: str | Path, name: str = "") -> Path:
    """Publish a run as the next version of a model; a running server loads it, then the label `stable` moves to it.

    The version is written aside, answers its own warm-up requests there, and is renamed: a server never sees a part.

    Args:
        run: a trained run.
        bundle: the bundle's folder; made if it is not there.
        name: what clients call the model; the recipe's name if empty.

    Returns:
        The version's folder.

    Raises:
        UserError: a name that TensorFlow Serving does not take, no trained model, or a version that does not answer.
    """
    from tfface.serving.export import export_saved_model

    recipe = run.recipe()
    name = name or recipe.name
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UserError(f"--name must be letters, digits, _ and - (it is part of an address). Received: {name}.")
    bundle = Path(bundle)
    with files.held(bundle, "--bundle"):
        staging = bundle / name / ".staging"
        for leftover in staging.parent.glob(".*staging*"):  # of a publication that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if version := _not_yet_told(run, bundle, name):
            _write_configuration(bundle)
            return version
        try:
            export_saved_model(run, staging)
            _write_warm_up(staging, name, recipe.image_size)
            check_saved_model(staging)
            # Numbers of versions that were taken back are not given again: a client may have seen them.
            taken = [*_numbers(bundle / name), *_withdrawn(bundle / name)]
            version = bundle / name / str(max(taken, default=0) + 1)
            staging.rename(version)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
        _write_configuration(bundle)
    return version


def roll_back(bundle: str | Path, name: str = "", wait: float = 2 * CONFIG_POLL_SECONDS) -> Path:
    """Take back the newest version of a model; the one before, which the server still holds, is `stable` again.

    First the label moves, then, when the server has read it, the newest version leaves the numbers (its folder becomes
    `withdrawn-VERSION`): clients of the label and clients of the newest version never meet a version that has gone.

    Args:
        bundle: the bundle's folder.
        name: the model; may be empty where the bundle holds one.
        wait: seconds that the server is given to read the moved label.

    Returns:
        The folder of the version that is served now.

    Raises:
        UserError: no such model, no version before the newest one, or one that is damaged.
    """
    bundle = Path(bundle)
    models = _models(bundle)
    if not name and len(models) == 1:
        name = models[0]
    if name not in models:
        raise UserError(
            f"--name must be a model of the bundle {bundle}. Expected one of: {', '.join(models) or 'none is there'}. "
            f"Received: {name or 'no name'}."
        )
    with files.held(bundle, "--bundle"):
        versions, withdrawn = _versions(bundle / name), _withdrawn(bundle / name)
        # A roll-back that was killed when its version had gone: the same command must not take back another one.
        gone = max(withdrawn, default=0) > versions[-1] and _labels(bundle, name) == {"stable": versions[-1]}
        if gone and len(versions) > 1:
            _write_configuration(bundle)
            return bundle / name / str(versions[-1])
        if len(versions) < 2:
            raise UserError(
                f"{name} in {bundle} has no version to go back to: it holds version {versions[0]} alone. Publish the "
                "run that should be served instead: `tfface export RUN --bundle DIR`."
            )
        check_saved_model(bundle / name / str(versions[-2]))
        _write_configuration(bundle, leaving=(name, versions[-1]))
        time.sleep(wait)
        (bundle / name / str(versions[-1])).rename(bundle / name / f"withdrawn-{versions[-1]}")
        _write_configuration(bundle)
    return bundle / name / str(versions[-2])


def docker_command(bundle: str | Path) -> str:
    """The one command that serves a bundle: gRPC on port 8500, REST on 8501."""
    mount = shlex.quote(f"{Path(bundle).resolve()}:{MOUNT}:ro")
    return f"docker run --rm -p 8500:8500 -p 8501:8501 -v {mount} {IMAGE} {' '.join(FLAGS)}"


def check_saved_model(folder: str | Path) -> None:
    """Load a SavedModel and let it answer its warm-up requests.

    Raises:
        UserError: it is absent, damaged, or does not answer.
    """
    import tensorflow as tf

    folder = Path(folder)
    if not (folder / "saved_model.pb").exists():
        raise UserError(f"No SavedModel is in {folder}: expected saved_model.pb, which `tfface export` writes there.")
    try:
        model = tf.saved_model.load(str(folder))
        silent = set(model.signatures)
        for request in warm_up_requests(folder):
            inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in request.inputs.items()}
            model.signatures[request.model_spec.signature_name](**inputs)
            silent.discard(request.model_spec.signature_name)
    except Exception as error:  # TensorFlow raises many kinds for a damaged file
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"The SavedModel {folder} is damaged: {reason}. Export the run again.") from error
    if silent:  # a file of records that was cut off reads as a shorter one
        raise UserError(
            f"The SavedModel {folder} is damaged: its warm-up requests lack {', '.join(sorted(silent))}. "
            "Export the run again."
        )


def warm_up_requests(folder: str | Path) -> Iterator:
    """The warm-up requests of a SavedModel, each a `PredictRequest`.

    Raises:
        UserError: it has none, or the file is damaged.
    """
    import tensorflow as tf
    from google.protobuf.message import DecodeError
    from tensorflow_serving.apis import prediction_log_pb2

    file = Path(folder) / "assets.extra" / "tf_serving_warmup_requests"
    try:
        for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
            yield prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
    except (tf.errors.OpError, DecodeError) as error:
        raise UserError(f"The warm-up requests {file} cannot be read: {str(error).splitlines()[0]}") from error


def _write_warm_up(folder: Path, name: str, size: tuple[int, int]) -> None:
    """Write warm-up requests of synthetic faces at the size that the network takes, through every signature."""
    import cv2
    import numpy as np
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_log_pb2

    from tfface.faces.synthesize import face

    image = cv2.resize(face(0).image, size[::-1], interpolation=cv2.INTER_AREA)
    pixels = image[None]
    jpeg = np.array([cv2.imencode(".jpg", image[:, :, ::-1])[1].tobytes()], object)
    inputs = {
        "serving_default": ("images", pixels),
        "jpeg": ("jpeg", jpeg),
        "embeddings": ("images", pixels),
        "jpeg_embeddings": ("jpeg", jpeg),
        "card": ("query", np.array([b""], object)),
    }
    if not files.read_json(folder / "assets.extra" / "tfface.json", "The model's card")["embedding"]:
        del inputs["embeddings"], inputs["jpeg_embeddings"]
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    with files.written_aside(path) as aside, tf.io.TFRecordWriter(str(aside)) as writer:
        for signature, (key, value) in inputs.items():
            for count in WARM_UP.get(signature, (1,)):
                request = predict_pb2.PredictRequest()
                request.model_spec.name = name
                request.model_spec.signature_name = signature
                request.inputs[key].CopyFrom(tf.make_tensor_proto(np.repeat(value, count, axis=0)))
                log = prediction_log_pb2.PredictionLog()
                log.predict_log.request.CopyFrom(request)
                writer.write(log.SerializeToString())


def _write_configuration(bundle: Path, leaving: tuple[str, int] | None = None) -> None:
    """Write every file beside the versions; `leaving` is a model and its version that is about to be taken back."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    configuration = model_server_config_pb2.ModelServerConfig()
    for name in _models(bundle):
        model = configuration.model_config_list.config.add()
        model.name, model.base_path, model.model_platform = name, f"{MOUNT}/{name}", "tensorflow"
        model.model_version_policy.latest.num_versions = 2
        # Of the two that the server holds: one label on any other makes it refuse the whole file.
        held = [version for version in _versions(bundle / name)[-2:] if (name, version) != leaving]
        for label, version in zip(("stable", "previous"), held[::-1], strict=False):
            model.version_labels[label] = version
    files.write_text(bundle / "models.config", text_format.MessageToString(configuration))
    # What somebody has tuned stays.
    for file, text in (
        ("batching_parameters.txt", BATCHING),
        ("monitoring.config", MONITORING),
        ("compose.yaml", _compose()),
    ):
        if not (bundle / file).exists():
            files.write_text(bundle / file, text)


def _labels(bundle: Path, name: str) -> dict[str, int]:
    """Labels of a model's versions as the server was told them last; none where it does not know the model."""
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    configuration, told = model_server_config_pb2.ModelServerConfig(), bundle / "models.config"
    with contextlib.suppress(text_format.ParseError):  # it is written anew
        text_format.Parse(told.read_text(encoding="utf-8", errors="replace") if told.exists() else "", configuration)
    models = {model.name: dict(model.version_labels) for model in configuration.model_config_list.config}
    return models.get(name, {})


def _not_yet_told(run: Run, bundle: Path, name: str) -> Path | None:
    """The newest version if it is this run's network, and its publication was killed before the server was told."""
    for number in _versions(bundle / name)[-1:]:
        card = bundle / name / str(number) / "assets.extra" / "tfface.json"
        if number != _labels(bundle, name).get("stable") and card.exists() and run.trained_file.exists():
            published = files.read_json(card, "The model's card").get("trained")
            return card.parent.parent if published == files.sha256(run.trained_file) else None
    return None


def _compose() -> str:
    flags = "".join(f"      - {flag}\n" for flag in FLAGS)
    return f"""\
# In this folder: docker compose up -d
services:
  serving:
    image: {IMAGE}
    ports:
      - "8500:8500"  # gRPC
      - "8501:8501"  # REST, and the figures for Prometheus
    volumes:
      - .:{MOUNT}:ro
    restart: unless-stopped
    command:
{flags}"""


def _models(bundle: Path) -> list[str]:
    """Names of the models of a bundle: folders that hold a version."""
    return sorted(path.name for path in bundle.iterdir() if _versions(path)) if bundle.is_dir() else []


def _versions(model: Path) -> list[int]:
    """Versions that the server can load, rising."""
    return [number for number in _numbers(model) if (model / str(number) / "saved_model.pb").exists()]


def _numbers(model: Path) -> list[int]:
    """Numbers that are names in a model's folder, rising, whatever they name."""
    return sorted(int(path.name) for path in model.glob("*") if path.name.isdecimal())


def _withdrawn(model: Path) -> list[int]:
    names = (path.name.removeprefix("withdrawn-") for path in model.glob("withdrawn-*/"))
    return [int(name) for name in names if name.isdecimal()]
