"""Embeddings of the images of a data set of pairs, kept on disk so that a second run is free."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from tqdm import tqdm

from tfface import files
from tfface.data import pipeline
from tfface.data.identities import IdentityConfig, draw_pairs
from tfface.errors import UserError
from tfface.evaluation.predictions import learnt_from
from tfface.faces import align
from tfface.faces.crops import MARGIN, main_face
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.models.recognition import EMBEDDING, FACENET_STAGES, load_backbone
from tfface.models.saved import load_saved
from tfface.training.features import bfloat16_convolutions, cache_digest, load_cached
from tfface.training.run import Run

CROPS = ("detect", "centre", "margin", "five-point", "whole")
"""How a network gets its crop of an image, see `load_embedder`."""

FACENETS_FIVE_POINT = (160, 136)
"""Height and width at which FaceNet, pruned or not, is shown an aligned crop of 112x96: its own height. The smaller one
loses it eight points on LFW."""

HIDDEN = ("occ_lfw", "mask_lfw", "lower_half")
"""Configs of `lfw_pairs` that hold the second images of the pairs, covered."""


@dataclass(frozen=True)
class Embedder:
    """A network that tells faces apart, and how it is shown them.

    Attributes:
        name: what it is called in the figures.
        model: `(batch, height, width, 3)` RGB in [0, 255] -> `(batch, width)`.
        size: `(height, width)` of its crops, pixels.
        crop: one of `CROPS`.
    """

    name: str
    model: keras.Model
    size: tuple[int, int]
    crop: str


def load_embedder(model: str, crop: str = "") -> Embedder:
    """A network by name, run or file.

    Args:
        model: "facenet", the folder of a run whose network has an embedding, or a `.keras` file with one.
        crop: "detect" (MTCNN finds the face, large and near the centre; its box with FaceNet's margin, a fifth of the
            crop, is stretched to a square), "centre" (the middle 60 % of each side, 150 of LFW's 250 pixels), "margin"
            or "five-point" (the data set is prepared so: `tfface build NAME/images --align five-point --no-face
            centre`). By default what the network was made for: "detect" for FaceNet, the alignment of its data for a
            run, "five-point" for a file. "whole" takes the images of a data set as they are.

    Raises:
        UserError: no such network, or one without an embedding; an unknown crop, or "detect" for crops
            that are not square.
    """
    crop = crop or ("detect" if model == "facenet" else alignment_of(_learnt_from(model)))
    if crop not in CROPS:
        raise UserError(f"crop must be one of {', '.join(CROPS)}. Received: {crop}.")
    if model == "facenet":
        size = FACENETS_FIVE_POINT if crop == "five-point" else (160, 160)
        return Embedder(model, inception_resnet_v1((*size, 3), weights="facenet"), size, crop)
    if Path(model).is_dir():
        run = Run(model)
        size, whole = tuple(run.recipe().image_size), run.model()
        if EMBEDDING not in {layer.name for layer in whole.layers}:
            raise UserError(
                f"The run {model} has no embedding: expected one of the recipes occluded or compact, received "
                f"{run.recipe().name}."
            )
        if crop == "detect" and size[0] != size[1]:
            raise UserError(
                f"--crop detect cuts squares, and the run {model} takes {size[0]}x{size[1]} pixels (height x width): "
                "leave --crop out."
            )
        return Embedder(model, keras.Model(whole.input, whole.get_layer(EMBEDDING).output), size, crop)
    if not model.endswith(".keras"):  # table1 and ir are networks too, with weights that have learnt nothing
        raise UserError(
            f"There is no trained network {model}: expected facenet, compact, the folder of a run or a .keras file. "
            "Two photos are compared in Python, see docs/recognition.md."
        )
    size = _five_point_size(load_saved(model)) if crop == "five-point" else (160, 160)
    return Embedder(model, load_backbone(model, (*size, 3)), size, crop)


def _five_point_size(network: keras.Model) -> tuple[int, int]:
    """The size of paper 5's crops that a network wants: its own where it has one of their shape."""
    height, width = network.input_shape[1:3]
    if height and width and round(height * 96 / 112) in (width - 1, width, width + 1):
        return height, width
    return FACENETS_FIVE_POINT if set(FACENET_STAGES) <= {layer.name for layer in network.layers} else (112, 96)


def _learnt_from(model: str) -> str:
    """Full name of the data set that a run learnt from; empty for what is no run."""
    return Run(model).config()["data"]["name"] if Path(model).is_dir() else ""


def alignment_of(data: str) -> str:
    """The crop, "margin" or "five-point", of a network that learnt from the prepared data set of this full name."""
    return "margin" if re.search(r"[/-]margin\b", data) else "five-point"


def read_pairs(data: str, data_dir: str | Path | None, crop: str, split: str = ""):
    """The pairs of a data set, and the prepared sets that hold their first and their second images.

    Args:
        data: "lfw", one of `HIDDEN` (LFW, the second image covered), or a prepared data set with the configs `pairs`
            and `images`; with the crop "whole" a prepared data set with identities, of which pairs are drawn.
        data_dir: where it is prepared.
        crop: one of `CROPS`.
        split: whose images pairs are drawn of; "test", or "validation", or the first one, if empty.

    Returns:
        `(pairs, first, second)`: `pairs` holds `first_key`, `second_key`, `same` and `fold`; `first` and `second` are
        builders, the same one unless the second images are covered.

    Raises:
        UserError: one of them is not prepared, or the crop or the split is not one of such pairs.
    """
    if crop == "whole" and data in ("lfw", *HIDDEN):
        raise UserError(f"The pairs of {data} are photos, of which a network is shown the face: choose another --crop.")
    if crop != "whole" and "/" in data:
        raise UserError(
            f"Pairs of {data} are drawn from its images as they are. Received: --crop {crop}; leave it out."
        )
    if crop == "whole" and "+" in data:  # whoever is in one is unknown in the other, or has a name that is used twice
        raise UserError(f"Pairs are drawn of one data set. Received: {data}; name one of them with --data.")
    if crop == "whole":
        builder = pipeline.open_dataset(data, data_dir)
        return _drawn(builder, split or _split(builder)), builder, builder
    if split:
        raise UserError(f"The pairs of {data} are given, and none is drawn. Received: --split {split}; leave it out.")
    name = "lfw_pairs" if data in ("lfw", *HIDDEN) else data
    prepared = pipeline.data_folder(data_dir) / name
    if name == data and prepared.is_dir() and not (prepared / "pairs").is_dir():
        raise UserError(
            f"{prepared} holds no pairs. Expected lfw, {', '.join(HIDDEN)} or a data set with the configs pairs and "
            "images; pairs are drawn of one whose images say who is who, named with its config, such as "
            "celeba_identities/images."
        )
    suffix = f"-{crop}-centre" if crop in ("margin", "five-point") else ""
    pairs = pipeline.open_dataset(f"{name}/pairs", data_dir)
    split = next(iter(pairs.info.splits))
    pictures = tuple(part for part in ("first", "second") if part in pairs.info.features)
    table = pipeline.label_arrays(pairs, split, pictures)
    first = pipeline.open_dataset(f"{name}/images{suffix}", data_dir)
    second = pipeline.open_dataset(f"{name}/{data}{suffix}", data_dir) if data in HIDDEN else first
    return table, first, second


def _split(builder: pipeline.Builder) -> str:
    """The split that is compared: nobody of the training, where there is another."""
    return next(name for name in ("test", "validation", *builder.info.splits) if name in builder.info.splits)


def _drawn(builder: pipeline.Builder, split: str) -> dict[str, np.ndarray]:
    labels = pipeline.label_arrays(builder, split)
    if "identity" not in labels:
        raise UserError(
            f"{builder.info.full_name} does not say who is who: pairs need the feature identity. A folder of people, "
            "one folder each, is built so by `tfface build casia_webface --manual-dir FOLDER`."
        )
    people = defaultdict(list)
    for identity, key in zip(labels["identity"].tolist(), labels["key"], strict=True):
        people[str(identity)].append(str(key))
    # Those of whom it is not known who they are, are not one person.
    people = {name: keys for name, keys in people.items() if len(keys) > 1 and name not in ("-1", "")}
    pairs = list(draw_pairs(people, IdentityConfig(name="pairs")))
    if len({pair["fold"] for pair in pairs}) < 2:
        others = [name for name in builder.info.splits if name != split]
        raise UserError(
            f"The split {split} of {builder.info.full_name} has {len(people)} people with two images or more: expected "
            f"four. The others, for --split: {', '.join(others) or 'none'}."
        )
    return {name: np.array([pair[name] for pair in pairs]) for name in pairs[0]}


def embed_pairs(
    embedder: Embedder,
    data: str,
    data_dir: str | Path | None = None,
    mirror: bool = False,
    bfloat16: bool = False,
    split: str = "",
):
    """Embeddings of both images of every pair.

    Args:
        embedder: the network.
        data: see `read_pairs`.
        data_dir: where it is prepared.
        mirror: concatenate the embedding of the mirror image.
        bfloat16: compute the network in bfloat16.
        split: see `read_pairs`.

    Returns:
        `(pairs, first, second, notes)`: `pairs` as `read_pairs` gives them; `first` and `second` `(pairs, width)`
        float32; `notes` are lines on what was done.

    Raises:
        UserError: a data set is not prepared, the pairs name images that it has not, or are of one fold or kind.
    """
    pairs, *sets = read_pairs(data, data_dir, embedder.crop, split)
    folds, kinds = (len(np.unique(pairs[name])) for name in ("fold", "same"))
    if folds < 2 or kinds < 2:
        raise UserError(
            f"LFW's protocol wants pairs of one person and of two, in two folds or more. Received: {data} with "
            f"{len(pairs['same'])} pairs, {'both kinds' if kinds > 1 else 'one kind'}, {folds} folds."
        )
    sides, notes = [], []
    if embedder.crop == "whole":
        notes = _cut_otherwise(embedder.name, data) + _seen(embedder.name, sets[0], split or _split(sets[0]))
    for side, builder in zip(("first", "second"), sets, strict=True):
        keys, embeddings, without_face = embed_images(embedder, builder, mirror, bfloat16, split)
        row_of = {key: row for row, key in enumerate(keys)}
        absent = sorted(set(pairs[f"{side}_key"]) - row_of.keys())
        if absent:
            raise UserError(
                f"The pairs of {data} name {len(absent)} images that {builder.info.full_name} has not, first "
                f"{absent[0]}: build both from the same files, with --no-face centre, as a pair that is left out "
                "changes the figure."
            )
        sides.append(embeddings[[row_of[key] for key in pairs[f"{side}_key"]]])
        note = f"No face was found in {len(without_face)} images, cut at the centre: {', '.join(without_face)}."
        if without_face and note not in notes:
            notes.append(note)
    return pairs, *sides, notes


def _cut_otherwise(model: str, data: str) -> list[str]:
    """A line where a network may be shown other cuts of faces than it learnt: nothing else tells it from a poor one."""
    align = "margin" if model == "facenet" else alignment_of(_learnt_from(model))
    if _learnt(model, data) or re.search(rf"[/-]{align}\b", data):
        return []
    return [
        f"The network knows faces cut by --align {align}, and those of {data} are shown as they are: unless they are "
        f"cut so, its figures are far too low. Build the set with --align {align}."
    ]


def _seen(model: str, builder: pipeline.Builder, split: str) -> list[str]:
    """A line where a network is shown faces that it learnt from, or nothing would tell its figures from honest ones."""
    if not (Path(model).is_dir() and learnt_from(Run(model), builder, split)):
        return []
    return [
        f"The network learnt from faces of the split {split} of {builder.info.full_name}: its figures, the threshold "
        "among them, are better than those of people whom it has not seen."
    ]


def _learnt(model: str, data: str) -> bool:
    """Whether a run learnt from a data set. One that is cut otherwise has another name that may begin alike."""
    return any(f"{part}/".startswith(f"{data}/") for part in _learnt_from(model).split("+"))


def embed_images(
    embedder: Embedder, builder: pipeline.Builder, mirror: bool = False, bfloat16: bool = False, split: str = ""
):
    """Embeddings of every image of a split of a prepared data set, from the cache or computed and put there.

    Returns:
        `(keys, embeddings, without_face)`: names of the images, `(images, width)` float32, that of each view of length
        1, and the names of those in which no face was found.

    Raises:
        UserError: embeddings that point nowhere.
    """
    split = split or _split(builder)
    keys = pipeline.label_arrays(builder, split)["key"]
    digest = cache_digest(builder, split, embedder.model, embedder.crop, embedder.size, bfloat16)
    cache = files.home() / "embeddings" / f"{digest}-mirror.npz"  # holds the plain embeddings in its first half
    if not cache.exists() and not mirror:
        cache = cache.with_name(f"{digest}.npz")
    if not cache.exists():
        embeddings, without_face = _compute(embedder, builder, split, mirror, bfloat16, keys)
        with files.written_aside(cache) as aside:
            np.savez(aside, embeddings=embeddings, without_face=np.array(without_face, dtype=str))
    stored = load_cached(cache)
    views = stored["embeddings"].reshape(len(keys), -1, embedder.model.output_shape[-1])[:, : 1 + mirror]
    lengths = np.linalg.norm(views, axis=2, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise UserError(
            f"{embedder.name} gives embeddings that are not finite or all zeros, which point nowhere: expected a "
            "network that was trained to its end and whose weights are numbers."
        )
    # Both views of an image, and all images of a mean, count alike: FaceNet's bottleneck gives any length.
    views = views / lengths
    named = (builder.info.metadata or {}).get("cut_at_centre", [])
    return keys, views.reshape(len(keys), -1), stored["without_face"].tolist() or named


def _compute(embedder, builder: pipeline.Builder, split, mirror, bfloat16, keys):
    import tensorflow as tf

    without_face = []
    photos = (tf.io.decode_image(row["image"], channels=3).numpy() for row in pipeline.examples(builder, split))
    if embedder.crop == "detect":
        crops = _found(zip(keys, photos, strict=True), without_face, embedder.size)
    else:
        zoom = 0.6 if embedder.crop == "centre" else 1.0
        crops = (pipeline.resize(photo, embedder.size, zoom=zoom).numpy() for photo in photos)
    parts = []
    with bfloat16_convolutions(bfloat16), tqdm(total=len(keys), unit="image", desc="embeddings") as bar:
        for batch in map(np.stack, pipeline.in_groups(crops, 32)):
            views = [batch, batch[:, :, ::-1]] if mirror else [batch]
            parts.append(np.concatenate([embedder.model.predict_on_batch(view) for view in views], axis=1))
            bar.update(len(batch))
    return np.concatenate(parts).astype("float32"), without_face


def _found(photos: Iterable, without_face: list[str], size) -> Iterator[np.ndarray]:
    from tfface.faces.detect import load_detector

    detector, margin = load_detector("mtcnn"), round(MARGIN * size[0])
    for group in pipeline.in_groups(photos, 64):
        for (key, photo), faces in zip(group, detector([photo for _, photo in group]), strict=True):
            if len(faces):
                box = faces.boxes[main_face(faces, photo.shape)]
                yield align.crop_with_margin(photo, box, size[0], margin).astype("float32")
            else:
                without_face.append(key)
                yield pipeline.resize(photo, size, zoom=0.6).numpy()
