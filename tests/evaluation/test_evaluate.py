"""Every figure of an evaluation against a number worked by hand."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from scipy import stats

from tfface import commands
from tfface.errors import UserError
from tfface.evaluation.evaluate import (
    Predictions,
    age_errors,
    calibration,
    classification,
    evaluate,
    mean,
    proportion,
    worst_mistakes,
)


def example(**changes) -> Predictions:
    """Three faces; the second is taken for the other gender, and for nine years too old."""
    values = {
        "key": np.array(["a.jpg", "b.jpg", "c.jpg"]),
        "truth": {"gender": np.array([0, 1, 1]), "age": np.array([20, 31, 40])},
        "probabilities": {"gender": np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]], dtype=np.float32)},
        "classes": {"gender": ("Male", "Female")},
        "age_years": np.array([20.0, 40.0, 39.0]),
        "age_spread": np.array([1.0, 2.0, 3.0]),
    }
    return Predictions(**(values | changes))


def test_wilson_interval():
    assert proportion(45, 50)["value"] == 0.9
    assert proportion(45, 50)["interval"] == pytest.approx([0.786398, 0.956524], abs=1e-6)
    assert proportion(0, 10)["interval"] == pytest.approx([0, 0.277533], abs=1e-6)
    assert proportion(0, 0) == {"value": None, "interval": None}


def test_mean_interval():
    # sd of 1, 2, 3, 4 is 1.290994, standard error 0.645497, t(0.975, 3) is 3.182446
    assert mean([1, 2, 3, 4])["interval"] == pytest.approx([2.5 - 2.054260, 2.5 + 2.054260], abs=1e-6)
    assert mean([0, 3, 5, 20], least=0)["interval"][0] == 0
    assert mean([7]) == {"value": 7.0, "interval": None}
    assert mean([]) == {"value": None, "interval": None}


def test_mean_interval_agrees_with_bootstrap():
    errors = np.random.default_rng(0).gamma(1.3, 3.4, 1000)
    bootstrap = stats.bootstrap((errors,), np.mean, n_resamples=2000, rng=0, method="BCa").confidence_interval
    assert mean(errors)["interval"] == pytest.approx([bootstrap.low, bootstrap.high], abs=0.03)


def test_calibration_by_hand():
    # 0.62 lies in (0.6, 0.667], 0.9 in (0.867, 0.933]: 2/4 * |1 - 0.62| + 2/4 * |0.5 - 0.9|
    result = calibration([True, False, True, True], [0.9, 0.9, 0.62, 0.62])
    assert result["expected_calibration_error"] == pytest.approx(0.39)
    assert result["mean_confidence"] == pytest.approx(0.76)
    assert result["over_confidence"] == pytest.approx(0.76 - 0.75)
    assert [row["n"] for row in result["reliability"]] == [2, 2]
    assert result["reliability"][0]["low"] == pytest.approx(0.6)


def test_calibration_bins_are_closed_above():
    rows = calibration([True, True, True], [0.5, 0.51, 1.0], bins=2)["reliability"]
    assert [(row["low"], row["high"], row["n"]) for row in rows] == [(0, 0.5, 1), (0.5, 1, 2)]


def test_classification_by_hand():
    probabilities = [[0.9, 0.1], [0.9, 0.1], [0.62, 0.38], [0.62, 0.38], [0.25, 0.75]]
    result = classification([0, 1, 0, 0, 1], probabilities, ("Male", "Female"))
    assert result["confusion"] == [[3, 0], [1, 1]]
    assert result["accuracy"]["value"] == pytest.approx(0.8)
    assert result["majority"] == pytest.approx(0.6)
    assert result["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    male, female = result["per_class"]
    assert (male["n"], male["predicted"]) == (3, 4)
    assert male["precision"] == pytest.approx(0.75)
    assert male["f1"] == pytest.approx(6 / 7)
    assert female["recall"]["value"] == pytest.approx(0.5)
    assert female["f1"] == pytest.approx(2 / 3)
    assert result["macro_f1"] == pytest.approx((6 / 7 + 2 / 3) / 2)
    assert result["brier"] == pytest.approx((0.02 + 1.62 + 2 * 0.2888 + 0.125) / 5)
    nll = -np.log([0.9, 0.1, 0.62, 0.62, 0.75]).mean()
    assert result["negative_log_likelihood"] == pytest.approx(nll)
    # 0.9: right once of two; 0.62: twice of two; 0.75: once of one
    error = result["calibration"]["expected_calibration_error"]
    assert error == pytest.approx((2 * 0.4 + 2 * 0.38 + 0.25) / 5)
    assert result["confused_pairs"] == [{"truth": "Female", "predicted": "Male", "n": 1, "share": 0.5}]
    assert "one_off" not in result


def test_rows_that_sum_to_nearly_1_are_scaled_to_it():
    result = classification([0, 1], np.array([[0.9, 0.1], [0.4, 0.6]]) * 0.995, ("Male", "Female"))
    assert result["negative_log_likelihood"] == pytest.approx(-np.log([0.9, 0.6]).mean())


def test_one_off():
    names = ("0-5", "6-12", "13-19", "20+")
    result = classification([0, 1, 2, 3, 1, 1], np.eye(4)[[0, 3, 0, 3, 2, 0]], names, ordered=True)
    assert result["accuracy"]["value"] == pytest.approx(2 / 6)
    assert result["one_off"]["value"] == pytest.approx(4 / 6)


def test_absent_class_has_no_recall_and_no_part_in_the_means():
    result = classification([0, 0, 1], np.eye(3)[[0, 2, 1]], ("White", "Black", "Asian"))
    assert result["per_class"][2]["recall"] == {"value": None, "interval": None}
    assert result["per_class"][2]["f1"] is None
    assert result["balanced_accuracy"] == pytest.approx((0.5 + 1) / 2)


def test_perfect_and_worst_model():
    truth = np.arange(10) % 2
    perfect = classification(truth, np.eye(2)[truth], ("Male", "Female"))
    worst = classification(truth, np.eye(2)[1 - truth], ("Male", "Female"))
    names = ("balanced_accuracy", "macro_f1", "brier")
    assert [perfect[name] for name in names] == [1, 1, 0]
    assert [worst[name] for name in names] == [0, 0, 2]
    assert perfect["accuracy"]["interval"][1] == pytest.approx(1)
    assert worst["accuracy"]["interval"][0] == pytest.approx(0)
    assert perfect["calibration"]["expected_calibration_error"] == 0
    assert worst["calibration"]["expected_calibration_error"] == 1
    assert perfect["confused_pairs"] == []


def test_age_by_hand():
    age = age_errors([20, 30, 40, 50], [20, 33, 35, 70])
    assert age["mae"]["value"] == 7
    assert age["mae"]["interval"] == pytest.approx([0, 21.1729], abs=1e-4)
    assert age["bias"]["value"] == 4.5
    assert age["median_absolute_error"] == 4
    assert age["rmse"] == pytest.approx(108.5**0.5)
    assert age["exact"]["value"] == 0.25
    # of -15, -5, 5, 15 and -19.5, -6.5, -4.5, 30.5 about the means
    assert age["correlation"] == pytest.approx(760 / (500 * 1373) ** 0.5)
    assert age_errors([20, 30], [25, 25])["correlation"] is None
    within = [row["value"] for row in age["within"]]
    assert len(within) == 21
    assert [within[k] for k in (0, 2, 3, 4, 5, 19, 20)] == [0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1]
    assert [(row["decade"], row["n"]) for row in age["decades"]] == [(f"{d}0-{d}9", 1) for d in (2, 3, 4, 5)]
    assert age["decades"][3]["mae"] == {"value": 20.0, "interval": None}
    assert "spread" not in age


def test_spread_coverage():
    # half width of the central 68 % interval is 0.994 spreads, of the 95 % interval 1.960
    age = age_errors([30] * 4, [30, 30.5, 31.5, 33], spread=[1] * 4)
    assert age["spread"]["mean"] == 1
    assert age["exact"]["value"] == 0.5  # 30.5 is nearest to 30 as well
    coverage = age["spread"]["coverage"]
    assert {row["nominal"]: row["value"] for row in coverage} == {0.5: 0.5, 0.68: 0.5, 0.8: 0.5, 0.9: 0.75, 0.95: 0.75}


def test_evaluate_is_strict_json():
    metrics = evaluate(example())
    assert metrics["n"] == 3
    assert metrics["tasks"]["gender"]["accuracy"]["value"] == pytest.approx(2 / 3)
    assert metrics["age"]["mae"]["value"] == pytest.approx(10 / 3)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_worst_mistakes():
    assert worst_mistakes(example(), "gender") == [(1, "true Female, said Male, loss 1.61, b.jpg")]
    years = example(age_years=np.array([20.4, 40.0, 39.0]))
    worst = [(1, "true 31, said 40 years, 9 off, b.jpg"), (2, "true 40, said 39 years, 1 off, c.jpg")]
    assert worst_mistakes(years, "age") == worst
    assert worst_mistakes(years, "age", count=1) == worst[:1]
    with pytest.raises(ValueError, match="Received: 'race'"):
        worst_mistakes(example(), "race")


def test_what_was_thought_all_but_impossible_costs_more_the_less_it_was():
    said = np.array([[1 - 1e-20, 1e-20], [1 - 1e-30, 1e-30], [0.5, 0.5]])
    probabilities = {"gender": said.astype("float32")}
    sure = example(truth={"gender": np.array([1, 1, 0]), "age": np.array([20, 31, 40])}, probabilities=probabilities)
    assert [caption.split(", ")[2] for _, caption in worst_mistakes(sure, "gender")] == ["loss 69.08", "loss 46.05"]
    figures = evaluate(sure)["tasks"]["gender"]
    assert figures["negative_log_likelihood"] == pytest.approx((50 * np.log(10) + np.log(2)) / 3)


def test_saved_and_loaded(tmp_path):
    written = example().save(tmp_path / "predictions.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]
    loaded = Predictions.load(written)
    assert evaluate(loaded) == evaluate(example())
    assert loaded.classes == {"gender": ("Male", "Female")}
    assert loaded.ordered == ("age_bins",)
    assert list(loaded.key) == ["a.jpg", "b.jpg", "c.jpg"]


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(UserError, match="not there"):
        Predictions.load(tmp_path / "absent.npz")
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(UserError, match="not a file of predictions"):
        Predictions.load(tmp_path / "broken.npz")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    with pytest.raises(UserError, match="not a file of predictions"):
        Predictions.load(tmp_path / "other.npz")


GENDER = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": np.array(["a.jpg", "b.jpg", "b.jpg"])}, "'b.jpg' came 2 times"),
        ({"age_years": np.array([20.0, np.nan, 39.0])}, "age_years must be finite"),
        ({"age_years": np.zeros((3, 1))}, r"age_years must have the shape \(3,\)"),
        ({"age_spread": np.zeros(3)}, "age_spread` must be > 0"),
        ({"age_years": None}, "needs `age_years`"),
        ({"truth": {"gender": GENDER}}, r"needs truth\['age'\]"),
        ({"truth": {"gender": GENDER + 1, "age": np.zeros(3)}}, r"integers in \[0, 2\)"),
        ({"truth": {"gender": GENDER * 1.0, "age": np.zeros(3)}}, r"integers in \[0, 2\)"),
        ({"truth": {"gender": GENDER, "age": np.array([1, 2, -1])}}, "years >= 0"),
        ({"truth": {"gender": GENDER, "race": GENDER, "age": np.zeros(3)}}, "classes of every truth"),
        ({"truth": {"age": np.zeros(3)}}, "every task"),
        ({"probabilities": {"gender": np.zeros((3, 2))}}, "sum to 1"),
        ({"probabilities": {"gender": np.array([[1, 0], [0.5, 0.4], [1, 0]])}}, "a row that is 0.1 off"),
        ({"probabilities": {"gender": np.array([[1, 0], [0.8, 0.8], [1, 0]])}}, "a row that is 0.6 off"),
        ({"probabilities": {"gender": np.full((3, 3), 1 / 3)}}, r"shape \(3, 2\)"),
        ({"probabilities": {"gender": np.array([[2, -1], [1, 0], [1, 0]])}}, r"in \[0, 1\]"),
        ({"probabilities": {"age": np.ones((3, 1))}}, "age_bins"),
        ({"probabilities": {}, "age_years": None, "age_spread": None}, "must be predicted"),
    ],
)
def test_bad_predictions_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        example(**changes)


def test_empty_split_is_the_users_to_mend():
    with pytest.raises(UserError, match="nothing to evaluate"):
        Predictions(np.array([], dtype=str), {"gender": np.array([], int)}, {"gender": np.zeros((0, 2))}, {})


def test_a_label_that_is_not_known_is_no_class():
    from tfface import tasks
    from tfface.evaluation.fairness import by_group
    from tfface.evaluation.predictions import to_predictions

    task = tasks.classification("race", ("A", "B", "C"))
    truth = {"key": np.array(["a", "b"]), "race": np.array([0, -1])}
    with pytest.raises(UserError, match="The race of 1 of 2 images is known"):
        to_predictions((task,), {"race": np.eye(3)[[0, 1]]}, truth, {"race": task.classes})
    # What is not learnt need not be known of all: it forms no groups of people.
    truth |= {"race": np.array([0, 1]), "gender": np.array([0, -1]), "age": np.array([30, -1])}
    classes = {"race": task.classes, "gender": ("Male", "Female")}
    predictions = to_predictions((task,), {"race": np.eye(3)[[0, 1]]}, truth, classes)
    assert set(by_group(predictions)["by"]) == {"race"}


def test_ages_that_are_no_years_are_not_taken_for_years():
    from tfface import tasks
    from tfface.evaluation.fairness import by_group
    from tfface.evaluation.predictions import to_predictions

    task, outputs = tasks.classification("gender", ("Male", "Female")), {"gender": np.eye(2)}
    truth = {"key": np.array(["a", "b"]), "gender": np.array([0, 1]), "age": np.array([0, 1])}
    classes = {"gender": task.classes, "age": ("child", "adult")}
    groups = by_group(to_predictions((task,), outputs, truth, classes))["by"]["age group"]["groups"]
    assert [(row["group"], row["n"]) for row in groups] == [(["child"], 1), (["adult"], 1)]
    truth["age"] = np.array(["child", "adult"])  # a text
    said = to_predictions((task,), outputs, truth, {"gender": task.classes})
    assert set(by_group(said)["by"]) == {"gender"}


def test_outputs_and_labels_become_predictions():
    from tfface import tasks
    from tfface.evaluation.predictions import to_predictions

    age = tasks.age_distribution()
    joined = dataclasses.replace(tasks.classification("race", ("A", "B")), targets=np.eye(2)[[0, 1, 1]])
    truth = {"key": np.array(["a", "b"]), "age": np.array([34, 6]), "race": np.array([2, 0])}
    outputs = {"age": np.eye(117, dtype="float32")[[30, 5]], "race": np.eye(2)}
    said = to_predictions((age, joined), outputs, truth, {"race": ("a", "b", "c")})
    assert said.age_years.tolist() == [30, 5]
    np.testing.assert_allclose(said.age_spread, 1e-3)  # who is sure is not taken at their word
    assert said.truth["age_bins"].tolist() == [4, 1]  # 27-34 and 6-12
    assert said.probabilities["age_bins"].argmax(axis=1).tolist() == [4, 0]
    assert said.truth["race"].tolist() == [1, 0]  # the third label counts as the second class
    assert said.ordered == ("age_bins",)


def test_classes_are_those_of_the_network_by_their_names(monkeypatch):
    from types import SimpleNamespace

    from tfface import recipes
    from tfface.evaluation import predictions

    recipe = recipes.load("gender", settings=["label=label"]).changed(classes=("men", "women"))
    said = np.eye(2)[[0, 0, 1]]

    def predicted(*names, output="label"):
        data = {
            "open_dataset": lambda *_: SimpleNamespace(
                info=SimpleNamespace(full_name="other/1.0.0", features={"key", "label"})
            ),
            "class_names": lambda _: {"label": names},
            "label_arrays": lambda *_: {"key": np.array(["a", "b", "c"]), "label": np.array([0, 0, 1])},
        }
        for name, value in data.items():
            monkeypatch.setattr(predictions.pipeline, name, value)
        monkeypatch.setattr(predictions, "outputs_of", lambda *_: {"label": said})
        return predictions.predict_with(recipe, SimpleNamespace(output={output: None}), "test")

    assert predicted("men", "women").truth["label"].tolist() == [0, 0, 1]
    turned = predicted("women", "men")
    assert turned.truth["label"].tolist() == [1, 1, 0]
    assert turned.classes["label"] == ("men", "women")
    assert evaluate(turned)["tasks"]["label"]["accuracy"]["value"] == 0
    recipe, said = recipe.changed(classes=("men", "women", "others")), np.eye(3)[[0, 0, 1]]
    assert predicted("women", "others", "men").truth["label"].tolist() == [1, 1, 2]
    recipe, said = recipe.changed(classes=("men", "women")), np.eye(2)[[0, 0, 1]]
    with pytest.raises(UserError, match=r"tells men, women apart\. Received: other/1\.0\.0 with female, male"):
        predicted("female", "male")
    with pytest.raises(UserError, match=r"other/1\.0\.0 has labels for label, which this network does not tell"):
        predicted("men", "women", output="gender")


def test_faces_that_the_network_learnt_from_are_said(light_run, data_dir, tmp_path, capsys):
    run = shutil.copytree(light_run.folder, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    config["recipe"]["train_split"] = "train[:50%]"
    (run / "config.json").write_text(json.dumps(config))
    told = []
    for split in ("train[:8]", "train[-8:]"):
        commands.evaluate(run, split, data_dir=data_dir)
        told.append(f"learnt from images of {split}:" in capsys.readouterr().out)
    assert told == [True, False]
