"""The statistical face model: an active appearance model with a 3-D shape.

Cootes, Edwards and Taylor, "Active Appearance Models", ECCV 1998, fitted by `scripts/fit_face_model.py` on FairFace
(CC BY 4.0; `tfface/assets/face_model.md`):

    shape   = mean(age, gender, group, expression, pose) + identity @ shape components
    texture = mean(age, gender, group, expression, pose, light) + identity @ texture components

The texture lies in one frame for all faces; a thin-plate spline through the landmarks leads from there to a picture.
Sums run in a fixed order, not in a threaded BLAS, so that the same numbers give the same bytes.
"""

from __future__ import annotations

import functools
import importlib.resources

import cv2
import numpy as np

from tfface.labels import FAIRFACE_RACES

# The frame of the texture: unit = distance between the irises, origin = the point halfway between them, y down,
# z away from the camera.
FRAME_UNIT = 52
FRAME_WIDTH, FRAME_HEIGHT = 160, 168
FRAME_ORIGIN = (80.0, 54.0)

# Landmarks of MediaPipe's face mesh that carry the shape. Its left and right are the person's; here they are the
# picture's.
_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
_INNER_LIPS = (78, 95, 88, 178, 87, 14, 317, 402, 318, 324, 308, 415, 310, 311, 312, 13, 82, 81, 80, 191)
_LEFT_EYE = (33, 7, 163, 144, 145, 153, 154, 155, 133, 173, 157, 158, 159, 160, 161, 246)
_RIGHT_EYE = (263, 249, 390, 373, 374, 380, 381, 382, 362, 398, 384, 385, 386, 387, 388, 466)
_BROWS = (46, 53, 52, 65, 55, 70, 63, 105, 66, 107, 276, 283, 282, 295, 285, 300, 293, 334, 296, 336)
OVAL = (10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377)
OVAL += (152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109)
_NOSE = (168, 6, 197, 195, 5, 4, 1, 19, 94, 2, 98, 97, 326, 327, 64, 294, 48, 278, 129, 358, 49, 279)
_CHEEKS = (50, 280, 205, 425, 117, 346, 101, 330, 187, 411, 123, 352, 207, 427)
_FOREHEAD_AND_CHIN = (151, 9, 8, 69, 299, 104, 333, 200, 199, 175, 18)
_IRISES = (468, 469, 470, 471, 472, 473, 474, 475, 476, 477)
CONTROL = _LIPS + _INNER_LIPS + _LEFT_EYE + _RIGHT_EYE + _BROWS + OVAL + _NOSE + _CHEEKS + _FOREHEAD_AND_CHIN + _IRISES

_TURN = np.arange(20) * (2 * np.pi / 20)
SKULL = np.stack([1.75 * np.cos(_TURN), 0.45 + 2.25 * np.sin(_TURN), np.full(20, 0.75)], axis=1)
"""Points around the head that only follow its pose: they hold the warp where there are no landmarks."""

AGE_KNOTS = (1.0, 6.0, 15.0, 25.0, 35.0, 45.0, 55.0, 65.0, 75.0)
"""Middle of each of FairFace's age groups, years."""

COVARIATES = ("mouth width", "mouth opening", "mouth corners", "eye opening", "light from left", "light from top")
COVARIATES += ("yaw", "pitch")

GENDER_FACTOR, AGE_FACTOR, GROUP_FACTOR = 1.5, 1.2, 1.2
"""How much the conditional means are exaggerated, so that a small network learns them from few pictures."""


def spline(source, target, at, smoothing):
    """The smoothing thin-plate spline that takes points to others, at further points.

    Bookstein, "Principal warps", PAMI 1989, equation 5: a(x) + sum of w * r^2 log r^2, here through a ridge.

    Args:
        source: (n, 2) points in pixels.
        target: (n, k) values there.
        at: (m, 2) points in pixels.
        smoothing: added to the diagonal of the kernel matrix, pixels squared; 0 interpolates.

    Returns:
        (m, k) float64.
    """

    def kernel(a, b):
        squared = (a[:, :1] - b[None, :, 0]) ** 2
        squared += (a[:, 1:] - b[None, :, 1]) ** 2
        return squared * np.log(squared + 1e-9)

    n = len(source)
    system = np.zeros((n + 3, n + 3))
    system[:n, :n] = kernel(source, source) + 2 * smoothing * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    system[:n, n + 1 :] = source
    system[n + 1 :, :n] = source.T
    weights = np.linalg.solve(system, np.concatenate([target, np.zeros((3, target.shape[1]))]))
    return kernel(at, source) @ weights[:n] + weights[n] + at @ weights[n + 1 :]


def to_frame(points):
    """Points (n, 2 or 3) in units of the frame as (n, 2) pixels of the texture."""
    return np.asarray(points)[:, :2] * FRAME_UNIT + FRAME_ORIGIN


def grid(width, height, step):
    """Pixel coordinates (rows, columns, 2) every `step` pixels, one step past the right and bottom edge."""
    y, x = np.mgrid[0 : height + step : step, 0 : width + step : step]
    return np.stack([x, y], axis=2).astype(np.float64)


FRAME_STEP = 4
"""Pixels of the frame between the places where the spline is evaluated."""

_FRAME_GRID = grid(FRAME_WIDTH, FRAME_HEIGHT, FRAME_STEP)


def frame_spline(frame_points):
    """Matrix that takes the places of the control points and the skull to those of the grid over the frame.

    The spline is linear in its targets: its values for unit vectors serve every face.

    Args:
        frame_points: (n, 3) control points of the mean face, in units of the frame.

    Returns:
        (rows * columns of the grid, n + 20) float64.
    """
    source = to_frame(np.concatenate([frame_points, SKULL]))
    return spline(source, np.eye(len(source)), _FRAME_GRID.reshape(-1, 2), smoothing=50.0)


def fill_grid(coarse, width, height, step):
    """A (rows, columns, 2) field known on `grid(width, height, step)` as a (height, width, 2) float32 map."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / np.float32(step)
    return cv2.remap(coarse.astype(np.float32), x, y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)


def mean_features(age, gender, group, covariates):
    """The regressors of the conditional mean.

    Args:
        age: years, (n,).
        gender: index in GENDERS, (n,).
        group: index in FAIRFACE_RACES, (n,).
        covariates: (n, len(COVARIATES)) standardised.

    Returns:
        (n, 9 + 1 + 9 + 7 + 8) float64: linear splines of the age, gender, both together, group, covariates.
    """
    age, gender = np.asarray(age, np.float64), np.asarray(gender)
    splines = np.stack([np.interp(age, AGE_KNOTS, knot) for knot in np.eye(len(AGE_KNOTS))], axis=1)
    side = gender[:, None] - 0.5
    return np.column_stack([splines, side, splines * side, np.eye(len(FAIRFACE_RACES))[group], covariates])


def domains():
    """Where the texture is defined: (FRAME_HEIGHT, FRAME_WIDTH) bool, and the same at a quarter for the chromas."""
    y, x = np.mgrid[0:FRAME_HEIGHT, 0:FRAME_WIDTH] + 0.5
    x, y = (x - FRAME_ORIGIN[0]) / FRAME_UNIT, (y - FRAME_ORIGIN[1]) / FRAME_UNIT
    inside = (x / 1.42) ** 4 + ((y - 0.55) / 1.5) ** 4 < 1
    blocks = inside.reshape(FRAME_HEIGHT // 4, 4, FRAME_WIDTH // 4, 4)
    return inside, blocks.any(axis=(1, 3))


def on_frame(values):
    """Points (rows * columns of the grid, 2) as a map over the frame, (FRAME_HEIGHT, FRAME_WIDTH, 2) float32."""
    return fill_grid(values.reshape(_FRAME_GRID.shape), FRAME_WIDTH, FRAME_HEIGHT, FRAME_STEP)


def patch(left, right, top, bottom):
    """A box in units of the frame as slices (rows, columns) of the texture."""
    x, y = FRAME_ORIGIN
    return (
        slice(int(y + top * FRAME_UNIT), int(y + bottom * FRAME_UNIT)),
        slice(int(x + left * FRAME_UNIT), int(x + right * FRAME_UNIT)),
    )


@functools.cache
def load():
    """The fitted arrays, textures as float32, shapes as float64, and what follows from them."""
    with importlib.resources.files("tfface").joinpath("assets/face_model.npz").open("rb") as file:
        stored = np.load(file)
        model = {name: stored[name] for name in stored.files}
    for name in ("texture_effect", "texture_component"):
        model[name + "s"] = model[name + "s"] * model.pop(name + "_scales")[:, None]
    for name in ("frame_points", "shape_mean", "shape_effects", "shape_components"):
        model[name] = model[name].astype(np.float64)
    model["domain"], model["chroma_domain"] = domains()
    factors = np.ones(len(model["texture_effects"]))
    ages, groups = len(AGE_KNOTS), len(FAIRFACE_RACES)
    factors[:ages] = AGE_FACTOR
    factors[ages : 2 * ages + 1] = GENDER_FACTOR
    factors[2 * ages + 1 : 2 * ages + 1 + groups] = GROUP_FACTOR
    model["factors"] = factors
    # Pixels outside the domain take the value of the nearest one on the way to its centre.
    y, x = np.mgrid[0:FRAME_HEIGHT, 0:FRAME_WIDTH] + 0.5
    u, v = (x - FRAME_ORIGIN[0]) / FRAME_UNIT, (y - FRAME_ORIGIN[1]) / FRAME_UNIT - 0.55
    shrink = np.minimum(1, 0.94 / ((u / 1.42) ** 4 + (v / 1.5) ** 4) ** 0.25)
    fill_x = np.clip(u * shrink * FRAME_UNIT + FRAME_ORIGIN[0], 0, FRAME_WIDTH - 1).astype(int)
    fill_y = np.clip((v * shrink + 0.55) * FRAME_UNIT + FRAME_ORIGIN[1], 0, FRAME_HEIGHT - 1).astype(int)
    model["fill"] = (fill_y, fill_x)
    model["outside"] = cv2.GaussianBlur((shrink < 1).astype(np.float32), (0, 0), 2)[..., None]
    model["spline"] = np.ascontiguousarray(frame_spline(model["frame_points"]).T)
    # What the components leave of the luma, as the size of the grain of the skin.
    grain = np.zeros((FRAME_HEIGHT, FRAME_WIDTH), np.float32)
    grain[model["domain"]] = 0.35 * np.minimum(model["texture_residual"][: model["domain"].sum()], 12)
    model["grain"] = grain[fill_y, fill_x]
    return model


def _combine(weights, rows):
    """The weighted sum of rows, added in their order."""
    return np.einsum("i,ij->j", weights.astype(rows.dtype), rows)


def shape(features, coefficients):
    """The control points of a face, frontal, (n, 3) in units of the frame.

    Args:
        features: (34,), a row of `mean_features`.
        coefficients: (40,) of the shape components, standard normal over people.
    """
    model = load()
    flat = model["shape_mean"] + _combine(features * model["factors"], model["shape_effects"])
    return (flat + _combine(coefficients, model["shape_components"])).reshape(-1, 3)


def own_texture(coefficients):
    """What sets the texture of one identity apart from the mean of its age, gender and group.

    Args:
        coefficients: (96,) of the texture components, standard normal over people.

    Returns:
        A vector over the domains, for `texture`.
    """
    return _combine(coefficients, load()["texture_components"])


def texture(features, own, grain):
    """The colours of a face in the frame, (FRAME_HEIGHT, FRAME_WIDTH, 3) float32 RGB, grey levels, not clipped.

    Args:
        features: (34,), a row of `mean_features`.
        own: `own_texture` of the identity.
        grain: (FRAME_HEIGHT, FRAME_WIDTH) standard normal: the fine structure of the skin.
    """
    model = load()
    vector = model["texture_mean"] + _combine(features * model["factors"], model["texture_effects"]) + own
    pixels, blocks = model["domain"].sum(), model["chroma_domain"].sum()
    luma = np.zeros((FRAME_HEIGHT, FRAME_WIDTH), np.float32)
    luma[model["domain"]] = vector[:pixels]
    chroma = np.zeros((2, FRAME_HEIGHT // 4, FRAME_WIDTH // 4), np.float32)
    chroma[:, model["chroma_domain"]] = vector[pixels:].reshape(2, blocks)
    red, blue = (cv2.resize(c, (FRAME_WIDTH, FRAME_HEIGHT), interpolation=cv2.INTER_LINEAR) for c in chroma)
    rgb = np.stack([luma + 1.403 * red, luma - 0.714 * red - 0.344 * blue, luma + 1.773 * blue], axis=2)
    rgb = rgb[model["fill"]]
    rgb += model["outside"] * (cv2.GaussianBlur(rgb, (0, 0), 5) - rgb)
    rgb += (grain * model["grain"])[..., None]
    return rgb


def warp(texture, points, rotation, centre, unit, size):
    """The texture on the turned control points, by inverting the spline that the fit read it with.

    Args:
        texture: (FRAME_HEIGHT, FRAME_WIDTH, 3) float32.
        points: (n, 3) control points, turned, in units of the frame.
        rotation: (3, 3) of the head.
        centre: (x, y) pixels of the origin.
        unit: pixels a unit.
        size: (height, width) of the result.

    Returns:
        (height, width, 3) float32, grey levels.
    """
    height, width = size
    step = max(3, round(unit / 10))
    at = (grid(width, height, step) - centre) / unit
    source = np.concatenate([points, SKULL @ rotation.T])[:, :2]
    forward = np.stack([_combine(axis, load()["spline"]) for axis in source.T], axis=1)
    forward = forward.reshape(_FRAME_GRID.shape).astype(np.float32)
    # Where in the frame does the spline lead to each place of the picture? Damped fixed-point steps, the map being
    # near to the roll of the head; the damping keeps a wide open mouth from overshooting.
    unroll = rotation[:2, :2].T
    where = at @ unroll.T
    for _ in range(14):
        pixels = (to_frame(where.reshape(-1, 2)) / FRAME_STEP).reshape(where.shape).astype(np.float32)
        reached = cv2.remap(forward, pixels, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        where = np.clip(where + 0.5 * (at - reached) @ unroll.T, -4, 4)
    where = fill_grid(where * FRAME_UNIT + FRAME_ORIGIN, width, height, step)
    face = cv2.remap(texture, where, None, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return np.clip(face, 0, 255)
