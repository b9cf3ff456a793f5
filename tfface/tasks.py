"""What a head learns and how its output is read: one `Task` for each output of a model.

A task turns an integer label into its target by a table (`targets[label]`), so the same encoding serves NumPy, tf.data
and every Keras backend, and a new encoding is a new table.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tfface import labels

AGES = np.arange(labels.OLDEST + 1)
"""Every age that a table of targets covers, years."""


@dataclass(frozen=True, eq=False)
class Task:
    """One output of a model.

    Attributes:
        name: name of the model's output: "gender", "race", "age".
        label: feature of the data set that is learnt; an integer in [0, len(targets)).
        classes: class names, in the order of the output's columns; empty for a number.
        targets: table of targets, `(number of label values, output width)` float32: one-hot or soft rows that sum
            to 1 for classes, the number itself for a regression, the index itself for identities; no rows for an
            embedding, which a teacher gives.
        loss: "crossentropy", "age_distribution" (see `tfface.losses`), "absolute" (mean absolute error, in years),
            "cosine" (minus the cosine of two vectors), or a Keras loss.
        weight: weight of the loss in the sum over tasks.
        years: for an age over classes, the age (years) that each class stands for, `(output width,)`; otherwise None.
        ordered: whether the classes stand in order, so that being off by one has a meaning.
    """

    name: str
    label: str
    classes: tuple[str, ...]
    targets: np.ndarray = field(repr=False)
    loss: str = "crossentropy"
    weight: float = 1.0
    years: np.ndarray | None = field(default=None, repr=False)
    ordered: bool = False

    @property
    def width(self) -> int:
        """Width of a target: that of the output, but for identities, whose target is one index."""
        return self.targets.shape[1]

    @property
    def is_attribute(self) -> bool:
        """Whether the output says something of a face that a person reads: classes by name, or an age."""
        return bool(self.classes) or self.is_age

    @property
    def is_age(self) -> bool:
        """Whether the output says an age, as a distribution over classes or as a number."""
        return self.label == "age"

    def describe(self) -> dict:
        """The task as plain values, for a model's card."""
        return {
            "name": self.name,
            "label": self.label,
            "classes": list(self.classes),
            "years": None if self.years is None else [float(year) for year in self.years],
        }


def classification(
    name: str, classes: tuple[str, ...], weight: float = 1.0, label: str = "", ordered: bool = False
) -> Task:
    """A class out of several, one-hot."""
    table = np.eye(len(classes), dtype="float32")
    return Task(name, label or name, tuple(classes), table, weight=weight, ordered=ordered)


def identity(people: int, loss, weight: float = 1.0) -> Task:
    """Who it is, among the people of a training set: what an embedding is trained by, and no more.

    Args:
        people: how many there are, >= 2.
        loss: a Keras loss of index and cosines, such as `tfface.losses.AngularMarginLoss`.
        weight: weight of the loss.
    """
    # The index itself: one-hot rows of 10,575 people would fill half a gigabyte.
    return Task("identity", "identity", (), np.arange(people, dtype="float32")[:, None], loss=loss, weight=weight)


def embedding(width: int, weight: float = 1.0) -> Task:
    """The embedding of another network, learnt example by example (distillation); its targets are not a table."""
    return Task("embedding", "example", (), np.zeros((0, width), "float32"), loss="cosine", weight=weight)


def occlusion_pattern(patterns: int, weight: float = 1.0) -> Task:
    """Which part of the face is covered (`tfface.faces.occlude.pattern`), known for occluders that training adds."""
    return Task("pattern", "pattern", (), np.eye(patterns, dtype="float32"), weight=weight)


def age_bins(weight: float = 1.0, starts=labels.ARG_AGE_STARTS, names=labels.ARG_AGES, oldest: int = 90) -> Task:
    """Age as one of several bins (the ARG poster's nine).

    A bin stands for the middle of its ages when years are asked for; the last, open bin is taken to end at `oldest`
    (older faces are rare in every data set of faces).
    """
    table = np.eye(len(starts), dtype="float32")[labels.age_bin(AGES, starts)]
    ends = (*(start - 1 for start in starts[1:]), oldest)
    middles = np.array([(start + end) / 2 for start, end in zip(starts, ends, strict=True)], "float32")
    return Task("age", "age", tuple(names), table, weight=weight, years=middles)


def age_classes(weight: float = 1.0) -> Task:
    """Age as 63 classes: 0, 1, ..., 61 and 62+ (the ARG poster's second variant)."""
    table = np.eye(63, dtype="float32")[np.minimum(AGES, 62)]
    years = np.arange(63, dtype="float32")
    years[62] = (62 + 90) / 2
    return Task("age", "age", labels.ARG_63_AGES, table, weight=weight, years=years)


def age_exact(weight: float = 0.1) -> Task:
    """Age as one number, in years, by its mean absolute error."""
    return Task("age", "age", (), AGES[:, None].astype("float32"), loss="absolute", weight=weight)


def age_distribution(weight: float = 1.0, deviation: float = 2.0) -> Task:
    """Age as a distribution over the years 0 to 116; its mean is the age, its spread the doubt.

    The target is a discretised normal distribution about the labelled age: neighbouring years look alike, and the
    labels are guesses of a few years' width themselves.

    Reference: Gao et al., Age Estimation Using Expectation of Label Distribution Learning (IJCAI 2018), section 3.

    Args:
        weight: weight of the loss.
        deviation: standard deviation of the target, years, > 0.
    """
    table = np.exp(-0.5 * ((AGES[None] - AGES[:, None]) / deviation) ** 2)
    table = (table / table.sum(axis=1, keepdims=True)).astype("float32")
    names = tuple(str(age) for age in AGES)
    return Task("age", "age", names, table, loss="age_distribution", weight=weight, years=AGES.astype("float32"))


def years_of(task: Task, output: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Age in years, and its spread, from the output of an age task.

    Args:
        task: an age task.
        output: `(n, task.width)`, the model's output.

    Returns:
        `(age, spread)`, each `(n,)` float32: mean and standard deviation of the distribution in years; the spread is
        None for a plain number.
    """
    output = np.asarray(output, "float32")
    if task.years is None:
        return output[:, 0], None
    age = output @ task.years
    variance = np.maximum(output @ task.years**2 - age**2, 0)
    return age, np.sqrt(variance)


def bins_of(task: Task, output: np.ndarray, starts=labels.ARG_AGE_STARTS) -> np.ndarray:
    """Probabilities of age bins from the output of any age task.

    A finer distribution is summed over each bin; a plain number gives its bin a probability of 1.

    Args:
        task: an age task.
        output: `(n, task.width)`, the model's output.
        starts: first age of each bin, years.

    Returns:
        `(n, len(starts))` float32.
    """
    years = np.asarray(output, "float32")[:, 0] if task.years is None else task.years
    # A mean of 5.6 years belongs to age 5 as labelled: ages are completed years, but predictions are not; round.
    member = np.eye(len(starts), dtype="float32")[labels.age_bin(np.maximum(np.rint(years), 0), starts)]
    return member if task.years is None else np.asarray(output, "float32") @ member
