"""Faces of nobody: deterministic, licence-free pictures whose truth is known.

Demo, tests and teaching need faces at hand whose age, gender, group, pose and landmarks are certain and that nobody
has rights in. An identity is a Gaussian vector of the statistical model of `face_model` and a hair style, so every
face is new; `portrait` paints the rest. A picture depends on its integers alone: random numbers come from Philox
streams keyed by them, sums run in a fixed order.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor

import cv2
import numpy as np

from tfface.errors import UserError
from tfface.faces import face_model, portrait
from tfface.labels import FAIRFACE_RACES, FAIRFACE_TO_UTKFACE, GENDERS, UTKFACE_RACES

UTKFACE_RACE_OF = {name: UTKFACE_RACES[index] for name, index in zip(FAIRFACE_RACES, FAIRFACE_TO_UTKFACE, strict=True)}
"""FairFace's seven groups as UTKFace's five, whose `Others` are 'like Hispanic, Latino, Middle Eastern'."""


@dataclasses.dataclass(frozen=True)
class SyntheticFace:
    """A picture of nobody and its truth.

    Attributes:
        image: (height, width, 3) uint8 RGB; for a face in a photo its box cut out.
        identity: whose face it is; pictures of one identity share age, gender, race, group, features and hair.
        age: years.
        gender: one of GENDERS.
        race: one of UTKFACE_RACES.
        group: one of FAIRFACE_RACES, `race` is UTKFACE_RACE_OF[group].
        yaw: degrees, positive where the nose points to the left of the picture.
        pitch: degrees, positive where it points down.
        roll: degrees, positive where the head leans clockwise.
        light: from -1, lit from the right of the picture, to 1, from the left.
        background: name of the kind of background.
        landmarks: (5, 2) float32 (x, y) pixels: left eye, right eye, nose, left and right corner of the mouth; left
            is the smaller x.
        box: (x0, y0, x1, y1) pixels around the face, hairline to chin, floats.
    """

    image: np.ndarray
    identity: int
    age: int
    gender: str
    race: str
    group: str
    yaw: float
    pitch: float
    roll: float
    light: float
    background: str
    landmarks: np.ndarray
    box: tuple[float, float, float, float]


PEOPLE, SHOTS, SCENES = range(3)
"""Streams of random numbers, so that none repeats another."""


def _random(*key):
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


SPREAD = 0.8
"""Standard deviation of the coefficients of an identity, 1 being that of the faces of the fit."""


def bounded_normal(rng: np.random.Generator, size: int | tuple[int, ...], limit: float = 1.8) -> np.ndarray:
    """Standard normal numbers, those beyond the limit drawn in to it."""
    return np.clip(rng.standard_normal(size), -limit, limit)


@functools.lru_cache(maxsize=8)  # several pictures of one person tend to follow each other
def _person(identity, age=None, gender=None, group=None):
    """The person of an identity; what is given replaces what would be drawn."""
    _check("identity", identity, 0, 2**63 - 1)
    if age is not None:
        _check("age", age, 0, 90)
    for name, value, names in (("gender", gender, GENDERS), ("group", group, FAIRFACE_RACES)):
        if value is not None and value not in names:
            raise UserError(f"{name} must be one of {', '.join(names)}; received {value!r}: choose one of them")
    rng = _random(PEOPLE, identity)
    model = face_model.load()
    stage = rng.choice(5, p=[0.1, 0.1, 0.4, 0.25, 0.15])
    low, high = ((1, 12), (12, 20), (20, 40), (40, 60), (60, 85))[stage]
    drawn = int(rng.integers(low, high)), int(rng.integers(2)), int(rng.integers(len(FAIRFACE_RACES)))
    age = drawn[0] if age is None else int(age)
    gender = drawn[1] if gender is None else GENDERS.index(gender)
    group = drawn[2] if group is None else FAIRFACE_RACES.index(group)
    return portrait.Person(
        age=age,
        gender=gender,
        group=group,
        shape=SPREAD * bounded_normal(rng, len(model["shape_components"])),
        texture=face_model.own_texture(SPREAD * bounded_normal(rng, len(model["texture_components"]))),
        tone=np.exp(0.05 * rng.standard_normal() + 0.02 * rng.standard_normal(3)),
        grain=rng.standard_normal((face_model.FRAME_HEIGHT, face_model.FRAME_WIDTH), np.float32),
        hair=portrait.draw_hair(rng, age, gender, group),
    )


def _shot(rng, yaw=None):
    """Pose, expression, light and clothes of one picture."""
    drawn = np.radians(np.clip(8 * rng.standard_normal(), -18, 18))
    yaw = drawn if yaw is None else np.radians(yaw)
    pitch, roll = np.radians(np.clip(rng.standard_normal(2) * (4, 6), (-9, -15), (9, 15)))
    side = float(np.clip(0.5 * rng.standard_normal(), -1, 1))
    smile = rng.uniform(-0.8, 1.2)
    covariates = np.array(
        [
            smile,
            np.clip(0.6 * smile + 0.5 * rng.standard_normal(), -0.9, 1.5),
            -0.5 * smile + 0.3 * rng.standard_normal(),
            rng.uniform(-0.2, 0.9),
            1.3 * side,
            0.6 * np.clip(rng.standard_normal(), -1.5, 1.5),
            np.clip(np.degrees(yaw) / 8.4, -2, 2),
            np.clip(np.degrees(pitch) / 7.2, -1.3, 1.3),
        ]
    )
    return portrait.Shot(
        yaw=float(yaw),
        pitch=float(pitch),
        roll=float(roll),
        covariates=covariates,
        gain=np.exp(0.1 + 0.1 * rng.standard_normal() + 0.03 * rng.standard_normal(3)),
        light=side,
        cloth=portrait.cloth(rng),
    )


def _truth(image, identity, person, shot, background, landmarks, box):
    group = FAIRFACE_RACES[person.group]
    return SyntheticFace(
        image=image,
        identity=identity,
        age=person.age,
        gender=GENDERS[person.gender],
        race=UTKFACE_RACE_OF[group],
        group=group,
        yaw=float(np.degrees(shot.yaw)),
        pitch=float(np.degrees(shot.pitch)),
        roll=float(np.degrees(shot.roll)),
        light=shot.light,
        background=background,
        landmarks=landmarks,
        box=box,
    )


def face(
    seed: int,
    *,
    identity: int | None = None,
    age: int | None = None,
    gender: str | None = None,
    group: str | None = None,
    yaw: float | None = None,
    size: int = 160,
) -> SyntheticFace:
    """A face and its truth.

    Args:
        seed: which picture, an integer >= 0.
        identity: whose, an integer >= 0; the seed itself unless given. Several seeds with one identity are several
            pictures of one person: pose, expression, light, clothes and background differ.
        age: years in [0, 90]; drawn with the identity unless given, like gender and group.
        gender: one of GENDERS.
        group: one of FAIRFACE_RACES.
        yaw: degrees in [-25, 25]; drawn with the picture unless given.
        size: height and width in pixels, >= 32.

    Returns:
        SyntheticFace.

    Raises:
        UserError: a value outside its range.
    """
    _check("seed", seed, 0, 2**63 - 1)
    _check("size", size, 32, 4096)
    if yaw is not None:
        _check("yaw", yaw, -25, 25)
    identity = seed if identity is None else identity
    person = _person(identity, age, gender, group)
    rng = _random(SHOTS, identity, seed)
    shot = _shot(rng, yaw)
    canvas, background = portrait.background(rng, size, size)
    unit = size / 3.7 * rng.uniform(0.94, 1.06)
    centre = np.array([0.5, 0.45]) * size + rng.uniform(-0.02, 0.02, 2) * size
    landmarks, box = portrait.paint(canvas, person, shot, centre, unit)
    return _truth(portrait.finish(canvas, rng), identity, person, shot, background, landmarks, box)


def faces(start: int, count: int, **fixed) -> Iterator[SyntheticFace]:
    """`face(start)`, `face(start + 1)`, ...: `count` pictures of as many identities, one at a time."""
    for seed in range(start, start + count):
        yield face(seed, **fixed)


def shots(identity: int, count: int, **fixed) -> Iterator[SyntheticFace]:
    """`count` pictures of one identity, one at a time."""
    for seed in range(count):
        yield face(seed, identity=identity, **fixed)


CHUNK = 16
"""Pictures that a process draws before it hands them over."""


def pictures(pairs: Iterable[tuple[int, int]], processes: int | None = None) -> Iterator[SyntheticFace]:
    """Pictures of many identities, drawn by several processes, one after the other in the order asked for.

    Args:
        pairs: (identity, seed) of each picture, any iterable.
        processes: how many draw; one for each processor if None. With 1 no process is started. Each of several reads
            the script anew that calls this, which must do so below `if __name__ == "__main__":`.

    Yields:
        `face(seed, identity=identity)` for each pair. Only a few chunks are drawn ahead, so memory stays bounded.
    """
    processes = processes or os.cpu_count() or 1
    if processes == 1:
        yield from map(_picture, pairs)
        return
    # Threads would wait for each other: half of the drawing is Python's own. A forked process must not inherit
    # TensorFlow's threads, so each starts afresh.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)) as pool:
        pairs, ahead = iter(pairs), collections.deque()
        while True:
            while len(ahead) < 3 * processes and (chunk := list(itertools.islice(pairs, CHUNK))):
                ahead.append(pool.submit(_chunk, chunk))
            if not ahead:
                return
            yield from ahead.popleft().result()


def _chunk(pairs):
    return [_picture(pair) for pair in pairs]


def _picture(pair):
    identity, seed = pair
    return face(seed, identity=identity)


def photo(seed: int, count: int = 5, size: tuple[int, int] = (960, 540)) -> tuple[np.ndarray, list[SyntheticFace]]:
    """A photo of several people.

    Args:
        seed: which photo, an integer >= 0; its people are identities `seed * 1000` and following.
        count: people in it, in [1, 30].
        size: (width, height) in pixels.

    Returns:
        The photo, (height, width, 3) uint8 RGB, and its SyntheticFaces from left to right: landmarks and box in
        pixels of the photo, `image` what the box cuts out.

    Raises:
        UserError: a value outside its range.
    """
    _check("seed", seed, 0, 2**53)
    _check("count", count, 1, 30)
    width, height = size
    rng = _random(SCENES, seed)
    canvas, background = portrait.background(rng, height, width)
    rows = -(-count // 6)
    columns = -(-count // rows)
    # A row stands so far below the one behind it that it hides no face there.
    largest = min(width / columns / 2.8, height / (4.4 + 3.7 * (rows - 1)))
    top = (height - 3.7 * (rows - 1) * largest) * 0.44
    placed = []
    for k in range(count):
        row, column = divmod(k, columns)
        in_row = min(columns, count - row * columns)
        unit = largest * rng.uniform(0.7, 1.0)
        middle = (column + 0.5 + rng.uniform(-0.06, 0.06)) / in_row * width
        eyes = top + (3.7 * row + rng.uniform(-0.3, 0.3)) * largest
        placed.append((row, unit, (middle, eyes), seed * 1000 + k))
    people = []
    for _, unit, centre, identity in sorted(placed):  # from the back to the front
        person, shot = _person(identity), _shot(rng)
        people.append((identity, person, shot, *portrait.paint(canvas, person, shot, centre, unit)))
    image = portrait.finish(canvas, rng)
    found = []
    for identity, person, shot, landmarks, box in sorted(people, key=lambda p: p[4][0]):
        x0, y0, x1, y1 = np.clip(np.rint(box).astype(int), 0, (width, height, width, height))
        found.append(_truth(image[y0:y1, x0:x1], identity, person, shot, background, landmarks, box))
    return image, found


def _check(name, value, least, most):
    if not least <= value <= most:
        raise UserError(f"{name} must lie in [{least}, {most}]; received {value!r}: choose one in that range")
