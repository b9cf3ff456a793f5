"""MTCNN: three small networks that propose, refine and finish faces, for a whole batch at once.

Zhang et al., "Joint Face Detection and Alignment using Multitask Cascaded Convolutional Networks", 2016. The
weights are those of the package mtcnn 1.0.0 (`tfface/assets/detectors.md`); the scales, thresholds and
suppressions are its own too, so that the same faces come out, only sooner:

- each level of the pyramid is drawn and searched once for all photos of one size;
- the candidates of all photos of a batch go through R-Net and O-Net together;
- only candidates leave the compiled graph, never whole maps.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import cv2
import keras
import numpy as np
import tensorflow as tf
from keras import layers
from scipy.special import expit

from tfface.errors import UserError
from tfface.faces.detect import Detector, Faces

CELL, STRIDE = 12, 2
"""P-Net's window and its step, pixels of a pyramid level."""

SCALE_FACTOR = 0.709
"""From one pyramid level to the next: about half the area."""

BLOCK_PIXELS = 1 << 24
"""Photos are worked on in blocks of at most this many pixels together (or one photo). Memory grows with the block, by
about 16 bytes a pixel of the greatest photo, never with the batch."""

LEVEL_PIXELS = 1 << 20
"""P-Net sees at most this many pixels at once: 40 MiB after its first layer."""

CANDIDATES = 1024
"""R-Net and O-Net see at most so many candidates at once: 53 and 264 MiB after their first layer."""


@keras.saving.register_keras_serializable("tfface")
class PReLU(layers.Layer):
    """Parametric ReLU, one slope a channel.

    These networks are so narrow that memory as much as arithmetic sets their pace. `keras.layers.PReLU`
    passes over it five times; max(x, slope * x), right where no slope is above 1, twice; x + (slope - 1) *
    min(x, 0) three times.

    Args:
        steep: whether a slope may be above 1.
    """

    def __init__(self, steep: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.steep = steep

    def build(self, shape):
        self.slope = self.add_weight(shape=shape[-1:], name="slope")

    def call(self, x):
        if self.steep:
            return x + (self.slope - 1) * keras.ops.minimum(x, 0)
        return keras.ops.maximum(x, self.slope * x)

    def get_config(self):
        return super().get_config() | {"steep": self.steep}


def proposal_network() -> keras.Model:
    """P-Net: pixels (n, height, width, 3) to (n, rows, columns, 5): logit of a face, four box offsets."""
    x = inputs = layers.Input((None, None, 3))
    x = _convolution(x, 10, 3, "conv1", steep=True)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = _convolution(x, 16, 3, "conv2")
    x = _convolution(x, 32, 3, "conv3")
    return keras.Model(inputs, layers.Conv2D(5, 1, name="head")(x), name="pnet")


def refinement_network() -> keras.Model:
    """R-Net: candidates (n, 24, 24, 3), pixels, to (n, 5): logit of a face, four box offsets."""
    x = inputs = layers.Input((24, 24, 3))
    x = _convolution(x, 28, 3, "conv1", steep=True)
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = _convolution(x, 48, 3, "conv2")
    x = layers.MaxPooling2D(3, 2)(x)
    x = _convolution(x, 64, 2, "conv3")
    return keras.Model(inputs, _dense(x, 128, 5), name="rnet")


def output_network() -> keras.Model:
    """O-Net: candidates (n, 48, 48, 3), pixels, to (n, 15): logit of a face, box offsets, five x, five y."""
    x = inputs = layers.Input((48, 48, 3))
    x = _convolution(x, 32, 3, "conv1")
    x = layers.MaxPooling2D(3, 2, padding="same")(x)
    x = _convolution(x, 64, 3, "conv2")
    x = layers.MaxPooling2D(3, 2)(x)
    x = _convolution(x, 64, 3, "conv3")
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = _convolution(x, 128, 2, "conv4")
    return keras.Model(inputs, _dense(x, 256, 15), name="onet")


def _convolution(x, filters: int, size: int, name: str, steep: bool = False):
    return PReLU(steep, name=f"{name}_slope")(layers.Conv2D(filters, size, name=name)(x))


def _dense(x, units: int, outputs: int):
    x = layers.Dense(units, name="dense")(layers.Flatten()(x))
    return layers.Dense(outputs, name="head")(PReLU(name="dense_slope")(x))


def _pretrained(network: keras.Model) -> keras.Model:
    """Loads the shipped weights into one of the three networks."""
    with importlib.resources.files("tfface").joinpath("assets/mtcnn.npz").open("rb") as file:
        arrays = np.load(file)
        for layer in network.layers:
            if layer.weights:
                name, _, slope = f"{network.name}/{layer.name}".partition("_")
                keys = [f"{name}/slope"] if slope else [f"{name}/kernel", f"{name}/bias"]
                layer.set_weights([arrays[key] for key in keys])
    return network


def pyramid_scales(height: int, width: int, min_face_size: float) -> list[float]:
    """Scales of a photo's pyramid: the smallest face fills P-Net's window on the first level, the photo on
    the last.

    Args:
        height: of the photo, pixels.
        width: of the photo, pixels.
        min_face_size: the smallest face to be found, pixels.

    Returns:
        Scales, descending; none where the photo is smaller than the smallest face.
    """
    scales, scale = [], CELL / min_face_size
    while min(height, width) * scale >= CELL:
        scales.append(scale)
        scale *= SCALE_FACTOR
    return scales


def suppress(boxes: np.ndarray, threshold: float, of_smaller: bool = False) -> np.ndarray:
    """Non-maximum suppression as the package does it: a box goes if *any* surer one overlaps it, kept or not.

    Args:
        boxes: (n, 4), x0, y0, x1, y1, the surest first.
        threshold: greatest overlap that is let stand.
        of_smaller: the overlap is the share of the smaller box's area instead of the union's.

    Returns:
        Mask (n,), bool, of the boxes that stay.
    """
    keep = np.ones(len(boxes), bool)
    x0, y0, x1, y1 = np.ascontiguousarray(boxes.T)
    area = (x1 - x0) * (y1 - y0)
    for start in range(0, len(boxes), 256):  # a block at a time, so that memory stays bounded
        stop = min(start + 256, len(boxes))
        block = slice(start, stop)
        shared = np.minimum(x1[block, None], x1[:stop])
        shared -= np.maximum(x0[block, None], x0[:stop])
        height = np.minimum(y1[block, None], y1[:stop])
        height -= np.maximum(y0[block, None], y0[:stop])
        np.maximum(shared, 0, out=shared)
        shared *= height  # below 0 where the heights do not meet: no overlap either
        if of_smaller:
            allowed = threshold * np.minimum(area[block, None], area[:stop])
        else:  # shared > threshold * (a + b - shared), solved for shared
            allowed = threshold / (1 + threshold) * (area[block, None] + area[:stop])
        overlaps = shared > allowed
        surer = np.arange(stop) < np.arange(start, stop)[:, None]
        keep[block] = ~(overlaps & surer).any(axis=1)
    return keep


class MTCNN(Detector):
    """MTCNN on the package's weights; five landmarks.

    Args:
        min_face_size: side of the smallest face to be found, pixels, at least 12. Doubling it quarters
            P-Net's work.
        proposal_threshold: least score of a candidate of P-Net.
        refinement_threshold: least score of a candidate of R-Net.
        score_threshold: least score of a face.

    Raises:
        UserError: a minimum face below 12 pixels, or a threshold outside (0, 1).
    """

    def __init__(
        self,
        min_face_size: float = 20,
        proposal_threshold: float = 0.6,
        refinement_threshold: float = 0.7,
        score_threshold: float = 0.8,
    ):
        thresholds = (proposal_threshold, refinement_threshold, score_threshold)
        if not min_face_size >= CELL:
            raise UserError(f"min_face_size must be at least {CELL} pixels, received {min_face_size}")
        if not all(0 < threshold < 1 for threshold in thresholds):
            raise UserError(f"MTCNN's thresholds must lie between 0 and 1, received {thresholds}")
        self.min_face_size = float(min_face_size)
        self.refinement_threshold = refinement_threshold
        self.score_threshold = score_threshold
        pnet = _pretrained(proposal_network())
        logit = float(np.log(proposal_threshold / (1 - proposal_threshold)))

        def propose(canvases):
            maps = pnet(canvases)
            places = tf.where(maps[..., 0] > logit)
            return tf.cast(places, tf.int32), tf.gather_nd(maps, places)

        photos, candidates = tf.TensorSpec((None, None, None, 3), tf.uint8), tf.TensorSpec((None, 6))
        self._cut = _compiled(_cut, photos, candidates, tf.TensorSpec((), tf.int32))
        self._propose = _compiled(propose, tf.TensorSpec((None, None, None, 3)))
        self._refine = _compiled(_pretrained(refinement_network()), tf.TensorSpec((None, 24, 24, 3)))
        self._finish = _compiled(_pretrained(output_network()), tf.TensorSpec((None, 48, 48, 3)))
        self._threads = ThreadPoolExecutor(2)  # one level's resizing and suppression hide behind another's network

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        return [faces for block in _blocks(images) for faces in self._detect_block(block)]

    def _detect_block(self, images: list[np.ndarray]) -> list[Faces]:
        shapes: dict[tuple, list[int]] = {}
        for position, image in enumerate(images):
            shapes.setdefault(image.shape, []).append(position)
        stacks = [np.stack([images[position] for position in positions]) for positions in shapes.values()]

        # Candidates are rows of (photo of its stack, x0, y0, x1, y1, score), one array a stack.
        candidates = [self._proposals(stack) for stack in stacks]
        photos = [tf.convert_to_tensor(stack) for stack in stacks]
        values = self._run(self._refine, photos, candidates)
        for number, rows in enumerate(candidates):
            rows = _moved(rows, values[number])
            rows = rows[rows[:, 5] > self.refinement_threshold]
            candidates[number] = _squared(_suppressed(rows, 0.7))
        values = self._run(self._finish, photos, candidates)
        faces: list = [None] * len(images)
        for positions, stack, rows, found in zip(shapes.values(), stacks, candidates, values, strict=True):
            side = (rows[:, 3:5] - rows[:, 1:3] + 1)[:, None]
            landmarks = found[:, 5:].reshape(-1, 2, 5).transpose(0, 2, 1) * side + rows[:, None, 1:3] - 1
            rows = np.concatenate([_moved(rows, found), landmarks.reshape(-1, 10)], axis=1)
            rows = _suppressed(rows[rows[:, 5] > self.score_threshold], 0.7, of_smaller=True)
            height, width = stack.shape[1:3]
            boxes = np.clip(rows[:, 1:5], 0, (width, height, width, height)).astype(np.float32)
            for place, position in enumerate(positions):
                own = rows[:, 0] == place
                faces[position] = Faces(boxes[own], rows[own, 5], rows[own, 6:].reshape(-1, 5, 2))
        return faces

    def _proposals(self, stack: np.ndarray) -> np.ndarray:
        """P-Net's candidates of photos of one size, squared: rows of (photo, x0, y0, x1, y1, score)."""
        height, width = stack.shape[1:3]
        scales = pyramid_scales(height, width, self.min_face_size)
        at_once = max(1, LEVEL_PIXELS // (height * width))
        rows = [np.zeros((0, 6), np.float32)]
        for start in range(0, len(stack), at_once):
            images = [image.astype(np.float32) for image in stack[start : start + at_once]]
            rows.extend(self._threads.map(functools.partial(self._level, images, start), scales))
        return _squared(_suppressed(np.concatenate(rows), 0.7))

    def _level(self, images: list[np.ndarray], start: int, scale: float) -> np.ndarray:
        """P-Net's candidates on one level of the pyramid, for photos numbered from `start`."""
        rows = [np.zeros((0, 6), np.float32)]
        for first_row, strip in _strips(_resized(images, scale)):
            places, values = (array.numpy() for array in self._propose(tf.convert_to_tensor(strip)))
            places[:, 1] += first_row
            # A cell's window covers 12 pixels; the package counts it from its second pixel to its end.
            origin = places[:, :0:-1] * STRIDE
            boxes = np.concatenate([origin + 1, origin + CELL], axis=1) + values[:, 1:] * (CELL - 1)
            parts = [places[:, :1] + start, boxes / scale, expit(values[:, :1])]
            rows.append(np.concatenate(parts, axis=1, dtype=np.float32))
        return _suppressed(np.concatenate(rows), 0.5)

    def _run(self, network, stacks: list[tf.Tensor], candidates: list[np.ndarray]) -> list[np.ndarray]:
        """Cuts the candidates of all stacks out and runs them through R-Net or O-Net together."""
        size = tf.constant(network.structured_input_signature[0][0].shape[1])
        crops = [self._cut(*pair, size) for pair in zip(stacks, map(tf.convert_to_tensor, candidates), strict=True)]
        crops = tf.concat(crops, axis=0)
        outputs = [network(crops[start : start + CANDIDATES]).numpy() for start in range(0, len(crops), CANDIDATES)]
        values = np.concatenate(outputs) if outputs else np.zeros((0, 15), np.float32)
        return np.split(values, np.cumsum([len(rows) for rows in candidates])[:-1])


def _compiled(function, *signature: tf.TensorSpec):
    """One trace for all sizes, made now: nothing is traced again, and threads may call it at once."""
    return tf.function(function).get_concrete_function(*signature)


def _blocks(images: Sequence[np.ndarray]) -> Iterator[list[np.ndarray]]:
    block, pixels = [], 0
    for image in images:
        size = image.shape[0] * image.shape[1]
        if block and pixels + size > BLOCK_PIXELS:
            yield block
            block, pixels = [], 0
        block.append(image)
        pixels += size
    yield block


def _resized(images: list[np.ndarray], scale: float) -> np.ndarray:
    """One pyramid level (n, height, width, 3) of photos of one size, float32, by averaging areas."""
    height, width = (int(side * scale) for side in images[0].shape[:2])
    level = np.empty((len(images), height, width, 3), np.float32)
    for image, out in zip(images, level, strict=True):
        cv2.resize(image, (width, height), out, interpolation=cv2.INTER_AREA)
    return level


def _strips(level: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """A level in strips (first row of cells, pixels) that overlap by what a cell sees beyond its step."""
    rows = max(CELL, LEVEL_PIXELS // (len(level) * level.shape[2]) // STRIDE * STRIDE)
    for top in range(0, level.shape[1] - (CELL - STRIDE), rows):
        yield top // STRIDE, level[:, top : top + rows + CELL - STRIDE]


def _cut(stack, rows, size):
    """Candidates (n, size, size, 3) of boxes in pixels; outside the photo lies mid-grey, the networks' zero."""
    height, width = tf.shape(stack)[1], tf.shape(stack)[2]
    boxes = tf.gather(rows, [2, 1, 4, 3], axis=1) / tf.cast(tf.stack([height, width, height, width]), tf.float32)
    photos = tf.cast(rows[:, 0], tf.int32)
    return tf.image.crop_and_resize(stack, boxes, photos, [size, size], extrapolation_value=127.5)


def _moved(rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Rows with the score and the box offsets that a network gave them; the package adds a pixel to the
    sides."""
    size = rows[:, 3:5] - rows[:, 1:3] + 1
    boxes = rows[:, 1:5] + values[:, 1:5] * np.tile(size, 2)
    scores = expit(values[:, :1])
    return np.concatenate([rows[:, :1], boxes, scores], axis=1)


def _squared(rows: np.ndarray) -> np.ndarray:
    """Rows with each box grown to a square about its centre."""
    centre = (rows[:, 1:3] + rows[:, 3:5]) / 2
    half = (rows[:, 3:5] - rows[:, 1:3]).max(axis=1, keepdims=True) / 2
    return np.concatenate([rows[:, :1], centre - half, centre + half, rows[:, 5:]], axis=1)


def _suppressed(rows: np.ndarray, threshold: float, by: tuple[int, ...] = (0,), of_smaller: bool = False) -> np.ndarray:
    """Rows left by `suppress` among those that agree in the columns `by`, the surest first in each photo."""
    order = np.lexsort((-np.arange(len(rows)), -rows[:, 5], *(rows[:, column] for column in reversed(by))))
    rows = rows[order]
    if not len(rows):
        return rows
    borders = np.flatnonzero((np.diff(rows[:, list(by)], axis=0) != 0).any(axis=1)) + 1
    return np.concatenate([part[suppress(part[:, 1:5], threshold, of_smaller)] for part in np.split(rows, borders)])
