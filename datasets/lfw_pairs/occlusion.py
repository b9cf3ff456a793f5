"""Occluded LFW: what hides the faces of Occ-LFW, Mask-LFW and of the floor they are compared with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tfface.data import aligned
from tfface.data.pipeline import in_groups
from tfface.errors import UserError
from tfface.faces import align, occlude
from tfface.faces.crops import MIN_FACE_SIZE, Alignment, describe, encode, main_face
from tfface.faces.detect import load_detector
from tfface.faces.occluders import Occluder, load_occluders
from tfface.faces.photos import read_photo

SHARE = 0.4
"""Of the face's area, hidden in Occ-LFW (paper 5, section 2.4). Read as that of the crop of 112x96 pixels."""

GREY = 128

BOX = np.array([[0.315, 0.259], [0.679, 0.750]])
LANDMARKS = np.array([[0.416, 0.450], [0.583, 0.446], [0.500, 0.546], [0.429, 0.631], [0.577, 0.628]])
"""Where the face of an image is taken to be in which none is found, as shares of width and height: medians over MTCNN's
faces in 410 deep-funneled images."""


@dataclasses.dataclass(eq=False, kw_only=True)
class OccludedConfig(aligned.AlignableConfig):
    """The images that come second in a pair, occluded.

    Attributes:
        occlusion: "random" (something of tfface's hides 40 % of the face), "mask" (a surgical mask is worn), or
            "lower_half" (a grey rectangle hides the lower half).
        seed: another seed, other occluders, places and fits.
    """

    occlusion: str = ""
    seed: int = 0


CONFIGS = (
    OccludedConfig(name="occ_lfw", occlusion="random", description="Second images, 40 % of the face hidden at random."),
    OccludedConfig(name="mask_lfw", occlusion="mask", description="Second images, the face wears a surgical mask."),
    OccludedConfig(name="lower_half", occlusion="lower_half", description="Second images, the lower half hidden."),
)


def hide(photo: np.ndarray, face: Mapping, key: str, config: OccludedConfig, occluders: list[Occluder]):
    """Occludes the face of a photo. What is hidden depends on the photo, its key and the seed alone.

    Args:
        photo: (height, width, 3), uint8, RGB.
        face: what `tfface.faces.crops.describe` says of it.
        key: file name of the photo.
        config: what hides it, and the seed.
        occluders: to choose from; the mask is among them.

    Returns:
        `tfface.faces.occlude.Occluded`.
    """
    rng = occlude.generator(key, config.seed)
    if config.occlusion == "random":
        frame = align.five_point_matrix(face["landmarks"]), (112, 96)
        return occlude.cover_area(photo, SHARE, occluders, rng, frame=frame)
    if config.occlusion == "mask":
        mask = next(occluder for occluder in occluders if occluder.kind == "mask")
        return occlude.wear_mask(photo, np.array(face["landmarks"]), mask, rng)
    # The lower half of FaceNet's crop, which is the box and a margin around it, and a pixel more at its sides, so that
    # no interpolation shows what lies beyond.
    way_back = align.invert(align.margin_matrix(face["box"]))
    corners = align.transform([[-0.5, 79.5], [159.5, 159.5]], way_back) + 0.5
    corners = np.rint(corners) + np.array([[-1, 0], [1, 1]])
    (x0, y0), (x1, y1) = np.clip(corners, 0, photo.shape[1::-1]).astype(int)
    image, alpha = photo.copy(), np.zeros(photo.shape[:2], np.uint8)
    image[y0:y1, x0:x1], alpha[y0:y1, x0:x1] = GREY, 255
    return occlude.Occluded(image, occlude.hidden_box(alpha), alpha)


def occluded(images: Mapping[str, Path], config: OccludedConfig, without: list[str]) -> Iterator[dict]:
    """The photos occluded, and then aligned where the config says so, by the landmarks of the clean photos.

    Args:
        images: file name -> path.
        config: what hides the faces, and how to align.
        without: the names of photos without a face are added.

    Yields:
        {"image": encoded, "identity", "key", "box": around what is hidden, pixels}, in the order given.

    Raises:
        UserError: alignment by another detector, or without a face to be left out.
    """
    if config.detector not in ("", "mtcnn"):
        raise UserError(
            f"{config.unaligned} is aligned by MTCNN, whose landmarks of the clean photo say where the occluder lies; "
            f"received the detector {config.detector}: give --detector mtcnn"
        )
    detect, occluders = load_detector("mtcnn", min_face_size=MIN_FACE_SIZE), load_occluders()
    alignment = Alignment(config.align, config.size) if config.align else None
    for group in in_groups(tqdm(images.items(), desc="Occluding faces", unit=" files", leave=False), 32):
        photos = [read_photo(path) for _, path in group]
        for (name, path), photo, faces in zip(group, photos, detect(photos), strict=True):
            face = describe(faces, main_face(faces, photo.shape)) if len(faces) else None
            if face is None:
                without.append(name)
            size = photo.shape[1::-1]
            typical = {"box": (BOX * size).ravel(), "landmarks": LANDMARKS * size}
            one = hide(photo, face or typical, name, config, occluders)
            image, box = one.image, one.box
            if alignment:
                image, box = alignment.crop(image, face), occlude.hidden_box(alignment.crop(one.alpha, face))
            yield {"image": encode(image), "identity": path.parent.name, "key": name, "box": box}
