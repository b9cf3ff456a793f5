"""Random changes of training images, inside tf.data, each fixed by its seed."""

from __future__ import annotations

import functools

import numpy as np
import tensorflow as tf

from tfface.faces.occlude import occlude_training, pattern
from tfface.faces.occluders import load_occluders


def draw_view(image, landmarks, views, seed):
    """Look at an image as one of `views`, drawn evenly.

    Args:
        image: `(height, width, 3)` uint8 or float32, before it is scaled.
        landmarks: `(5, 2)` float32: left eye, right eye, nose, mouth corners, as shares of its width and height.
        views: the views to draw from, `tfface.data.pipeline.View`.
        seed: integer tensor `(2,)`.

    Returns:
        `(image, landmarks)`: `(h, w, 3)`, of the same type, the centre that the view keeps, mirrored where it says so;
        and where in it the landmarks lie.
    """
    zooms = tf.constant([view.zoom for view in views], tf.float32)
    mirrors = tf.constant([view.mirror for view in views])
    index = tf.random.stateless_uniform((), seed, 0, len(views), tf.int32)
    if any(view.zoom < 1 for view in views):
        shape = tf.cast(tf.shape(image)[:2], tf.float32)
        kept = tf.cast(tf.round(shape * zooms[index]), tf.int32)
        image, landmarks = _cut(image, landmarks, (tf.shape(image)[:2] - kept) // 2, kept)
    if not any(view.mirror for view in views):
        return image, landmarks
    mirrored = mirrors[index]
    turned = tf.gather(landmarks, [1, 0, 2, 4, 3]) * (-1, 1) + (1, 0)
    image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)  # [:, ::-1] takes fifty times as long
    return image, tf.where(mirrored, turned, landmarks)


def crop_at_random(image, landmarks, least: float, seed):
    """Cut out a part of the same shape at a random place.

    Args:
        image: `(height, width, 3)`.
        landmarks: `(5, 2)` float32, as shares of its width and height.
        least: the share of each side that is kept is drawn evenly from `[least, 1]`.
        seed: integer tensor `(2,)`.

    Returns:
        `(image, landmarks)`: `(h, w, 3)`, and where in it the landmarks lie, perhaps outside.
    """
    share, top, left = tf.unstack(tf.random.stateless_uniform((3,), seed))
    shape = tf.cast(tf.shape(image)[:2], tf.float32)
    kept = tf.maximum(tf.round(shape * (least + (1 - least) * share)), 1)
    start = tf.cast(tf.round((shape - kept) * tf.stack([top, left])), tf.int32)
    return _cut(image, landmarks, start, tf.cast(kept, tf.int32))


def _cut(image, landmarks, start, kept):
    part = image[start[0] : start[0] + kept[0], start[1] : start[1] + kept[1]]
    width_and_height, corner, size = (
        tf.cast(tf.reverse(sides, [0]), tf.float32) for sides in (tf.shape(image)[:2], start, kept)
    )
    return part, (landmarks * width_and_height - corner) / size


@tf.autograph.experimental.do_not_convert  # what it calls is Python's own
def occlude(image, landmarks, key, epoch, seed: int, share: float, worn_masks: float = 0.0):
    """Cover a face by one of tfface's occluders at random (paper 5, section 2.3), or leave it clean.

    Args:
        image: `(height, width, 3)` float32 in [0, 255], the face as the network sees it.
        landmarks: `(5, 2)` float32, where its landmarks lie, as shares of width and height, for `worn_masks`.
        key: scalar string tensor, the name of the example.
        epoch: scalar integer tensor; each epoch draws anew.
        seed: of the training.
        share: chance of being covered, in (0, 1].
        worn_masks: share of the covered ones that wear a mask on nose and mouth, in [0, 1].

    Returns:
        `(image, pattern)`: the image, and which part of it is covered, a scalar int64 (`occlude.pattern`; 0: none).
    """
    occluders = load_occluders()

    def cover(pixels, landmarks, key, epoch):
        points = np.multiply(landmarks, pixels.shape[1::-1])
        occluded = occlude_training(
            pixels, key.decode(), int(epoch), seed, occluders, 1 - share, worn_masks=worn_masks, landmarks=points
        )
        return occluded.image, np.int64(pattern(occluded.box, pixels.shape[:2]))

    pixels = tf.cast(tf.round(tf.clip_by_value(image, 0.0, 255.0)), tf.uint8)
    covered, part = tf.numpy_function(cover, [pixels, landmarks, key, epoch], [tf.uint8, tf.int64])
    covered.set_shape(image.shape)
    part.set_shape(())
    return tf.cast(covered, tf.float32), part


NORMALS = 1 << 22
"""How many normal numbers the table holds that noise is cut out of, 16 MiB."""


@functools.cache
def _normals() -> tf.Tensor:
    # Outside the graph that asks for it, which would hold a copy, and where images are decoded.
    with tf.init_scope(), tf.device("CPU"):
        return tf.constant(np.random.default_rng(0).standard_normal(NORMALS, "float32"))


def add_noise(image, deviation: float, seed):
    """Add normal noise to each value and clip to [0, 255].

    The noise is a piece of one long table, at a random place: to draw each number anew would take one and a half times
    as long as all else that is done to an image, its decoding with it.

    Args:
        image: float32 in [0, 255], any shape of at most `NORMALS` values.
        deviation: standard deviation, grey levels.
        seed: integer tensor `(2,)`.
    """
    count = tf.size(image)
    start = tf.random.stateless_uniform((), seed, 0, NORMALS - count + 1, tf.int32)
    noise = tf.reshape(_normals()[start : start + count], tf.shape(image))
    return tf.clip_by_value(image + deviation * noise, 0.0, 255.0)


def mixup(images, targets, alpha: float, seed):
    """Blend each image of a batch, and its targets, with the one that stands opposite it in the batch turned round.

    Reference: Zhang et al., mixup: Beyond Empirical Risk Minimization (ICLR 2018), equation 1.

    Args:
        images: `(batch, height, width, 3)` float32.
        targets: name -> `(batch, width)` float32.
        alpha: shares are drawn from Beta(alpha, alpha), one for each image; above 0.
        seed: integer tensor `(2,)`.

    Returns:
        `(images, targets)`, of the same shapes.
    """
    draws = tf.random.stateless_gamma((2, tf.shape(images)[0]), seed, tf.constant(alpha, tf.float32))
    # Of very small alphas both draws may round to the least number there is: then the image stays what it is.
    both = tf.where(draws[0] + draws[1] > 4 * np.finfo("float32").tiny, draws[0] + draws[1], 0.0)
    shares = tf.math.divide_no_nan(draws[1], both)

    # XLA goes over the pixels of a batch once, where TensorFlow's operations do four times.
    return _blend_in_one_pass(images, shares), {name: _blend(values, shares) for name, values in targets.items()}


def _blend(values, shares):
    share = tf.reshape(shares, (-1, *[1] * (values.shape.rank - 1)))
    return values + share * (tf.reverse(values, [0]) - values)


_blend_in_one_pass = tf.function(_blend, jit_compile=True)
