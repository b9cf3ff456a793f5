"""What a student learns beside labels, or in their place: a pretrained network's embeddings of the same faces, whole
and uncovered, or the outputs of a trained run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from tfface import files
from tfface.data import pipeline
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task
from tfface.training import batches
from tfface.training.features import bfloat16_convolutions, cache_digest, cached_features, load_cached, outputs_of
from tfface.training.run import Run, split_at

TEACHERS = ("facenet",)
VIEWS = (View(), View(mirror=True))
SIZE = (160, 160)
CUT = "Mixed_7a"
"""What lies below is computed once and cached; recipes that train the last blocks of the same network share it."""

CHUNK = 4096


def taught_targets(
    recipe: Recipe,
    builder: pipeline.Builder,
    split: str,
    labels: Mapping[str, np.ndarray],
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
) -> dict[str, np.ndarray]:
    """What the teachers of a recipe say of a split, for `batches.image_batches`; empty where it has none.

    Args:
        recipe: names them, in `teacher` and `distill_from`.
        builder: the student's data set.
        split: name of the split. Labels are mixed with outputs on the training split alone: the epoch that is kept is
            the one that agrees with labels.
        labels: of that split (`pipeline.label_arrays`).
        data_dir: where data sets are prepared.
        bfloat16: compute frozen layers in bfloat16 (see `cached_features`).

    Returns:
        Task -> `(n, width)`, in the split's fixed order.

    Raises:
        UserError: no such teacher, one that does not know these faces or tasks, or nothing that could learn from it.
    """
    taught = {}
    if recipe.teacher and recipe.extra_data:
        raise UserError(
            "A teacher's embeddings are of the faces of data alone: join data sets there by +, no extra_data."
        )
    if recipe.teacher and all(task.name != "embedding" for task in recipe.tasks()):
        raise UserError(
            f"A teacher's embeddings are learnt by an output embedding, which the recipe {recipe.name} has not here: "
            "set teacher= (nothing behind it), or train occluded, or compact with an embedding_weight above 0."
        )
    if recipe.teacher:
        data = recipe.teacher_data or recipe.data
        taught["embedding"] = teacher_embeddings(recipe.teacher, data, builder, split, data_dir, bfloat16)
    if recipe.distill_from and split == recipe.train_split:
        taught |= distilled_targets(
            recipe.distill_from, recipe.distill_share, recipe.tasks(), builder, split, labels, bfloat16
        )
    return taught


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
    joined = isinstance(source, pipeline.Joined)
    for prefix, part in zip(source.prefixes, source.parts, strict=True) if joined else [("", source)]:
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


def _cached(network: keras.Model, builder: pipeline.Builder, split: str, bfloat16: bool) -> np.ndarray:
    digest = cache_digest(builder, split, network, VIEWS, bfloat16)
    cache = files.home() / "embeddings" / f"{builder.info.full_name.replace('/', '-')}-{split}-{digest}.npy"
    if not cache.exists():
        lower, upper = split_at(network, CUT)
        views = cached_features(lower, builder, split, SIZE, VIEWS, bfloat16=bfloat16)
        with bfloat16_convolutions(bfloat16):
            embeddings = _unit(sum(_embed(upper, view) for view in views)).astype("float16")
        with files.written_aside(cache) as aside:
            np.save(aside, embeddings)
    return load_cached(cache)


def _embed(upper: keras.Model, features: np.ndarray) -> np.ndarray:
    chunks = [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]
    chunks = tqdm(chunks, unit="part", desc="the teacher's embeddings", disable=len(chunks) < 2)
    return np.concatenate(
        [_unit(upper.predict(np.asarray(chunk, "float32"), batch_size=256, verbose=0)) for chunk in chunks]
    )


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distilled_targets(
    folder: str | Path,
    share: float,
    tasks: Sequence[Task],
    builder: pipeline.Builder,
    split: str,
    labels: Mapping[str, np.ndarray],
    bfloat16: bool = False,
    progress: bool = True,
) -> dict[str, np.ndarray]:
    """Targets that mix the labels of a split with the outputs of a trained network; its outputs alone where a label is
    not known, as in joined data sets.

    A network that learns from another of its own kind ends better than that one: the outputs say which faces are
    doubtful, and in which way (Furlanello et al., Born-Again Neural Networks, ICML 2018).

    Args:
        folder: the run of the network that teaches; it looks at each image whole, in its recipe's test views.
        share: of its outputs in the targets, in (0, 1]; the rest is the label.
        tasks: what the student learns; of them those that say something of a face are taught.
        builder: the student's data set.
        split: name of the split.
        labels: of that split (`pipeline.label_arrays`).
        bfloat16: compute frozen layers in bfloat16 (see `cached_features`).
        progress: draw a progress bar.

    Returns:
        Task -> `(n, width)` float32, in the split's fixed order.

    Raises:
        UserError: no such run, one that lacks an output or has others, or a student that learns no attribute.
    """
    run = Run(folder)
    recipe, model = run.recipe(), run.model()
    tasks = [task for task in tasks if task.is_attribute]
    if not tasks:
        raise UserError(
            f"The run {folder} has nothing to teach: expected a recipe that learns attributes of a face, received one "
            "that learns none. Leave distill_from out."
        )
    own = {task.name: task.classes for task in recipe.tasks()}
    for task in tasks:
        if own.get(task.name) != task.classes:
            raise UserError(
                f"The run {folder} cannot teach {task.name}: expected an output of that name with the classes "
                f"{', '.join(task.classes) or 'of a number'}. Received: {', '.join(own.get(task.name, ())) or 'none'}."
            )
    digest = cache_digest(builder, split, model, recipe.test_views, bfloat16)
    cache = files.home() / "outputs" / f"{builder.info.full_name.replace('/', '-')}-{split}-{digest}.npz"
    if not cache.exists():
        outputs = outputs_of(recipe, model, builder, split, bfloat16, progress)
        with files.written_aside(cache) as aside:
            np.savez(aside, **{name: outputs[name] for name in own})
    truth, known = batches.encode(tasks, labels), batches.weights(tasks, labels)
    outputs = load_cached(cache)
    shares = {task.name: np.where(known[task.name] > 0, share, 1.0)[:, None] for task in tasks}
    return {
        name: (truth[name] + part * (outputs[name] - truth[name])).astype("float32") for name, part in shares.items()
    }
