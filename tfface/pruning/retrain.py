"""Train the network of a run again while it is pruned or after, and measure it: by the run's recipe and data."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import keras

from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation.embeddings import Embedder, alignment_of, embed_pairs
from tfface.evaluation.evaluate import evaluate
from tfface.evaluation.predictions import measured_parts, predict_with
from tfface.evaluation.verification import cosine_similarity, verify_folds
from tfface.models.recognition import EMBEDDING
from tfface.recipes import Recipe
from tfface.training import batches
from tfface.training.fit import compile_for, fit, loss_of
from tfface.training.teacher import taught_targets

TAYLOR_BATCHES = 8
"""Training batches over which the importance "taylor" is averaged."""

SENSITIVITY_IMAGES = 1024
"""Training images, views of them as the recipe draws them, on which a cut's cost is measured: at most so many."""


class Retraining:
    """A recipe and a prepared data set, for a network that the recipe's has become.

    Args:
        recipe: tasks, losses, optimizer and batches.
        data: prepared data set; the recipe's own if empty.
        data_dir: where data sets are prepared.
        epochs: epochs of training; all layers are trained, from pixels, by the recipe's schedule drawn together.

    Raises:
        UserError: the data set is not prepared, or has not the recipe's labels.
    """

    def __init__(self, recipe: Recipe, data: str = "", data_dir: str | Path | None = None, epochs: int = 1):
        self.data_dir = data_dir
        self.builder = pipeline.open_dataset(data or recipe.data, data_dir)
        recipe = recipe.adapted(pipeline.class_names(self.builder))
        pixels = {"train_from": "", "initial": "", "data": data or recipe.data}
        self.recipe = recipe.changed(**pixels, epochs=max(epochs, 1), schedule_scale=1.0, patience=0)
        self.source = pipeline.with_extra(self.builder, self.recipe.extra_data, data_dir)
        self.labels = pipeline.label_arrays(self.source, recipe.train_split)
        self.batch_size, self.steps = batches.steps_of(self.labels, self.recipe)
        """Images a step, and steps an epoch."""

    def taylor(self) -> dict:
        """What the importance "taylor" asks for: batches of the training split, and the losses."""
        smoothing = self.recipe.label_smoothing
        losses = {task.name: _weighted(loss_of(task, smoothing), task.weight) for task in self.recipe.tasks()}
        return {"data": self._batches().take(TAYLOR_BATCHES), "loss": losses}

    def loss(self) -> Callable[[keras.Model], float]:
        """A function that gives the recipe's loss of a network, always on the same training images."""
        few = self._batches().take(max(1, SENSITIVITY_IMAGES // self.batch_size)).cache()
        names = [task.name for task in self.recipe.tasks()]

        @functools.cache  # it shares the layers of `model`, whose weights change between two measurements
        def compiled(model):
            learnt = keras.Model(model.input, {name: model.output[name] for name in names})
            compile_for(learnt, self.recipe, 1)
            return learnt

        return lambda model: compiled(model).evaluate(few, verbose=0, return_dict=True)["loss"]

    def _batches(self):
        split = self.recipe.train_split
        taught = taught_targets(self.recipe, self.source, split, self.labels, self.data_dir)
        return batches.image_batches(self.source, split, self.recipe, 0, taught)

    def fit(
        self,
        model: keras.Model,
        folder: Path,
        choices: dict,
        callbacks: Sequence[keras.callbacks.Callback] = (),
    ) -> None:
        """Train a network; where a training in this folder was killed, go on after its last epoch.

        Args:
            model: the network; every layer of it is made trainable, batch norms too, whose statistics a cut changes.
            folder: where the state and the figures of each epoch are kept, a run's.
            choices: how the network was pruned; a folder in which it was pruned otherwise is refused.
            callbacks: what else acts, such as pruning.

        Raises:
            UserError: the folder holds a training with other choices.
        """
        model.trainable = True
        fit(self.recipe, folder, self.data_dir, model=model, callbacks=callbacks, about=choices)

    def figures(self, model: keras.Model) -> dict[str, float]:
        """Accuracy of each task on the split test, and the mean error of ages in years, over the recipe's test views.

        Of joined data sets the figures of each, by its name.

        Of an embedding the accuracy on the recipe's pairs, by LFW's protocol; those that are not prepared are named in
        a warning.
        """
        figures = {}
        if any(task.is_attribute for task in self.recipe.tasks()):
            for data in measured_parts(self.recipe, self.data_dir):
                measured = evaluate(predict_with(self.recipe, model, "test", data, self.data_dir))
                of = f"{data} " if "+" in self.recipe.data else ""
                tasks = measured["tasks"].items()
                figures |= {f"{of}{task} accuracy": row["accuracy"]["value"] for task, row in tasks}
                if "age" in measured:
                    figures[f"{of}age error, years"] = measured["age"]["mae"]["value"]
        if self.recipe.pairs:
            embedder = self._embedder(model)
        for data in self.recipe.pairs:
            try:
                crop = "whole" if "/" in data else embedder.crop
                pairs, first, second, _ = embed_pairs(replace(embedder, crop=crop), data, self.data_dir)
            except UserError as error:
                warnings.warn(f"The accuracy on pairs of {data} is left out. {error}", stacklevel=2)
                continue
            folds = verify_folds(cosine_similarity(first, second), pairs["same"].astype(bool), pairs["fold"])
            figures[f"{data} pairs accuracy"] = folds["accuracy"]
        return figures

    def _embedder(self, model):
        network = keras.Model(model.input, model.get_layer(EMBEDDING).output)
        crop = alignment_of(self.builder.info.full_name)
        return Embedder(self.recipe.name, network, tuple(self.recipe.image_size), crop)


def _weighted(loss: keras.losses.Loss, weight: float) -> Callable:
    """The loss of each example, by the weight of its task."""
    return lambda targets, outputs: weight * loss.call(targets, outputs)
