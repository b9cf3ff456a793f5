"""A trained run becomes a LiteRT (TensorFlow Lite) file for phones and small boards, in float32 or int8."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from tfface import files
from tfface.data import pipeline
from tfface.evaluation.predictions import truth_of
from tfface.packages import require_tensorflow
from tfface.serving import export, optimize
from tfface.training import batches
from tfface.training.run import Run

TOLERANCE = 1e-4
"""Greatest difference of a float32 file from the Keras model, as a share of each output's greatest value."""

IN_FLOAT = [
    *("FULLY_CONNECTED", "BATCH_MATMUL", "SOFTMAX", "LOGISTIC", "MEAN", "SUM", "REDUCE_MAX", "SUB", "MUL", "DIV"),
    *("SQRT", "RSQRT", "SQUARE", "SQUARED_DIFFERENCE", "MAXIMUM", "MINIMUM", "L2_NORMALIZATION"),
]
"""Operations that stay in float32 in an int8 file: the pixels' standardisation and everything from the pooled features
on. Of 117 probabilities of ages most are smaller than a step of int8, and a mean age would be off by years."""

SIGNATURE = "serving_default"

CALIBRATION = 128
"""Faces whose ranges an int8 file takes: more than the hundred that TensorFlow's guide asks for."""

MEASURED = 1024
"""Faces on which an int8 file is compared with float32: an accuracy of 0.9 is then known to 0.01."""


def export_litert(run: Run, file: str | Path, calibration: np.ndarray | None = None) -> Path:
    """Write a LiteRT file. Input and outputs are those of `tfface.serving.onnx.export_onnx`.

    Args:
        run: a trained run.
        file: the file; one that stands there is replaced. What the outputs mean is written beside it, as `FILE.json`.
        calibration: faces, float32 `(n, height, width, 3)` in [0, 255] of the recipe's size, a hundred or more. Given,
            weights and feature maps are int8 (Jacob et al., CVPR 2018), with ranges as these faces have them.

    Returns:
        The file.

    Raises:
        UserError: no trained model, another Keras backend than TensorFlow, or (float32) the file would give other
            outputs than the Keras model.
    """
    require_tensorflow("A LiteRT file")
    recipe = run.recipe()
    network, card = export.network_and_card(run)
    spec = export.image_spec(recipe)
    function = optimize.freeze(export.numbers_of(optimize.fold(network), recipe), [spec])
    archive = keras.export.ExportArchive()
    archive.add_endpoint(SIGNATURE, function, [spec])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        content = converter.convert() if calibration is None else _quantized(converter, calibration)
    with files.written_aside(file) as aside:
        aside.write_bytes(content)
        if calibration is None:
            export.require_parity(network, recipe, load_litert(aside), str(file), TOLERANCE)
        Path(f"{file}.json").unlink(missing_ok=True)  # no network may stand beside the meaning of another
    files.write_json(f"{file}.json", card)
    files.remove_leftovers(file)
    return Path(file)


def _quantized(converter, images: np.ndarray) -> bytes:
    def samples():
        return ({"images": image[None]} for image in images)

    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = samples
    # The public way to leave some operations in float32; nothing is debugged here.
    options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=IN_FLOAT)
    with _no_word_of_its_removal():
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter, debug_dataset=samples, debug_options=options
        )
    return debugger.get_nondebug_quantized_model()


@contextlib.contextmanager
def _no_word_of_its_removal() -> Iterator[None]:
    """Where TensorFlow makes an interpreter: it says that a later one will have moved it; the pinned one has it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"\s*Warning: tf.lite.Interpreter is deprecated")
        yield


def load_litert(file: str | Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Load a LiteRT file.

    Args:
        file: what `export_litert` wrote.

    Returns:
        A function of images, float32 `(batch, height, width, 3)` in [0, 255], that gives a dict of arrays.
    """
    with _no_word_of_its_removal():
        interpreter = tf.lite.Interpreter(str(file), num_threads=os.cpu_count())
    runner = interpreter.get_signature_runner(SIGNATURE)
    # `interpreter` must live as long as its runner does.
    return lambda images, interpreter=interpreter: runner(images=images)


def faces_of(run: Run, split: str, count: int, data: str = "", data_dir: str | Path | None = None) -> np.ndarray:
    """The first faces of a split of the run's data set (they stand in random order), for calibration.

    Returns:
        float32 `(count or fewer, height, width, 3)` in [0, 255].

    Raises:
        UserError: no such data set or split.
    """
    recipe = run.recipe()
    rows = batches.evaluation_images(
        pipeline.open_dataset(data or recipe.data, data_dir), split, recipe, pipeline.View()
    )
    return np.concatenate(list(rows.unbatch().take(count).batch(count).as_numpy_iterator()))


def measure_int8(
    run: Run, file: str | Path, data: str = "", data_dir: str | Path | None = None
) -> dict[str, list[float]]:
    """Compare an int8 file with the network in float32 on faces of the test split; write it to `FILE.json` too.

    Returns:
        Task -> `[float32, int8]`: the share of right answers, for "age" the mean absolute error, years (`accuracies`).

    Raises:
        UserError: no such data set.
    """
    network, card = export.network_and_card(run)
    whole = tf.function(export.numbers_of(network, run.recipe()), input_signature=[export.image_spec(run.recipe())])
    both = [accuracies(predict, run, "test", MEASURED, data, data_dir) for predict in (whole, load_litert(file))]
    (before, faces), (after, _) = both
    result = {task: [before[task], after[task]] for task in before}
    files.write_json(f"{file}.json", {**card, "faces": faces, "float32, int8": result})
    return result


def accuracies(
    predict: Callable, run: Run, split: str, count: int, data: str = "", data_dir: str | Path | None = None
) -> tuple[dict[str, float], int]:
    """How often an exported file is right on the first faces of a split, of joined data sets on those with the label.

    Args:
        predict: what `load_litert` or `load_onnx` gives.
        run: the run that was exported.
        split, count, data, data_dir: which faces, as in `faces_of`.

    Returns:
        Task -> share of the faces that get their label; "age" -> mean absolute error, years. And how many faces there
        were.

    Raises:
        UserError: no such data set or split, or classes of other names than the network learnt.
    """
    builder = pipeline.open_dataset(data or run.recipe().data, data_dir)
    tasks, labels, _ = truth_of(run.recipe(), builder, split)
    images = faces_of(run, split, count, data, data_dir)
    parts = [predict(images[start : start + 32]) for start in range(0, len(images), 32)]
    outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    result = {}
    for task in (task for task in tasks if task.is_attribute):
        truth = labels[task.label][: len(images)]
        known = truth >= 0
        if not known.any():
            continue
        if task.is_age:
            result["age"] = float(np.abs(outputs["age"] - truth)[known].mean())
        else:
            said = outputs[f"{task.name}_probabilities"].argmax(axis=1)
            result[task.name] = float((task.targets[truth].argmax(axis=1) == said)[known].mean())
    return result, len(images)
