"""Runs beside each other: differences by hand, what cannot be compared, and the page."""

import dataclasses
import json

import numpy as np
import pytest
from scipy import stats

from tfface import recipes
from tfface.cli import main
from tfface.errors import UserError
from tfface.evaluation.compare import compare, difference, verdict
from tfface.evaluation.evaluate import evaluate


def test_difference_of_single_seeds_is_the_paired_interval_of_the_images():
    ours, base = np.array([[1, 1, 1, 0, 1.0]]), np.array([[1, 0, 0, 0, 1.0]])
    each = np.array([0, 1, 1, 0, 0])  # paired: 2 of 5 better, none worse
    half = stats.t.ppf(0.975, 4) * np.sqrt(0.3 / 5)  # the variance of `each` is 0.3
    told = difference(ours, base)
    assert told["value"] == pytest.approx(0.4)
    assert told["interval"] == pytest.approx([each.mean() - half, each.mean() + half])


def test_difference_counts_the_luck_of_the_seeds():
    # Means of the seeds: 0.5, 1.0 against 0.5, 0.5; images' mean differences 0.5, 0: variances 0.125 and 0 of the
    # seeds, 0.125 of the images, each over 2: 0.125 in all, with 2 degrees of freedom (0.125^2 / (2 * 0.0625^2)).
    ours, base = np.array([[0, 1.0], [1, 1]]), np.array([[0, 1.0], [0, 1]])
    told = difference(ours, base)
    half = stats.t.ppf(0.975, 2) * np.sqrt(0.125)
    assert told["value"] == pytest.approx(0.25)
    assert told["interval"] == pytest.approx([0.25 - half, 0.25 + half])


def test_equal_scores_differ_by_nothing():
    assert difference(np.ones((2, 3)), np.ones((2, 3))) == {"value": 0.0, "interval": [0.0, 0.0]}


def test_difference_covers_the_truth_as_often_as_it_says():
    """Two recipes that are equally good, three seeds each: 95 % intervals leave zero out in about 5 % of the cases."""
    random, missed = np.random.default_rng(0), 0
    hard = random.uniform(0.2, 1, 400)
    for _ in range(400):
        luck = random.normal(0, 0.03, (6, 1))
        scores = (random.uniform(size=(6, 400)) < np.clip(hard + luck, 0, 1)).astype(float)
        low, high = difference(scores[:3], scores[3:])["interval"]
        missed += not low <= 0 <= high
    assert 0 < missed / 400 < 0.08


def test_few_images_that_all_agree_leave_it_open():
    # Agresti and Min: of n images, of which b were right with us alone and c with them alone, the mean is
    # (b - c) / (n + 2), its variance ((b + c + 1) / (n + 2) - mean^2) / (n + 2).
    told = difference(np.ones((1, 39)), np.ones((1, 39)), share=True)
    half = stats.t.ppf(0.975, 40) * np.sqrt(1 / 41**2)
    assert told["value"] == 0
    assert told["interval"] == pytest.approx([-half, half])
    told = difference(np.ones((1, 1)), np.zeros((1, 1)), share=True)
    assert told["value"] == 1
    assert told["interval"][0] < 0
    assert told["interval"][1] == 1
    assert difference(np.array([[3.0]]), np.array([[5.0]])) == {"value": -2.0, "interval": None}
    assert verdict({"difference": {"interval": None}}, "high") == "not told apart"


@pytest.mark.parametrize("images", [30, 100])
def test_intervals_of_few_images_cover_the_truth(images):
    """4 % of the images are right with us alone, 1.5 % with them alone."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        which = random.choice(3, images, p=[0.04, 0.015, 0.945])
        low, high = difference((which != 1).astype(float)[None], (which != 0).astype(float)[None], share=True)[
            "interval"
        ]
        held += low <= 0.025 <= high
    assert held / 400 > 0.94


def test_verdict_knows_which_end_is_better():
    above, around = ({"difference": {"interval": interval}} for interval in ([0.1, 0.3], [-0.1, 0.3]))
    assert (verdict(above, "high"), verdict(above, "low")) == ("better", "worse")
    assert (verdict(around, "high"), verdict({}, "high")) == ("not told apart", "")


def told(folder, predictions, **fields):
    """A run's folder as training and evaluation leave it, as far as a comparison reads it."""
    recipe = recipes.load("arg").changed(**fields)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"recipe": recipe.to_json()}))
    (folder / "done.json").write_text("{}")
    predictions.save(folder / "predictions-test.npz")


def worse(predictions, wrong):
    """The same predictions with the gender of the first `wrong` right answers turned round."""
    gender = predictions.probabilities["gender"].copy()
    right = np.flatnonzero(gender.argmax(axis=1) == predictions.truth["gender"])[:wrong]
    gender[right] = gender[right, ::-1]
    return dataclasses.replace(predictions, probabilities={**predictions.probabilities, "gender": gender})


@pytest.fixture
def runs(tmp_path, predictions):
    """A base of two seeds and a worse run with another rate, its images in another order."""
    told(tmp_path / "arg-base" / "seed-0", predictions, seed=0)
    told(tmp_path / "arg-base" / "seed-1", worse(predictions, 4), seed=1)
    backwards = worse(predictions, 100).chosen(np.arange(len(predictions.key))[::-1])
    told(tmp_path / "arg-fast", backwards, learning_rate=0.5, seed=7)
    return tmp_path / "arg-base", tmp_path / "arg-fast"


def test_seeds_that_were_evaluated_on_other_labels_have_no_mean(runs, predictions):
    base, fast = runs
    truth = {**predictions.truth, "gender": 1 - predictions.truth["gender"]}
    dataclasses.replace(predictions, truth=truth).save(base / "seed-1" / "predictions-test.npz")
    with pytest.raises(UserError, match=r"base/seed-0 and .*base/seed-1, which differ in those of gender accuracy\."):
        compare([base, fast])


def test_a_page_and_a_table(runs, tmp_path, capsys):
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "page")]) == 0
    assert "learning_rate: 0.5" in capsys.readouterr().out
    assert r"learning\_rate: 0.5" in (tmp_path / "page" / "report.md").read_text()
    assert (tmp_path / "page" / "figures" / "gender-accuracy.svg").exists()
    compared = json.loads((tmp_path / "page" / "report.json").read_text())
    base, fast = compared["figures"]["gender accuracy"]["rows"]
    assert (base["name"], fast["name"]) == ("base", "fast")
    assert base["seeds"][0] - base["seeds"][1] == pytest.approx(4 / 400)
    assert base["spread"] == pytest.approx(4 / 400 / 2**0.5)
    assert fast["difference"]["value"] == pytest.approx(-98 / 400)
    assert verdict(fast, "high") == "worse"
    assert list(fast["changed"]) == ["learning_rate"]
    # what was not touched is equal, whatever the order of the images
    assert compared["figures"]["age error"]["rows"][1]["difference"]["value"] == 0


def test_a_difference_of_years_may_be_more_than_one(tmp_path, predictions):
    older = dataclasses.replace(predictions, age_years=predictions.age_years + 20)
    told(tmp_path / "base", predictions)
    told(tmp_path / "older", older)
    figures = compare([tmp_path / "base", tmp_path / "older"])["figures"]
    rows = figures["age error"]["rows"]
    errors = [evaluate(said)["age"]["mae"]["value"] for said in (predictions, older)]
    assert [row["value"] for row in rows] == pytest.approx(errors)
    low, high = rows[1]["difference"]["interval"]
    assert 1 < low < errors[1] - errors[0] < high
    # Of shares it is that of two images more: 402, of which half a one was right with each alone.
    half = stats.t.ppf(0.975, 401) / 402
    assert figures["gender accuracy"]["rows"][1]["difference"]["interval"] == pytest.approx([-half, half])


def test_a_pruned_network_is_what_is_different(runs, capsys):
    base, fast = runs
    config = json.loads((fast / "config.json").read_text())
    choices = {"source": str(base), "method": "l1", "ratio": 0.5, "exclude": [], "network": "8e486b6782370c67"}
    (fast / "config.json").write_text(json.dumps({**config, "data": {"model": choices}}))
    assert main(["compare", str(base), str(fast), "--out", str(base / "page")]) == 0
    assert "learning_rate: 0.5, pruned: method l1, ratio 0.5 " in capsys.readouterr().out
    assert main(["compare", str(fast), str(base), "--out", str(base / "page")]) == 0
    assert "pruned: no " in capsys.readouterr().out


def test_other_images_cannot_be_compared(runs, tmp_path, predictions):
    told(tmp_path / "fewer", predictions.chosen(np.arange(300)))
    with pytest.raises(UserError, match=r"base with 400, .*fewer with 300, 300 of them in both"):
        compare([runs[0], tmp_path / "fewer"])


def test_common_images_are_compared_and_the_others_counted(runs, tmp_path, predictions, capsys):
    told(tmp_path / "fewer", predictions.chosen(np.arange(300)))
    (tmp_path / "fewer" / "predictions-test.npz").rename(tmp_path / "fewer" / "predictions-set-test.npz")
    compared = compare([runs[0], f"{tmp_path / 'fewer'}:set-test"], common=True)
    assert (compared["n"], compared["left_out"]) == (300, [100, 0])
    right = predictions.probabilities["gender"].argmax(axis=1)[:300] == predictions.truth["gender"][:300]
    assert compared["figures"]["gender accuracy"]["rows"][1]["value"] == pytest.approx(right.mean())
    told(tmp_path / "others", dataclasses.replace(predictions, key=np.char.add(predictions.key, "x")))
    with pytest.raises(UserError, match="images in common"):
        compare([runs[0], tmp_path / "others"], common=True)


def test_every_group_of_people_is_compared(runs, predictions):
    groups = compare(runs)["figures"]["gender accuracy"]["groups"]
    assert {group["attribute"] for group in groups} == {"gender", "race", "age group"}
    for attribute in ("gender", "race", "age group"):
        assert sum(group["n"] for group in groups if group["attribute"] == attribute) == 400
    black = next(group for group in groups if group["group"] == "Black")
    inside = predictions.truth["race"] == 1
    right = (predictions.probabilities["gender"].argmax(axis=1) == predictions.truth["gender"])[inside]
    assert black["n"] == inside.sum()
    assert black["rows"][0]["seeds"][0] == pytest.approx(right.mean())
    assert black["rows"][1]["difference"]["value"] < 0


def test_other_classes_and_other_labels_are_not_compared(runs, tmp_path, predictions, capsys):
    # The same answers, had the last race not been there to be mistaken for.
    names = predictions.classes["race"]
    without = predictions.truth["race"] < len(names) - 1
    kept = predictions.chosen(without)
    race = kept.probabilities["race"][:, :-1] + 1e-6
    fewer = dataclasses.replace(
        kept,
        probabilities={**kept.probabilities, "race": race / race.sum(axis=1, keepdims=True)},
        classes={**kept.classes, "race": names[:-1]},
        truth={
            **kept.truth,
            "gender": np.where(np.arange(without.sum()) < 3, 1 - kept.truth["gender"], kept.truth["gender"]),
        },
    )
    told(tmp_path / "fewer", fewer)
    words = [str(runs[0]), str(tmp_path / "fewer"), "--common", "--out", str(tmp_path / "page")]
    assert main(["compare", *words]) == 0
    said = capsys.readouterr().out
    assert f"race accuracy is not compared: {tmp_path / 'fewer'} tells" in said
    assert "gender accuracy is not compared: 3 of " in said
    compared = json.loads((tmp_path / "page" / "report.json").read_text())
    assert set(compared["not_compared"]) == {"race accuracy", "gender accuracy"}
    assert "age error" in compared["figures"]


def test_no_task_in_common(runs, tmp_path, predictions):
    told(
        tmp_path / "gender",
        dataclasses.replace(
            predictions, age_years=None, age_spread=None, probabilities={"gender": predictions.probabilities["gender"]}
        ),
    )
    told(
        tmp_path / "race",
        dataclasses.replace(
            predictions, age_years=None, age_spread=None, probabilities={"race": predictions.probabilities["race"]}
        ),
    )
    with pytest.raises(UserError, match="a task in common"):
        compare([tmp_path / "gender", tmp_path / "race"])


def test_what_is_missing_is_named(runs, tmp_path, capsys):
    assert main(["compare", str(runs[0])]) == 2
    assert main(["compare", str(runs[0]), str(tmp_path / "nowhere")]) == 2
    assert main(["compare", *map(str, runs), "--split", "validation"]) == 2
    one, no_run, not_evaluated = capsys.readouterr().err.splitlines()
    assert "two runs or more" in one
    assert "No run is in" in no_run
    assert "Evaluate the run first" in not_evaluated
