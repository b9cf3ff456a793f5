"""Fits the statistical face model behind `tfface.faces.synthesize` on FairFace.

An active appearance model (Cootes, Edwards and Taylor, "Active Appearance Models", ECCV 1998) with a 3-D shape: every
training face is brought to one frame by its landmarks; shape and texture are then a least-squares mean, conditional
on age, gender, group, expression, light and yaw, plus the principal components of what is left.

    python -m venv fit && fit/bin/pip install mediapipe==0.10.21 scipy tqdm
    PYTHONPATH=. fit/bin/python scripts/fit_face_model.py --fairface DIR --out tfface/assets/face_model.npz

DIR holds `train/` and `fairface_label_train.csv` (FairFace, CC BY 4.0). MediaPipe (Apache 2.0) measures landmarks and
separates the person from the background; it needs numpy below 2, hence the environment of its own. About half an
hour on two cores; what MediaPipe measured is kept in `--cache`, a second fit takes some minutes.
"""

from __future__ import annotations

import argparse
import csv
import os
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from tfface.faces import face_model, synthesize
from tfface.labels import FAIRFACE_AGES, FAIRFACE_RACES, GENDERS

MOST_YAW = 16.0  # degrees; a face turned further shows too little of one cheek
LEAST_EYE_DISTANCE = 44.0  # pixels between the irises; smaller faces are too blurred for the texture
COMPONENTS = 96
SHAPE_COMPONENTS = 40
RIDGE = 20.0  # in units of one training face, so that rare combinations lean on the common ones
IMPUTATIONS = 4  # rounds of filling what a photo does not show from the components found so far


def read_labels(folder):
    """FairFace's training labels of the files that are there, as {file: (age bin, gender, group)} of indices."""
    months = {"03-Sep": "3-9", "9-Mar": "3-9", "Oct-19": "10-19", "19-Oct": "10-19"}  # what spreadsheets did
    with open(folder / "fairface_label_train.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if (folder / row["file"]).exists()]
    return {
        row["file"]: (
            FAIRFACE_AGES.index(months.get(row["age"], row["age"])),
            GENDERS.index(row["gender"]),
            FAIRFACE_RACES.index(row["race"]),
        )
        for row in rows
    }


def measure(folder, files, cache):
    """Landmarks (478, 3) in pixels and person masks (112, 112) of the near-frontal faces, kept in `cache`."""
    if cache.exists():
        return np.load(cache)
    import mediapipe

    mesh = mediapipe.solutions.face_mesh.FaceMesh(
        static_image_mode=True, max_num_faces=1, refine_landmarks=True, min_detection_confidence=0.5
    )
    person = mediapipe.solutions.selfie_segmentation.SelfieSegmentation(model_selection=0)
    kept, points, masks = [], [], []
    for file in tqdm(files, desc="landmarks"):
        image = cv2.cvtColor(cv2.imread(str(folder / file)), cv2.COLOR_BGR2RGB)
        found = mesh.process(image).multi_face_landmarks
        if not found:
            continue
        height, width = image.shape[:2]
        face = np.array([(p.x * width, p.y * height, p.z * width) for p in found[0].landmark], np.float32)
        across, down = face[454] - face[234], face[152] - face[10]
        turn = np.degrees(np.arctan2(across[2], np.hypot(*across[:2])))
        nod = np.degrees(np.arctan2(down[2], np.hypot(*down[:2])))
        if max(abs(turn), abs(nod)) > 28:
            continue
        mask = person.process(image).segmentation_mask
        kept.append(file)
        points.append(face)
        masks.append(cv2.resize((mask * 255).astype(np.uint8), (112, 112), interpolation=cv2.INTER_AREA))
    partial = cache.with_name("." + cache.name)
    np.savez(partial, files=np.array(kept), points=np.array(points), masks=np.array(masks))
    os.replace(partial, cache)
    return np.load(cache)


def similarity(source, target):
    """Scale, rotation and translation that take (n, 3) points nearest to others (Umeyama, PAMI 1991)."""
    from_centre, to_centre = source.mean(axis=0), target.mean(axis=0)
    source, target = source - from_centre, target - to_centre
    left, values, right = np.linalg.svd(target.T @ source)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation = (left * sign) @ right
    scale = (values * sign).sum() / (source**2).sum()
    return scale, rotation, to_centre - scale * rotation @ from_centre


def mean_face(points):
    """Mean of (faces, 478, 3) landmarks in the frame of `synthesize`: level, frontal, irises one unit apart."""
    mean = points[0]
    for _ in range(4):
        total = np.zeros_like(mean)
        for face in points:
            scale, rotation, shift = similarity(mean, face)
            total += (face - shift) @ rotation / scale
        mean = total / len(points)
        mean -= (mean[468] + mean[473]) / 2
        across = mean[454] - mean[234]
        across /= np.linalg.norm(across)
        down = mean[152] - mean[10]
        down -= across * (across @ down)
        down /= np.linalg.norm(down)
        mean = mean @ np.stack([across, down, np.cross(across, down)], axis=1)
        mean /= np.linalg.norm(mean[473] - mean[468])
    return mean


FACE = face_model.patch(-0.9, 0.9, -0.5, 1.4)
BRIDGE = face_model.patch(-0.1, 0.1, -0.25, 0.35)
FOREHEAD, CHIN = face_model.patch(-0.4, 0.4, -0.7, -0.4), face_model.patch(-0.3, 0.3, 1.35, 1.6)
LEFT_CHEEK, RIGHT_CHEEK = face_model.patch(-0.75, -0.35, 0.4, 0.9), face_model.patch(0.35, 0.75, 0.4, 0.9)


def good(texture):
    """Whether a texture is sharp, in colour, well lit and without glasses.

    Glasses show as an edge across the bridge of the nose, where skin has none.
    """
    ycc = cv2.cvtColor(texture, cv2.COLOR_RGB2YCrCb).astype(np.float32)
    grey = ycc[..., 0]
    contrast = grey[FACE].std() + 5
    bridge = np.abs(cv2.Sobel(cv2.GaussianBlur(grey, (0, 0), 1.0), cv2.CV_32F, 0, 1))[BRIDGE].mean(axis=1).max()
    sharpness = cv2.Laplacian(grey[FACE], cv2.CV_32F).std()
    return (
        bridge < 1.5 * contrast
        and sharpness > 0.19 * contrast
        and 7 < np.abs(ycc[..., 1] - 128).mean() < 30
        and 60 < grey[FACE].mean() < 190
    )


def textures(folder, measured, mean):
    """What the fit reads off the good photos: textures, visibility, shapes in the frame, poses and file names."""
    control = list(face_model.CONTROL)
    matrix = face_model.frame_spline(mean[control])
    found = []
    for file, face, mask in zip(
        tqdm(measured["files"], desc="textures"), measured["points"], measured["masks"], strict=True
    ):
        scale, rotation, shift = similarity(mean, face.astype(np.float64))
        yaw, pitch = np.degrees(np.arcsin([rotation[0, 2], rotation[2, 1]]))
        if max(abs(yaw), abs(pitch)) > MOST_YAW or scale < LEAST_EYE_DISTANCE:
            continue
        target = np.concatenate([face[control], scale * face_model.SKULL @ rotation.T + shift])[:, :2]
        where = face_model.on_frame(matrix @ target)
        image = cv2.cvtColor(cv2.imread(str(folder / file)), cv2.COLOR_BGR2RGB)
        texture = cv2.remap(image, where, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        visible = cv2.remap(mask.astype(np.float32), where / 2, None, cv2.INTER_LINEAR, borderValue=-1) > 150
        if visible.mean() > 0.5 and good(texture):
            found.append((texture, visible, ((face - shift) @ rotation / scale), (yaw, pitch), str(file)))
    return [np.array(column) for column in zip(*found, strict=True)]


def cheek_colour(images):
    """Log of the mean colour of both cheeks and the forehead, (n, 3)."""
    skin = np.concatenate([images[(slice(None), *box)].reshape(len(images), -1, 3) for box in SKIN], axis=1)
    return np.log(skin.mean(axis=1) + 5)


SKIN = (LEFT_CHEEK, RIGHT_CHEEK, FOREHEAD)


def covariates(images, shapes, poses):
    """Expression, light and pose of each face, (n, 8) in the order of `face_model.COVARIATES`."""

    def brightness(box):
        return np.log(images[(slice(None), *box)].reshape(len(images), -1).mean(axis=1) + 5)

    return np.column_stack(
        [
            np.linalg.norm(shapes[:, 291] - shapes[:, 61], axis=1),
            shapes[:, 14, 1] - shapes[:, 13, 1],
            (shapes[:, 61, 1] + shapes[:, 291, 1] - shapes[:, 0, 1] - shapes[:, 17, 1]) / 2,
            (shapes[:, 145, 1] - shapes[:, 159, 1] + shapes[:, 374, 1] - shapes[:, 386, 1]) / 2,
            brightness(LEFT_CHEEK) - brightness(RIGHT_CHEEK),
            brightness(FOREHEAD) - brightness(CHIN),
            poses,
        ]
    )


def regress(features, target, ridge=RIDGE):
    """Ridge regression, age and gender by themselves not shrunk: (features, targets)."""
    penalty = np.full(features.shape[1], ridge)
    penalty[: len(face_model.AGE_KNOTS) + 1] = 1.0
    gram = features.T @ features + np.diag(penalty)
    return np.linalg.solve(gram, (features.T.astype(np.float32) @ target.astype(np.float32)).astype(np.float64))


def principal_components(residual, count, rng):
    """The first principal directions of the rows, by the randomised method of Halko et al. (SIAM Review 2011)."""
    basis = rng.standard_normal((residual.shape[1], count + 16)).astype(np.float32)
    for _ in range(3):
        basis, _ = np.linalg.qr(residual.T @ (residual @ basis))
    _, _, directions = np.linalg.svd(residual @ basis, full_matrices=False)
    return (directions @ basis.T)[:count]


def vectors(images, visible):
    """Textures as rows (luma at full, both chromas at a quarter of the resolution) and what of them was seen."""
    inside, inside_chroma = face_model.domains()
    size = inside_chroma.shape[::-1]
    rows = np.empty((len(images), inside.sum() + 2 * inside_chroma.sum()), np.float32)
    seen = np.empty(rows.shape, bool)
    for row, flag, image, mask in zip(rows, seen, images, visible, strict=True):
        ycc = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2YCrCb) * 255
        chroma = cv2.resize(ycc[..., 1:], size, interpolation=cv2.INTER_AREA) - 127.5
        mask_chroma = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) > 0.7
        row[:] = np.concatenate([ycc[..., 0][inside], *(chroma[inside_chroma].T)])
        flag[:] = np.concatenate([mask[inside], mask_chroma[inside_chroma], mask_chroma[inside_chroma]])
    return rows, seen


def quantise(rows):
    """Rows as int8 with one float32 scale each."""
    scale = np.abs(rows).max(axis=1) / 127
    return np.rint(rows / scale[:, None]).astype(np.int8), scale.astype(np.float32)


def centre_levels(effects):
    """Moves what all levels of age, and all groups, share into one mean row."""
    ages = slice(0, len(face_model.AGE_KNOTS))
    first = 2 * len(face_model.AGE_KNOTS) + 1
    groups = slice(first, first + len(FAIRFACE_RACES))
    mean = effects[ages].mean(axis=0) + effects[groups].mean(axis=0)
    effects[ages] -= effects[ages].mean(axis=0)
    effects[groups] -= effects[groups].mean(axis=0)
    return mean


def report_novelty(faces, explained, spread, directions, rng, count=500):
    """Prints how far drawn faces lie from the nearest face of the fit, and how far the faces of the fit do.

    Distances are root mean squares over the texture in grey levels, all faces as the model tells them.
    """
    chosen = rng.choice(len(faces), count, replace=False)
    coefficients = synthesize.SPREAD * synthesize.bounded_normal(rng, (count, len(spread))).astype(np.float32)
    drawn = explained[chosen] + (coefficients * spread) @ directions
    squares = (faces**2).sum(axis=1)
    for name, some in (("drawn", drawn), ("of the fit", faces[chosen])):
        squared = (some**2).sum(axis=1)[:, None] + squares - 2 * some @ faces.T
        if some is not drawn:
            squared[np.arange(count), chosen] = np.inf
        nearest = np.sqrt(np.clip(squared.min(axis=1), 0, None) / faces.shape[1])
        print(
            f"{name}: nearest face at {np.median(nearest):.1f} grey levels in the median, {nearest.min():.1f} at least"
        )


def fit(folder, measured, labels, seed):
    """The arrays of the model."""
    rng = np.random.default_rng(seed)
    mean = mean_face(measured["points"][:2000].astype(np.float64))
    images, visible, shapes, poses, files = textures(folder, measured, mean)
    age, gender, group = np.array([labels[file] for file in files]).T
    age = np.array(face_model.AGE_KNOTS)[age]
    print(f"{len(files)} good faces; by gender {np.bincount(gender)}, by group {np.bincount(group)}")

    # Exposure and white balance say nothing about a person: what of them age and group do not explain is taken out.
    traits = face_model.mean_features(age, gender, group, np.empty((len(files), 0)))
    colour = cheek_colour(images)
    gain = np.exp(traits @ regress(traits, colour) - colour)
    for image, factor in zip(images, gain, strict=True):
        image[:] = np.clip(image * factor, 0, 255)

    # Expression, light and pose are measured beyond what age, gender and group explain, whose means stay whole.
    raw = covariates(images, shapes, poses)
    raw -= traits @ regress(traits, raw)
    features = np.column_stack([traits, np.clip(raw / raw.std(axis=0), -3, 3)])

    rows, seen = vectors(images, visible)
    del images, visible
    filled = np.where(seen, rows, (rows * seen).sum(axis=0) / np.maximum(seen.sum(axis=0), 1))
    counts = [*(16 * np.arange(1, IMPUTATIONS + 1)), COMPONENTS]
    for count in tqdm(counts, desc="components"):
        effects = regress(features, filled).astype(np.float32)
        explained = features.astype(np.float32) @ effects
        directions = principal_components(filled - explained, count, rng)
        coefficients = (filled - explained) @ directions.T
        error = np.where(seen, rows - explained - coefficients @ directions, 0)
        if count == counts[IMPUTATIONS - 1]:  # hands, hats, sunglasses: what the model cannot say
            size = np.sqrt((error**2).sum(axis=1) / seen.sum(axis=1))
            keep = size < np.quantile(size, 0.85)
            rows, seen, features, shapes = rows[keep], seen[keep], features[keep], shapes[keep]
            explained, coefficients = explained[keep], coefficients[keep]
        if count != COMPONENTS:
            filled = np.where(seen, rows, explained + coefficients @ directions)
    spread = coefficients.std(axis=0)
    print(f"{len(rows)} faces in the fit; residual {np.sqrt((error**2).sum() / seen.sum()):.2f} grey levels")

    report_novelty(explained + coefficients @ directions, explained, spread, directions, rng)

    flat = shapes[:, list(face_model.CONTROL)].reshape(len(shapes), -1)
    shape_effects = regress(features, flat)
    _, values, shape_directions = np.linalg.svd(flat - features @ shape_effects, full_matrices=False)
    shape_spread = values[:SHAPE_COMPONENTS] / np.sqrt(len(flat))

    texture_mean, shape_mean = centre_levels(effects), centre_levels(shape_effects)
    effects, effect_scales = quantise(effects)
    components, component_scales = quantise(directions * spread[:, None])
    return {
        "frame_points": mean[list(face_model.CONTROL)].astype(np.float32),
        "shape_mean": shape_mean.astype(np.float32),
        "shape_effects": shape_effects.astype(np.float16),
        "shape_components": (shape_directions[:SHAPE_COMPONENTS] * shape_spread[:, None]).astype(np.float16),
        "texture_mean": texture_mean.astype(np.float16),
        "texture_effects": effects,
        "texture_effect_scales": effect_scales,
        "texture_components": components,
        "texture_component_scales": component_scales,
        "texture_residual": np.sqrt((error**2).sum(axis=0) / np.maximum(seen[: len(error)].sum(axis=0), 1)).astype(
            np.float16
        ),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fairface", type=Path, required=True, help="folder with train/ and its CSV")
    parser.add_argument("--out", type=Path, required=True, help="the model, .npz")
    parser.add_argument("--cache", type=Path, default=Path("face_measurements.npz"), help="kept measurements")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    labels = read_labels(arguments.fairface)
    measured = measure(arguments.fairface, list(labels), arguments.cache)
    model = fit(arguments.fairface, measured, labels, arguments.seed)
    partial = arguments.out.with_name("." + arguments.out.name)
    np.savez_compressed(partial, **model)
    os.replace(partial, arguments.out)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
