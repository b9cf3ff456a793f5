import base64
import datetime
import http.server
import io
import json
import shutil
import socket
import threading
import time
import types
import urllib.error
import urllib.request
from concurrent import futures

import grpc
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from PIL import Image, PngImagePlugin
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from tfface import cli, files
from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.serving import client, export
from tfface.serving.predictor import Predictor
from tfface.training.run import Run


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    image, _ = synthesize.photo(4, 5)
    path = tmp_path_factory.mktemp("photos") / "group.png"
    Image.fromarray(image).save(path)
    return path, image


@pytest.fixture(params=["rest", "grpc"])
def url(request, model_server):
    return model_server.rest_url if request.param == "rest" else model_server.grpc_url


def said(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfface:")]


def test_a_photo_gives_what_predict_gives(url, group, small_run, capsys):
    path, image = group
    assert cli.main(["client", url, str(path), "--name", "faces", "--embeddings"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["photo"] == str(path)
    expected = Predictor(small_run.folder)([image])[0]
    assert len(row["faces"]) == len(expected) == 5
    for face, local in zip(row["faces"], expected, strict=True):
        wanted = local.to_json()
        assert set(face) == {*wanted, "embedding"}
        assert face["box"] == wanted["box"]
        assert face["gender"] == wanted["gender"]
        assert face["probabilities"]["gender"] == pytest.approx(wanted["probabilities"]["gender"], abs=1e-4)
        assert np.linalg.norm(face["embedding"]) == pytest.approx(1, abs=1e-5)


def test_crops_go_as_they_are(url, small_run, tmp_path, capsys):
    images = [synthesize.face(seed).image for seed in (3_000_000, 3_000_001)]
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    Image.fromarray(images[0]).save(tmp_path / "3.bmp")
    (tmp_path / "4.jpg").write_bytes(b"no picture")
    twice = [str(tmp_path), str(tmp_path / "1.png")]
    assert cli.main(["client", url, *twice, "--name", "faces", "--crops"]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("tfface:")]
    assert [name for name in ("3.bmp", "4.jpg") if any(name in line for line in lines)] == ["3.bmp", "4.jpg"]
    assert len(lines) == 2
    rows = json.loads(output.out)
    # The signature scales to the network's size as TensorFlow does.
    from tfface.data import pipeline

    expected = small_run.model().predict(pipeline.resize(np.stack(images), (32, 32)), verbose=0)["gender"]
    for row, wanted in zip(rows, expected, strict=True):  # a photo that is named twice comes once
        (face,) = row["faces"]
        assert face["box"] == [0, 0, *images[0].shape[1::-1]]
        assert list(face["probabilities"]["gender"].values()) == pytest.approx(wanted.tolist(), abs=1e-4)


def test_crops_that_a_server_would_see_otherwise_go_as_they_are_read(tmp_path):
    image = synthesize.face(3_000_000).image
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(np.rot90(image)).save(tmp_path / "turned.jpg", exif=turned)
    veil = np.full((*image.shape[:2], 1), 100, np.uint8)
    Image.fromarray(np.concatenate([image, veil], axis=2)).save(tmp_path / "clear.png")
    Image.fromarray(image).quantize(16).save(tmp_path / "palette.png", transparency=3)
    Image.fromarray(image).save(tmp_path / "plain.jpg")
    for name in ("turned.jpg", "clear.png", "palette.png"):
        photo, data = client._read(tmp_path / name, crop=True)
        with Image.open(io.BytesIO(data)) as sent:
            assert sent.mode == "RGB"
            assert not sent.getexif()
            np.testing.assert_array_equal(np.asarray(sent), photo)
    damaged = PngImagePlugin.PngInfo()
    damaged.add_text("Raw profile type exif", "\nexif\n 10\nno digits\n")
    Image.fromarray(image).save(tmp_path / "damaged-exif.png", pnginfo=damaged)
    for name in ("plain.jpg", "damaged-exif.png"):
        assert client._read(tmp_path / name, crop=True)[1] == (tmp_path / name).read_bytes()


def test_the_card_says_how_faces_are_cut_and_crops_lose_nothing_on_their_way(small_run, tmp_path, monkeypatch):
    run = Run(shutil.copytree(small_run.folder, tmp_path / "run"))
    config = run.config()
    files.write_json(run.config_file, {**config, "data": {**config["data"], "stretch": 1.2}})
    card = export.network_and_card(run)[1]
    server = types.SimpleNamespace(card=lambda: card, shown="here", wanted=lambda: "model")
    remote, local = client.RemotePredictor(server, lambda photos: []), Predictor(run.folder, lambda photos: [])
    photo = np.random.default_rng(0).integers(0, 256, (90, 80, 3), np.uint8)
    points = np.array([[30, 40], [52, 41], [40, 52], [33, 66], [50, 65]], float)
    crop = remote.align(photo, None, points)
    np.testing.assert_array_equal(crop, local.align(photo, None, points))
    local.stretch = 1.0
    assert (crop != local.align(photo, None, points)).any()
    monkeypatch.setattr(client, "ask", lambda server, crops, embeddings: crops)
    (sent,) = remote.predict_crops(crop[None])
    np.testing.assert_array_equal(Image.open(io.BytesIO(sent)), crop)


def test_many_crops_are_several_requests(model_server, monkeypatch):
    server = client.connect(model_server.grpc_url, "faces")
    data = [cv2_png(synthesize.face(seed).image) for seed in (3_000_000, 3_000_001, 3_000_002)]
    together = client.ask(server, data)
    monkeypatch.setattr(client, "FACES_AT_ONCE", 2)
    apart = client.ask(server, data)
    np.testing.assert_allclose(together["gender_probabilities"], apart["gender_probabilities"], atol=1e-5)
    assert together["gender_classes"].tolist() == apart["gender_classes"].tolist()


def cv2_png(image):
    import cv2

    return cv2.imencode(".png", image[:, :, ::-1])[1].tobytes()


def test_versions_and_labels(url):
    for choice in ({"version": 1}, {"label": "stable"}, {}):
        assert client.connect(url, "faces", **choice).card()["outputs"][0]["name"] == "gender"
    with pytest.raises(UserError, match="has no model faces version 7"):
        client.connect(url, "faces", version=7).card()
    with pytest.raises(UserError, match="label best"):
        client.connect(url, "faces", label="best").card()


def test_a_label_of_any_letters_is_part_of_the_address(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append(request.full_url)
        raise urllib.error.URLError("refused")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match="No TensorFlow Serving answers"):
        client.connect("http://localhost:8501", "faces", label="on trial/2").card()
    assert asked == ["http://localhost:8501/v1/models/faces/labels/on%20trial%2F2:predict"]


def test_a_model_that_is_not_there_is_said(url, group, capsys):
    assert cli.main(["client", url, str(group[0]), "--name", "nobody"]) == 2
    (line,) = said(capsys)
    assert "no model nobody" in line
    assert "Latest(nobody)" in line


def test_a_signature_that_is_not_there_is_said(url):
    with pytest.raises(UserError, match="no signature faces_of_cats"):
        client.connect(url, "faces").predict("faces_of_cats", {"jpeg": np.array([b""], object)})


def test_bytes_that_the_server_cannot_decode_are_its_refusal(url):
    with pytest.raises(UserError, match="refused the request"):
        client.connect(url, "faces").predict("jpeg", {"jpeg": np.array([b"no picture"], object)})


def test_a_slow_server_is_said(url, model_server):
    model_server.delay.set()
    try:
        with pytest.raises(UserError, match=r"did not answer within 0.2 s"):
            client.connect(url, "faces", timeout=0.2).card()
    finally:
        model_server.delay.clear()


def test_an_absent_server_is_said(group, capsys):
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for url in (f"http://127.0.0.1:{port}", f"127.0.0.1:{port}", f"grpc://127.0.0.1:{port}"):
            assert cli.main(["client", url, str(group[0])]) == 2
            (line,) = said(capsys)
            assert "No TensorFlow Serving answers" in line


def test_the_other_protocols_port_is_said(model_server):
    rest = client.connect(f"http://{model_server.grpc_url}", "faces", timeout=5)
    rpc = client.connect(model_server.rest_url.removeprefix("http://"), "faces", timeout=5)
    for server in (rest, rpc):
        with pytest.raises(UserError, match=r"No TensorFlow Serving answers|did not answer"):
            server.card()


@pytest.fixture
def answers():
    """A server that answers as it is told to: `answers(status, parts, length)` gives its address."""
    servers = []

    def start(status, parts, length=None):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.send_header("Content-Length", str(length or sum(map(len, parts))))
                self.end_headers()
                try:
                    for number, part in enumerate(parts):
                        time.sleep(0.1 * bool(number))
                        self.wfile.write(part)
                    if length == STALLS:
                        time.sleep(1)
                except OSError:
                    pass  # the client has gone

            def log_message(self, *_):
                pass

        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        servers[-1].daemon_threads = True
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{servers[-1].server_port}"

    yield start
    for server in servers:
        server.shutdown()


STALLS, CUT = 100, 99
"""Lengths that are promised and not kept."""


@pytest.mark.parametrize(
    ("status", "parts", "length", "said"),
    [
        (200, [b" "] * 20, None, "did not answer within 0.5 s"),  # each byte comes in time
        (503, [b" "] * 20, None, "did not answer within 0.5 s"),
        (200, [b'{"out'], STALLS, "did not answer within 0.5 s"),
        (503, [b'{"err'], STALLS, "did not answer within 0.5 s"),
        (200, [b'{"out'], CUT, "does not speak its REST"),
        (503, [b'{"err'], CUT, "HTTP 503 Service Unavailable"),
    ],
)
def test_answers_that_trickle_stall_or_are_cut(answers, status, parts, length, said):
    begun = time.monotonic()
    with pytest.raises(UserError, match=said):
        client.connect(answers(status, parts, length), timeout=0.5).card()
    assert time.monotonic() - begun < 1.5


CARD = {"recipe": {"recipe": "gender"}, "landmarks": None}


@pytest.mark.parametrize(
    "outputs",
    [{"foo": [1]}, ["not json"], ["{}"], [], ["3"], [json.dumps({"recipe": "gender", "landmarks": None})], [None]],
)
def test_what_is_no_card_is_one_line(answers, outputs):
    with pytest.raises(UserError, match="answered what no model of tfface answers"):
        client.connect(answers(200, [json.dumps({"outputs": outputs}).encode()])).card()


GOOD = {"gender_probabilities": [[0.5, 0.5]] * 2, "gender_classes": [["a", "b"]] * 2, "age": [3, 4.5]}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gender_probabilities": [[0.5, 0.5]]}, "expected 2 rows"),
        ({"gender_probabilities": [[0.5, 0.5], [1]]}, "rows of one output differ"),
        ({"gender_classes": [["a"]] * 2}, "does not name the columns"),
        ({"gender_classes": None}, "does not name the columns"),
        ({"age": [None, 3]}, "age is not numbers, one a face"),
        ({"age": [3, float("nan")]}, "age is not numbers, one a face"),
        ({"age": [[1, 2]] * 2}, "age is not numbers, one a face"),
        ({"gender_probabilities": [["x", "y"]] * 2}, "is not a row of numbers, one a face"),
        ({"age": 3}, "expected 2 rows"),
    ],
)
def test_answers_of_no_model_are_one_line(answers, changes, said):
    address = answers(200, [json.dumps({"outputs": {**GOOD, **changes}}).encode()])
    with pytest.raises(UserError, match="answered what no model of tfface answers") as error:
        client.ask(client.connect(address), [b"", b""])
    assert said in str(error.value)


def test_answers_that_lack_outputs_are_one_line(answers):
    lacking = answers(200, [json.dumps({"outputs": {"gender": ["a"], "x": [1]}}).encode()])
    with pytest.raises(UserError, match="neither age, probabilities nor embedding"):
        client.ask(client.connect(lacking), [b""])
    without = answers(200, [json.dumps({"outputs": GOOD}).encode()])
    assert client.ask(client.connect(without), [b"", b""])["age"].tolist() == [3, 4.5]
    with pytest.raises(UserError, match="the output embedding is missing"):
        client.ask(client.connect(without), [b"", b""], embeddings=True)


def test_a_network_that_only_tells_people_apart_answers_with_embeddings(answers, tmp_path, capsys):
    address = answers(200, [json.dumps({"outputs": [[3.0, 4.0], [0.0, 2.0]]}).encode()])  # REST names no single output
    for number in range(2):
        Image.fromarray(synthesize.face(3_000_000).image).save(tmp_path / f"{number}.png")
    assert cli.main(["client", address, str(tmp_path), "--crops", "--embeddings"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["faces"][0]["embedding"] for row in rows] == [pytest.approx([0.6, 0.8]), [0.0, 1.0]]


def test_a_network_that_says_an_age_alone_answers_with_ages(answers):
    server = client.connect(answers(200, [json.dumps({"outputs": [31.5, 4.0]}).encode()]))  # not named either
    assert {name: values.tolist() for name, values in client.ask(server, [b"", b""]).items()} == {"age": [31.5, 4.0]}


def test_what_a_server_said_before_it_fell_silent_is_whole(monkeypatch, tmp_path, capsys):
    def falls_silent(server, data, embeddings):
        if len(data) < 2:
            raise UserError("silent")
        return {"age": np.full(len(data), 3.0)}

    monkeypatch.setattr(client, "ask", falls_silent)
    monkeypatch.setattr(client, "FACES_AT_ONCE", 2)
    for number in range(3):
        Image.fromarray(synthesize.face(3_000_000).image).save(tmp_path / f"{number}.png")
    assert cli.main(["client", "host:8500", str(tmp_path), "--crops"]) == 2
    assert [row["faces"][0]["age"] for row in json.loads(capsys.readouterr().out)] == [3, 3]


@pytest.mark.parametrize(
    "output",
    [
        tf.make_tensor_proto([b"\xff"]),  # no text
        tensor_pb2.TensorProto(),  # of no type
        tensor_pb2.TensorProto(dtype=tf.variant.as_datatype_enum),
        tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, tensor_content=b"\0\0\0"),
    ],
)
def test_outputs_over_grpc_that_cannot_be_read_are_one_line(output):
    server = client.connect("host:8500")
    answer = predict_pb2.PredictResponse(outputs={"card": output})
    server._stub = types.SimpleNamespace(Predict=lambda request, timeout: answer)
    with pytest.raises(UserError, match=r"answered what no model of tfface answers.* an output cannot be read"):
        server.card()


def test_only_crops_are_sent():
    with pytest.raises(UserError, match="no crops were received"):
        client.ask(client.connect("host:8500"), [])
    predictor = object.__new__(client.RemotePredictor)
    for wrong, said in (
        (np.zeros((0, 8, 8, 3), np.uint8), "no crops were received"),
        (np.zeros((2, 8, 8, 3), np.float32), "have dtype float32"),
        (np.zeros((8, 8, 3), np.uint8), "have shape"),
    ):
        with pytest.raises(UserError, match=said) as error:
            predictor.predict_crops(wrong)
        assert "(n, height, width, 3)" in str(error.value)


@pytest.mark.parametrize("recipe", [{"recipe": "none"}, {"recipe": "gender", "later": 1}, {"recipe": ["gender"]}])
def test_a_model_of_a_later_version_is_said(recipe):
    server = client.connect("host:8500")
    server.card = lambda: {"recipe": recipe, "landmarks": [[0.5, 0.5]] * 5}
    with pytest.raises(UserError, match="Install the version that published it"):
        client.RemotePredictor(server)


def test_an_embedding_of_zeros_is_no_nan():
    face = client.served_face((1, 2, 3, 4), 0.9, {"embedding": np.zeros(4, "float32")})
    assert face.embedding.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("status", "where", "headers"),
    [(308, "http://host/v1/models/faces:predict", {"Location": "https://host/"}), (400, "https://host/", {})],
)
def test_an_address_that_sends_on_is_said(status, where, headers, monkeypatch):
    def sends_on(request, timeout):
        raise urllib.error.HTTPError(where, status, "", headers, io.BytesIO(b'{"error": "Malformed request: GET"}'))

    monkeypatch.setattr(urllib.request, "urlopen", sends_on)
    with pytest.raises(UserError, match=r"No TensorFlow Serving answers at http://host \(it sends on to https://host/"):
        client.connect("http://host", "faces").card()


def test_a_password_goes_to_the_proxy(monkeypatch):
    asked = []

    def refuse(request, timeout):
        asked.append((request.full_url, request.get_header("Authorization")))
        raise urllib.error.URLError("refused")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    with pytest.raises(UserError, match=r"answers at https://host:443 "):
        client.connect("https://me:s%40fe@host:443", "faces").card()
    assert asked == [("https://host:443/v1/models/faces:predict", "Basic " + base64.b64encode(b"me:s@fe").decode())]
    with pytest.raises(UserError, match="Over gRPC no password is sent") as error:
        client.connect("grpcs://me:secret@host:8500")
    assert "secret" not in str(error.value)


def test_what_stands_between_is_said(monkeypatch):
    def refuse(request, timeout):
        raise urllib.error.URLError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    with pytest.raises(
        UserError, match=r"through the proxy http://proxy:3128 of https_proxy: no_proxy=::1 .*SSL_CERT_F"
    ):
        client.connect("https://[::1]:443", "faces").card()
    monkeypatch.setenv("no_proxy", "host")
    with pytest.raises(UserError, match="self-signed; of an authority"):
        client.connect("https://host:443", "faces").card()


@pytest.fixture(scope="module")
def over_tls(model_server, tmp_path_factory):
    """The stand-in over TLS: its address, and the file of the certificate that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    file = tmp_path_factory.mktemp("authority") / "certificate.pem"
    file.write_bytes(certificate)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    rpc = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(model_server, rpc)
    port = rpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(secret, certificate)]))
    rpc.start()
    yield f"grpcs://localhost:{port}", file
    rpc.stop(None)


def test_grpc_over_tls(over_tls, monkeypatch, tmp_path):
    url, certificate = over_tls
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert client.connect(url, "faces").card()["outputs"][0]["name"] == "gender"
    with pytest.raises(UserError, match=r"answers at localhost:.* over TLS https:// or grpcs://"):
        client.connect(url.removeprefix("grpcs://"), "faces", timeout=5).card()
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UserError, match=rf"answers at {url} .*certificate in SSL_CERT_FILE"):
        client.connect(url, "faces", timeout=5).card()
    (tmp_path / "key.pem").write_text("no certificate")
    for name, said in (("absent.pem", "cannot be read"), ("key.pem", "holds no certificate")):
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / name))
        with pytest.raises(UserError, match=f"SSL_CERT_FILE names .*{name}, which {said}"):
            client.connect(url, "faces").card()


def test_passwords_are_not_said():
    with pytest.raises(UserError, match=r"answers at http://127\.0\.0\.1:9") as error:
        client.connect("http://me:secret@127.0.0.1:9", timeout=5).card()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host:1", "http://", "http://host:8501/v1/models/arg", "two words"),
        *("http://[::1", "http://host:port", "host:99999", "http://me:secret@host:port"),
    ],
)
def test_addresses_of_another_kind(url):
    with pytest.raises(UserError, match="URL must be") as error:
        client.connect(url)
    assert "secret" not in str(error.value)


def test_a_version_and_a_label_or_no_time_at_all():
    with pytest.raises(UserError, match="not both"):
        client.connect("host:8500", version=1, label="stable")
    for version in (-1, 1 << 63):
        with pytest.raises(UserError, match="A version is a number from 0"):
            client.connect("host:8500", version=version)
    for seconds in (0, float("nan"), float("inf"), 1e300):
        with pytest.raises(UserError, match="more than 0"):
            client.connect("host:8500", timeout=seconds)


def test_ages_are_read_from_named_outputs():
    outputs = {
        "age": np.float32(31.5),
        "age_spread": np.float32(4.0),
        "age_bins": "27-34",
        "age_bins_probabilities": np.float32([0.2, 0.8]),
        "age_bins_classes": np.array(["20-26", "27-34"]),
    }
    face = client.served_face((1, 2, 3, 4), 0.9, outputs)
    assert face.to_json() == {
        "box": [1, 2, 3, 4],
        "score": 0.9,
        "age_bins": "27-34",
        "age": 31.5,
        "age_spread": 4.0,
        "probabilities": {"age_bins": {"20-26": 0.2, "27-34": 0.8}},
    }
