"""A prepared data set seen with other classes: some joined under one name, examples of the rest left out."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import tensorflow as tf

from tfface import labels
from tfface.data import pipeline
from tfface.errors import UserError


class Regrouped(pipeline.Combined):
    """A data set whose classes are those of a grouping, such as the four races of paper 1 out of FairFace's seven.

    An image folder calls its classes `label`, whatever they are: here they are called as the grouping calls them.

    Args:
        part: the builder.
        grouping: a name in `labels.GROUPINGS`.

    Raises:
        UserError: no such grouping, or the data set has no class for one of its groups.
    """

    def __init__(self, part, grouping: str):
        if grouping not in labels.GROUPINGS:
            raise UserError(
                f"Unknown grouping of classes. Expected one of: {', '.join(labels.GROUPINGS)}. Received: {grouping}."
            )
        self.label, groups = labels.GROUPINGS[grouping]
        known = dict(pipeline.class_names(part))
        self.source = self.label if self.label in known else "label"
        self.originals = known.pop(self.source, ())
        lacking = [group for group, names in groups.items() if not set(names) & set(self.originals)]
        if lacking:
            raise UserError(
                f"{part.info.full_name} cannot be grouped as {grouping}: expected classes of {self.label} for "
                f"{', '.join(lacking)}. Received: {', '.join(self.originals) or 'none'}."
            )
        group_of = {name: index for index, names in enumerate(groups.values()) for name in names}
        self.parts, self.name = (part,), part.name
        self.classes = {**known, self.label: tuple(groups)}
        # The last is that of a label which is not known, -1.
        self.table = np.array([*(group_of.get(name, -1) for name in self.originals), -1], "int64")
        self._counts: dict[str, int] = {}
        self.info = RegroupedInfo(self, f"{part.info.full_name}@{grouping}")
        self.signature = f"{self.info.full_name} "

    def examples(self, split: str, images: tuple[str, ...]) -> tf.data.Dataset:
        """Examples of a split, as `pipeline.examples` gives them, without those that belong to no group."""
        rows = pipeline.examples(self.parts[0], split, images)

        def grouped(row):
            others = {name: value for name, value in row.items() if name != self.source}
            return {**others, self.label: tf.gather(tf.constant(self.table), row[self.source] % len(self.table))}

        rows = rows.map(grouped)
        rows = rows.filter(lambda row: row[self.label] >= 0)
        # A filter forgets the length, and Keras would warn at the end.
        return rows.apply(tf.data.experimental.assert_cardinality(self.count(split)))

    def count(self, split: str) -> int:
        """Examples of a split that belong to a group; read once."""
        if split not in self._counts:
            originals = pipeline.label_arrays(self.parts[0], split)[self.source]
            self._counts[split] = int((self.table[originals] >= 0).sum())
        return self._counts[split]

    def left_out(self) -> dict[str, list[str]]:
        """Class that belongs to no group, and "not known" -> names of its examples, over all splits."""
        names = {**dict(enumerate(self.originals)), -1: "not known"}
        found = {index: [] for index in names if self.table[index] < 0}
        for split in self.parts[0].info.splits:
            arrays = pipeline.label_arrays(self.parts[0], split)
            for index, keys in found.items():
                keys += arrays["key"][arrays[self.source] == index].tolist()
        return {f"{self.label} {names[index]}": keys for index, keys in found.items() if keys or index >= 0}


class RegroupedInfo:
    """What is read of a TFDS builder's info, for a regrouped data set; what takes a pass over it waits until asked.

    Attributes:
        full_name: that of the data set, "@" and the grouping.
        features: those of the data set, the grouped label under the grouping's name.
        splits: name -> a split with `num_examples`.
    """

    def __init__(self, regrouped: Regrouped, full_name: str):
        self._regrouped, self.full_name = regrouped, full_name
        features = regrouped.parts[0].info.features.items()
        self.features = {regrouped.label if name == regrouped.source else name: kind for name, kind in features}
        self.splits = {name: RegroupedSplit(regrouped, name) for name in regrouped.parts[0].info.splits}

    @cached_property
    def metadata(self) -> dict:
        """That of the data set, with the examples that the grouping leaves out."""
        known = dict(self._regrouped.parts[0].info.metadata or {})
        return {**known, "left_out": {**known.get("left_out", {}), **self._regrouped.left_out()}}


class RegroupedSplit:
    """A split without the examples that belong to no group."""

    def __init__(self, regrouped: Regrouped, name: str):
        self._regrouped, self._name = regrouped, name

    @property
    def num_examples(self) -> int:
        """Examples that are left."""
        return self._regrouped.count(self._name)
