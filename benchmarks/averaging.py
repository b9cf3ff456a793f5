"""What averaging shots brings: one shot against the mean of several of the same person, where the truth is known.

    python benchmarks/averaging.py --lfw FOLDER --genders FOLDER                      # good photos, ten a person
    python benchmarks/averaging.py --lfw FOLDER --genders FOLDER --least 5 --camera   # as a poor camera gives them
    python benchmarks/averaging.py --lfw FOLDER --genders FOLDER --least 1 --camera --races FILE
    python benchmarks/averaging.py --utkface DATA_DIR --camera --people 600           # age too; UTKFace's test part

Shots go the very way of the stream (`tfface.online.shots.ShotPredictor`): patch, landmarks by MTCNN, quality,
alignment, prediction; what it turns away is taken anew. Of each person there are `--shots`; then k of them are
averaged, plainly and weighted by quality, 40 times a person and k. It says for each k how often the answer is right (of
the age: years of error), how much that is better than one shot, and how often two means of k that share no shot
contradict one another. Intervals hold 95 % of 2,000 resamplings of the people. The last row is the stream's own rule:
the eight best of all.

`--camera`: each shot is a photo of the person as a camera gives a face that is far, moves and stands in poor light:
eyes 12 to 40 pixels apart, smeared along a line by up to 0.4 of that, light times 0.15 to 1, noise, coarse JPEG;
seeded. Without it every photo is one shot. Who has fewer photos than shots is shot several times from the same.

The truth. LFW has no labels of its own. `--genders` is a folder with female_names.txt and male_names.txt, the lists of
Afifi and Abdelhamed ("AFIF4: Deep gender classification based on AdaBoost-based fusion of isolated facial features and
foggy faces", arXiv:1706.04277), which they went through by hand three times. `--races` is lfw_race_dict.json of the
project usc-sail/mica-race-from-face; who has one of its labels caucasian, african, eastasian and asianindian and no
other counts, at most 100 of a group, and right answers are averaged over groups. `--utkface` is a folder of prepared
data sets (`tfface build utkface`); no shipped model was trained on its test part, whose ages are guesses of people.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np

from tfface import labels
from tfface.faces.crops import main_face
from tfface.faces.detect import load_detector
from tfface.faces.photos import read_photo
from tfface.online.shots import Shot, ShotPredictor, TrackShots
from tfface.tasks import Task, bins_of, years_of

DRAWS = 40

TRIES = 5
"""A shot that is turned away is taken anew, so many times at most over all shots of a person."""

GROUP = 100
"""People of a race at most: nearly all of LFW is white."""

RACES = {"caucasian": "White", "african": "Black", "eastasian": "Asian", "asianindian": "Indian"}


@dataclass(frozen=True)
class Person:
    """Photos of one person, files or encoded, and what is known: "gender", "race" (strings), "age" (years)."""

    name: str
    photos: tuple[Path | bytes, ...]
    truth: dict[str, str | int]


def people_of_lfw(folder: Path, genders: Path | None, races: Path | None, least: int) -> list[Person]:
    """People of LFW with so many photos and more whose gender, and if asked for race, is known."""
    said: dict[str, Counter] = {}
    for gender in labels.GENDERS if genders else ():
        for line in (genders / f"{gender.lower()}_names.txt").read_text().split():
            said.setdefault(line.removesuffix(".jpg").rsplit("_", 1)[0], Counter())[gender] += 1
    groups = {name: RACES.get(group) for name, group in json.loads(races.read_text()).items()} if races else {}
    people = []
    for path in sorted(folder.iterdir()):
        photos, name = tuple(sorted(path.glob("*.jpg"))), path.name
        truth = {}
        if len(said.get(name, ())) == 1:
            truth["gender"] = next(iter(said[name]))
        if groups.get(name):
            truth["race"] = groups[name]
        if len(photos) >= least and truth and (not races or "race" in truth):
            people.append(Person(name, photos, truth))
    if not races:
        return people
    order, taken = np.random.default_rng(0).permutation(len(people)), Counter()
    kept = []
    for index in order:
        taken[people[index].truth["race"]] += 1
        if taken[people[index].truth["race"]] <= GROUP:
            kept.append(index)
    return [people[index] for index in sorted(kept)]


def people_of_utkface(data_dir: Path) -> list[Person]:
    """Faces of UTKFace's test split, one photo a person."""
    import tensorflow_datasets as tfds

    data = tfds.load("utkface", split="test", data_dir=data_dir, decoders={"image": tfds.decode.SkipDecoding()})
    return [
        Person(
            row["key"].decode(),
            (row["image"],),
            {
                "gender": labels.GENDERS[row["gender"]],
                "race": labels.UTKFACE_RACES[row["race"]],
                "age": int(row["age"]),
            },
        )
        for row in sorted(tfds.as_numpy(data), key=lambda row: row["key"])
    ]


def before_a_camera(photo: np.ndarray, eyes: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """The photo as a camera gives it of a face that is far, moves and stands in poor light.

    Args:
        photo: (height, width, 3), uint8, RGB.
        eyes: distance of the eyes in it, pixels.
        rng: where chance comes from.

    Returns:
        The picture, and how many times as large it is.
    """
    distance = float(np.exp(rng.uniform(np.log(12), np.log(40))))
    scale = min(1.0, distance / eyes)
    size = [max(1, round(side * scale)) for side in photo.shape[1::-1]]
    picture = cv2.resize(photo, size, interpolation=cv2.INTER_AREA).astype(np.float32)
    length, angle = rng.uniform(0, 0.4) * distance, rng.uniform(0, np.pi)
    reach = int(np.ceil(length / 2))
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    steps = np.linspace(-length / 2, length / 2, 65)
    places = (np.round(reach + steps * np.sin(angle)).astype(int), np.round(reach + steps * np.cos(angle)).astype(int))
    np.add.at(kernel, places, 1 / len(steps))
    picture = np.maximum(cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REPLICATE), 0)
    light = np.exp(rng.uniform(np.log(0.15), 0))
    picture = 255 * (light * (picture / 255) ** 2.2) ** (1 / 2.2)
    picture += rng.normal(0, rng.uniform(1, 6), picture.shape)
    picture = np.clip(np.round(picture), 0, 255).astype(np.uint8)
    encoded = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 71))])[1]
    return cv2.imdecode(encoded, cv2.IMREAD_COLOR_RGB), scale


def faces_of(person: Person, detector, shots: int, rng) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Photo, box and distance of the eyes for up to `shots` photos in which the detector finds a face."""
    order = rng.permutation(len(person.photos))[:shots]
    photos = [read_photo(person.photos[index]) for index in sorted(order)]
    rows = []
    for photo, faces in zip(photos, detector(photos), strict=True):
        if len(faces):
            place = main_face(faces, photo.shape)
            eyes = float(np.linalg.norm(faces.landmarks[place][1] - faces.landmarks[place][0]))
            rows.append((photo, faces.boxes[place], eyes))
    return rows


def attempts(faces, count: int, camera: bool, rng) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Frames, each with the box of the face in it: the photos themselves, or one after the other before a camera."""
    if not camera:
        yield from ((photo, box) for photo, box, _ in faces)
        return
    for number in range(TRIES * count):
        photo, box, eyes = faces[number % len(faces)]
        picture, scale = before_a_camera(photo, eyes, rng)
        side = scale * (box[2:] - box[:2])
        yield picture, scale * box + rng.normal(0, 0.04, 4) * np.tile(side, 2)  # a detector's boxes are not exact


def shoot(predictor: ShotPredictor, faces, count: int, camera: bool, rng) -> list[Shot]:
    """So many shots of a person, or fewer if the stream would not take them."""
    taken: list[Shot] = []
    waiting: list[TrackShots] = []
    for frame, box in attempts(faces, count, camera, rng):
        waiting.append(TrackShots(most=1))
        predictor.offer(waiting[-1], frame, box, None, 0.0, wait=True)
        if len(taken) + len(waiting) == count or not camera:
            predictor.flush()
            taken += [shot for track in waiting for shot in track.shots]
            waiting = []
            if len(taken) == count:
                break
    return taken


def take(people: list[Person], options) -> tuple[list[Person], dict[str, np.ndarray], np.ndarray, dict[str, Task]]:
    """Those of whom all shots could be taken; outputs task -> (n, shots, width); quality (n, shots); the tasks."""
    detector = load_detector("mtcnn", min_face_size=40, score_threshold=0.9)
    kept, outputs, scores = [], [], []
    with ShotPredictor(options.model) as predictor:
        tasks = {"gender": "gender", "age": "age"}
        for task in predictor.predictor.tasks:
            if task.classes == labels.UTKFACE_RACES:
                tasks["race"] = task.name
        for index, person in enumerate(people):
            rng = np.random.default_rng([0, index])
            faces = faces_of(person, detector, options.shots, rng)
            shots = shoot(predictor, faces, options.shots, options.camera, rng) if faces else []
            if len(shots) == options.shots and not predictor.failure:
                kept.append(person)
                outputs.append({name: np.stack([shot.outputs[task] for shot in shots]) for name, task in tasks.items()})
                scores.append([shot.quality.score for shot in shots])
        if predictor.failure:
            raise predictor.failure
        known = {task.name: task for task in predictor.predictor.tasks}
        print(f"shots: {dict(predictor.counts)}", flush=True)
    stacked = {name: np.stack([row[name] for row in outputs]) for name in tasks}
    return kept, stacked, np.array(scores), {name: known[task] for name, task in tasks.items()}


def read(outputs: dict[str, np.ndarray], tasks: dict[str, Task]) -> dict[str, np.ndarray]:
    """Answers of averaged outputs (n, width): labels, and the age in years."""
    answers = {name: np.array(tasks[name].classes)[outputs[name].argmax(1)] for name in ("gender", "race")}
    answers["age"] = years_of(tasks["age"], outputs["age"])[0]
    answers["age bin"] = np.array(labels.ARG_AGES)[bins_of(tasks["age"], outputs["age"]).argmax(1)]
    return answers


def mean(outputs, weights, chosen):
    """Weighted mean of chosen shots: outputs (n, shots, width), weights (n, shots), chosen (n, k) -> (n, width)."""
    rows = np.arange(len(chosen))[:, None]
    own = weights[rows, chosen][..., None]
    return {task: (values[rows, chosen] * own).sum(1) / own.sum(1) for task, values in outputs.items()}


def judge(answers: dict[str, np.ndarray], truth: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """For each person: 1 right, 0 wrong; of the age the years of error; NaN where the truth is not known."""
    result = {}
    for name in ("gender", "race"):
        known = truth[name] != ""
        if known.any():
            result[f"{name} right"] = np.where(known, answers[name] == truth[name], np.nan)
    if np.isfinite(truth["age"]).any():
        result["years of error"] = np.abs(answers["age"] - truth["age"])
    return result


def measure(outputs, tasks, weights, truth, k: int) -> dict[str, np.ndarray]:
    """Figure -> (n,): the mean over draws of k shots of each person."""
    rng, sums = np.random.default_rng(k), {}
    for _ in range(DRAWS):
        order = np.argsort(rng.random(weights.shape), axis=1)
        one = read(mean(outputs, weights, order[:, :k]), tasks)
        figures = judge(one, truth)
        if 2 * k <= weights.shape[1]:
            other = read(mean(outputs, weights, order[:, k : 2 * k]), tasks)
            for name in ("gender", "race", "age bin"):
                figures[f"another {name}"] = (one[name] != other[name]).astype(float)
            figures["years apart"] = np.abs(one["age"] - other["age"])
        for name, values in figures.items():
            sums[name] = sums.get(name, 0) + values / DRAWS
    return sums


def best(outputs, tasks, scores, truth, most: int = 8) -> dict[str, np.ndarray]:
    """Figure -> (n,) of the stream's rule: the best shots of all, weighted by quality."""
    order = np.argsort(-scores, axis=1)[:, :most]
    return judge(read(mean(outputs, scores, order), tasks), truth)


def summary(values: np.ndarray, groups: np.ndarray) -> list[float]:
    """Mean over groups of the mean over people (n,), and the bounds of its 95 % interval (bootstrap over people)."""
    rng, total, resampled = np.random.default_rng(0), 0.0, 0.0
    parts = [part[np.isfinite(part)] for part in (values[groups == group] for group in np.unique(groups))]
    parts = [part for part in parts if len(part)]
    for part in parts:
        total += part.mean() / len(parts)
        resampled = resampled + part[rng.integers(0, len(part), (2000, len(part)))].mean(axis=1) / len(parts)
    return [round(float(value), 4) for value in (total, *np.quantile(resampled, (0.025, 0.975)))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--lfw", type=Path, help="folder with a folder of photos for each person")
    where.add_argument("--utkface", type=Path, help="folder of prepared data sets, utkface among them")
    parser.add_argument("--genders", type=Path, help="folder with female_names.txt and male_names.txt")
    parser.add_argument("--races", type=Path, help="lfw_race_dict.json")
    parser.add_argument("--least", type=int, default=10, help="photos that a person of LFW has at least")
    parser.add_argument("--people", type=int, default=0, help="at most so many people, drawn at random; 0 for all")
    parser.add_argument("--shots", type=int, default=10, help="shots of a person, at least 2")
    parser.add_argument("--camera", action="store_true", help="photos as a poor camera gives them")
    parser.add_argument("--model", default="arg", help="folder of a run, or a shipped model")
    options = parser.parse_args()
    if options.lfw:
        people = people_of_lfw(options.lfw, options.genders, options.races, options.least)
    else:
        people = people_of_utkface(options.utkface)
    chosen = sorted(np.random.default_rng(0).permutation(len(people))[: options.people or None])
    people, outputs, scores, tasks = take([people[index] for index in chosen], options)
    truth = {name: np.array([person.truth.get(name, "") for person in people]) for name in ("gender", "race")}
    truth["age"] = np.array([person.truth.get("age", np.nan) for person in people], float)
    groups = truth["race"] if options.races else np.zeros(len(people))
    print(
        f"{options.model}: {len(people)} people of {len(chosen)}, {options.shots} shots each, "
        f"{dict(Counter(truth['gender'].tolist()))}, {dict(Counter(truth['race'].tolist()))}; "
        f"quality {np.quantile(scores, [0.05, 0.5, 0.95]).round(2).tolist()} (5 %, median, 95 %)"
    )
    single = measure(outputs, tasks, np.ones_like(scores), truth, 1)
    rows = [("1 shot", single)]
    for k in [k for k in (2, 3, 5, 8) if k <= options.shots]:
        for name, weights in (("plain", np.ones_like(scores)), ("by quality", scores)):
            rows.append((f"{k}, {name}", measure(outputs, tasks, weights, truth, k)))
    rows.append(("the best 1", best(outputs, tasks, scores, truth, 1)))
    rows.append((f"the 8 best of {options.shots}", best(outputs, tasks, scores, truth)))
    for name, row in rows:
        figures = {figure: summary(values, groups) for figure, values in row.items()}
        gains = {
            f"gain, {figure}": summary(values - single[figure], groups)
            for figure, values in row.items()
            if row is not single and ("right" in figure or "error" in figure)
        }
        print(json.dumps({"mean of": name, **figures, **gains}), flush=True)


if __name__ == "__main__":
    main()
