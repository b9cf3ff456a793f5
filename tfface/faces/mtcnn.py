"""MTCNN: three small networks that propose, refine and finish faces, for a whole batch at once.

Zhang et al., "Joint Face Detection and Alignment using Multitask Cascaded Convolutional Networks", 2016. The
weights are those of the package mtcnn 1.0.0 (`tfface/assets/detectors.md`); the scales, thresholds and
suppressions are its own too, so that the same faces come out, only sooner:

- the levels of a photo's pyramid lie on two canvases, and those of photos of one size are searched together;
- the candidates of all photos of a batch go through R-Net and O-Net together;
- only candidates leave the compiled graph, never whole maps.
"""

from __future__ import annotations

import importlib.resources
import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from scipy.special import expit

from tfface.errors import UserError
from tfface.faces import pyramid
from tfface.faces.detect import Detector, Faces
from tfface.models.saved import in_float32
from tfface.packages import check_not_forked, require_channels_last

BLOCK_PIXELS = 1 << 24
"""Photos are worked on in blocks of at most this many pixels together (or one photo). Memory grows with the block, by
about 50 bytes a pixel of the greatest photo, never with the batch."""

PIECE_PIXELS = 1 << 18
"""P-Net sees about this many pixels at once: 22 MiB after its first layer."""

LOT_PIXELS = 128 * 24 * 24
"""R-Net and O-Net see at most so many pixels of candidates at once, 128 and 32 of them, in steps of a 32nd: each number
of candidates that is new costs about a millisecond of planning, each that pads a lot is work for nothing."""


@keras.saving.register_keras_serializable("tfface")
class PReLU(layers.Layer):
    """Parametric ReLU, one slope a channel.

    No slope of these networks is above 1, so it is max(x, slope * x): two passes over memory, which sets the pace of
    networks so narrow, where `keras.layers.PReLU` takes five.
    """

    def build(self, shape):
        self.slope = self.add_weight(shape=shape[-1:], name="slope")

    def call(self, x):
        if len(x.shape) == 2:
            return keras.ops.maximum(x, self.slope * x)
        # By whole rows of pixels: 11 or 30 slopes at a time, vectors of 16 numbers would seldom lie within a pixel.
        shape = keras.ops.shape(x)
        slopes = keras.ops.tile(self.slope, [shape[2]])
        x = keras.ops.reshape(x, (-1, shape[2] * x.shape[3]))
        return keras.ops.reshape(keras.ops.maximum(x, slopes * x), shape)

    def compute_output_shape(self, shape):
        return shape


def proposal_network() -> keras.Model:
    """P-Net: pixels (n, height, width, 3) to (n, rows, columns, 5): logit of a face, four box offsets."""
    x = inputs = layers.Input((None, None, 3))
    x = _convolution(x, 11, 3, "conv1")
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = _convolution(x, 16, 3, "conv2")
    x = _convolution(x, 32, 3, "conv3")
    return keras.Model(inputs, layers.Conv2D(5, 1, name="head")(x), name="pnet")


def refinement_network() -> keras.Model:
    """R-Net: candidates (n, 24, 24, 3), pixels, to (n, 5): logit of a face, four box offsets."""
    x = inputs = layers.Input((24, 24, 3))
    x = _convolution(x, 30, 3, "conv1")
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


def _convolution(x, filters: int, size: int, name: str):
    return PReLU(name=f"{name}_slope")(layers.Conv2D(filters, size, name=name)(x))


def _dense(x, units: int, outputs: int):
    x = layers.Dense(units, name="dense")(layers.Flatten()(x))
    return layers.Dense(outputs, name="head")(PReLU(name="dense_slope")(x))


def _canvas_features(network: keras.Model, canvases, edges):
    """What P-Net's last layer sees of canvases of several levels: (n, height, width, 3) to (n, rows, columns, 32).

    The pooling of a level of odd size takes in less at its border than elsewhere; here it would take in what lies
    outside the level, so those values (`pyramid.Canvas.strip_edges`) are set right.
    """
    _, convolution, slope, pooling, *features, _ = network.layers
    maps = slope(convolution(canvases))
    inside = tf.reduce_max(tf.gather_nd(maps, edges[:, 1:]), axis=1)
    maps = tf.tensor_scatter_nd_update(pooling(maps), edges[:, 0], inside)
    for layer in features:
        maps = layer(maps)
    return maps


def _pretrained(network: keras.Model) -> keras.Model:
    """Loads the shipped weights into one of the three networks."""
    with importlib.resources.files("tfface").joinpath("assets/mtcnn.npz").open("rb") as file:
        arrays = np.load(file)
        for layer in network.layers:
            if layer.weights:
                name, _, slope = f"{network.name}/{layer.name}".partition("_")
                keys = [f"{name}/slope"] if slope else [f"{name}/kernel", f"{name}/bias"]
                layer.set_weights([arrays[key] for key in keys])
    return in_float32(network)  # whatever precision the program that asks trains its own networks in


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
        UserError: a minimum face below 12 pixels, a threshold outside (0, 1), or Keras set to channels first.
    """

    def __init__(
        self,
        min_face_size: float = 20,
        proposal_threshold: float = 0.6,
        refinement_threshold: float = 0.7,
        score_threshold: float = 0.8,
    ):
        thresholds = (proposal_threshold, refinement_threshold, score_threshold)
        if not min_face_size >= pyramid.CELL:
            raise UserError(f"min_face_size must be at least {pyramid.CELL} pixels, received {min_face_size}")
        if not all(0 < threshold < 1 for threshold in thresholds):
            raise UserError(f"MTCNN's thresholds must lie between 0 and 1, received {thresholds}")
        check_not_forked("The detector mtcnn")
        require_channels_last("The detector mtcnn")
        self.min_face_size = float(min_face_size)
        self.refinement_threshold = refinement_threshold
        self.score_threshold = score_threshold
        pnet = _pretrained(proposal_network())
        head = pnet.get_layer("head")
        kernel, bias = head.kernel[0, 0], head.bias
        logit = float(np.log(proposal_threshold / (1 - proposal_threshold)))

        def propose(canvases, edges):
            maps = _canvas_features(pnet, canvases, edges)
            shape = tf.shape(maps)  # the box offsets are computed for the candidates alone
            logits = tf.reshape(tf.reshape(maps, (-1, kernel.shape[0])) @ kernel[:, :1], shape[:3])
            places = tf.where(logits > logit - bias[0])
            return tf.cast(places, tf.int32), tf.gather_nd(maps, places) @ kernel + bias

        photos, candidates = tf.TensorSpec((None, None, None, 3), tf.uint8), tf.TensorSpec((None, 6))
        self._cut = _compiled(_cut, photos, candidates, tf.TensorSpec((), tf.int32))
        self._propose = _compiled(propose, tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((None, 3, 3), tf.int32))
        self._refine = _compiled(_pretrained(refinement_network()), tf.TensorSpec((None, 24, 24, 3)))
        self._finish = _compiled(_pretrained(output_network()), tf.TensorSpec((None, 48, 48, 3)))
        self._helper = ThreadPoolExecutor(1)  # one canvas's drawing and suppression hide behind another's network

    def detect(self, images: Sequence[np.ndarray]) -> list[Faces]:
        check_not_forked("The detector mtcnn")
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

    def _map(self, function, tasks: Sequence) -> list:
        """The function of each task, by the calling thread and a helper: waking one costs less than waking two."""
        results, numbers = [None] * len(tasks), iter(range(len(tasks)))

        def work():
            for number in numbers:
                results[number] = function(tasks[number])

        helped = self._helper.submit(work) if len(tasks) > 1 else None
        work()
        if helped and not helped.cancel():
            helped.result()
        return results

    def _proposals(self, stack: np.ndarray) -> np.ndarray:
        """P-Net's candidates of photos of one size, squared: rows of (photo, x0, y0, x1, y1, score)."""
        canvases = pyramid.pyramid(*stack.shape[1:3], self.min_face_size, PIECE_PIXELS)
        at_once = max(1, PIECE_PIXELS // max((math.prod(canvas.shape) for canvas in canvases), default=1))
        tasks = list(itertools.product(range(0, len(stack), at_once), canvases))
        found = self._map(lambda task: self._search(task[1], stack[task[0] : task[0] + at_once]), tasks)
        rows = [np.zeros((0, 6), np.float32)]
        for (start, _), some in zip(tasks, found, strict=True):
            rows.append(some + np.array([start, 0, 0, 0, 0, 0], np.float32))
        return _squared(_suppressed(np.concatenate(rows), 0.7))

    def _search(self, canvas: pyramid.Canvas, photos: np.ndarray) -> np.ndarray:
        """P-Net's candidates on some levels of photos, suppressed level by level: rows as those of `_proposals`."""
        drawn, rows = canvas.draw(photos), []
        for top in canvas.strips():
            strips, edges = drawn[:, top : top + canvas.strip_pixels()], canvas.strip_edges(top, len(photos))
            found = self._propose(tf.convert_to_tensor(strips), tf.convert_to_tensor(edges))
            places, values = (array.numpy() for array in found)
            places[:, 1] += top // pyramid.STRIDE
            rows.append(_placed(places, values, canvas))
        return _suppressed(np.concatenate(rows), 0.5, by=(0, 6))[:, :6]

    def _run(self, network, stacks: list[tf.Tensor], candidates: list[np.ndarray]) -> list[np.ndarray]:
        """Cuts the candidates of all stacks out and runs them through R-Net or O-Net together."""
        counts = np.array([len(rows) for rows in candidates])
        total = counts.sum()
        if not total:
            return [np.zeros((0, 15), np.float32) for _ in candidates]
        size = network.structured_input_signature[0][0].shape[1]
        most = max(1, LOT_PIXELS // size**2)
        step = max(1, most // 32)
        lots = pyramid.shares(total, most)
        lot = -(-total // (lots * step)) * step
        padding = np.zeros((lots * lot - total, 6), np.float32)
        candidates = [*candidates[:-1], np.concatenate([candidates[-1], padding])]
        ends = np.cumsum([len(rows) for rows in candidates])

        def values(start):
            crops = []
            for stack, rows, end in zip(stacks, candidates, ends, strict=True):
                first = end - len(rows)
                rows = rows[max(0, start - first) : max(0, start + lot - first)]
                if len(rows):
                    crops.append(self._cut(stack, tf.convert_to_tensor(rows), tf.constant(size)))
            return network(crops[0] if len(crops) == 1 else tf.concat(crops, axis=0)).numpy()

        found = np.concatenate(self._map(values, range(0, lots * lot, lot)))
        return np.split(found[:total], np.cumsum(counts)[:-1])


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


def _placed(places: np.ndarray, values: np.ndarray, canvas: pyramid.Canvas) -> np.ndarray:
    """Cells of canvases (photo, row, column) and their values as rows of (photo, x0, y0, x1, y1, score, level)."""
    number = canvas.level[places[:, 1], places[:, 2]]
    inside = number >= 0  # the whole window lies in one level
    places, values, number = places[inside], values[inside], number[inside]
    # A cell's window covers 12 pixels; the package counts it from its second pixel to its end.
    origin = places[:, :0:-1] * pyramid.STRIDE - canvas.boxes[number, :2]
    boxes = np.concatenate([origin + 1, origin + pyramid.CELL], axis=1) + values[:, 1:] * (pyramid.CELL - 1)
    boxes /= canvas.scales[number, None]
    return np.concatenate([places[:, :1], boxes, expit(values[:, :1]), number[:, None]], axis=1, dtype=np.float32)


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
