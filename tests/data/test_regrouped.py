"""Classes joined and left out, on the small synthetic set, whose races are UTKFace's five."""

import numpy as np
import pytest

from tfface import labels
from tfface.data import pipeline
from tfface.errors import UserError


@pytest.fixture(scope="module")
def whole(data_dir):
    return pipeline.open_dataset("synthetic_faces/small", data_dir)


@pytest.fixture(scope="module")
def four(data_dir):
    return pipeline.open_dataset("synthetic_faces/small@four_races", data_dir)


def test_others_are_left_out_and_counted(whole, four):
    before, after = pipeline.label_arrays(whole, "test"), pipeline.label_arrays(four, "test")
    others = before["race"] == labels.UTKFACE_RACES.index("Others")
    assert 0 < others.sum() < len(others)
    assert pipeline.class_names(four)["race"] == ("White", "Black", "Asian", "Indian")
    np.testing.assert_array_equal(after["key"], before["key"][~others])
    np.testing.assert_array_equal(after["race"], before["race"][~others])  # UTKFace's first four, in its order
    assert four.info.splits["test"].num_examples == (~others).sum()
    assert set(before["key"][others]) <= set(four.info.metadata["left_out"]["race Others"])


def test_classes_are_joined(monkeypatch, data_dir, whole):
    # In another order and with two under one name, as FairFace's two Asian ones are.
    monkeypatch.setitem(labels.GROUPINGS, "two", ("race", {"A": ("Asian", "White"), "B": ("Indian",)}))
    two = pipeline.open_dataset("synthetic_faces/small@two", data_dir)
    truth = pipeline.label_arrays(whole, "validation")["race"]
    expected = [{0: 0, 2: 0, 3: 1}[race] for race in truth.tolist() if race in (0, 2, 3)]
    assert pipeline.label_arrays(two, "validation")["race"].tolist() == expected


def test_whoever_changes_the_names_changes_their_own(four):
    names = pipeline.class_names(four)
    names["race"] = names["race"][::-1]  # as a network has them, to measure it by
    assert pipeline.class_names(four)["race"] == ("White", "Black", "Asian", "Indian")


def test_every_data_set_of_paper_1_has_the_four_races():
    _, groups = labels.GROUPINGS["four_races"]
    for races in (labels.UTKFACE_RACES, labels.FAIRFACE_RACES, ("African", "Asian", "Caucasian", "Indian")):
        assert all(set(names) & set(races) for names in groups.values())


def test_fingerprints_differ(whole, four):
    assert pipeline.fingerprint(whole, "test") != pipeline.fingerprint(four, "test")


def test_parts_of_a_split_are_disjoint(four):
    first, second = (pipeline.label_arrays(four, f"train[{part}]")["key"] for part in (":50%", "50%:"))
    assert not set(first) & set(second)
    assert pipeline.num_examples(four, "train[:50%]") == len(first)
    assert len(first) + len(second) == four.info.splits["train"].num_examples


def test_what_cannot_be_grouped_is_said(data_dir, monkeypatch):
    with pytest.raises(UserError, match=r"four_races.*nothing"):
        pipeline.open_dataset("synthetic_faces/small@nothing", data_dir)
    monkeypatch.setitem(labels.GROUPINGS, "martian", ("race", {"Martian": ("Green",)}))
    with pytest.raises(UserError, match=r"race for Martian\. Received: White"):
        pipeline.open_dataset("synthetic_faces/small@martian", data_dir)
