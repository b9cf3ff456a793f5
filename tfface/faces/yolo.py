"""YOLO face detectors: a tiny one whose weights come with tfface, and any ONNX file of your own.

The tiny network is a YOLOv2 (Redmon and Farhadi, "YOLO9000: Better, Faster, Stronger", 2017, section 2) of
separable convolutions, 193,321 parameters, from face-api (`tfface/assets/detectors.md`).
"""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Sequence

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces.detect import Detector, Faces, check_min_face_size
from tfface.packages import check_not_forked, require_channels_last

STRIDE = 32
"""Pixels of the input a cell stands for: an input's sides are multiples of it."""

ANCHORS = np.array(
    [
        [1.603231, 2.094468],
        [6.041143, 7.080126],
        [2.882459, 3.518061],
        [4.266906, 5.178857],
        [9.041765, 10.66308],
    ],
    np.float32,
)
"""Width and height of the boxes that a cell starts from, in cells."""

MEAN = np.array([117.001, 114.697, 97.404], np.float32)
"""Mean red, green and blue of the training photos, in [0, 255]."""

OVERLAP = 0.4
"""Of two boxes with a greater intersection over union only the surer one stays."""

AT_ONCE = 16
"""Photos that go through the network together: 180 MiB in its first layer at 416 pixels."""


def tiny_yolo_network():
    """The network: pixels (n, height, width, 3) in [0, 255], sides multiples of 32, to a map of boxes.

    Returns:
        A Keras model with pretrained weights whose output (n, height / 32, width / 32, 25) holds, for each of
        the five anchors, x, y, width, height and score before their activations.
    """
    import keras
    from keras import layers

    from tfface.models.saved import in_float32

    with importlib.resources.files("tfface").joinpath("assets/tiny_yolo_face.npz").open("rb") as file:
        stored = np.load(file)
        weights = {
            name: stored[f"{name}:range"][0] * stored[name] + stored[f"{name}:range"][1]
            for name in stored
            if not name.endswith(":range")
        }
    x = inputs = layers.Input((None, None, 3))
    x = layers.Conv2D(16, 3, name="conv0")(x)
    for number in range(1, 6):
        x = layers.MaxPooling2D(2, padding="same")(layers.LeakyReLU(0.1)(x))
        x = layers.SeparableConv2D(16 << number, 3, padding="same", name=f"conv{number}")(x)
    x = layers.MaxPooling2D(2, 1, padding="same")(layers.LeakyReLU(0.1)(x))
    network = keras.Model(inputs, layers.Conv2D(25, 1, name="conv8")(x), name="tiny_yolo_face")
    # The published network takes (pixel - mean) / 255.
    kernel = weights["conv0/filters"] / 255
    weights["conv0/bias"] = weights["conv0/bias"] - np.einsum("hwcf,c->f", kernel, MEAN)
    weights["conv0/filters"] = kernel
    for layer in network.layers:
        if layer.weights:
            layer.set_weights([weights[name] for name in weights if name.startswith(f"{layer.name}/")])
    return in_float32(network)  # whatever precision the program that asks trains its own networks in


class TinyYOLO(Detector):
    """The tiny YOLOv2 face detector: fast, for faces of about a tenth of the photo and more; no landmarks.

    Args:
        input_size: the longer side of a photo is brought to this, pixels, a multiple of 32. Smaller is
            faster, greater finds smaller faces.
        score_threshold: least score of a face.
        min_face_size: faces whose longer side is smaller are left out, pixels of the photo.

    Raises:
        UserError: an input size that is no multiple of 32, a threshold outside (0, 1), or Keras set to channels first.
    """

    landmarks_in_box = ((0.325, 0.249), (0.684, 0.239), (0.506, 0.460), (0.351, 0.646), (0.674, 0.640))
    """As of every `Detector`: medians of MTCNN's landmarks in 563 photos of LFW. These boxes begin lower than MTCNN's
    and are 1.3 times as wide."""

    def __init__(self, input_size: int = 416, score_threshold: float = 0.5, min_face_size: float = 0):
        import tensorflow as tf

        _check_options(input_size, score_threshold, min_face_size)
        check_not_forked("The detector yolo")
        require_channels_last("The detector yolo")
        self.input_size = input_size
        self.min_face_size = min_face_size
        network = tiny_yolo_network()

        def detect(photos):
            maps = network(tf.cast(photos, tf.float32))
            count, rows, columns = tf.unstack(tf.shape(maps)[:3])
            maps = tf.reshape(maps, (count, rows, columns, 5, 5))
            cells = tf.stack(tf.meshgrid(tf.range(columns), tf.range(rows)), axis=-1)[:, :, None]
            centres = tf.sigmoid(maps[..., :2]) + tf.cast(cells, tf.float32)
            halves = tf.exp(maps[..., 2:4]) * ANCHORS / 2
            boxes = tf.reshape(tf.concat([centres - halves, centres + halves], axis=-1) * STRIDE, (count, -1, 1, 4))
            scores = tf.reshape(tf.sigmoid(maps[..., 4]), (count, -1, 1))
            return tf.image.combined_non_max_suppression(
                boxes, scores, 1000, 1000, OVERLAP, score_threshold, clip_boxes=False
            )

        self._detect = tf.function(detect).get_concrete_function(tf.TensorSpec((None, None, None, 3), tf.uint8))

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        import tensorflow as tf

        check_not_forked("The detector yolo")
        faces = []
        for start in range(0, len(images), AT_ONCE):
            part = images[start : start + AT_ONCE]
            inputs, scales = letterbox(part, self.input_size)
            found = [value.numpy() for value in self._detect(tf.constant(inputs))]
            for image, scale, boxes, scores, valid in zip(part, scales, found[0], found[1], found[3], strict=True):
                boxes = _inside(boxes[:valid] / np.tile(scale, 2), image)
                faces.append(_large(Faces(boxes, scores[:valid]), self.min_face_size))
        return faces


class OnnxYOLO(Detector):
    """A YOLO face model of your own in ONNX, run by onnxruntime on the CPU.

    The input is one photo or a batch, (n, 3, height, width), RGB in [0, 1]. The output is one array of boxes,
    either way around, in pixels of the input: YOLOv8-face with 5, 15 or 20 numbers a box (centre, size,
    score, and five points with or without a score each), or YOLOv5-face with 6 or 16 (centre, size,
    objectness, five points, score).

    Args:
        file: path of the ONNX file.
        input_size: longer side of the input, pixels, a multiple of 32, where the file does not fix it.
        score_threshold: least score of a face.
        min_face_size: faces whose longer side is smaller are left out, pixels of the photo.

    Raises:
        UserError: onnxruntime is not installed, the file is missing or no YOLO face model of these kinds.
    """

    def __init__(
        self,
        file: str | os.PathLike,
        input_size: int = 640,
        score_threshold: float = 0.5,
        min_face_size: float = 0,
    ):
        _check_options(input_size, score_threshold, min_face_size)
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError(
                "an ONNX detector needs onnxruntime, which is not installed; run: pip install onnxruntime"
            ) from error
        if not os.path.isfile(file):
            raise UserError(f"no ONNX file at {file}; expected yolo:FILE.onnx with the path of a face model")
        try:
            self._session = onnxruntime.InferenceSession(os.fspath(file), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors share no public base class
            raise UserError(f"{file} cannot be read as an ONNX model: {str(error).splitlines()[0]}") from error
        entry = self._session.get_inputs()[0]
        if len(entry.shape) != 4 or entry.shape[1] != 3:
            raise UserError(f"{file} takes {entry.shape}; expected photos (n, 3, height, width)")
        self._name = entry.name
        self._dtype = np.float16 if "float16" in entry.type else np.float32
        self._one_by_one = isinstance(entry.shape[0], int)
        self._fixed = tuple(side for side in entry.shape[2:] if isinstance(side, int))
        self.file, self.input_size = file, input_size
        self.score_threshold, self.min_face_size = score_threshold, min_face_size

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        faces = []
        step = 1 if self._one_by_one else AT_ONCE
        for start in range(0, len(images), step):
            part = images[start : start + step]
            fixed = self._fixed if len(self._fixed) == 2 else None
            inputs, scales = letterbox(part, self.input_size, fixed)
            inputs = np.ascontiguousarray(inputs.transpose(0, 3, 1, 2).astype(self._dtype) / self._dtype(255))
            outputs = self._session.run(None, {self._name: inputs})[0]
            for image, scale, output in zip(part, scales, outputs, strict=True):
                boxes, scores, landmarks = self._read(np.asarray(output, np.float32))
                boxes = _inside(boxes / np.tile(scale, 2), image)
                landmarks = None if landmarks is None else (landmarks / scale).astype(np.float32)
                faces.append(_large(Faces(boxes, scores, landmarks), self.min_face_size))
        return faces

    def _read(self, output: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Boxes, scores and landmarks, in pixels of the input, that pass the threshold and the
        suppression."""
        if output.ndim == 2 and output.shape[1] not in _LAYOUTS and output.shape[0] in _LAYOUTS:
            output = output.T
        if output.ndim != 2 or output.shape[1] not in _LAYOUTS:
            raise UserError(
                f"{self.file} gives {output.shape} for a photo; expected one row or column a box of "
                f"{', '.join(map(str, _LAYOUTS))} numbers: export a YOLOv5-face or YOLOv8-face model without NMS"
            )
        points, step = _LAYOUTS[output.shape[1]]
        scores = output[:, 4] * (output[:, -1] if output.shape[1] in (6, 16) else 1)
        output, scores = output[scores >= self.score_threshold], scores[scores >= self.score_threshold]
        half = output[:, 2:4] / 2
        boxes = np.concatenate([output[:, :2] - half, output[:, :2] + half], axis=1)
        corners = np.concatenate([boxes[:, :2], 2 * half], axis=1)
        keep = np.array(cv2.dnn.NMSBoxes(corners.tolist(), scores.tolist(), self.score_threshold, OVERLAP), int)
        landmarks = None
        if points:
            landmarks = output[keep, points : points + 5 * step].reshape(-1, 5, step)[..., :2]
        return boxes[keep], scores[keep], landmarks


_LAYOUTS = {5: (None, 0), 6: (None, 0), 15: (5, 2), 16: (5, 2), 20: (5, 3)}
"""Numbers a box -> where its five points start (None without) and how many numbers each has."""


def letterbox(
    images: Sequence[np.ndarray], size: int, fixed: tuple[int, int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Brings photos to one input, each in its top left corner, black to the right and below.

    Args:
        images: photos (height, width, 3), uint8.
        size: what the longer side becomes, pixels.
        fixed: (height, width) of the input; None for the least multiples of 32 that hold all photos.

    Returns:
        Inputs (n, height, width, 3), uint8, and (n, 2), float32: input pixels a photo pixel, along x and y.
    """
    shapes = np.array([image.shape[:2] for image in images])
    limits = np.array(fixed) if fixed else np.array([size, size])
    ratios = (limits / shapes).min(axis=1, keepdims=True)
    sides = np.clip(np.rint(shapes * ratios).astype(int), 1, limits)
    height, width = fixed or -(-sides.max(axis=0) // STRIDE) * STRIDE
    inputs = np.zeros((len(images), height, width, 3), np.uint8)
    for image, (rows, columns), canvas in zip(images, sides, inputs, strict=True):
        shrinks = rows < image.shape[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        canvas[:rows, :columns] = cv2.resize(image, (int(columns), int(rows)), interpolation=how)
    return inputs, (sides / shapes)[:, ::-1].astype(np.float32)


def _inside(boxes: np.ndarray, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    return np.clip(boxes, 0, (width, height, width, height)).astype(np.float32)


def _large(faces: Faces, least: float) -> Faces:
    sides = faces.boxes[:, 2:] - faces.boxes[:, :2]
    # What was found in the black beside the photo alone has no side left.
    return faces.select((sides.max(axis=1, initial=0) >= least) & (sides > 0).all(axis=1))


def _check_options(input_size: int, score_threshold: float, min_face_size: float) -> None:
    check_min_face_size(min_face_size)
    if input_size < STRIDE or input_size % STRIDE:
        raise UserError(f"a YOLO input size is a positive multiple of {STRIDE}, received {input_size}")
    if not 0 < score_threshold < 1:
        raise UserError(f"a score threshold lies between 0 and 1, received {score_threshold}")
