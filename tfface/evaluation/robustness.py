"""How a model's answers fall as pictures get worse: blurred, small, squeezed by JPEG, dark, covered.

Each kind of harm is a curve over its strength, on the same faces; the undamaged faces are where every curve begins.
What is drawn by chance depends on the seed and an image's key alone, so two models see the same damaged pictures.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from tfface import __version__
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.evaluation.evaluate import evaluate
from tfface.evaluation.pages import Gallery, Page, Picture, Section, Table, Text, slug
from tfface.evaluation.predictions import LEARNT_FROM, check_outputs, learnt_from, to_predictions, truth_of
from tfface.evaluation.report import RESPONSIBLE_USE
from tfface.faces.occlude import cover_area, generator
from tfface.faces.occluders import load_occluders
from tfface.files import write_json
from tfface.training.features import bfloat16_convolutions, outputs_of
from tfface.training.run import Run

MASK = (154, 186, 204)
"""RGB of what hides the lower part: the blue of a surgical mask."""

SENSOR_NOISE = 2.0
"""Standard deviation of the noise of a dark picture, grey levels."""


def blurred(image: np.ndarray, sigma: float, rng) -> np.ndarray:
    """Blurred by a Gaussian whose standard deviation is this share of the picture's height."""
    return cv2.GaussianBlur(image, (0, 0), sigma * len(image), borderType=cv2.BORDER_REPLICATE)


def small(image: np.ndarray, height: float, rng) -> np.ndarray:
    """As it is when the crop was only so many pixels high: shrunk, and enlarged again."""
    size = (max(1, round(image.shape[1] * height / len(image))), int(height))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return cv2.resize(shrunk, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)


def squeezed(image: np.ndarray, quality: float, rng) -> np.ndarray:
    """Through JPEG at this quality, 1 to 100, at the picture's own size."""
    _, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(quality)])
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def dark(image: np.ndarray, light: float, rng) -> np.ndarray:
    """With this share of the light, the camera's settings unchanged: gamma 2.2, a little noise, eight bits."""
    darker = 255 * (light * (image / 255.0) ** 2.2) ** (1 / 2.2)
    return np.clip(np.round(darker + SENSOR_NOISE * rng.standard_normal(image.shape)), 0, 255).astype(np.uint8)


def covered(image: np.ndarray, share: float, rng) -> np.ndarray:
    """With this share of its area behind one occluder at random, as in Occ-LFW (paper 5, section 2.4)."""
    return cover_area(image, share, _occluders(), rng).image


def hidden_below(image: np.ndarray, share: float, rng) -> np.ndarray:
    """With this share of its height, from below, behind one colour, as a mask or a scarf hides it."""
    result = image.copy()
    result[len(image) - round(share * len(image)) :] = MASK
    return result


_occluders = functools.cache(load_occluders)


@dataclass(frozen=True)
class Harm:
    """One way in which pictures get worse.

    Attributes:
        apply: `(image (height, width, 3) uint8 RGB, strength, generator)` -> the harmed image, of the same shape.
        strengths: from mild to severe.
        unit: what a strength is.
    """

    apply: Callable
    strengths: tuple[float, ...]
    unit: str


HARMS = {
    "blur": Harm(blurred, (0.01, 0.02, 0.03, 0.05, 0.08), "standard deviation of the blur, share of the crop's height"),
    "small faces": Harm(small, (64, 48, 32, 24, 16), "height of the crop, pixels"),
    "JPEG": Harm(squeezed, (50, 30, 20, 10, 5), "JPEG quality"),
    "low light": Harm(dark, (0.5, 0.25, 0.1, 0.05, 0.02), "share of the light that is left"),
    "covered": Harm(covered, (0.1, 0.2, 0.3, 0.4, 0.5), "share of the crop behind an object"),
    "hidden from below": Harm(hidden_below, (0.1, 0.2, 0.3, 0.4, 0.5), "share of the crop's height, as by a mask"),
}
"""Name -> how it harms."""


def robustness(
    run: Run,
    split: str = "test",
    data: str = "",
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    seed: int = 0,
    progress: Callable[[str], None] = lambda words: None,
) -> dict:
    """Measure a model on a split, undamaged and under every strength of every harm.

    Args:
        run: of a recipe that tells attributes.
        split: name of the split, or a part of it such as "test[:1000]".
        data: another prepared data set with the same labels; the run's own if empty.
        data_dir: where data sets are prepared.
        bfloat16: compute convolutions in bfloat16.
        seed: of what is drawn by chance.
        progress: is told each measurement as it is made.

    Returns:
        A dictionary that goes to JSON as it stands: `data`, `split`, `n`, `seed`, `learnt_from` (whether the network
        learnt from images of the split) and `harms`: name -> `unit`, `strengths` (the first is None, undamaged) and
        `figures`: "TASK accuracy" or "age error" -> for each strength `value` and `interval`.

    Raises:
        UserError: the recipe tells no attributes, its data sets are several, a data set or split is not there, or its
            labels are others than the network tells.
    """
    recipe = run.recipe()
    if not any(task.is_attribute for task in recipe.tasks()):
        raise UserError(f"The recipe {recipe.name} tells no attributes. For pairs: `tfface verify --data occ_lfw`.")
    data = data or recipe.data
    if "+" in data:
        raise UserError(f"expected one data set, received {data}: name one of them with --data")
    builder = pipeline.open_dataset(data, data_dir)
    tasks, truth, classes = truth_of(recipe, builder, split)
    recipe = recipe.adapted(pipeline.class_names(builder))
    model = run.model()
    check_outputs(tasks, model.output, builder)
    learnt = learnt_from(run, builder, split)
    if learnt:
        progress(LEARNT_FROM.format(split=split))

    def figures(change) -> dict:
        with bfloat16_convolutions(bfloat16):
            outputs = outputs_of(recipe, model, builder, split, bfloat16, progress=False, change=change)
        told = evaluate(to_predictions(tasks, outputs, truth, classes))
        rows = {f"{task} accuracy": values["accuracy"] for task, values in told["tasks"].items()}
        return rows | ({"age error": told["age"]["mae"]} if "age" in told else {})

    def measured(name: str, strength: float | None) -> dict:
        row = figures(_unharmed if strength is None else partial(_harmed, HARMS[name], strength, seed))
        numbers = ", ".join(f"{figure} {one['value']:.3f}" for figure, one in row.items())
        progress(f"{name}{'' if strength is None else f' {strength:g}'}: {numbers}")
        return row

    whole = measured("undamaged", None)
    harms = {}
    for name, harm in HARMS.items():
        rows = [whole, *(measured(name, strength) for strength in harm.strengths)]
        harms[name] = {
            "unit": harm.unit,
            "strengths": [None, *harm.strengths],
            "figures": {figure: [row[figure] for row in rows] for figure in whole},
        }
    about = {"data": data, "split": split, "n": len(truth["key"]), "seed": seed, "learnt_from": learnt}
    return {**about, "harms": harms}


def _unharmed(image: np.ndarray, key: bytes) -> np.ndarray:
    return image  # the same way through the network as the harmed ones


def _harmed(harm: Harm, strength: float, seed: int, image: np.ndarray, key: bytes) -> np.ndarray:
    return harm.apply(image, strength, generator(key.decode(), seed))


def example_faces(builder: pipeline.Builder, split: str, seed: int = 0) -> dict[str, list[tuple[np.ndarray, str]]]:
    """The first face of a split under every harm: name of the harm -> images with their strength, undamaged first."""
    row = next(iter(pipeline.examples(builder, split).take(1).as_numpy_iterator()))
    image = cv2.imdecode(np.frombuffer(row["image"], np.uint8), cv2.IMREAD_COLOR_RGB)
    return {
        name: [(image, "undamaged")]
        + [(_harmed(harm, strength, seed, image, row["key"]), f"{strength:g}") for strength in harm.strengths]
        for name, harm in HARMS.items()
    }


def write_robustness(
    result: dict,
    folder: str | Path,
    title: str,
    examples: Mapping[str, Sequence[tuple[np.ndarray, str]]] | None = None,
    command: str = "",
) -> dict[str, Path]:
    """Write what `robustness` gives as report.html, report.md and report.json, with a picture of each harm.

    Args:
        result: what `robustness` gives.
        folder: where to; made when absent.
        title: heading of the page.
        examples: what `example_faces` gives; shown where given.
        command: the command that makes this result.

    Returns:
        The paths by kind: "html", "markdown", "json", "figures".
    """
    sections = []
    for name, harm in result["harms"].items():
        heading = name[0].upper() + name[1:]
        rows = []
        for place, strength in enumerate(harm["strengths"]):
            cells = [_cell(figure, values[place]) for figure, values in harm["figures"].items()]
            rows.append(("undamaged" if strength is None else f"{strength:g}", *cells))
        head = ("strength", *(figure.removesuffix(" accuracy").replace("_", " ") for figure in harm["figures"]))
        caption = f"Accuracy, and the age's mean error in years, with 95 % intervals. Strength: {harm['unit']}."
        draw = partial(plots.harm, harm)
        blocks = [
            Picture(slug(name), f"{heading}: each figure against its strength, with 95 % intervals.", draw, "wide"),
            Table(head, rows, caption),
        ]
        if examples:
            blocks.insert(0, Gallery(f"examples-{slug(name)}", f"One face; {harm['unit']}.", examples[name]))
        sections.append(Section(heading, blocks))
    sections.append(Section("Use", [Text(words) for words in RESPONSIBLE_USE]))
    summary = f"{result['data']}, {result['split']}: the same {result['n']:,} faces under every harm."
    if result["learnt_from"]:
        summary += f" {LEARNT_FROM.format(split=result['split'])}"
    footer = f"Written by tfface {__version__}" + f": {command}" * bool(command)
    paths = Page(title, summary, [], sections, footer).write(Path(folder))
    paths["json"] = write_json(Path(folder) / "report.json", {**result, "command": command})
    return paths


def _cell(figure: str, value: dict) -> str:
    digits = 2 if figure == "age error" else 3
    interval = " to ".join(f"{end:.{digits}f}" for end in value["interval"] or ())
    return f"{value['value']:.{digits}f} ({interval or 'one face'})"
