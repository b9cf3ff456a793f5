"""A photo becomes the attributes of its faces: detect, align, predict in batches."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import keras
import numpy as np

from tfface import labels
from tfface.errors import UserError
from tfface.faces import align
from tfface.faces.detect import Detector, load_detector
from tfface.packages import check_not_forked
from tfface.tasks import Task, bins_of, years_of
from tfface.training.run import Run

SHIPPED = Path(__file__).parent.parent / "assets" / "models"
"""Trained models that come with the package, a run's folder each: compact, and arg, which fetches its FaceNet."""


@dataclass(frozen=True)
class FaceAttributes:
    """What a model says of one face. These are perceived attributes: guesses of what annotators would have said.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the photo.
        score: the detector's score, in [0, 1].
        probabilities: task -> class -> probability, for every task with classes ("gender", "race", "age_bins").
        age: age in years, or None for a model without an age head.
        age_spread: standard deviation of the age, years, or None where the head gives a plain number.
        embedding: `(width,)` float32 of length 1, for comparing faces; None for a model that learnt none.
    """

    box: tuple[float, float, float, float]
    score: float
    probabilities: dict[str, dict[str, float]]
    age: float | None = None
    age_spread: float | None = None
    embedding: np.ndarray | None = field(default=None, repr=False, compare=False)

    def label(self, task: str) -> str:
        """The likeliest class of a task."""
        return max(self.probabilities[task], key=self.probabilities[task].get)

    def caption(self) -> list[str]:
        """Short lines for a picture: gender and age, then race; where a model has neither, the class of each task."""
        age = self.label("age_group") if "age_group" in self.probabilities else ""
        age = age if self.age is None else f"{self.age:.0f}"
        if self.age_spread is not None:
            age += f" ± {self.age_spread:.0f}"
        first = " ".join(filter(None, [self.label("gender") if "gender" in self.probabilities else "", age]))
        second = (
            f"{self.label('race')} {max(self.probabilities['race'].values()):.0%}"
            if ("race" in self.probabilities)
            else ""
        )
        if lines := [line for line in (first, second) if line]:
            return lines
        return [f"{self.label(task)} {max(row.values()):.0%}" for task, row in self.probabilities.items()]

    def to_json(self, embedding: bool = False) -> dict:
        """Plain values for JSON: strings, years, probabilities with four digits.

        Args:
            embedding: with the embedding, where there is one.
        """
        result = {
            "box": [round(value, 1) for value in self.box],
            "score": round(self.score, 4),
            **{task: self.label(task) for task in self.probabilities},
        }
        if self.age is not None:
            result["age"] = round(self.age, 1)
        if self.age_spread is not None:
            result["age_spread"] = round(self.age_spread, 1)
        result["probabilities"] = {
            task: {name: round(value, 4) for name, value in row.items()} for task, row in self.probabilities.items()
        }
        if embedding and self.embedding is not None:
            result["embedding"] = self.embedding.tolist()
        return result


def of_package(name: str | Path) -> bool:
    """Whether this names a model of the package: a folder of the same name that holds no run does not hide it."""
    return str(name) in shipped_models() and not Run(name).config_file.exists()


def shipped_models() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.name for path in SHIPPED.iterdir()) if SHIPPED.is_dir() else []


def find_model(name: str | Path) -> Run:
    """The run behind a name: a run's folder, or a model that comes with the package.

    Raises:
        UserError: neither; the message lists the shipped ones.
    """
    if of_package(name):
        return Run(SHIPPED / str(name))
    if Path(name).is_dir():
        return Run(name)
    raise UserError(
        f"No model {name}: expected the folder of a run that `tfface train` made, or one of the shipped models "
        f"({', '.join(shipped_models()) or 'none'})."
    )


class Predictor:
    """Finds the faces of photos and predicts their attributes, in real batches over all photos that it is given.

    Holds no state that a call changes, so threads may share one; forked processes may not, see `check_not_forked`.

    Args:
        model: a run's folder, or the name of a shipped model.
        detector: a detector, or the name of one (`tfface.faces.detect.load_detector`).
        batch_size: faces a forward pass.

    Raises:
        UserError: no such model or detector, or a pretrained backbone that cannot be had.
    """

    def __init__(self, model: str | Path = "compact", detector: str | Detector = "mtcnn", batch_size: int = 32):
        if batch_size < 1:
            raise UserError(f"batch_size must be at least 1. Received: {batch_size}.")
        check_not_forked("The predictor")
        run = find_model(model)
        self.recipe = run.recipe()
        self.landmarks = run.config()["data"].get("landmarks")
        self.stretch = run.config()["data"].get("stretch", 1.0)
        if not self.landmarks:
            raise UserError(
                f"{run.folder} was trained on {run.config()['data']['name']}, which does not say where its crops have "
                "eyes, nose and mouth (metadata 'landmarks' of its builder): faces in photos cannot be aligned to them."
            )
        self.tasks: tuple[Task, ...] = tuple(task for task in self.recipe.tasks() if task.is_attribute)
        self.model = run.model()
        self.detector = face_detector(detector)
        self.batch_size = batch_size
        # On JAX, Keras lends the weights to each step: two at once would find them gone.
        self._turn = threading.Lock() if keras.backend.backend() == "jax" else contextlib.nullcontext()

    def __call__(self, photos: Sequence[np.ndarray]) -> list[list[FaceAttributes]]:
        """Attributes of every face of every photo.

        Args:
            photos: `(height, width, 3)` uint8 RGB each, of any sizes.

        Returns:
            For each photo its faces, the surest detection first; empty where none was found.

        Raises:
            UserError: one photo without a list about it, or one that is no such array.
        """
        if not isinstance(photos, np.ndarray):  # one photo is an array that the detector refuses: no list of its rows
            photos = list(photos)
        found = self.detector(photos)
        crops = [
            self.align(photo, faces.boxes[index], None if faces.landmarks is None else faces.landmarks[index])
            for photo, faces in zip(photos, found, strict=True)
            for index in range(len(faces))
        ]
        if not crops:
            return [[] for _ in photos]
        outputs = self.predict_crops(np.stack(crops))
        results, row = [], 0
        for faces in found:
            results.append([])
            for box, score in zip(faces.boxes, faces.scores, strict=True):
                one = {name: values[row] for name, values in outputs.items()}
                results[-1].append(self.attributes(box, score, one))
                row += 1
        return results

    def align(self, photo: np.ndarray, box: np.ndarray, landmarks: np.ndarray | None) -> np.ndarray:
        """The crop that the model was trained on: its data set's five points, or the box where there are none."""
        height, width = self.recipe.image_size
        points = typical_points(box, self.detector.landmarks_in_box) if landmarks is None else landmarks
        known = np.isfinite(points).all(axis=1)  # dlib's five points know no mouth
        # Faces that the data set shows wider than they are, are brought to a narrower crop and then stretched.
        target = np.asarray(self.landmarks, "float64") * (width / self.stretch, height) - 0.5
        matrix = align.similarity(points[known], target[known])
        matrix[0] = matrix[0] * self.stretch + [0, 0, (self.stretch - 1) / 2]
        return align.warp(photo, matrix, (height, width))

    def predict_crops(self, crops: np.ndarray) -> dict[str, np.ndarray]:
        """Outputs of the model for aligned crops, averaged over the recipe's test views.

        Args:
            crops: `(n, height, width, 3)` uint8 of the recipe's image size, n >= 1.

        Returns:
            Task -> `(n, width)` float32.

        Raises:
            UserError: anything else.
        """
        check_not_forked("The predictor")
        check_crops(crops, tuple(self.recipe.image_size))  # another size ends the process, in oneDNN
        views = [crops, crops[:, :, ::-1]] if self.recipe.test_mirror else [crops]
        results = [self._forward(view) for view in views]
        return {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}

    def _forward(self, crops):
        parts = []
        for start in range(0, len(crops), self.batch_size):
            batch = crops[start : start + self.batch_size].astype("float32")
            count = len(batch)
            # Batches of 1, 2, 4, ... only: each new size would compile a new graph.
            padded = 1 << (count - 1).bit_length()
            batch = np.concatenate([batch, np.zeros((padded - count, *batch.shape[1:]), "float32")])
            with self._turn:
                outputs = self.model.predict_on_batch(batch)
            parts.append({name: np.asarray(value)[:count] for name, value in outputs.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def attributes(self, box, score: float, outputs: dict[str, np.ndarray]) -> FaceAttributes:
        """One face from its row of every output.

        Args:
            box: x0, y0, x1, y1, pixels.
            score: the detector's.
            outputs: output -> the face's row of it, as `predict_crops` gives them.
        """
        probabilities, age, spread = {}, None, None
        for task in self.tasks:
            output = outputs[task.name][None]
            if task.is_age:
                years, deviation = years_of(task, output)
                age, spread = float(years[0]), None if deviation is None else float(deviation[0])
                if task.classes:
                    bins = bins_of(task, output)[0]
                    probabilities["age_bins"] = dict(zip(labels.ARG_AGES, map(float, bins), strict=True))
            else:
                probabilities[task.name] = dict(zip(task.classes, map(float, output[0]), strict=True))
        embedding = outputs.get("embedding")
        if embedding is not None:
            embedding = embedding / (np.linalg.norm(embedding) or 1.0)  # several views or shots were averaged
        box = tuple(float(value) for value in box)
        return FaceAttributes(box, float(score), probabilities, age, spread, embedding)


def check_crops(crops, size: tuple[int, ...] = ()) -> None:
    """Looks at aligned crops before a network does.

    Args:
        crops: anything.
        size: height and width that they must have; any unless given.

    Raises:
        UserError: they are no uint8 array `(n, height, width, 3)` with n >= 1.
    """
    sides = ", ".join(map(str, size)) or "height, width"
    expected = f"expected a uint8 array (n, {sides}, 3) with n of 1 and more"
    if not isinstance(crops, np.ndarray):
        raise UserError(f"crops are a {type(crops).__name__}; {expected}: np.stack makes one of a list")
    if crops.ndim == 4 and not len(crops):
        raise UserError(f"no crops were received, their shape is {crops.shape}; {expected}: ask for one at least")
    if crops.ndim != 4 or crops.shape[1:] != (*(size or crops.shape[1:3]), 3):
        raise UserError(f"crops have shape {crops.shape}; {expected}: align or resize them, and pass one as crop[None]")
    if crops.dtype != np.uint8:
        raise UserError(f"crops have dtype {crops.dtype}; {expected}: scale them to [0, 255] and round them")


def face_detector(detector: str | Detector) -> Detector:
    """A detector by its name, as prediction wants it; one that is a detector already is left as it is."""
    if not isinstance(detector, str):
        return detector
    # A stray detection costs a reader more than a missed blur: MTCNN's own 0.8 lets some through.
    return load_detector(detector, **({"score_threshold": 0.9} if detector == "mtcnn" else {}))


def typical_points(box: np.ndarray, shares: Sequence[tuple[float, float]]) -> np.ndarray:
    """Where five landmarks lie in a box on average, for detectors that give none.

    Args:
        box: x0, y0, x1, y1, pixels.
        shares: the detector's `landmarks_in_box`.

    Returns:
        (5, 2), pixels.
    """
    x0, y0, x1, y1 = box
    return np.array(shares) * (x1 - x0, y1 - y0) + (x0, y0)
