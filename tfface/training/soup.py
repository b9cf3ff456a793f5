"""One network out of several runs: the mean of their weights, which answers about as well as their mean answer.

It holds for runs that began at the same weights, pretrained or of one seed, and were trained in different ways: other
augmentation, rates, epochs or teachers. Fresh layers of different seeds have their units in another order: the mean of
two such networks is none.

Reference: Wortsman et al., Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time (ICML 2022); the greedy soup of section 2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.labels import age_bin
from tfface.models.saved import in_float32, load_saved
from tfface.recipes import Recipe
from tfface.tasks import Task, bins_of
from tfface.training.features import outputs_of
from tfface.training.run import Run, put_trained


def soup(
    folders: Sequence[str | Path],
    out: str | Path,
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    progress: Callable[[str], None] = lambda words: None,
) -> Run:
    """Average the weights of runs, one after another as long as accuracy on validation does not fall.

    What is compared is the mean accuracy over the tasks (of an age, that of the ARG poster's nine bins), as in the
    paper: no loss, which hangs on how sure a network is, and means are less sure. The runs are taken in the order of
    their accuracy; the best alone is the least that comes out.

    Args:
        folders: of two or more finished runs of one network.
        out: folder of the run that is written: recipe, data and network of the best, with the mean as its weights, and
            soup.json, which names every run, its accuracies, and whether it went in. It has no epochs of its own.
        data_dir: where data sets are prepared; the validation split of the first run's data chooses.
        bfloat16: compute frozen features in bfloat16.
        progress: is told each measurement as it is made.

    Returns:
        The run.

    Raises:
        UserError: fewer than two runs, one that is not finished or of another network, a recipe without attributes, or
            `out` holds something.
    """
    _require_free(Path(out))
    runs = _finished(folders)
    recipes = [run.recipe() for run in runs]
    parts = _of_one_network(runs, recipes)
    builder = pipeline.open_dataset(recipes[0].data, data_dir)
    split, adapted = recipes[0].validation_split, [recipe.adapted(pipeline.class_names(builder)) for recipe in recipes]
    tasks = [task for task in adapted[0].tasks() if task.is_attribute]
    if not tasks:
        raise UserError(
            f"The recipe {recipes[0].name} learns no attribute of a face: there is no accuracy to choose by."
        )
    labels = pipeline.label_arrays(builder, split)

    def accuracies_with(index: int, weights: Sequence[np.ndarray]) -> dict[str, float]:
        """Of these weights in the network of a run: others may be of another size, or compute otherwise."""
        whole = part = parts[index]
        part.set_weights(weights)
        if recipes[index].train_from:  # what lies below was not trained: it is the recipe's
            whole = recipes[index].model()
            put_trained(whole, part)
        outputs = outputs_of(adapted[index], whole, builder, split, bfloat16)
        return {task.name: _accuracy(task, outputs[task.name], labels[task.label]) for task in tasks}

    def told(words: str, found: dict[str, float]) -> float:
        each = ", ".join(f"{name} {value:.4f}" for name, value in found.items())
        score = float(np.mean(list(found.values())))
        progress(f"{words}: accuracy on validation {each}; mean {score:.4f}")
        return score

    weights = [part.get_weights() for part in parts]
    accuracies, scores = [], []
    for index, (run, own) in enumerate(zip(runs, weights, strict=True)):
        accuracies.append(accuracies_with(index, own))
        scores.append(told(str(run.folder), accuracies[-1]))
    order = np.argsort(np.negative(scores), kind="stable")
    chosen, accuracy, best, mean = [order[0]], accuracies[order[0]], scores[order[0]], weights[order[0]]
    for index in order[1:]:
        count = len(chosen)
        tried = [(old * count + new) / (count + 1) for old, new in zip(mean, weights[index], strict=True)]
        found = accuracies_with(order[0], tried)
        score = told(f"with {runs[index].folder}", found)
        if score >= best:
            chosen, accuracy, best, mean = [*chosen, index], found, score, tried
    progress(f"taken: {', '.join(str(runs[index].folder) for index in chosen)}")
    parts[order[0]].set_weights(mean)
    rows = [
        {"run": str(run.folder), "accuracy": own, "in": index in chosen}
        for index, (run, own) in enumerate(zip(runs, accuracies, strict=True))
    ]
    _require_free(Path(out))  # another soup may have come there meanwhile
    with files.written_aside(out) as aside:
        made = Run(files.make_folder(aside))
        made.save_trained(parts[order[0]])
        files.write_json(made.folder / "soup.json", {"accuracy": accuracy, "runs": rows})
        taken = [row["run"] for row in rows if row["in"]]
        files.write_json(made.config_file, {**runs[order[0]].config(), "soup": taken})
        files.write_json(made.done_file, {"best_epoch": 0, "seconds": 0.0})
    return Run(out)


def _finished(folders: Sequence[str | Path]) -> list[Run]:
    runs = [Run(folder) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError(f"A soup is made of two runs or more, each once. Received: {', '.join(map(str, folders))}.")
    for run in runs:
        if not run.done:
            run.config()  # says that there is no run, where that is so
            raise UserError(f"{run.folder} is not finished: train it to its end first.")
    return runs


def _of_one_network(runs: Sequence[Run], recipes: Sequence[Recipe]) -> list[keras.Model]:
    """What each run trained, in float32; refused where the weights are of other layers, shapes or classes."""
    parts = [in_float32(load_saved(run.trained_file)) for run in runs]
    shapes = [[(weight.path, tuple(weight.shape)) for weight in part.weights] for part in parts]
    known = {task.name: task for task in recipes[0].tasks()}
    for run, recipe, other in zip(runs, recipes, shapes, strict=True):
        if other != shapes[0] or recipe.train_from != recipes[0].train_from:
            raise UserError(
                f"{run.folder} is of another network than {runs[0].folder}: their weights have no mean. Expected the "
                "same recipe, heads and train_from."
            )
        for task in recipe.tasks():
            same = known.get(task.name, task)
            if task.describe() != same.describe():
                raise UserError(
                    f"{run.folder} learnt {task.label} as {', '.join(task.classes)} and {runs[0].folder} "
                    f"{same.label} as {', '.join(same.classes)}: their weights have no mean. Expected the same classes."
                )
    return parts


def _require_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} holds files already: name another folder with --out, or remove it.")


def _accuracy(task: Task, output: np.ndarray, label: np.ndarray) -> float:
    """Share of the faces that are told rightly, of those whose label is known; 0 where the network gives no numbers."""
    output, label = output[label >= 0], label[label >= 0]
    if not np.isfinite(output).all():
        return 0.0
    if task.is_age:
        return float((bins_of(task, output).argmax(axis=1) == age_bin(label)).mean())
    return float((output.argmax(axis=1) == task.targets[label].argmax(axis=1)).mean())
