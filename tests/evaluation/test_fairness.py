"""Figures per group, their gaps, and groups too small to judge."""

import json

import numpy as np
import pytest

from tfface.evaluation.evaluate import Predictions, evaluate
from tfface.evaluation.fairness import by_group


def gender_model(groups: dict[str, tuple[int, int]]) -> Predictions:
    """A model of gender that is right on `hits` of the `n` people of each race: {race: (hits, n)}."""
    race = np.repeat(np.arange(len(groups)), [n for _, n in groups.values()])
    right = np.concatenate([np.arange(n) < hits for hits, n in groups.values()])
    gender = np.zeros(len(race), dtype=int)
    return Predictions(
        key=np.arange(len(race)).astype(str),
        truth={"gender": gender, "race": race},
        probabilities={"gender": np.eye(2)[np.where(right, 0, 1)]},
        classes={"gender": ("Male", "Female"), "race": tuple(groups)},
    )


def test_gap_with_its_interval():
    races = by_group(gender_model({"White": (90, 100), "Black": (40, 50)}))["by"]["race"]
    white, black = races["groups"]
    assert (white["group"], white["n"]) == (["White"], 100)
    assert white["figures"]["gender_accuracy"]["interval"] == pytest.approx([0.8256, 0.9448], abs=1e-4)
    assert black["figures"]["gender_accuracy"]["value"] == 0.8
    gap = races["gaps"]["gender_accuracy"]
    assert (gap["worst"], gap["best"]) == (["Black"], ["White"])
    assert gap["gap"] == pytest.approx(-0.1)
    # Newcombe: -0.1 - sqrt(0.1304^2 + 0.0448^2), -0.1 + sqrt(0.0876^2 + 0.0744^2)
    assert gap["interval"] == pytest.approx([-0.2379, 0.0149], abs=2e-4)


def test_small_group_is_marked_and_names_no_gap():
    races = by_group(gender_model({"White": (90, 100), "Black": (80, 100), "Indian": (0, 29)}))["by"]["race"]
    assert [group["too_small"] for group in races["groups"]] == [False, False, True]
    assert races["groups"][2]["figures"]["gender_accuracy"]["value"] == 0
    assert races["gaps"]["gender_accuracy"]["worst"] == ["Black"]
    judged_at_30 = by_group(gender_model({"White": (90, 100), "Black": (80, 100), "Indian": (0, 30)}))
    assert judged_at_30["by"]["race"]["gaps"]["gender_accuracy"]["worst"] == ["Indian"]


def test_no_gap_between_fewer_than_two_large_groups():
    result = by_group(gender_model({"White": (90, 100), "Black": (4, 5)}))
    assert result["by"]["race"]["gaps"]["gender_accuracy"] is None
    assert result["by"]["gender"]["groups"][1] == {
        "group": ["Female"],
        "n": 0,
        "too_small": True,
        "figures": {"gender_accuracy": {"value": None, "interval": None}},
    }


def test_every_cell_of_gender_race_and_age(predictions):
    result = by_group(predictions)
    assert list(result["by"]) == ["gender", "race", "age group", "gender x race", "gender x race x age group"]
    assert [len(entry["groups"]) for entry in result["by"].values()] == [2, 5, 9, 10, 90]
    assert all(sum(group["n"] for group in entry["groups"]) == 400 for entry in result["by"].values())
    metrics = evaluate(predictions)
    assert result["overall"]["race_accuracy"] == metrics["tasks"]["race"]["accuracy"]
    assert result["overall"]["age_bins_one_off"] == metrics["tasks"]["age_bins"]["one_off"]
    assert result["overall"]["age_mae"] == metrics["age"]["mae"]
    recalls = [row["recall"] for row in metrics["tasks"]["race"]["per_class"]]
    assert [group["figures"]["race_accuracy"] for group in result["by"]["race"]["groups"]] == recalls
    assert result["by"]["race"]["gaps"]["age_bias"] is None
    assert result["by"]["gender"]["gaps"]["age_mae"]["gap"] >= 0
    json.dumps(result, allow_nan=False)


def test_one_person_is_no_group():
    predictions = gender_model({"a": (40, 50), "b": (45, 50)})
    known = {**predictions.truth, "identity": np.arange(100)}
    classes = {**predictions.classes, "identity": tuple(map(str, range(100)))}
    result = by_group(Predictions(predictions.key, known, predictions.probabilities, classes))
    assert set(result["by"]) == {"gender", "race", "gender x race"}


def test_age_groups_hold_their_last_year():
    predictions = Predictions(
        np.array(["a", "b", "c"]), {"age": np.array([5.9, 6, 70])}, {}, {}, age_years=np.array([5.0, 6.0, 70.0])
    )
    by = by_group(predictions, age_starts=(0, 6, 62))["by"]
    assert list(by) == ["age group"]
    groups = by["age group"]["groups"]
    assert [(group["group"], group["n"]) for group in groups] == [(["0-5"], 1), (["6-61"], 1), (["62+"], 1)]


def test_groups_of_ages_serve_where_years_are_not_known():
    said = {"age_group": np.eye(2)[[0, 1, 1]]}
    truth, classes = {"age_group": np.array([0, 0, 1])}, {"age_group": ("0-29", "30+")}
    predictions = Predictions(np.array(["a", "b", "c"]), truth, said, classes, ordered=("age_group",))
    groups = by_group(predictions)["by"]["age group"]["groups"]
    assert [(group["group"], group["n"]) for group in groups] == [(["0-29"], 2), (["30+"], 1)]
    assert [group["figures"]["age_group_accuracy"]["value"] for group in groups] == [0.5, 1.0]


def test_only_an_error_cannot_be_below_zero():
    truth, said = {"age": np.array([30, 30])}, np.array([29.0, 21.0])  # 1 and 9 years too young
    overall = by_group(Predictions(np.array(["a", "b"]), truth, {}, {}, age_years=said))["overall"]
    half = 12.706205 * 4  # t(0.975, 1) times the standard error
    assert overall["age_bias"] == {"value": -5.0, "interval": pytest.approx([-5 - half, -5 + half], abs=1e-4)}
    assert overall["age_mae"] == {"value": 5.0, "interval": pytest.approx([0, 5 + half], abs=1e-4)}


@pytest.mark.parametrize("starts", [(18, 30, 50), (0, 50, 30)])
def test_age_groups_that_leave_people_out_are_refused(predictions, starts):
    with pytest.raises(ValueError, match="begin at 0 and rise"):
        by_group(predictions, starts)
