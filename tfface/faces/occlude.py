"""Occluders onto faces: masks and things worn by the landmarks, and things anywhere at random (paper 5).

```python
occluders = load_occluders()
occluded = occlude_training(crop, "0000045/001.jpg", epoch, seed, occluders)
occluded.image, occluded.alpha, pattern(occluded.box, crop.shape[:2])
```

Every function is pure: it returns a new picture, and what it draws by chance comes from the generator it is given.
`generator` makes one from a seed and a file's key, so a set is the same byte for byte in whatever order, on however
many workers it is made (with the same version of OpenCV). Points are (x, y) in pixels, a pixel's centre at whole
numbers; boxes are (x0, y0, x1, y1) between pixel edges.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces.align import invert, similarity, transform
from tfface.faces.head import FACE_POINTS, FRAME, Head, centres
from tfface.faces.occluders import TEXTURE_SCALE, Occluder

_OBJECT_DEPTH = 0.2
"""z of a flat thing that is worn or held, face units: between glasses on a nose and a cup at the lips."""

_NOTHING = np.zeros((0, 0, 4), np.float32)


@dataclass(frozen=True, eq=False)
class Occluded:
    """A picture and what is hidden in it.

    Attributes:
        image: the picture, as the given one.
        box: (4,), float32, pixels: x0, y0, x1, y1 around all that is at least half hidden; zeros where nothing is.
        alpha: (height, width), uint8: how much of each pixel is hidden, 255 for all of it.
    """

    image: np.ndarray
    box: np.ndarray
    alpha: np.ndarray

    @property
    def share(self) -> float:
        """Hidden share of the area, in [0, 1]; what is half transparent counts half."""
        return float(self.alpha.mean() / 255)


def generator(key: str, seed: int = 0, epoch: int = 0) -> np.random.Generator:
    """Chance that depends on a file's key and nothing else, so the order of files and workers does not matter.

    Args:
        key: what names the picture in its set, such as its path below the set's folder, with "/" between folders.
        seed: of the whole set.
        epoch: another value, another draw for the same picture.

    Returns:
        A generator of its own. Functions here draw from it by `random()` alone, the stream NumPy changes least.
    """
    digest = hashlib.blake2b(f"{seed}\n{epoch}\n{key}".encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "big")))


def random_occlusion(
    image: np.ndarray, occluder: Occluder, rng: np.random.Generator, scale: tuple[float, float] = (1, 5)
) -> Occluded:
    """Lays an occluder anywhere on an aligned face (paper 5, section 2.2, after FROM, Qiu et al. 2021).

    The position is uniform: the occluder's centre may be any point of the picture, and what hangs over is cut. The
    scale is uniform in `scale`. Paper 5 only says that the size follows a ratio; FROM multiplies the own size of each
    occluder's file by 1 to 5, and its files' sizes are not known. Read here so that 5 is the whole picture: width and
    height of the occluder are scale / 5 of those that would give its rectangle the picture's area, which makes
    the square one 21 to 104 pixels wide at 112x96.

    Args:
        image: (height, width, 3), uint8, RGB: an aligned crop, which the face fills.
        occluder: what to lay over it; its kind and anchors do not matter.
        rng: where chance comes from, see `generator`.
        scale: least and greatest scale, 0 < least <= greatest.

    Returns:
        Occluded. A corner of the picture may meet a transparent corner of the occluder: then nothing is hidden.

    Raises:
        UserError: an image of another shape or dtype, or an impossible scale.
    """
    _check_image(image)
    if not 0 < scale[0] <= scale[1] < np.inf:
        raise UserError(f"scale takes 0 < least <= greatest, received {scale}; paper 5's is (1, 5)")
    height, width = image.shape[:2]
    size, x, y = rng.random(3)
    extent = np.array(occluder.image.shape[1::-1])
    factor = (scale[0] + (scale[1] - scale[0]) * size) / 5 * np.sqrt(height * width / extent.prod())
    centre = np.array([x * width, y * height])
    matrix = _enlargement(factor, centre - factor * extent / 2)
    return _laid(image, *_placed(occluder.premultiplied, matrix, (height, width)))


def cover_area(
    image: np.ndarray,
    share: float,
    occluders: Sequence[Occluder],
    rng: np.random.Generator,
    tries: int = 100,
    frame: tuple[np.ndarray, tuple[int, int]] | None = None,
) -> Occluded:
    """Hides a given share of a face behind one occluder at random: 40 % for Occ-LFW (paper 5, section 2.4).

    An occluder and a place are drawn; there it is enlarged until it hides the share. The place is uniform over where
    the occluder fits inside the picture (or, once larger than the picture, where it hangs over on both sides).
    Where no size does it (the gap beside a cup's handle), another occluder and place are drawn.

    Args:
        image: (height, width, 3), uint8, RGB: an aligned crop, which the face fills, or a photo with a frame.
        share: of the picture's area, or of the frame's, in (0, 1).
        occluders: what to choose from, evenly.
        rng: where chance comes from, see `generator`.
        tries: how many occluders and places to draw at most.
        frame: where the face of a photo is: the matrix (2, 3) from photo to crop (`tfface.faces.align`) and the
            (height, width) of that crop, pixels. What hangs over its edge is not cut but hides more of the photo.

    Returns:
        Occluded, the hidden share of picture or frame within 0.005 of the one asked for.

    Raises:
        UserError: a share outside (0, 1), no occluders, or none of the tries reached the share.
    """
    _check_image(image)
    if not 0 < share < 1:
        raise UserError(f"share is a part of the area in (0, 1), such as 0.4, received {share}")
    matrix, size = frame or (np.eye(2, 3), image.shape[:2])
    matrix, size = invert(matrix), np.array(size)
    for _ in range(tries):
        picture, place = _choice(occluders, rng).premultiplied, rng.random(2)
        extent = np.array(picture.shape[1::-1])

        def placed(factor, place=place, extent=extent):
            return _enlargement(factor, place * (size[::-1] - factor * extent))

        def hidden(factor, picture=picture, placed=placed):
            return _placed(picture, placed(factor), size)[0][..., 3].sum() / 255 / size.prod()

        # The occluder's own rectangle must have that area. From a little below that up by quarters.
        factors = 0.95 * np.sqrt(share * size.prod() / extent.prod()) * 1.25 ** np.arange(12)
        greater = next((index for index, factor in enumerate(factors) if hidden(factor) >= share), 0)
        if greater:
            least, greatest = factors[greater - 1], factors[greater]
            for _ in range(12):
                middle = (least + greatest) / 2
                least, greatest = (least, middle) if hidden(middle) >= share else (middle, greatest)
            if abs(hidden(greatest) - share) <= 0.005:
                chosen = placed(greatest)
                chosen = np.column_stack([matrix[:, :2] @ chosen[:, :2], transform(chosen[:, 2], matrix)])
                return _laid(image, *_placed(picture, chosen, image.shape[:2]))
    names = ", ".join(occluder.name for occluder in occluders)
    raise UserError(
        f"{tries} tries hid no {share:.0%} of a {size[1]}x{size[0]} picture with {names}; offer a fuller one"
    )


def occlude_training(
    image: np.ndarray,
    key: str,
    epoch: int,
    seed: int,
    occluders: Sequence[Occluder],
    clean: float = 1 / 3,
    scale: tuple[float, float] = (1, 5),
    worn_masks: float = 0.0,
    landmarks: np.ndarray | None = None,
) -> Occluded:
    """Training image of paper 5, section 2.3: clean one time in three, otherwise occluded at random.

    Args:
        image: (height, width, 3), uint8, RGB: an aligned crop.
        key: what names the picture, see `generator`.
        epoch: each epoch draws anew.
        seed: of the whole training.
        occluders: what to choose from, evenly.
        clean: chance of a clean picture, in [0, 1]; clean : occluded = 1 : 2 in the paper.
        scale: see `random_occlusion`.
        worn_masks: share of the occluded ones that wear a mask, as `wear_mask` puts it on, in place of an occluder
            anywhere, in [0, 1]. Not in the paper.
        landmarks: (5, 2), pixels, where the crop's landmarks lie, for `worn_masks`. A face's own lie about them: each
            is moved by up to 3 % of the width.

    Returns:
        Occluded; a clean one has a zero box and a zero alpha, so that its `pattern` is 0, and a copy of the image.

    Raises:
        UserError: a chance outside [0, 1], or masks to be worn without landmarks or without a mask among `occluders`.
    """
    _check_image(image)
    if not 0 <= clean <= 1:
        raise UserError(f"clean is a chance in [0, 1], received {clean}; paper 5's is 1/3")
    if not 0 <= worn_masks <= 1:
        raise UserError(f"worn_masks is a share in [0, 1], received {worn_masks}")
    masks = [occluder for occluder in occluders if occluder.kind == "mask"]
    if worn_masks and (landmarks is None or not masks):
        raise UserError("worn_masks needs the landmarks of the crop, and a mask among the occluders.")
    rng = generator(key, seed, epoch)
    if rng.random() < clean:
        return _laid(image, _NOTHING)
    if worn_masks and rng.random() < worn_masks:
        moved = landmarks + (rng.random((5, 2)) - 0.5) * 0.06 * image.shape[1]
        return wear_mask(image, moved, _choice(masks, rng), rng)
    return random_occlusion(image, _choice(occluders, rng), rng, scale)


def wear(image: np.ndarray, landmarks: np.ndarray, occluder: Occluder) -> Occluded:
    """Puts an occluder where its anchors say: glasses on the eyes, a cup before the mouth; a mask by `wear_mask`.

    An object stays flat and follows the plane of eyes and mouth, narrower on a turned head, a little before it.

    Args:
        image: (height, width, 3), uint8, RGB.
        landmarks: (5, 2), pixels: left eye, right eye, nose, left mouth corner, right mouth corner.
        occluder: one with anchors.

    Returns:
        Occluded.

    Raises:
        UserError: the occluder has no anchors, or the landmarks are not those of a face.
    """
    if occluder.kind == "mask":
        return wear_mask(image, landmarks, occluder)
    _check_image(image)
    if occluder.anchors is None:
        raise UserError(f"{occluder.name!r} has no anchors: give it five in anchors.json, or lay it at random")
    head = Head.from_landmarks(landmarks)
    matrix = similarity(occluder.anchors, FACE_POINTS[:, :2])
    matrix[:, 2] += _OBJECT_DEPTH * head.turn
    matrix = head.axes @ matrix
    matrix[:, 2] += head.origin
    return _laid(image, *_placed(occluder.premultiplied, matrix, image.shape[:2]))


def wear_mask(
    image: np.ndarray, landmarks: np.ndarray, mask: Occluder, rng: np.random.Generator | None = None
) -> Occluded:
    """Puts a mask on a face: over nose, cheeks and chin, bent around the head and turned with it (Mask-LFW).

    The mask lies on the surface of `tfface.faces.head`, an average face that the landmarks scale, lean and turn. A
    pixel shows what its line of sight meets first, so on a turned head the far side hides behind the nose.

    Args:
        image: (height, width, 3), uint8, RGB.
        landmarks: (5, 2), pixels: left eye, right eye, nose, left mouth corner, right mouth corner.
        mask: an occluder of kind "mask".
        rng: chance in how it sits (up to 4 % wider or narrower, up to 0.08 eye distances lower); none if None.

    Returns:
        Occluded.

    Raises:
        UserError: the occluder is no mask, or the landmarks are not those of a face.
    """
    _check_image(image)
    if mask.kind != "mask":
        raise UserError(f"{mask.name!r} is an object, not a mask: use `wear`, or give it six anchors")
    head = Head.from_landmarks(landmarks)
    width, drop = (1.0, 0.0) if rng is None else rng.random(2) * 0.08 + (0.96, 0.0)
    start, stop = head.extent(image.shape[:2])
    if (stop <= start).any():
        return _laid(image, _NOTHING)
    # Two samples a pixel and direction, as the outline of a turned mask is cut sharply; none finer than its picture.
    length = np.linalg.norm(head.axes[:, 1])
    counts = np.ceil((stop - start) * min(2.0, 2 * TEXTURE_SCALE / length)).astype(int)
    x, y = map(centres, start - 0.5, counts, counts / (stop - start))
    at, hit = head.seen_at(np.stack(np.meshgrid(x, y), axis=-1))
    shrink = min(1.0, 2 * length / TEXTURE_SCALE)
    texture = cv2.resize(mask.texture, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    scale = TEXTURE_SCALE * np.array(texture.shape[1::-1]) / mask.texture.shape[1::-1]
    at = ((at * (1 / width, 1) - (0, drop) - FRAME[:2]) * scale - 0.5).astype(np.float32)
    layer = cv2.remap(texture, at, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT) * hit[..., None]
    smoothly = cv2.INTER_AREA if counts[0] > stop[0] - start[0] else cv2.INTER_LINEAR
    layer = cv2.resize(layer, stop - start, interpolation=smoothly)
    return _laid(image, cv2.GaussianBlur(layer, (3, 3), 0.5), start)


def hidden_box(alpha: np.ndarray) -> np.ndarray:
    """The box around all that is at least half hidden.

    Args:
        alpha: (height, width), uint8, 255 where all of a pixel is hidden.

    Returns:
        (4,), float32, pixels: x0, y0, x1, y1; zeros where nothing is hidden.
    """
    rows, columns = (np.flatnonzero((alpha >= 128).any(axis=axis)) for axis in (1, 0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0)
    return np.array(box, np.float32)


@functools.lru_cache
def pattern_boxes(size: tuple[int, int], grid: int = 4) -> np.ndarray:
    """The occlusion patterns that FROM's second head tells apart (Qiu et al. 2021), as boxes.

    Args:
        size: (height, width) of the picture, pixels.
        grid: K, the picture is cut into K x K cells, >= 1.

    Returns:
        ((K(K+1)/2)**2 + 1, 4), float32, pixels: row 0 is 'none', all zeros; then every rectangle of cells, ordered by
        its top, left, bottom, right. 101 rows for K = 4, 226 for K = 5.

    Raises:
        UserError: a grid without a cell.
    """
    if grid < 1:
        raise UserError(f"a grid has at least one cell, received {grid}")
    height, width = size
    spans = [(low, high) for low in range(grid) for high in range(low + 1, grid + 1)]
    cells = sorted((top, left, bottom, right) for top, bottom in spans for left, right in spans)
    boxes = [(left * width, top * height, right * width, bottom * height) for top, left, bottom, right in cells]
    boxes = np.array([(0, 0, 0, 0), *boxes], np.float32) / grid
    boxes.flags.writeable = False
    return boxes


def pattern(box: np.ndarray, size: tuple[int, int], grid: int = 4) -> int:
    """Label of an occlusion: the pattern whose box overlaps it most (greatest intersection over union).

    Args:
        box: (4,), pixels: x0, y0, x1, y1, what `Occluded` holds.
        size: (height, width) of the picture, pixels.
        grid: K, see `pattern_boxes`.

    Returns:
        Row of `pattern_boxes`, 0 for a box without area; of equally good ones the first.

    Raises:
        UserError: a box that is not four finite numbers, or a grid without a cell.
    """
    boxes = pattern_boxes(tuple(size), grid)
    box = np.asarray(box, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all():
        raise UserError(f"a box is four finite numbers x0, y0, x1, y1 in pixels, received {box.tolist()}")
    x0, y0, x1, y1 = box
    across = np.minimum(boxes[:, 2], x1) - np.maximum(boxes[:, 0], x0)
    down = np.minimum(boxes[:, 3], y1) - np.maximum(boxes[:, 1], y0)
    shared = np.clip(across, 0, None) * np.clip(down, 0, None)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    union = areas + max(x1 - x0, 0) * max(y1 - y0, 0) - shared
    return int(np.argmax(shared / np.maximum(union, 1e-9)))


def _enlargement(factor: float, corner: np.ndarray) -> np.ndarray:
    """Matrix (2, 3) that enlarges a picture and brings its upper left corner, a point between pixel edges, there."""
    return np.column_stack([np.eye(2) * factor, corner + factor / 2 - 0.5])


def _placed(picture: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A premultiplied picture moved by a matrix (2, 3) into an image of some size (height, width), edges slightly soft.

    Returns:
        The layer (height, width, 4), float32, of the part of the image that it may touch, and that part's first x, y.
    """
    width, height = picture.shape[1::-1]
    corners = transform([(-1, -1), (width, -1), (-1, height), (width, height)], matrix)
    start = np.clip(np.floor(corners.min(axis=0)) - 1, 0, size[::-1]).astype(int)
    stop = np.clip(np.ceil(corners.max(axis=0)) + 2, start, size[::-1]).astype(int)
    if (stop == start).any():
        return _NOTHING, start
    shrink = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if shrink < 1:
        counts = np.maximum(np.rint(np.array([width, height]) * shrink), 1).astype(int)
        picture = cv2.resize(picture, counts, interpolation=cv2.INTER_AREA)
        ratio = [width, height] / counts
        # The centre of pixel k of the reduced picture lies at ratio * (k + 0.5) - 0.5 of the whole one.
        matrix = np.column_stack([matrix[:, :2] * ratio, transform(ratio / 2 - 0.5, matrix)])
    matrix = np.column_stack([matrix[:, :2], matrix[:, 2] - start])
    layer = cv2.warpAffine(picture, matrix, stop - start, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)
    return cv2.GaussianBlur(layer, (3, 3), 0.5), start


def _laid(image: np.ndarray, layer: np.ndarray, start: tuple[int, int] = (0, 0)) -> Occluded:
    """Lays a premultiplied layer (height, width, 4) over an image from start (x, y) on, as bright as what it hides.

    The occluder's colours are multiplied by the square root of (mean grey of what it hides / 128), in [0.55, 1.25]:
    half way, in stops, between the drawing's own light and the photo's.
    """
    image, alpha = image.copy(), np.zeros(image.shape[:2], np.uint8)
    part = (slice(start[1], start[1] + layer.shape[0]), slice(start[0], start[0] + layer.shape[1]))
    share = np.clip(layer[..., 3:] / 255, 0, 1)
    if share.any():
        grey = cv2.cvtColor(image[part], cv2.COLOR_RGB2GRAY)
        gain = np.clip(np.sqrt(np.average(grey, weights=share[..., 0]) / 128), 0.55, 1.25)
        mixed = image[part] * (1 - share) + np.minimum(layer[..., :3] * gain, layer[..., 3:])
        image[part] = np.rint(np.clip(mixed, 0, 255)).astype(np.uint8)
        alpha[part] = np.rint(share[..., 0] * 255).astype(np.uint8)
    return Occluded(image, hidden_box(alpha), alpha)


def _choice(occluders: Sequence[Occluder], rng: np.random.Generator) -> Occluder:
    if not len(occluders):
        raise UserError("there is nothing to occlude with: expected at least one occluder, received none")
    return occluders[int(rng.random() * len(occluders))]


def _check_image(image) -> None:
    if not (isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3):
        got = (getattr(image, "dtype", type(image).__name__), getattr(image, "shape", ""))
        raise UserError(f"a picture is (height, width, 3), uint8, RGB, received {got}; read it with read_photo")
    if not image.size:
        raise UserError(f"a picture has at least one pixel, received shape {image.shape}; leave it out")
