import json
import socket

import numpy as np
import pytest
from PIL import Image

from tfface import cli
from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.serving import client
from tfface.serving.predictor import Predictor


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
    assert cli.main(["client", url, str(tmp_path), "--name", "faces", "--crops"]) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("tfface:")]
    assert [name for name in ("3.bmp", "4.jpg") if any(name in line for line in lines)] == ["3.bmp", "4.jpg"]
    assert len(lines) == 2
    rows = json.loads(output.out)
    # The signature scales to the network's size as TensorFlow does.
    from tfface.data import pipeline

    expected = small_run.model().predict(pipeline.resize(np.stack(images), (32, 32)), verbose=0)["gender"]
    for row, wanted in zip(rows, expected, strict=True):
        (face,) = row["faces"]
        assert face["box"] == [0, 0, *images[0].shape[1::-1]]
        assert list(face["probabilities"]["gender"].values()) == pytest.approx(wanted.tolist(), abs=1e-4)


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
    grpc = client.connect(model_server.rest_url.removeprefix("http://"), "faces", timeout=5)
    for server in (rest, grpc):
        with pytest.raises(UserError, match=r"No TensorFlow Serving answers|did not answer"):
            server.card()


@pytest.mark.parametrize("url", ["ftp://host:1", "http://", "http://host:8501/v1/models/arg", "two words"])
def test_addresses_of_another_kind(url):
    with pytest.raises(UserError, match="URL must be"):
        client.connect(url)


def test_a_version_and_a_label_or_no_time_at_all():
    with pytest.raises(UserError, match="not both"):
        client.connect("host:8500", version=1, label="stable")
    with pytest.raises(UserError, match="more than 0"):
        client.connect("host:8500", timeout=0)


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
