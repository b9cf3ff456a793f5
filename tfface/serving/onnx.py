"""A trained run becomes an ONNX file: the same outputs without the strings, checked before it is kept."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import tensorflow as tf

from tfface import files
from tfface.packages import require_tensorflow
from tfface.serving import export, optimize
from tfface.training.run import Run

TOLERANCE = 1e-4
"""Greatest difference from the Keras model, as a share of each output's greatest value."""


def export_onnx(run: Run, file: str | Path) -> Path:
    """Write an ONNX file and check with onnxruntime that it gives what the Keras model gives.

    Input `images`: float32 `(batch, height, width, 3)`, RGB in [0, 255], of the recipe's size. Outputs: those of the
    SavedModel (`tfface.serving.export`) that are numbers, `embedding` among them. What they mean, the class names
    included, is JSON under `tfface` in the file's metadata.

    tf2onnx converts it: what Keras' own ONNX export calls, but for functions and named outputs.

    Args:
        run: a trained run.
        file: the file; one that stands there is replaced.

    Returns:
        The file.

    Raises:
        UserError: no trained model, another Keras backend than TensorFlow, or the file would give other outputs.
    """
    require_tensorflow("An ONNX file")
    import onnx
    import tf2onnx

    recipe = run.recipe()
    network, card = export.network_and_card(run)
    function = tf.function(export.numbers_of(optimize.fold(network), recipe))
    handlers = {"Erfc": (_erfc, [])}
    model, _ = tf2onnx.convert.from_function(function, [export.image_spec(recipe)], custom_op_handlers=handlers)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"  # the converter gives each a name of its own
    onnx.helper.set_model_props(model, {"tfface": json.dumps(card)})
    onnx.checker.check_model(model)
    with files.written_aside(file) as aside:
        onnx.save(model, str(aside))
        export.require_parity(network, recipe, load_onnx(aside), str(file), TOLERANCE)
    files.remove_leftovers(file)
    return Path(file)


def _erfc(graph, node, name, arguments) -> None:
    """1 - Erf: ONNX has no Erfc, by which TensorFlow computes the exact GELU of paper 1."""
    source, made, shapes, dtypes = node.input[0], node.output[0], node.output_shapes, node.output_dtypes
    graph.remove_node(name)
    one = graph.make_const(f"{name}_one", np.array(1, "float32")).output[0]
    erf = graph.make_node("Erf", [source]).output[0]
    graph.make_node("Sub", [one, erf], name=name, outputs=[made], shapes=shapes, dtypes=dtypes)


def load_onnx(file: str | Path):
    """Load an ONNX file with onnxruntime, on the processor.

    Args:
        file: what `export_onnx` wrote.

    Returns:
        A function of images, float32 `(batch, height, width, 3)` in [0, 255], that gives a dict of arrays.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]

    def predict(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {"images": images}), strict=True))

    return predict
