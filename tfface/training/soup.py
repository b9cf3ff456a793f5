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

import numpy as np

from tfface import files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.models.saved import load_saved
from tfface.training import batches
from tfface.training.features import outputs_of
from tfface.training.fit import loss_of
from tfface.training.run import Run, put_trained


def soup(
    folders: Sequence[str | Path],
    out: str | Path,
    data_dir: str | Path | None = None,
    bfloat16: bool = False,
    progress: Callable[[str], None] = lambda words: None,
) -> Run:
    """Average the weights of runs, one after another as long as the loss on validation does not rise.

    The runs are taken in the order of that loss, and the first alone is the least that comes out.

    Args:
        folders: of two or more finished runs of one network.
        out: folder of the run that is written: the recipe and the data of the best, the mean as its trained part, and
            soup.json, which names every run, its loss, and whether it went in. It has no epochs of its own.
        data_dir: where data sets are prepared; the validation split of the first run's data chooses.
        bfloat16: compute frozen features in bfloat16.
        progress: is told each loss as it is measured.

    Returns:
        The run.

    Raises:
        UserError: fewer than two runs; one that is not finished, of another network, or whose loss is no number; or
            `out` holds something.
    """
    runs = [Run(folder) for folder in folders]
    if len({run.folder.resolve() for run in runs}) < max(2, len(runs)):
        raise UserError(f"A soup is made of two runs or more, each once. Received: {', '.join(map(str, folders))}.")
    made = Run(out)
    if made.folder.exists() and any(made.folder.iterdir()):
        raise UserError(f"{out} holds files already: name another folder with --out, or remove it.")
    for run in runs:
        if not run.done:
            run.config()  # says that there is no run, where that is so
            raise UserError(f"{run.folder} is not finished: train it to its end first.")
    recipe, parts = runs[0].recipe(), [load_saved(run.trained_file) for run in runs]
    shapes = [[(weight.path, tuple(weight.shape)) for weight in part.weights] for part in parts]
    for run, other in zip(runs, shapes, strict=True):
        if other != shapes[0] or run.recipe().train_from != recipe.train_from:
            raise UserError(
                f"{run.folder} is of another network than {runs[0].folder}: their weights have no mean. Expected the "
                "same recipe, image size, heads and train_from."
            )

    builder = pipeline.open_dataset(recipe.data, data_dir)
    adapted = recipe.adapted(pipeline.class_names(builder))
    tasks = [task for task in adapted.tasks() if task.is_attribute]
    labels = pipeline.label_arrays(builder, adapted.validation_split)
    truth, known = batches.encode(tasks, labels), batches.weights(tasks, labels)
    part = parts[0]
    whole = recipe.model() if recipe.train_from else part  # what lies below was not trained: it is the recipe's

    def loss_with(weights: Sequence[np.ndarray]) -> float:
        part.set_weights(weights)
        if whole is not part:
            put_trained(whole, part)
        outputs = outputs_of(adapted, whole, builder, adapted.validation_split, bfloat16, progress=False)
        return sum(
            task.weight
            * float(loss_of(task, 0.0)(truth[task.name], outputs[task.name], sample_weight=known[task.name]))
            for task in tasks
        )

    weights = [part.get_weights() for part in parts]
    losses = []
    for run, own in zip(runs, weights, strict=True):
        losses.append(loss_with(own))
        if not np.isfinite(losses[-1]):
            raise UserError(f"{run.folder} answers with what is no number (loss {losses[-1]}): leave it out.")
        progress(f"{run.folder}: loss on validation {losses[-1]:.4f}")
    order = np.argsort(losses, kind="stable")
    chosen, best, mean = [order[0]], losses[order[0]], weights[order[0]]
    for index in order[1:]:
        count = len(chosen)
        tried = [(old * count + new) / (count + 1) for old, new in zip(mean, weights[index], strict=True)]
        loss = loss_with(tried)
        kept = loss <= best
        progress(f"with {runs[index].folder}: {loss:.4f}, {'kept' if kept else 'left out'}")
        if kept:
            chosen, best, mean = [*chosen, index], loss, tried
    part.set_weights(mean)
    made.folder.mkdir(parents=True, exist_ok=True)
    with files.written_aside(made.trained_file) as target:
        part.save(target)
    rows = [
        {"run": str(run.folder), "loss": loss, "in": index in chosen}
        for index, (run, loss) in enumerate(zip(runs, losses, strict=True))
    ]
    files.write_json(made.folder / "soup.json", {"loss": best, "runs": rows})
    files.write_json(made.config_file, {**runs[order[0]].config(), "soup": [row["run"] for row in rows if row["in"]]})
    files.write_json(made.done_file, {"best_epoch": 0, "seconds": 0.0})
    return made
