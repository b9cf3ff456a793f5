"""A trained run becomes a SavedModel: preprocessing inside, named outputs, class names, strings."""

from __future__ import annotations

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfface import files, labels
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.recipes.recipe import Recipe
from tfface.tasks import Task, bins_of
from tfface.training.run import Run


def export_saved_model(run: Run, folder: str | Path) -> Path:
    """Write a SavedModel that needs nothing but TensorFlow.

    Two signatures, both for aligned face crops (as the recipe's data set holds them), of any size:

    - `serving_default`: `images`, uint8 `(batch, height, width, 3)` RGB.
    - `jpeg`: `jpeg`, strings `(batch,)`, JPEG or PNG bytes of any sizes.

    Outputs, each with the batch first: for every task with classes `<task>` (string, the likeliest class),
    `<task>_probabilities` `(batch, classes)` float32 and `<task>_classes` `(batch, classes)` strings, the names of the
    columns; for an age `age` and, from a distribution, `age_spread` (years, float32), with the bins of the ARG poster
    as `age_bins`.

    Args:
        run: a trained run.
        folder: the SavedModel's folder; one that stands there is replaced.

    Returns:
        The folder.

    Raises:
        UserError: no trained model, or another Keras backend than TensorFlow.
    """
    if keras.backend.backend() != "tensorflow":
        raise UserError(
            f"A SavedModel is written by Keras' TensorFlow backend, received {keras.backend.backend()}. "
            "Unset KERAS_BACKEND: a model trained on another backend loads under it."
        )
    recipe, model = run.recipe(), run.model()
    archive = keras.export.ExportArchive()
    archive.track(model)

    def from_images(images):
        return _answer(model, recipe, pipeline.resize(images, recipe.image_size))

    def from_jpeg(jpeg):
        images = tf.map_fn(
            lambda data: pipeline.decode(data, recipe.image_size),
            jpeg,
            fn_output_signature=tf.TensorSpec((*recipe.image_size, 3), tf.float32),
        )
        return _answer(model, recipe, images)

    images = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    jpeg = tf.TensorSpec((None,), tf.string, name="jpeg")
    archive.add_endpoint("serving_default", from_images, [images])
    archive.add_endpoint("jpeg", from_jpeg, [jpeg])
    with files.written_aside(folder) as aside:
        archive.write_out(str(aside), verbose=False)
        card = {"recipe": recipe.to_json(), "outputs": [task.describe() for task in recipe.tasks()]}
        files.write_json(aside / "assets.extra" / "tfface.json", card)
    return Path(folder)


def _answer(model: keras.Model, recipe: Recipe, images: tf.Tensor) -> dict[str, tf.Tensor]:
    outputs = model(images, training=False)
    if recipe.test_mirror:
        mirrored = model(images[:, :, ::-1], training=False)
        outputs = {name: (value + mirrored[name]) / 2 for name, value in outputs.items()}
    answer = {}
    for task in recipe.tasks():
        answer.update(_named(task, outputs[task.name]))
    return answer


def _named(task: Task, output: tf.Tensor) -> dict[str, tf.Tensor]:
    if not task.is_age:
        return _classes(task.name, output, task.classes)
    if task.years is None:
        return {"age": output[:, 0]}
    years = tf.constant(task.years, tf.float32)
    age = tf.linalg.matvec(output, years)
    variance = tf.maximum(tf.linalg.matvec(output, years**2) - age**2, 0.0)
    # `bins_of` is linear in the output, so the identity gives its matrix.
    to_bins = tf.constant(bins_of(task, np.eye(task.width, dtype="float32")))
    return {
        "age": age,
        "age_spread": tf.sqrt(variance),
        **_classes("age_bins", output @ to_bins, labels.ARG_AGES),
    }


def _classes(name: str, probabilities: tf.Tensor, classes: tuple[str, ...]) -> dict[str, tf.Tensor]:
    names = tf.constant(classes)
    return {
        name: tf.gather(names, tf.argmax(probabilities, axis=1)),
        f"{name}_probabilities": probabilities,
        # One row a face: TensorFlow Serving splits every output along the batch.
        f"{name}_classes": tf.repeat(names[None], tf.shape(probabilities)[0], axis=0),
    }
