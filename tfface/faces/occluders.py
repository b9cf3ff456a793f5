"""Occluders: pictures with alpha that hide part of a face, and where they sit on it.

for occluder in load_occluders(): ...  # tfface's own: surgical_mask, sunglasses, scarf, cup, book, hand, phone

Face units are those of `tfface.faces.head`.
"""

from __future__ import annotations

import configparser
import functools
import warnings
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from scipy.interpolate import RBFInterpolator

from tfface import files
from tfface.errors import UserError
from tfface.faces.head import FRAME, centres

OURS = Path(__file__).resolve().parent.parent / "assets" / "occluders"
"""Folder of the occluders that tfface ships, drawn by `scripts/draw_occluders.py`."""

MASK_POINTS = np.array([[-0.98, 0.56], [0.0, 0.2], [0.98, 0.56], [-0.9, 1.34], [0.0, 1.94], [0.9, 1.34]])
"""Where the six anchors of a mask (6, 2) lie on a face seen from the front, in face units: left cheek, bridge of the
nose, right cheek, left jaw, chin, right jaw: MaskTheFace's mask_a to mask_f."""

TEXTURE_SCALE = 200
"""Pixels of `Occluder.texture` to a face unit: the eyes' distance at which a mask is drawn without enlarging."""

_LARGEST = 512


@dataclass(frozen=True, eq=False)
class Occluder:
    """A picture with alpha that can be laid over a face.

    Attributes:
        name: what it is, such as "cup".
        image: (height, width, 4), uint8, RGBA, alpha not premultiplied.
        anchors: points of the picture, pixels, float. Of a mask (6, 2), what `MASK_POINTS` names; of an object
            (5, 2), where the wearer's eyes, nose and mouth corners would lie (they may lie outside the picture), or
            None for an object that is only laid at random.
        kind: "mask", bent around nose and jaw by `wear_mask`, or "object", which stays flat.

    Raises:
        UserError: an array of another shape or dtype, nothing opaque in it, or anchors that do not fit the kind.
    """

    name: str
    image: np.ndarray
    anchors: np.ndarray | None = None
    kind: str = "object"

    def __post_init__(self):
        image, what = self.image, f"occluder {self.name!r}"
        if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 4):
            got = (getattr(image, "dtype", type(image).__name__), getattr(image, "shape", ""))
            raise UserError(f"{what} must be (height, width, 4), uint8, RGBA, received {got}; add an alpha channel")
        if not (image[..., 3] >= 128).any():
            raise UserError(f"{what} is transparent everywhere, so it hides nothing; leave it out")
        expected = {"mask": [(6, 2)], "object": [None, (5, 2)]}.get(self.kind)
        if expected is None:
            raise UserError(f"{what} has kind {self.kind!r}; expected 'mask' or 'object'")
        shape = None if self.anchors is None else np.shape(self.anchors)
        if shape not in expected or (shape and not np.isfinite(self.anchors).all()):
            raise UserError(f"{what}, kind {self.kind}, takes finite anchors of shape {expected}, received {shape}")

    @functools.cached_property
    def premultiplied(self) -> np.ndarray:
        """(height, width, 4), float32 in [0, 255]: what can be averaged without a fringe at the edges."""
        image = self.image.astype(np.float32)
        image[..., :3] *= image[..., 3:] / 255
        return image

    @functools.cached_property
    def texture(self) -> np.ndarray:
        """A mask as it lies on a face seen from the front, in a fixed frame of face units, premultiplied."""
        width, height = (round(length * TEXTURE_SCALE) for length in (FRAME[2] - FRAME[0], FRAME[3] - FRAME[1]))
        x, y = np.meshgrid(centres(FRAME[0], width, TEXTURE_SCALE), centres(FRAME[1], height, TEXTURE_SCALE))
        spline = RBFInterpolator(MASK_POINTS, self.anchors, kernel="thin_plate_spline")  # Bookstein 1989
        source = spline(np.stack([x, y], axis=-1).reshape(-1, 2)).reshape(*x.shape, 2).astype(np.float32)
        return cv2.remap(self.premultiplied, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def load_occluders(folder: str | Path | None = None) -> list[Occluder]:
    """Reads occluders: tfface's own, or every PNG of a folder.

    A folder may say where its pictures sit on a face: in `anchors.json`, {name: [[x, y], ...]} with five points for an
    object and six for a mask, or in `masks.cfg`, the format of MaskTheFace (Anwar & Raychowdhury 2020). A picture that
    neither names is an object without anchors, to be laid at random. Of a `masks.cfg` only the front views are used,
    as `wear_mask` turns them itself; what of it is left out is named in a warning.

    Args:
        folder: where the PNGs lie; tfface's own by default.

    Returns:
        Occluders, in the order of their names; pictures above 512 pixels are reduced to that.

    Raises:
        UserError: no such folder, no PNG in it, a file that is no PNG or has no alpha, or anchors that do not fit.
    """
    folder = OURS if folder is None else Path(folder)
    if not folder.is_dir():
        raise UserError(f"occluders are read from a folder of PNGs with alpha, received {folder}, which is none")
    pictures = {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".png"}
    anchors = {}
    if (folder / "anchors.json").is_file():
        anchors = files.read_json(folder / "anchors.json", "The occluders' anchors")
        if not isinstance(anchors, dict) or not anchors.keys() <= pictures.keys():
            raise UserError(
                f"{folder / 'anchors.json'} must be {{name: [[x, y], ...]}} for PNGs beside it, "
                f"received {list(anchors)} beside {list(pictures)}; mend the names"
            )
    if (folder / "masks.cfg").is_file():
        anchors |= _masks_cfg(folder / "masks.cfg", pictures)
    if not pictures:
        raise UserError(f"{folder} holds no occluder: expected PNG files with alpha, received none")
    return [_read(name, path, anchors.get(name)) for name, path in pictures.items()]


def _read(name: str, path: Path, anchors) -> Occluder:
    try:
        with Image.open(path) as picture:
            if not picture.has_transparency_data:
                raise UserError(f"{path} has no alpha ({picture.mode}): an occluder is a PNG with a transparent ground")
            image = np.array(picture.convert("RGBA"))
    except (OSError, UnidentifiedImageError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as a PNG: {error}; save it again or leave it out") from error
    shrink = min(1.0, _LARGEST / max(image.shape[:2]))
    if shrink < 1:
        colour = np.dstack([image[..., :3] * (image[..., 3:] / 255), image[..., 3]])
        colour = cv2.resize(colour, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
        colour[..., :3] *= 255 / np.maximum(colour[..., 3:], 1e-3)
        image = np.rint(colour.clip(0, 255)).astype(np.uint8)
    if anchors is None:
        return Occluder(name, image)
    try:
        anchors = (np.asarray(anchors, np.float64) + 0.5) * shrink - 0.5
    except (TypeError, ValueError) as error:
        raise UserError(f"anchors of {name!r} are [[x, y], ...] in pixels, received {anchors}") from error
    return Occluder(name, image, anchors, "mask" if anchors.shape == (6, 2) else "object")


def _masks_cfg(path: Path, pictures: dict[str, Path]) -> dict[str, list]:
    """Anchors of a masks.cfg, {name: points (6, 2)}; takes its side views out of `pictures`."""
    config = configparser.ConfigParser()
    try:
        config.read_string(path.read_text(), str(path))
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not in MaskTheFace's format: {' '.join(str(error).split())}") from error
    anchors, left_out = {}, []
    for name in config.sections():
        if name.endswith(("_left", "_right")):
            pictures.pop(name, None)
            left_out.append(name)
        elif name not in pictures:
            left_out.append(name)
        else:
            try:
                points = [config[name][f"mask_{letter}"].split(",") for letter in "abcdef"]
                anchors[name] = [[float(x), float(y)] for x, y in points]
            except (KeyError, ValueError) as error:
                raise UserError(
                    f"{path}, [{name}]: expected mask_a to mask_f, each 'x, y', received {error}"
                ) from error
    if left_out:
        warnings.warn(
            f"{path}: {len(left_out)} side views or absent files left out: {', '.join(left_out)}", stacklevel=3
        )
    return anchors
