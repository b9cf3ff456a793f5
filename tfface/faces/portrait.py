"""Paints a person around the face of the statistical model: head, hair, neck, clothes, background.

Everything is drawn in coordinates of the head whose unit is the distance between the irises and whose origin lies
halfway between them, y down; planes at several depths turn with the head. Colours are float32 grey levels, RGB.
"""

from __future__ import annotations

import dataclasses
import math

import cv2
import numpy as np

from tfface.faces import face_model
from tfface.labels import FAIRFACE_RACES, GENDERS

HAIR_COLOURS = {
    "black": (30, 26, 25),
    "dark brown": (50, 37, 30),
    "brown": (86, 62, 46),
    "auburn": (100, 58, 40),
    "blond": (160, 128, 88),
    "grey": (150, 147, 144),
}


@dataclasses.dataclass(frozen=True)
class Hair:
    """Style of the hair; lengths in units of the frame."""

    colour: np.ndarray  # RGB, (3,)
    long: bool
    fringe: bool
    length: float  # where it ends, downwards from the eyes
    top: float  # where it begins above the eyes
    part: float  # sideways place of the parting
    volume: float
    curl: float
    locks: np.ndarray  # tables of `_strands`, (1024,)
    waves: np.ndarray


def draw_hair(rng, age, gender, group):
    """A style and colour that go with age, gender and group."""
    woman, name = GENDERS[gender] == "Female", FAIRFACE_RACES[group]
    if name == "White":
        colour = rng.choice(["dark brown", "brown", "auburn", "blond"], p=[0.35, 0.35, 0.1, 0.2])
    elif name in ("Latino_Hispanic", "Middle Eastern"):
        colour = rng.choice(["black", "dark brown", "brown"], p=[0.35, 0.5, 0.15])
    else:
        colour = rng.choice(["black", "dark brown"], p=[0.8, 0.2])
    grey = np.clip((age - 44 + 8 * rng.standard_normal()) / 30, 0, 0.95) * (0.5 if woman else 1.0)
    rgb = (1 - grey) * np.array(HAIR_COLOURS[colour]) + grey * np.array(HAIR_COLOURS["grey"])
    long = woman and age >= 4 and rng.random() < (0.88 if age < 50 else 0.5)
    fringe = rng.random() < (0.2 if woman or age < 12 else 0.03)
    receding = 0.0 if woman else 0.2 * min(max((age - 30) / 40, 0.0), 1.0) * rng.random()
    knots = np.arange(1024) / 16
    tables = [np.interp(knots, np.arange(65), np.resize(rng.standard_normal(64), 65)) for _ in range(2)]
    return Hair(
        colour=(rgb * np.exp(0.1 * rng.standard_normal())).astype(np.float32),
        long=bool(long),
        fringe=bool(fringe),
        length=rng.uniform(1.2, 3.4) if long else rng.uniform(-0.1, 0.25),
        top=-0.7 if fringe else rng.uniform(-1.25, -1.1) if long else rng.uniform(-1.2, -1.05) - receding,
        part=float(rng.choice([-0.35, 0.0, 0.3])),
        volume=rng.uniform(0.1, 0.25) if long else rng.uniform(0.03, 0.16),
        curl=1.0 if name == "Black" else rng.uniform(0.1, 0.5),
        locks=tables[0].astype(np.float32),
        waves=tables[1].astype(np.float32),
    )


@dataclasses.dataclass(frozen=True)
class Person:
    """What all pictures of an identity share."""

    age: int
    gender: int
    group: int
    shape: np.ndarray  # coefficients of the shape components
    texture: np.ndarray  # its own part, `face_model.own_texture`
    tone: np.ndarray  # gains of the colour channels, (3,)
    hair: Hair
    grain: np.ndarray  # of the skin, standard normal


@dataclasses.dataclass(frozen=True)
class Shot:
    """What changes from one picture of an identity to the next."""

    yaw: float  # radians, like pitch and roll
    pitch: float
    roll: float
    covariates: np.ndarray
    gain: np.ndarray  # of the colour channels, (3,)
    light: float
    cloth: np.ndarray  # RGB, (3,)


def _rotation(shot):
    """The (3, 3) matrix that turns the frontal head: yaw, then pitch, then roll."""
    (cy, sy), (cp, sp), (cr, sr) = ((np.cos(a), np.sin(a)) for a in (shot.yaw, shot.pitch, shot.roll))
    yaw = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    pitch = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    roll = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return roll @ pitch @ yaw


def _smooth(x):
    """0 below 0, 1 above 1, a smooth cubic between."""
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _blend(canvas, colour, alpha):
    """Paints a colour or picture over a canvas, in place."""
    canvas += alpha[..., None] * (colour - canvas)


def _strands(table, position):
    """Smooth noise along one coordinate, one knot of `table` a unit, repeating every 64."""
    return table[(position * 16).astype(np.int32) & 1023]


def _head_plane(x, y, shot, depth):
    """Picture offsets, in units of the frame, as coordinates on a frontal plane of the head at a depth."""
    c, s = math.cos(shot.roll), math.sin(shot.roll)
    u, v = c * x + s * y, c * y - s * x
    u, v = u - depth * math.sin(shot.yaw), v + depth * math.sin(shot.pitch)
    return u / math.cos(shot.yaw), v / math.cos(shot.pitch)


def paint(canvas, person, shot, centre, unit):
    """Paints a person onto a picture, in place.

    Args:
        canvas: (height, width, 3) float32 RGB, grey levels.
        person: who.
        shot: how.
        centre: (x, y) pixels of the point between the irises.
        unit: pixels between the irises of the frontal head.

    Returns:
        `(landmarks, box)`: left eye, right eye, nose and mouth corners, (5, 2) float32, and x0, y0, x1, y1; pixels of
        the canvas.
    """
    hair = person.hair
    rotation = _rotation(shot)
    features = face_model.mean_features([person.age], [person.gender], [person.group], shot.covariates[None])[0]
    points = face_model.shape(features, person.shape) @ rotation.T
    texture = face_model.texture(features, person.texture, person.grain)
    texture = np.clip(texture * person.tone.astype(np.float32), 0, 255)
    chin, cheek, *temples = (
        texture[face_model.patch(*box)].mean(axis=(0, 1))
        for box in ((-0.4, 0.4, 1.3, 1.6), (-0.8, 0.8, 0.2, 0.7), (-1.25, -1, -0.7, -0.3), (1, 1.25, -0.7, -0.3))
    )
    skin = 0.35 * chin + 0.65 * cheek
    hair = dataclasses.replace(hair, colour=0.6 * hair.colour + 0.15 * sum(temples))

    x0, x1 = max(0, int(centre[0] - 2.8 * unit)), min(canvas.shape[1], int(centre[0] + 2.8 * unit))
    y0 = max(0, int(centre[1] - 2.6 * unit))
    view = canvas[y0:, x0:x1]
    y, x = np.mgrid[y0 : canvas.shape[0], x0:x1].astype(np.float32)
    x, y = (x - np.float32(centre[0])) / np.float32(unit), (y - np.float32(centre[1])) / np.float32(unit)
    light = (1 - 0.16 * shot.light * np.clip(x, -1.5, 1.5))[..., None] * shot.gain.astype(np.float32)
    edge = 1.5 / unit  # softness of an edge

    if hair.long:
        back_u, back_v = _head_plane(x, y, shot, 0.9)
        opacity, _ = _hair_outside(back_u, back_v, hair, edge)
        _blend(view, _hair_colour(hair, back_u * 6 + 7, back_v) * 0.6 * light, opacity)
    below = slice(np.searchsorted(y[:, 0], 0.9), None)
    _paint_body(view[below], x[below], y[below], light[below], person, shot, skin, edge)
    if not hair.long:
        level = slice(*np.searchsorted(y[:, 0], (-0.6, 1.2)))
        _paint_ears(view[level], *_head_plane(x[level], y[level], shot, 0.6), light[level], skin, edge)

    # The head: the texture, inside the jaw and the skull, in the shadow of the hair.
    origin = np.subtract(centre, (x0, y0))
    skull_top = np.stack([1.13 * _ARC[0], 0.1 - 1.85 * _ARC[1], np.full(_ARC.shape[1], 0.3)], axis=1)
    outline = np.concatenate([points[_JAW], skull_top @ rotation.T])[:, :2] * unit + origin
    mask = np.zeros(view.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.rint(outline * 16).astype(np.int32)], 255, lineType=cv2.LINE_AA, shift=4)
    mask = cv2.GaussianBlur(mask, (0, 0), 0.025 * unit).astype(np.float32) / 255
    face = face_model.warp(texture, points, rotation, origin, unit, view.shape[:2])
    opening = _hair_opening(*_head_plane(x, y, shot, 0.15), hair)
    shadow = 1 - 0.4 * np.exp(-np.clip(-opening, 0, None) / 0.12)
    _blend(view, face * shadow[..., None] * light, mask)

    front_u, front_v = _head_plane(x, y, shot, 0.3)
    opacity, distance = _hair_outside(front_u, front_v, hair, edge)
    fan = np.arctan2(front_u, 0.7 - front_v)  # short hair and a fringe stand away from the face
    wisps = 0.03 * _strands(hair.locks, fan * 9) + 0.03 * _strands(hair.waves, fan * 25)
    inside = _smooth((opening + wisps * _smooth(0.6 - front_v)) / 0.30 + 0.3)
    if hair.long and not hair.fringe:
        flow = opening / np.maximum(opening + distance, 0.05) * 6
    else:
        above = _smooth(0.4 - 1.5 * front_v)
        flow = above * fan * 15 + (1 - above) * front_u * 10
    colour = _hair_colour(hair, flow, front_v) * (0.6 + 0.4 * _smooth(opening / 0.3))[..., None]
    _blend(view, colour * light, opacity * inside)

    landmarks = points[_FIVE, :2]
    landmarks[2] = points[_NOSE_TIP, :2].mean(axis=0)
    oval = points[_OVAL, :2] * unit + centre
    box = tuple(float(c) for c in (*oval.min(axis=0), *oval.max(axis=0)))
    return (landmarks * unit + centre).astype(np.float32), box


def _paint_body(view, x, y, light, person, shot, skin, edge):
    """Neck, shoulders and clothes: they follow the place of the head, not its turn."""
    child = min(max((14 - person.age) / 12, 0.0), 1.0)
    x = x + 0.5 * math.sin(shot.roll) * (y - 1.2) - 0.7 * math.sin(shot.yaw)
    width = (0.70 if GENDERS[person.gender] == "Female" else 0.82) * (1 - 0.15 * child)
    width = width + 0.35 * np.clip(y - 1.9, 0, 1) ** 2
    across = np.abs(x) / width
    under_jaw = 1 - 0.34 * np.exp(-(((y - 1.5) / 0.4) ** 2))
    shade = 0.95 * under_jaw * (1 - 0.3 * across * across)
    _blend(view, skin * shade[..., None] * light, _smooth((1 - across) * width / edge) * _smooth((y - 1.0) / 0.3))
    aside = np.clip(np.abs(x) / 2.4, 0, 1)
    shoulder = 2.0 + 0.7 * _smooth((np.abs(x) - 0.5) / 2.4) + 0.9 * (1 - np.sqrt(1 - aside**4))
    collar = shoulder + 0.32 * np.clip(1 - (x / 0.74) ** 2, 0, None)
    folds = 0.95 + 0.03 * _strands(person.hair.waves, x * 3 + y) - 0.1 * np.abs(x)
    seam = 1 - 0.25 * np.exp(-(((y - collar) / 0.05) ** 2))
    cloth = shot.cloth.astype(np.float32) * (folds * seam)[..., None]
    _blend(view, cloth * light, _smooth((y - collar) / edge) * _smooth((1 - aside) * 2.4 / edge))


def _paint_ears(view, u, v, light, skin, edge):
    """Ears, on their plane of the head."""
    for side in (-1, 1):
        rim = np.hypot((u - side * 1.10) / 0.15, (v - 0.30) / 0.36)
        hollow = np.exp(-(((u - side * 1.15) / 0.07) ** 2) - ((v - 0.25) / 0.2) ** 2)
        _blend(view, skin * (0.84 - 0.3 * hollow)[..., None] * light, _smooth((1 - rim) * 0.15 / edge))


_FIVE = [face_model.CONTROL.index(i) for i in (468, 473, 4, 61, 291)]
_NOSE_TIP = [face_model.CONTROL.index(i) for i in (4, 1)]
_OVAL = [face_model.CONTROL.index(i) for i in face_model.OVAL]
_JAW = [face_model.CONTROL.index(i) for i in face_model.OVAL[8:29]]  # from ear to ear below the chin
_ANGLES = np.linspace(np.pi, 0, 40)[1:-1]
_ARC = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)])
_ARC /= (np.abs(_ARC) ** 2.5).sum(axis=0) ** (1 / 2.5)  # a little squarer than a circle, as skulls are


def _hair_outside(u, v, hair, edge):
    """Opacity of the hair seen from its outer side, and the distance from there, in units."""
    width, top = 1.17 + 0.8 * hair.volume, 1.72 + 1.0 * hair.volume
    cap = (1 - (np.abs(u / width) ** 2.5 + np.abs((v + 0.1) / top) ** 2.5) ** 0.4) * width
    curtain = width - np.abs(u)
    if hair.long:
        curtain = curtain + 0.2 * _smooth((v + 0.1) / 2) * 2 * hair.volume / 0.2
    distance = np.where(v < -0.1, cap, curtain)
    ragged = 0.04 * _strands(hair.locks, u * 1.5 + v * 2) + 0.01 * _strands(hair.waves, (u + v) * 11)
    ends = hair.length + 0.06 * _strands(hair.waves, u * 8)
    fade = 0.45 if hair.long else 0.25
    return _smooth((distance + ragged) / (0.13 + edge)) * _smooth((ends - v) / fade + 0.5), np.clip(distance, 0, None)


def _hair_opening(u, v, hair):
    """Signed distance outside the opening of the hair around the face, in units."""
    narrow = 0.97 if hair.long else 1.03
    power = 4.0 if hair.fringe else 1.9 if hair.long else 3.0
    shift = 0 if hair.fringe else hair.part * np.clip(-v, 0, 1) ** 2
    up = np.clip((0.3 - v) / (0.3 - hair.top), 0, None)
    return ((np.abs((u - shift) / narrow) ** power + up**power) ** (1 / power) - 1) * narrow


def _hair_colour(hair, flow, v):
    """Colour of the hair, (height, width, 3), from the coordinate across the strands and the height."""
    wave = hair.curl * 1.5 * _strands(hair.waves, v * 4 + 0.5 * flow)
    strand = _strands(hair.locks, flow + wave) + 0.7 * _strands(hair.waves, 3 * flow + wave)
    shine = (0.3 - 0.2 * hair.curl) * np.exp(-(((v + 1.2) / 0.25) ** 2))
    return hair.colour * np.clip(0.95 + 0.10 * strand + shine, 0.3, 2)[..., None]


def cloth(rng):
    """A colour of clothes or walls, RGB float64 (3,)."""
    colour = np.uint8([[[rng.integers(180), rng.integers(0, 130), rng.integers(40, 230)]]])
    return cv2.cvtColor(colour, cv2.COLOR_HSV2RGB)[0, 0].astype(np.float64)


BACKGROUNDS = ("plain", "wall", "garden", "lights", "sky")


def background(rng, height, width):
    """A blurred scene, (height, width, 3) float32 RGB, and its name, one of BACKGROUNDS."""
    name = str(rng.choice(BACKGROUNDS))
    y = np.linspace(0, 1, height)[:, None, None]
    base = cloth(rng) * 0.6 + 50
    other = cloth(rng) * 0.6 + 50

    def clouds(cells, channels=1):
        coarse = rng.standard_normal((cells, max(2, cells * width // height), channels), np.float32)
        field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        return field.reshape(height, width, channels)

    if name == "plain":
        scene = base + (other - base) * 0.25 * y + 3 * clouds(4)
    elif name == "wall":
        scene = np.array([205, 198, 188]) * rng.uniform(0.5, 1.1) + 6 * clouds(3) + 0 * y
        left = int(rng.integers(width))
        scene[:, left:] *= rng.uniform(0.75, 0.95)
        scene = cv2.GaussianBlur(scene, (0, 0), max(1, width / 60))
    elif name == "garden":
        green = np.array([88, 104, 66]) * rng.uniform(0.7, 1.4)
        scene = green * (1 + 0.2 * clouds(5) + 0.15 * clouds(12)) + 6 * clouds(6, 3)
    elif name == "lights":
        scene = 40 + 0.3 * base + 8 * clouds(5, 3) + 0 * y
        for _ in range(14):
            spot = (int(rng.integers(width)), int(rng.integers(height)))
            radius = int(rng.uniform(0.03, 0.09) * height) + 1
            layer = scene.copy()
            cv2.circle(layer, spot, radius, (cloth(rng) * 0.5 + 110).tolist(), -1, cv2.LINE_AA)
            scene += 0.4 * (layer - scene)
        scene = cv2.GaussianBlur(scene, (0, 0), max(1, height / 80))
    else:
        blue = np.array([130, 170, 215]) * rng.uniform(0.8, 1.1)
        scene = blue + (np.array([225, 228, 232]) - blue) * y + 10 * clouds(5)
    return np.clip(scene, 0, 255).astype(np.float32), name


def finish(canvas, rng):
    """Noise of the sensor, then rounding: float32 to uint8; the canvas is used up."""
    canvas += 2 * rng.standard_normal(canvas.shape[:2], np.float32)[..., None]
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)
