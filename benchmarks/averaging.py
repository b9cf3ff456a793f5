"""What averaging shots brings: single shots against means of several, on LFW people with ten photos and more.

    python benchmarks/averaging.py --lfw FOLDER [--images 10] [--people 0] [--eyes 0] [--bfloat16]

FOLDER holds a folder of photos for each person (lfw-deepfunneled). Of each person `--images` photos are drawn, seeded,
and predicted once by the shipped model; then means of k photos are drawn, 40 times a person and k. It says for each k

- how often two means of k, of different photos of one person, say another gender, race or age bin, and how far their
  ages lie apart (k goes up to half of the photos, so that the two share none);
- how often the gender is right. LFW has no labels of gender. The truth is taken from the first name, for people whose
  first name is held by one gender nearly always: the names are listed below, chosen before any result was seen; people
  with other names are left out of this figure.

`--eyes N` does the same for faces that are far from the camera, their eyes N pixels apart (42 in LFW).

Means are taken plainly and weighted by quality, as the stream does it; and, last, the better half of the photos by
quality against the worse half. The photos of LFW were taken over years by many cameras: they differ more than the shots
of one video do.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np

from tfface import labels
from tfface.faces.crops import main_face
from tfface.faces.photos import read_photo
from tfface.faces.quality import quality
from tfface.serving.predictor import Predictor
from tfface.tasks import bins_of, years_of
from tfface.training.features import bfloat16_convolutions

FEMALE = (
    "Amelie Angelina Ann Anna Britney Catherine Condoleezza Gloria Halle Hillary Jennifer Julianne Julie Laura "
    "Meryl Nancy Naomi Nicole Norah Renee Salma Serena Venus Winona Yoriko "
)

MALE = (
    "Abdullah Adrien Alejandro Alvaro Andre Andy Arnold Bill Carlos Charles Colin David Dick Donald Edmund Eduardo "
    "Fidel George Gerhard Gonzalo Gordon Guillermo Hamid Hans Harrison Howard Hugo Ian Igor Jack Jacques James "
    "Jason Javier Jeb Jeremy Jiri Joe John Jose Juan Keanu Kofi Lance Lucio Luiz Mahmoud Mark Michael Mike Mohammad "
    "Mohammed Muhammad Nestor Paul Pervez Pete Pierce Recep Ricardo Richard Roger Rubens Rudolph Saddam Sergey "
    "Sergio Silvio Tim Tom Tommy Tony Trent Vicente Vladimir Walter "
)

TRUTH = {**dict.fromkeys(MALE.split(), "Male"), **dict.fromkeys(FEMALE.split(), "Female")}

DRAWS = 40


def far_away(photo: np.ndarray, landmarks: np.ndarray, eyes: int) -> np.ndarray:
    """The photo as a camera saw it from where the eyes are only so many pixels apart, brought back to its size."""
    scale = eyes / np.linalg.norm(landmarks[1] - landmarks[0])
    small = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else photo
    return cv2.resize(small, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def predict(folder: Path, people: int, images: int, eyes: int, model: str, bfloat16: bool):
    """Names, and for each of n people: outputs task -> (n, images, width), quality (n, images)."""
    rng = np.random.default_rng(0)
    known = sorted(path for path in folder.iterdir() if len(list(path.glob("*.jpg"))) >= images)
    chosen_people = sorted(rng.permutation(known)[: people or None])
    predictor = Predictor(model, "mtcnn")
    names, outputs, scores = [], [], []
    for person in chosen_people:
        files = sorted(person.glob("*.jpg"))
        photos = [read_photo(files[index]) for index in sorted(rng.permutation(len(files))[:images])]
        found = predictor.detector(photos)
        if not all(map(len, found)):
            print(f"{person.name} is left out: no face was found in one of the photos", flush=True)
            continue
        places = [main_face(faces, photo.shape) for photo, faces in zip(photos, found, strict=True)]
        chosen = [faces.select([place]) for faces, place in zip(found, places, strict=True)]
        if eyes:
            photos = [far_away(photo, face.landmarks[0], eyes) for photo, face in zip(photos, chosen, strict=True)]
        crops = [
            predictor.align(photo, face.boxes[0], face.landmarks[0]) for photo, face in zip(photos, chosen, strict=True)
        ]
        scores.append([quality(photo, face.landmarks[0]).score for photo, face in zip(photos, chosen, strict=True)])
        with bfloat16_convolutions(bfloat16):
            outputs.append(predictor.predict_crops(np.stack(crops)))
        names.append(person.name)
    stacked = {task: np.stack([row[task] for row in outputs]) for task in outputs[0]}
    return names, stacked, np.array(scores), {task.name: task for task in predictor.tasks}


def read(outputs: dict[str, np.ndarray], tasks: dict) -> dict[str, np.ndarray]:
    """Answers of averaged outputs (n, width): labels, and the age in years."""
    answers = {}
    for name, output in outputs.items():
        if tasks[name].is_age:
            answers["age"] = years_of(tasks[name], output)[0]
            answers["age bin"] = np.array(labels.ARG_AGES)[bins_of(tasks[name], output).argmax(1)]
        else:
            answers[name] = np.array(tasks[name].classes)[output.argmax(1)]
    return answers


def mean(outputs, weights, chosen):
    """Weighted mean of chosen shots: outputs (n, images, width), weights (n, images), chosen (n, k) -> (n, width)."""
    rows = np.arange(len(chosen))[:, None]
    own = weights[rows, chosen][..., None]
    return {task: (values[rows, chosen] * own).sum(1) / own.sum(1) for task, values in outputs.items()}


def figures(outputs, tasks, scores, truth, k: int, weighted: bool) -> dict:
    """Change between means of k different photos, and correctness of the gender."""
    rng = np.random.default_rng(k)
    weights = scores if weighted else np.ones_like(scores)
    known = truth != ""
    sums: dict[str, list] = {}
    for _ in range(DRAWS):
        order = np.argsort(rng.random(scores.shape), axis=1)
        one, other = (read(mean(outputs, weights, order[:, at : at + k]), tasks) for at in (0, k))
        for name in ("gender", "race", "age bin"):
            sums.setdefault(f"{name} changes", []).append((one[name] != other[name]).mean())
        sums.setdefault("years apart", []).append(np.abs(one["age"] - other["age"]).mean())
        right = np.concatenate([answers["gender"][known] == truth[known] for answers in (one, other)])
        sums.setdefault("gender right", []).append(right.mean())
    return {name: round(float(np.mean(values)), 4) for name, values in sums.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lfw", type=Path, required=True, help="folder with a folder of photos for each person")
    parser.add_argument("--images", type=int, default=10, help="photos of a person, at least 4")
    parser.add_argument("--people", type=int, default=0, help="at most so many people, drawn at random; 0 for all")
    parser.add_argument("--eyes", type=int, default=0, help="shrink faces to eyes so far apart, pixels; 0: as they are")
    parser.add_argument("--model", default="arg", help="folder of a run, or a shipped model")
    parser.add_argument("--bfloat16", action="store_true", help="compute the model in bfloat16")
    options = parser.parse_args()
    names, outputs, scores, tasks = predict(
        options.lfw, options.people, options.images, options.eyes, options.model, options.bfloat16
    )
    truth = np.array([TRUTH.get(name.split("_")[0], "") for name in names])
    print(
        f"{len(names)} people, {options.images} photos each; first names say the gender of {(truth != '').sum()} "
        f"({(truth == 'Female').sum()} women)"
    )
    for k in [k for k in (1, 2, 3, 5, 8) if 2 * k <= options.images]:
        for weighted in (False, True)[: 1 + (k > 1)]:
            row = figures(outputs, tasks, scores, truth, k, weighted)
            print(json.dumps({"photos": k, "mean": "by quality" if weighted else "plain", **row}), flush=True)
    half = options.images // 2
    order = np.argsort(-scores, axis=1)
    known = truth != ""
    for name, chosen in (("better", order[:, :half]), ("worse", order[:, half:])):
        single = np.mean(
            [
                (read(mean(outputs, scores, chosen[:, [at]]), tasks)["gender"] == truth)[known].mean()
                for at in range(chosen.shape[1])
            ]
        )
        together = (read(mean(outputs, scores, chosen), tasks)["gender"] == truth)[known].mean()
        print(json.dumps({"half": name, "single, gender right": round(single, 4), "mean": round(float(together), 4)}))
    wrong = read(mean(outputs, scores, order), tasks)["gender"] != truth
    print("wrong with all photos together:", ", ".join(np.array(names)[wrong & known]) or "nobody")


if __name__ == "__main__":
    main()
