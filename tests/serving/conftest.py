"""A small run, its bundle, and a stand-in for TensorFlow Serving that speaks its protocols over the bundle."""

import base64
import json
import threading
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc
from tensorflow_serving.config import model_server_config_pb2

from tfface import labels, recipes
from tfface.serving import bundle as bundles
from tfface.training.run import Run

LANDMARKS = [[0.3664, 0.4494], [0.6320, 0.4502], [0.5009, 0.5914], [0.3797, 0.7210], [0.6231, 0.7225]]


@pytest.fixture(scope="session")
def small_run(tmp_path_factory):
    """A run of the gender recipe as if it had been trained: its files with the network's first weights."""
    recipe = recipes.load("gender", tiny=True).changed(classes=labels.GENDERS, seed=3)
    run = Run(tmp_path_factory.mktemp("runs") / "gender")
    run.begin(recipe, {"name": "synthetic_faces/small", "landmarks": LANDMARKS}, "cpu")
    keras.utils.set_random_seed(recipe.seed)  # the same in every test process: they share the bundle
    recipe.model().save(run.trained_file)
    return run


@pytest.fixture(scope="session")
def bundle(small_run, once):
    """A bundle with one version of one model."""
    return once("bundle", lambda folder: bundles.publish(small_run, folder, "faces"))


class Refusal(Exception):
    """TensorFlow Serving's status and words."""

    def __init__(self, code: grpc.StatusCode, words: str):
        super().__init__(words)
        self.code, self.words = code, words


class ModelServer(prediction_service_pb2_grpc.PredictionServiceServicer):
    """Serves a bundle over gRPC and REST: versions, labels and refusals as TensorFlow Serving's sources have them."""

    def __init__(self, folder):
        self.folder, self.loaded, self.delay = folder, {}, threading.Event()

    # --- what both protocols ask

    def choose(self, spec):
        config = text_format.Parse(
            (self.folder / "models.config").read_text(), model_server_config_pb2.ModelServerConfig()
        )
        models = {model.name: model for model in config.model_config_list.config}
        if spec.name not in models:
            raise Refusal(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({spec.name})")
        model = models[spec.name]
        assert model.base_path == f"/models/{model.name}"
        there = sorted(int(path.name) for path in (self.folder / model.name).iterdir() if path.name.isdecimal())
        held = there[-model.model_version_policy.latest.num_versions :]
        version = held[-1]
        if spec.WhichOneof("version_choice") == "version":
            version = spec.version.value
        elif spec.version_label:
            if spec.version_label not in model.version_labels:
                words = f"Unrecognized servable version label: {spec.version_label}"
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, words)
            version = model.version_labels[spec.version_label]
        if version not in held:
            words = f"Servable not found for request: Specific({spec.name}, {version})"
            raise Refusal(grpc.StatusCode.NOT_FOUND, words)
        folder = self.folder / model.name / str(version)
        if folder not in self.loaded:
            self.loaded[folder] = tf.saved_model.load(str(folder))
        return self.loaded[folder]

    def answer(self, model, signature, inputs):
        if self.delay.is_set():
            threading.Event().wait(2)
        try:
            return model.signatures[signature](**{key: tf.constant(value) for key, value in inputs.items()})
        except tf.errors.InvalidArgumentError as error:
            raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, str(error)) from error

    # --- gRPC

    def Predict(self, request, context):
        signature = request.model_spec.signature_name or "serving_default"
        try:
            model = self.choose(request.model_spec)
            if signature not in model.signatures:
                words = f'Serving signature key "{signature}" not found.'
                raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, words)
            outputs = self.answer(model, signature, {k: tf.make_ndarray(v) for k, v in request.inputs.items()})
        except Refusal as refusal:
            context.abort(refusal.code, refusal.words)
        response = predict_pb2.PredictResponse()
        for key, value in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(value.numpy()))
        return response

    # --- REST

    def rest(self, path, body):
        """Status and answer of a POST."""
        spec = predict_pb2.PredictRequest().model_spec
        place, _, verb = path.rpartition(":")
        parts = place.strip("/").split("/")
        assert (parts[:2], verb) == (["v1", "models"], "predict")
        spec.name = parts[2]
        if parts[3:4] == ["versions"]:
            spec.version.value = int(parts[4])
        elif parts[3:4] == ["labels"]:
            spec.version_label = parts[4]
        signature = body.get("signature_name", "serving_default")
        try:
            model = self.choose(spec)
            if signature not in model.signatures:
                words = f'Serving signature name: "{signature}" not found in signature def'
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, words)
            types = {
                spec.name: spec.dtype for spec in model.signatures[signature].structured_input_signature[1].values()
            }
            inputs = {key: _tensor(value, types[key]) for key, value in body["inputs"].items()}
            outputs = {k: v.numpy() for k, v in self.answer(model, signature, inputs).items()}
        except Refusal as refusal:
            return 404 if refusal.code == grpc.StatusCode.NOT_FOUND else 400, {"error": refusal.words}
        plain = {k: (v.astype(str) if v.dtype == object else v).tolist() for k, v in outputs.items()}
        return 200, {"outputs": plain if len(plain) > 1 else next(iter(plain.values()))}


def _tensor(value, dtype):
    if dtype == tf.string:
        return np.array([base64.b64decode(item["b64"]) for item in value], object)
    return np.array(value, dtype.as_numpy_dtype)


@pytest.fixture(scope="session")
def model_server(bundle):
    """The stand-in, running; `.rest_url` and `.grpc_url` are its addresses."""
    server = ModelServer(bundle)
    rpc = grpc.server(futures.ThreadPoolExecutor(4))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(server, rpc)
    server.grpc_url = f"127.0.0.1:{rpc.add_insecure_port('127.0.0.1:0')}"
    rpc.start()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, answer = server.rest(self.path, body)
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *words):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.rest_url = f"http://127.0.0.1:{web.server_port}"
    threading.Thread(target=web.serve_forever, daemon=True).start()
    yield server
    web.shutdown()
    rpc.stop(None)
