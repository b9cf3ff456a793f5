"""The tiny YOLO against its published weights and real faces; ONNX models of the user's own against made ones."""

import keras
import numpy as np
import pytest

from tfface.errors import UserError
from tfface.faces import mtcnn, yolo
from tfface.faces.photos import read_photo


def overlaps(a, b):
    sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    return shared / ((a[:, 2:] - a[:, :2]).prod(axis=1)[:, None] + (b[:, 2:] - b[:, :2]).prod(axis=1) - shared)


@pytest.fixture(scope="module")
def groups(samples):
    return [read_photo(samples / "photos" / "groups" / f"bbt{number}.jpg") for number in range(1, 6)]


def test_the_network_has_the_published_parameters_and_any_size():
    network = yolo.tiny_yolo_network()
    assert network.count_params() == 193_321
    assert network(np.zeros((2, 416, 416, 3), np.float32)).shape == (2, 13, 13, 25)
    assert network(np.zeros((1, 96, 320, 3), np.float32)).shape == (1, 3, 10, 25)


@pytest.mark.parametrize("build", [yolo.tiny_yolo_network, lambda: mtcnn._pretrained(mtcnn.output_network())])
def test_a_program_s_own_mixed_precision_does_not_reach_detectors(build):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        network = build()
    finally:
        keras.config.set_dtype_policy("float32")
    assert {layer.compute_dtype for layer in network.layers if layer.weights} == {"float32"}
    assert all(np.array_equal(a, b) for a, b in zip(network.get_weights(), build().get_weights(), strict=True))


def test_the_photo_s_mean_is_folded_into_the_first_layer():
    """A photo of the mean colour is zero to the network: away from edges its first layer gives the stored bias."""
    network = yolo.tiny_yolo_network()
    kernel, bias = network.get_layer("conv0").get_weights()
    stored = np.load(yolo.importlib.resources.files("tfface").joinpath("assets/tiny_yolo_face.npz").open("rb"))
    scale, least = stored["conv0/bias:range"]
    np.testing.assert_allclose(
        np.einsum("hwcf,c->f", kernel, yolo.MEAN) + bias, scale * stored["conv0/bias"] + least, atol=1e-4
    )


def test_the_faces_of_group_photos(groups):
    from tfface.faces.mtcnn import MTCNN

    found = yolo.TinyYOLO()(groups)
    reference = MTCNN()(groups)
    assert sum(map(len, reference)) == 24
    # It looks for the whole head, MTCNN for the face: an overlap of 0.3 is the same person.
    matched = [(overlaps(a.boxes, b.boxes) > 0.3).any(axis=0).sum() for a, b in zip(found, reference, strict=True)]
    assert sum(matched) >= 20
    for a, b in zip(found, reference, strict=True):
        assert (overlaps(a.boxes, b.boxes) > 0.3).any(axis=1).all(), "a face where MTCNN sees none"
    # By these, faces are aligned whose landmarks are not known; those of MTCNN's boxes are up to 0.13 away.
    places = [
        (b.landmarks[overlaps(box[None], b.boxes).argmax()] - box[:2]) / (box[2:] - box[:2])
        for a, b in zip(found, reference, strict=True)
        for box in a.boxes
    ]
    np.testing.assert_allclose(np.median(places, axis=0), yolo.TinyYOLO.landmarks_in_box, atol=0.08)


def test_no_two_boxes_of_a_face_remain(groups):
    for faces in yolo.TinyYOLO(input_size=608, score_threshold=0.1)(groups):
        pairs = overlaps(faces.boxes, faces.boxes) - np.eye(len(faces))
        assert pairs.max(initial=0) <= yolo.OVERLAP + 1e-3
        assert (np.diff(faces.scores) <= 0).all()


def test_a_larger_input_finds_smaller_faces(samples):
    photo = read_photo(samples / "photos" / "dlib_faces" / "2008_004176.jpg")
    counts = [len(yolo.TinyYOLO(input_size=size)([photo])[0]) for size in (224, 608)]
    assert counts[0] < counts[1] == 7


def test_letterbox_keeps_shape_and_says_the_scale():
    photos = [np.full((100, 200, 3), 50, np.uint8), np.full((300, 150, 3), 70, np.uint8)]
    inputs, scales = yolo.letterbox(photos, 416)
    assert inputs.shape == (2, 416, 416, 3)
    np.testing.assert_allclose(scales, [[2.08, 2.08], [208 / 150, 416 / 300]], rtol=1e-6)
    assert (inputs[0, :208] == 50).all()
    assert (inputs[0, 208:] == 0).all()
    assert yolo.letterbox(photos[:1], 416)[0].shape == (1, 224, 416, 3)
    assert yolo.letterbox(photos, 416, (160, 320))[0].shape == (2, 160, 320, 3)


def onnx_model(path, boxes, batch=1):
    """Writes an ONNX model that gives the same boxes for every photo."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: no model can be made to test with")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node(
                "Constant", [], ["boxes"], value=onnx.numpy_helper.from_array(boxes[None].astype(np.float32))
            )
        ],
        "made",
        [helper.make_tensor_value_info("images", real, [batch, 3, 64, 96])],
        [helper.make_tensor_value_info("boxes", real, [1, *boxes.shape])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, path)
    return path


POINTS = np.array([[20, 20], [40, 20], [30, 30], [22, 40], [38, 40]], np.float32)
PHOTO = np.zeros((128, 192, 3), np.uint8)  # twice the models' 64x96


@pytest.mark.parametrize("numbers", [5, 6, 15, 16, 20])
def test_onnx_layouts(tmp_path, numbers):
    face = [30, 30, 40, 48]
    with_score = np.concatenate([POINTS, np.ones((5, 1))], axis=1).reshape(-1)
    tail = {5: [], 6: [0.9], 15: POINTS.reshape(-1), 16: [*POINTS.reshape(-1), 0.9], 20: with_score}[numbers]
    rows = np.array([[*face, 0.8, *tail], [32, 31, 40, 48, 0.7, *tail], [80, 50, 20, 20, 0.2, *tail]])
    for name, boxes in (("rows.onnx", np.repeat(rows, 10, axis=0)), ("columns.onnx", np.repeat(rows, 10, axis=0).T)):
        faces = yolo.OnnxYOLO(onnx_model(tmp_path / name, boxes))([PHOTO, PHOTO])
        assert [len(some) for some in faces] == [1, 1]
        np.testing.assert_allclose(faces[0].boxes, [[20, 12, 100, 108]])
        np.testing.assert_allclose(faces[0].scores, [0.72 if numbers in (6, 16) else 0.8], rtol=1e-6)
        if numbers in (5, 6):
            assert faces[0].landmarks is None
        else:
            np.testing.assert_allclose(faces[0].landmarks, [2 * POINTS])


def test_what_is_found_beside_the_photo_alone_is_no_face(tmp_path):
    boxes = np.array([[24, 24, 20, 20, 0.8], [24, 56, 20, 12, 0.9], [56, 24, 12, 20, 0.9]])
    wide, high = np.zeros((48, 96, 3), np.uint8), np.zeros((96, 72, 3), np.uint8)  # black below, and to the right
    found = yolo.OnnxYOLO(onnx_model(tmp_path / "beside.onnx", boxes))([wide, high])
    np.testing.assert_allclose(found[0].boxes, [[50, 14, 62, 34], [14, 14, 34, 34]])
    np.testing.assert_allclose(found[1].boxes, [[21, 75, 51, 93], [21, 21, 51, 51]])


def test_onnx_models_see_red_green_and_blue_in_the_unit_interval(tmp_path):
    """The model answers with the means of its input's channels: where a face is, and how wide."""
    onnx = pytest.importorskip("onnx", reason="onnx is not installed: no model can be made to test with")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    node, real = onnx.helper.make_node, onnx.TensorProto.FLOAT
    constants = {"factors": np.array([[40, 30, 20]]), "rest": np.array([[20, 0.9]])}
    graph = onnx.helper.make_graph(
        [
            node("ReduceMean", ["images"], ["means"], axes=[2, 3], keepdims=0),
            node("Mul", ["means", "factors"], ["places"]),
            node("Concat", ["places", "rest"], ["row"], axis=1),
            node("Unsqueeze", ["row", "axis"], ["boxes"]),
        ],
        "made",
        [onnx.helper.make_tensor_value_info("images", real, [1, 3, 64, 96])],
        [onnx.helper.make_tensor_value_info("boxes", real, [1, 1, 5])],
        [
            *(onnx.numpy_helper.from_array(value.astype(np.float32), name) for name, value in constants.items()),
            onnx.numpy_helper.from_array(np.array([1], np.int64), "axis"),
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, tmp_path / "means.onnx")
    photo = np.full((128, 192, 3), (255, 204, 102), np.uint8)
    (faces,) = yolo.OnnxYOLO(tmp_path / "means.onnx")([photo])
    # Centre (40 * 1, 30 * 0.8), 20 * 0.4 wide, 20 high; the photo is twice as large.
    np.testing.assert_allclose(faces.boxes, [[72, 28, 88, 68]], atol=1e-3)


def test_onnx_of_another_kind_is_refused(tmp_path):
    detector = yolo.OnnxYOLO(onnx_model(tmp_path / "other.onnx", np.zeros((40, 85))))
    with pytest.raises(UserError, match=r"\(40, 85\)"):
        detector([PHOTO])


def test_onnx_files_that_cannot_be_read(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    with pytest.raises(UserError, match="no ONNX file"):
        yolo.OnnxYOLO(tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match="cannot be read"):
        yolo.OnnxYOLO(tmp_path / "text.onnx")


def test_without_onnxruntime_the_mend_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        yolo.OnnxYOLO("face.onnx")
