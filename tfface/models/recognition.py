"""Networks that tell who it is: a backbone up to its embedding, a feature mask in it, the outputs that train it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
from keras import layers

from tfface.errors import UserError
from tfface.layers import CosineSimilarity, feature_mask, pattern_logits, task_head
from tfface.models.inception_resnet_v1 import inception_resnet_v1
from tfface.models.recognition_resnet import STAGES, recognition_resnet
from tfface.models.saved import copy_weights, load_saved
from tfface.tasks import Task

EMBEDDING = "embedding"
"""Name of the layer whose output, of length 1, is compared."""

FACENET_STAGES = ("Block35_5_Activation", "Block17_10_Activation", "Block8_6_ScaleSum")
"""Ends of the last three stages of FaceNet, fine to coarse."""

MASKED_STAGES = (("stage2", "stage3", "stage4"), FACENET_STAGES)
"""Ends of the three stages that a feature mask reads, fine to coarse: of table1 and ir, and of FaceNet."""


def load_backbone(
    network: str, input_shape=(112, 96, 3), embedding_width: int = 512, blocks: Sequence[int] = (3, 4, 14, 3)
) -> keras.Model:
    """A network from an aligned face to its embedding, by name or from a file.

    Args:
        network: "table1" or "ir" (`recognition_resnet`, fresh weights), "facenet" (Inception-ResNet-v1, pretrained,
            128-d), or a `.keras` file with a layer `embedding`, such as one of these, pruned.
        input_shape: `(height, width, 3)`, pixels.
        embedding_width: length of the embedding, for fresh weights.
        blocks: blocks of each stage, for fresh weights.

    Returns:
        A functional `keras.Model`, `(batch, height, width, 3)` RGB in [0, 255] -> `(batch, width)` float32 of length 1.
        It computes in the current dtype policy of Keras, whichever the file was written in.

    Raises:
        UserError: no such network or file, or one that has no such input or output.
    """
    if network in ("table1", "ir"):
        stages = tuple((count, filters) for count, (_, filters) in zip(blocks, STAGES, strict=True))
        return recognition_resnet(network, input_shape, embedding_width, stages)
    if network == "facenet":
        return inception_resnet_v1(input_shape, weights="facenet", normalize=True)
    if not network.endswith(".keras") or not Path(network).is_file():
        raise UserError(f"network must be table1, ir, facenet or a .keras file that exists. Received: {network}.")
    model = load_saved(network)
    if EMBEDDING not in {layer.name for layer in model.layers}:
        raise UserError(f"{network} has no layer {EMBEDDING}: expected a network that tells faces apart.")
    policy = keras.config.dtype_policy().name
    inside = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    policies = {layer.dtype_policy.name for layer in inside if layer.weights}
    if model.input_shape[1:] != tuple(input_shape) or policies != {policy}:
        try:
            image = keras.Input(input_shape, name="image")
            rebuilt = keras.models.clone_model(model, input_tensors=image, clone_function=_with_policy)
            copy_weights(model, rebuilt)  # a dense layer on flattened maps knows their size
        except ValueError as error:
            raise UserError(f"{network} takes no input of {input_shape}: {str(error).splitlines()[0]}") from error
        model = rebuilt
    return keras.Model(model.input, model.get_layer(EMBEDDING).output, name=model.name)


def _with_policy(layer: keras.Layer) -> keras.Layer:
    """A fresh copy of a layer that computes as the current dtype policy says; a file keeps that of its training."""
    if isinstance(layer, keras.Model):
        return keras.models.clone_model(layer, clone_function=_with_policy)
    config = layer.get_config()
    if layer.name != EMBEDDING and not isinstance(layer, layers.InputLayer):
        config["dtype"] = keras.config.dtype_policy().name
    return type(layer).from_config(config)


def with_feature_mask(backbone: keras.Model) -> keras.Model:
    """Put a feature mask before the last layers of a backbone, pruned or not (paper 5, third stage).

    The maps of the last stage are multiplied by the mask; the layers behind are those of the backbone, with their
    weights, and serve clean and covered faces alike.

    Args:
        backbone: table1, ir or facenet, as `load_backbone` gives them: one with the layers of `MASKED_STAGES`.

    Returns:
        A model of the same input and output that shares the backbone's layers; its layer `mask` gives the mask. The
        backbone itself where it has one already, as that of a file of the third stage.

    Raises:
        UserError: a backbone without these stages.
    """
    names = [layer.name for layer in backbone.layers]
    if "mask" in names:
        return backbone
    stages = next((stages for stages in MASKED_STAGES if set(stages) <= set(names)), None)
    if stages is None:
        raise UserError(
            f"A feature mask stands on the stages of table1, ir or facenet. Received: {backbone.name}, which has none "
            "of them."
        )
    maps = [backbone.get_layer(name).output for name in stages]
    x = layers.Multiply(name="masked")([maps[-1], feature_mask(maps)])
    for layer in backbone.layers[names.index(stages[-1]) + 1 :]:
        x = layer(x)
    return keras.Model(backbone.input, x, name=backbone.name)


def recognition(backbone: keras.Model, tasks: Sequence[Task], name: str = "recognition") -> keras.Model:
    """Put on a backbone what it is trained by.

    Args:
        backbone: what `load_backbone` or `with_feature_mask` gives.
        tasks: `tfface.tasks.identity` (cosines to a centre for each person), `embedding` (a teacher's, learnt by the
            embedding itself) and `occlusion_pattern` (needs a feature mask), in any choice.
        name: name of the model.

    Returns:
        A functional `keras.Model`: a dict of `embedding` and an output for each other task.

    Raises:
        UserError: a pattern without a feature mask.
    """
    outputs = {EMBEDDING: backbone.output}
    for task in tasks:
        if task.label == "identity":
            outputs[task.name] = CosineSimilarity(len(task.targets), name=task.name)(backbone.output)
        elif task.label == "pattern":
            if "mask" not in {layer.name for layer in backbone.layers}:
                raise UserError("Occlusion patterns are read from a feature mask: set masked=True.")
            logits = pattern_logits(backbone.get_layer("mask").output, task.width)
            outputs[task.name] = layers.Activation("softmax", dtype="float32", name=task.name)(logits)
        elif task.name != EMBEDDING:
            outputs[task.name] = task_head(backbone.output, task)
    return keras.Model(backbone.input, outputs, name=name)
