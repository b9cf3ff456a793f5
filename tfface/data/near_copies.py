"""Near copies: one photo encoded, scaled, coloured or mirrored anew, which no comparison of bytes finds."""

from __future__ import annotations

import cv2
import numpy as np
import tensorflow as tf
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from tfface.data import pipeline

BITS = 256
"""Bits of a hash. The usual 64 are too few for crops of faces, which are all alike when coarse: at 6 of 64 bits most
pairs are two people, while near copies reach as far."""

NEAR = 60
"""Hashes that differ in at most so many bits are near copies. Judged by eye on pairs of two sets: up to 48 bits nearly
all are one photo, from 54 to 60 a part, beyond none that was looked at. A false pair (one in two million of FairFace,
one in half a million of tight frontal crops) costs nothing where near copies are only kept together."""


SURE = 48
"""Up to so many bits nearly all pairs are one photo: the bound where a pair is to be left out."""


def perceptual_hash(image: np.ndarray) -> np.ndarray:
    """What a photo looks like, coarsely: the signs of its low frequencies about their median.

    Reference: Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions (2010), section 3.2.1, with
    16x16 frequencies of 64x64 pixels in place of 8x8 of 32x32.

    Args:
        image: `(height, width, 3)` uint8, RGB.

    Returns:
        `(256,)` bool.
    """
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (64, 64), interpolation=cv2.INTER_AREA)
    frequencies = cv2.dct(small.astype("float32"))[:16, :16].ravel()
    return frequencies > np.median(frequencies)


def near_groups(hashes: np.ndarray, distance: int = NEAR) -> np.ndarray:
    """Groups of near copies: whoever is near one of a group belongs to it.

    Every pair is compared: 2,307 photos take less than a second, 45,000 a minute.

    Args:
        hashes: `(n, 2, 256)` bool: `perceptual_hash` of each photo and of its mirror image.
        distance: bits in which near copies may differ, in [0, 256].

    Returns:
        `(n,)` integers: equal for photos of one group.
    """
    count = len(hashes)
    signs = np.where(hashes, 1, -1).astype("float32")
    edges = [np.zeros((2, 0), int)]
    # Of a hundred thousand it takes minutes, of a million hours.
    for start in tqdm(range(0, count, 1024), "Comparing all with all", unit=" thousand", leave=False):
        for view in (0, 1):
            agreement = signs[start : start + 1024, 0] @ signs[start:, view].T  # equal bits minus unequal ones
            edges.append(start + np.stack(np.nonzero(agreement >= BITS - 2 * distance)))
    first, second = np.concatenate(edges, axis=1)
    return connected_components(coo_array((np.ones(len(first)), (first, second)), (count, count)), directed=False)[1]


def near_others(hashes: np.ndarray, others: np.ndarray, distance: int = SURE) -> np.ndarray:
    """Which photos have a near copy among others.

    Args:
        hashes: `(n, 2, 256)` bool, as `split_hashes` gives them.
        others: `(m, 2, 256)` bool.
        distance: bits in which near copies may differ, in [0, 256].

    Returns:
        `(n,)` bool.
    """
    signs, theirs = (np.where(values, 1, -1).astype("float32") for values in (hashes, others[:, 0]))
    near = np.zeros(len(hashes), bool)
    for start in range(0, len(hashes), 1024):
        for view in (0, 1):
            agreement = signs[start : start + 1024, view] @ theirs.T
            near[start : start + 1024] |= (agreement >= BITS - 2 * distance).any(axis=1)
    return near


def split_hashes(builder: pipeline.Builder, split: str) -> np.ndarray:
    """Hashes of every image of a prepared split and of its mirror image, `(n, 2, 256)` bool, in the split's order."""

    def both(row):
        image = tf.io.decode_image(row["image"], channels=3, expand_animations=False).numpy()
        return [perceptual_hash(view) for view in (image, image[:, ::-1])]

    rows = pipeline.examples(builder, split)
    count = pipeline.num_examples(builder, split)
    return np.array([both(row) for row in tqdm(rows, f"Comparing {split}", count, unit=" photos", leave=False)])
