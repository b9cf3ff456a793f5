"""The embeddings that a student learns: those of a pretrained network, on the same faces, whole and uncovered."""

from __future__ import annotations

import hashlib
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from tfface import files
from tfface.data import pipeline
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.training.features import bfloat16_convolutions, cached_features, model_fingerprint
from tfface.training.run import split_at

TEACHERS = ("facenet",)
VIEWS = (View(), View(mirror=True))
SIZE = (160, 160)
CUT = "Mixed_7a"
"""What lies below is computed once and cached; recipes that train the last blocks of the same network share it."""

CHUNK = 4096


def teacher_embeddings(
    teacher: str, data: str, builder, split: str, data_dir: str | Path | None = None, bfloat16: bool = False
) -> np.ndarray:
    """Embeddings of every face of a split, the mean of those of the image and of its mirror image.

    The teacher may look at other crops of the same photos than the student: FaceNet knows faces with a margin, and
    loses much of its skill on the tight crops that paper 5 aligns.

    Args:
        teacher: "facenet".
        data: prepared data set that the teacher looks at, with the splits and keys of `builder`; see `Joined`.
        builder: the student's data set.
        split: name of the split.
        data_dir: where data sets are prepared.
        bfloat16: compute the frozen layers in bfloat16 (see `cached_features`).

    Returns:
        `(n, 128)` float16 of length 1, in the order of the student's split.

    Raises:
        UserError: no such teacher or data set, or one that lacks faces of the student's.
    """
    if teacher not in TEACHERS:
        raise UserError(f"teacher must be one of {', '.join(TEACHERS)}. Received: {teacher}.")
    network = inception_resnet_v1(weights=teacher)
    source = pipeline.open_dataset(data, data_dir)
    keys, embeddings = [], []
    for part in source.parts if isinstance(source, pipeline.Joined) else (source,):
        prefix = f"{part.name}/" if source is not part else ""
        keys += [prefix + key for key in pipeline.label_arrays(part, split)["key"]]
        embeddings.append(_cached(network, part, split, bfloat16))
    row_of = {key: row for row, key in enumerate(keys)}
    wanted = pipeline.label_arrays(builder, split)["key"]
    absent = [key for key in wanted if key not in row_of]
    if absent:
        raise UserError(
            f"The teacher's data set {data} lacks {len(absent)} of the {len(wanted)} faces of the split {split}, first "
            f"{absent[0]}: name with teacher_data the same photos as {builder.info.full_name} holds."
        )
    return np.concatenate(embeddings)[[row_of[key] for key in wanted]]


def _cached(network: keras.Model, builder, split: str, bfloat16: bool) -> np.ndarray:
    identity = [pipeline.fingerprint(builder, split), model_fingerprint(network), str(VIEWS), str(bfloat16)]
    digest = hashlib.sha256(" ".join(identity).encode()).hexdigest()[:16]
    cache = files.home() / "embeddings" / f"{builder.info.full_name.replace('/', '-')}-{split}-{digest}.npy"
    if not cache.exists():
        lower, upper = split_at(network, CUT)
        views = cached_features(lower, builder, split, SIZE, VIEWS, bfloat16=bfloat16)
        with bfloat16_convolutions(bfloat16):
            embeddings = _unit(sum(_embed(upper, view) for view in views)).astype("float16")
        with files.written_aside(cache) as aside:
            np.save(aside, embeddings)
    return np.load(cache)


def _embed(upper: keras.Model, features: np.ndarray) -> np.ndarray:
    chunks = [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]
    chunks = tqdm(chunks, unit="part", desc="the teacher's embeddings", disable=len(chunks) < 2)
    return np.concatenate(
        [_unit(upper.predict(np.asarray(chunk, "float32"), batch_size=256, verbose=0)) for chunk in chunks]
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
