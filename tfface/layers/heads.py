"""The last layers of every network that learns tasks: one output each, under the task's name."""

from collections.abc import Sequence

import keras
from keras import layers

from tfface.tasks import Task


def task_heads(features: keras.KerasTensor, tasks: Sequence[Task], initializer="glorot_uniform") -> dict:
    """Put a head for each task on shared features.

    Args:
        features: `(batch, width)`.
        tasks: what is learnt.
        initializer: of the heads' kernels, a Keras initializer.

    Returns:
        Task's name -> output, as `task_head` gives it.

    Raises:
        ValueError: no tasks.
    """
    if not tasks:
        raise ValueError("`tasks` must name at least one task. Received an empty sequence.")
    return {task.name: task_head(features, task, initializer) for task in tasks}


def task_head(features: keras.KerasTensor, task: Task, initializer="glorot_uniform") -> keras.KerasTensor:
    """One task's output: class probabilities, or a number.

    Args:
        features: `(batch, width)`.
        task: what is learnt.
        initializer: of the kernel, a Keras initializer.

    Returns:
        `(batch, task.width)` float32: probabilities where the task has classes, else the number itself.
    """
    if not task.classes:
        # A start at a plausible age spares the first epochs the way from 0 to 35 years.
        bias = keras.initializers.Constant(35.0) if task.is_age else "zeros"
        return layers.Dense(
            task.width, kernel_initializer=initializer, bias_initializer=bias, dtype="float32", name=task.name
        )(features)
    logits = layers.Dense(task.width, kernel_initializer=initializer, name=f"{task.name}_logits")(features)
    return layers.Activation("softmax", dtype="float32", name=task.name)(logits)
