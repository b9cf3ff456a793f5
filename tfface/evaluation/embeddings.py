"""Embeddings of the images of a data set of pairs, kept on disk so that a second run is free."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tfface import files, weights
from tfface.data import pipeline
from tfface.faces import align
from tfface.faces.crops import main_face
from tfface.training.features import bfloat16_convolutions

SIZE = 160


def embed_images(data: str, data_dir: str | Path | None, crop: str, mirror: bool, bfloat16: bool = False):
    """FaceNet embeddings of every image that the pairs of a data set name.

    Args:
        data: prepared data set with the configs `pairs` and `images`.
        data_dir: where it is prepared.
        crop: "centre" (the middle 60 % of each side, 150 of LFW's 250 pixels) or "mtcnn" (the box of the largest face
            near the centre, stretched to 160 pixels with FaceNet's margin of 32; the centre crop where none is found).
        mirror: concatenate the embedding of the mirror image.
        bfloat16: compute the network in bfloat16.

    Returns:
        `(pairs, embeddings, notes)`: `pairs` holds `first` and `second` (rows of `embeddings`), `same` and `fold`;
        `embeddings` is `(images, 128)` or `(images, 256)` float32; `notes` are lines on what was done.

    Raises:
        UserError: the data set is not prepared, or the weights cannot be had.
    """
    images = pipeline.open_dataset(f"{data}/images", data_dir)
    table = pipeline.label_arrays(pipeline.open_dataset(f"{data}/pairs", data_dir), "test", ("first", "second"))
    keys = pipeline.label_arrays(images, "test")["key"]
    row_of = {key: row for row, key in enumerate(keys)}
    pairs = {
        "first": np.array([row_of[key] for key in table["first_key"]]),
        "second": np.array([row_of[key] for key in table["second_key"]]),
        "same": table["same"].astype(bool),
        "fold": table["fold"],
    }
    identity = [pipeline.fingerprint(images, "test"), weights.lookup("facenet").sha256, crop, str(bfloat16)]
    digest = hashlib.sha256(" ".join(identity).encode()).hexdigest()[:16]
    cache = files.home() / "embeddings" / f"{digest}-mirror.npz"  # holds the plain embeddings in its first half
    if not cache.exists() and not mirror:
        cache = cache.with_name(f"{digest}.npz")
    if not cache.exists():
        embeddings, without_face = _compute(images, crop, mirror, bfloat16, keys)
        with files.written_aside(cache) as aside:
            np.savez(aside, embeddings=embeddings, without_face=np.array(without_face, dtype=str))
    with np.load(cache) as stored:
        embeddings, without_face = stored["embeddings"], stored["without_face"].tolist()
    if not mirror:
        embeddings = embeddings[:, :128]
    notes = []
    if without_face:
        notes.append(f"No face was found in {len(without_face)} images, cut at the centre: {', '.join(without_face)}.")
    return pairs, embeddings, notes


def _compute(builder, crop, mirror, bfloat16, keys):
    import tensorflow as tf

    from tfface.models.inception_resnet_v1 import inception_resnet_v1

    model = inception_resnet_v1(weights="facenet")
    without_face = []
    photos = (tf.io.decode_image(row["image"], channels=3).numpy() for row in pipeline.examples(builder, "test"))
    crops = _found(zip(keys, photos, strict=True), without_face) if crop == "mtcnn" else map(_centre, photos)
    parts = []
    with bfloat16_convolutions(bfloat16), tqdm(total=len(keys), unit="image", desc="embeddings") as bar:
        for batch in map(np.stack, pipeline.in_groups(crops, 32)):
            views = [batch, batch[:, :, ::-1]] if mirror else [batch]
            parts.append(np.concatenate([model.predict_on_batch(view) for view in views], axis=1))
            bar.update(len(batch))
    return np.concatenate(parts).astype("float32"), without_face


def _centre(photo: np.ndarray) -> np.ndarray:
    return pipeline.resize(photo, (SIZE, SIZE), zoom=0.6).numpy()


def _found(photos: Iterable, without_face: list[str]) -> Iterator[np.ndarray]:
    from tfface.faces.detect import load_detector

    detector = load_detector("mtcnn")
    for group in pipeline.in_groups(photos, 64):
        for (key, photo), faces in zip(group, detector([photo for _, photo in group]), strict=True):
            if not len(faces):
                without_face.append(key)
                yield _centre(photo)
                continue
            yield align.crop_with_margin(photo, faces.boxes[main_face(faces, photo.shape)], SIZE).astype("float32")
