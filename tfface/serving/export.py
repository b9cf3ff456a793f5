"""A trained run becomes a SavedModel: preprocessing inside, named outputs, class names, strings."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfface import files, labels
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.packages import require_tensorflow
from tfface.recipes.recipe import Recipe
from tfface.serving import optimize
from tfface.tasks import Task, bins_of
from tfface.training.run import Run

EMBEDDING_LAYERS = ("embedding", "bottleneck_norm", "features", "avg_pool")
"""What a network's embedding may be, the first of these layers that it has: an embedding that was trained as one; the
normalised bottleneck that the heads share (ARG; signed, as FaceNet's own bottleneck is, before the ReLU); the pooled
features below the heads. A bottleneck learnt from attributes puts faces of like age, gender and group together: it
does not tell people apart."""

TOLERANCE = 1e-2
"""Greatest difference of a SavedModel in float32 from the Keras model, as a share of each output's greatest value: room
for the TF32 of GPUs, none for a batch norm that went into the wrong weights."""

SAVED_MODEL = {"assets", "assets.extra", "fingerprint.pb", "keras_metadata.pb", "saved_model.pb", "variables"}
"""What a SavedModel's folder may hold."""


def export_saved_model(run: Run, folder: str | Path, bfloat16: bool = False) -> Path:
    """Write a SavedModel that needs nothing but TensorFlow, made fast (`tfface.serving.optimize`).

    Signatures for aligned face crops (as the recipe's data set holds them), of any size:

    - `serving_default`: `images`, uint8 `(batch, height, width, 3)` RGB.
    - `jpeg`: `jpeg`, strings `(batch,)`, JPEG or PNG bytes of any sizes.
    - `embeddings`, `jpeg_embeddings`: the same inputs; one output, `embedding`, `(batch, width)` float32 of length 1.
      Absent where the network has none of `EMBEDDING_LAYERS`.
    - `card`: `query`, any strings `(batch,)`; the output `card`, as many times the JSON that `assets.extra/tfface.json`
      holds: a client learns from the server how faces are to be aligned and what the outputs are.

    Outputs of the first two, each with the batch first: for every task with classes `<task>` (string, the likeliest
    class), `<task>_probabilities` `(batch, classes)` float32 and `<task>_classes` `(batch, classes)` strings, the names
    of the columns; for an age `age` and, from a distribution, `age_spread` (years, float32), with the bins of the ARG
    poster as `age_bins`; and `embedding` where the network learnt one.

    Args:
        run: a trained run.
        folder: the SavedModel's folder; a SavedModel that stands there is replaced.
        bfloat16: compute the network in bfloat16 (`optimize.fold`).

    Returns:
        The folder.

    Raises:
        UserError: no trained model, a folder with other files, another Keras backend than TensorFlow, or (float32) the
            SavedModel would give other outputs than the Keras model.
    """
    require_tensorflow("A SavedModel")
    folder = Path(folder)
    others = sorted({path.name for path in folder.iterdir()} - SAVED_MODEL) if folder.is_dir() else []
    if others:
        raise UserError(
            f"{folder} holds more than a SavedModel, which would be lost: {', '.join(others[:3])}. Name a new folder."
        )
    recipe = run.recipe()
    network, card = network_and_card(run)
    archive = keras.export.ExportArchive()

    # One function that every signature calls: the network's graph is in the file once.
    fast = optimize.join(optimize.fold(network, bfloat16))
    frozen = optimize.freeze(forward_of(fast, recipe), [image_spec(recipe)])
    if not bfloat16:

        def numbers(images):
            return _numbers(frozen(tf.constant(images)), recipe)

        report = "This is an error of tfface.serving.optimize: report it with the network's layers."
        require_parity(network, recipe, numbers, str(folder), TOLERANCE, report)

    def forward(images):
        # Of no image TensorFlow's fused convolutions give maps of a wrong width: one goes through, and off it comes.
        count = tf.shape(images)[0]
        outputs = frozen(tf.pad(images, [[0, tf.cast(count == 0, tf.int32)], [0, 0], [0, 0], [0, 0]]))
        return {name: value[:count] for name, value in outputs.items()}

    def resized(images):
        return pipeline.resize(images, recipe.image_size)

    def pixels(data):
        # As Pillow and the clients decode JPEG; TensorFlow's default is a faster transform, a grey level or two off.
        accurate = partial(tf.io.decode_jpeg, data, 3, dct_method="INTEGER_ACCURATE")
        others = partial(tf.io.decode_image, data, 3, expand_animations=False)
        image = tf.cond(tf.io.is_jpeg(data), accurate, others)
        image.set_shape((None, None, 3))
        return pipeline.resize(image, recipe.image_size)

    def decoded(jpeg):
        return tf.map_fn(
            pixels,
            jpeg,
            fn_output_signature=tf.TensorSpec((*recipe.image_size, 3), tf.float32),
        )

    images = tf.TensorSpec((None, None, None, 3), tf.uint8, name="images")
    jpeg = tf.TensorSpec((None,), tf.string, name="jpeg")
    query = tf.TensorSpec((None,), tf.string, name="query")
    own = bool(card["embedding"] and card["embedding"]["learnt"])
    archive.add_endpoint("serving_default", lambda images: _answer(forward(resized(images)), recipe, own), [images])
    archive.add_endpoint("jpeg", lambda jpeg: _answer(forward(decoded(jpeg)), recipe, own), [jpeg])
    if card["embedding"]:
        archive.add_endpoint("embeddings", lambda images: _embedding(forward(resized(images))), [images])
        archive.add_endpoint("jpeg_embeddings", lambda jpeg: _embedding(forward(decoded(jpeg))), [jpeg])
    archive.add_endpoint("card", lambda query: {"card": tf.fill(tf.shape(query), json.dumps(card))}, [query])
    with files.written_aside(folder) as aside:
        aside.mkdir()  # where that cannot be, TensorFlow's error is no OSError
        archive.write_out(str(aside), verbose=False)
        files.write_json(aside / "assets.extra" / "tfface.json", card)
    files.remove_leftovers(folder)
    return folder


def image_spec(recipe: Recipe) -> tf.TensorSpec:
    """What the network takes: `(batch, height, width, 3)` float32 RGB in [0, 255]."""
    return tf.TensorSpec((None, *recipe.image_size, 3), tf.float32, name="images")


def forward_of(network: keras.Model, recipe: Recipe) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The function from images, as `image_spec` has them, to the network's outputs, averaged over its views."""

    def forward(images):
        if not recipe.test_mirror:
            return network(images, training=False)
        # Both views in one batch: half the operations, and every weight is read once.
        outputs = network(tf.concat([images, images[:, :, ::-1]], axis=0), training=False)
        return {name: tf.add_n(tf.split(value, 2)) / 2 for name, value in outputs.items()}

    return forward


def numbers_of(network: keras.Model, recipe: Recipe) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """The function from images, as `image_spec` has them, to every output of the SavedModel that is not a string."""
    forward = forward_of(network, recipe)

    return lambda images: _numbers(forward(images), recipe)


def _numbers(outputs: dict[str, tf.Tensor], recipe: Recipe) -> dict[str, tf.Tensor]:
    """What a SavedModel answers of a network's outputs, without the strings."""
    answer = _answer(outputs, recipe) | (_embedding(outputs) if "embedding" in outputs else {})
    return {name: tensor for name, tensor in answer.items() if tensor.dtype != tf.string}


def network_and_card(run: Run) -> tuple[keras.Model, dict]:
    """The network of a run, its embedding as one more output where it has one; and what its outputs are."""
    recipe = run.recipe()
    network, embedding = _with_embedding(run.model())
    if embedding and not recipe.train_from and all(task.is_attribute for task in recipe.tasks()):
        embedding["learnt"] = False  # nobody taught it, and it was not left as another training had made it
    return network, {
        "recipe": recipe.to_json(),
        "trained": files.sha256(run.trained_file),
        "outputs": [task.describe() for task in recipe.tasks() if task.is_attribute],
        "landmarks": run.config()["data"].get("landmarks"),
        "stretch": run.config()["data"].get("stretch", 1.0),
        "embedding": embedding,
    }


def _with_embedding(model: keras.Model) -> tuple[keras.Model, dict | None]:
    """The model with its embedding as one more output, and what the embedding is; without one as it was, and None."""
    for layer in (model.get_layer(name) for name in EMBEDDING_LAYERS if name in {one.name for one in model.layers}):
        if len(layer.output.shape) == 2:
            about = {"layer": layer.name, "width": layer.output.shape[1], "learnt": "embedding" in model.output}
            return keras.Model(model.input, {"embedding": layer.output, **model.output}, name=model.name), about
    return model, None


def require_parity(
    network: keras.Model,
    recipe: Recipe,
    other: Callable,
    what: str,
    tolerance: float,
    mend: str = "This is an error of the converter: export a SavedModel.",
) -> None:
    """Compare what an exported file gives with what the network gives.

    Args:
        network: the network as it was trained.
        recipe: its recipe.
        other: `(images) -> {output: array}`, what the file gives for an array as `image_spec` has it.
        what: the file, for the message.
        tolerance: greatest difference, as a share of the greatest value of each output.
        mend: what to do about it, for the message.

    Raises:
        UserError: an output is absent or differs by more.
    """
    # Smooth noise: resized, as photographs are, and no two images alike.
    noise = np.random.default_rng(0).uniform(0, 255, (3, 8, 8, 3)).astype("float32")
    images = pipeline.resize(noise, recipe.image_size).numpy()
    expected = {name: value.numpy() for name, value in numbers_of(network, recipe)(images).items()}
    received = other(images)
    for name, values in expected.items():
        greatest = np.abs(values).max() or 1.0  # an embedding is 0 where none of its features fires
        difference = np.abs(received[name] - values).max() / greatest if name in received else np.inf
        if not difference <= tolerance:
            raise UserError(
                f"{what} was not written: its output {name} would differ from the model's by {difference:.1e} of its "
                f"greatest value, expected at most {tolerance:.0e}. {mend}"
            )


def _embedding(outputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    return {"embedding": tf.math.l2_normalize(tf.cast(outputs["embedding"], tf.float32), axis=1)}


def _answer(outputs: dict[str, tf.Tensor], recipe: Recipe, own: bool = False) -> dict[str, tf.Tensor]:
    answer = {}
    learnt = [task for task in recipe.tasks() if task.is_attribute]
    for task in learnt:
        answer.update(_named(task, outputs[task.name]))
    # What tells people apart answers with that; others have a signature for what lies below their heads.
    return {**answer, **_embedding(outputs)} if own or len(learnt) < len(recipe.tasks()) else answer


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
