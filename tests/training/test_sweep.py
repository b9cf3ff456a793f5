"""A sweep goes on where it was stopped, counts what failed, judges on validation and names the best."""

import csv
import json
import resource
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import keras
import numpy as np
import optuna
import pytest
from matplotlib.figure import Figure

from tfface import files, labels, tasks
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.evaluation.evaluate import Predictions
from tfface.recipes import RECIPES, Recipe
from tfface.training import sweep as sweep_module
from tfface.training.batches import PIXELS
from tfface.training.sweep import score, score_by_field, score_history, sweep


@dataclass(frozen=True)
class Shade(Recipe):
    """Gender and age from the mean colour of an image."""

    name: ClassVar[str] = "shade"
    title: ClassVar[str] = "Shades"
    data: str = "shades"
    image_size: tuple[int, int] = (4, 4)
    train_from: str = "mean"
    views: tuple = field(default=(View(),))
    epochs: int = 2
    batch_size: int = 16
    learning_rate: float = 0.01
    age: str = "bins"

    def tasks(self):
        return tasks.classification("gender", labels.GENDERS), tasks.age_bins()

    def model(self):
        image = keras.Input((*self.image_size, 3), name="image")
        x = keras.layers.Rescaling(1 / 255, name="scale")(image)
        x = keras.layers.GlobalAveragePooling2D(name="mean")(x)
        outputs = {
            task.name: keras.layers.Dense(task.width, activation="softmax", name=task.name)(x) for task in self.tasks()
        }
        return keras.Model(image, outputs, name=self.name)

    def optimizer(self, model, steps):
        return keras.optimizers.Adam(self.learning_rate)

    def search_space(self, trial):
        return {
            "learning_rate": trial.suggest_float("learning_rate", 1e-4, 0.1, log=True),
            "batch_size": trial.suggest_int("batch_size", 8, 32),
            "age": trial.suggest_categorical("age", ["bins", "classes"]),
        }


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A prepared data set of 4 x 4 pixels: women's images are red, men's are blue, green grows with the age."""
    import tensorflow_datasets as tfds

    class Shades(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = Path(__file__).parent

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(4, 4, 3)),
                "gender": tfds.features.ClassLabel(names=labels.GENDERS),
                "age": np.int64,
                "key": tfds.features.Text(),
            }
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, _):
            return {"train": self._generate_examples(64), "validation": self._generate_examples(32)}

        def _generate_examples(self, count):
            for i in range(count):
                age = 3 * (i % 30)
                colour = np.array([250 * (i % 2), 2 * age, 250 * (1 - i % 2)], "uint8")
                yield i, {"image": np.tile(colour, (4, 4, 1)), "gender": i % 2, "age": age, "key": f"{i}"}

    folder = tmp_path_factory.mktemp("data")
    Shades(data_dir=folder).download_and_prepare()
    return folder


@pytest.fixture(autouse=True)
def known_recipe(monkeypatch, tmp_path):
    monkeypatch.setitem(RECIPES, "shade", Shade)
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path / "home"))


@pytest.fixture
def trained(monkeypatch):
    """Training, prediction and drawing in no time; gives the recipes that were trained, by the trial's folder.

    The lower the learning rate, the better; a batch of more than 24 makes the loss NaN.
    """
    recipes = {}

    def fit(recipe, folder, data_dir, device, bfloat16, verbose):
        recipes[folder.name] = recipe
        if recipe.batch_size > 24:
            raise FloatingPointError("Epoch 0 ended with NaN")
        (folder / "events").mkdir(parents=True)
        for name in ("state.npz", "trained.keras", "events/log"):
            (folder / name).touch()
        (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "seconds": 1.5}) + "\n")
        (folder / "done.json").write_text(json.dumps({"best_epoch": 0}))

    def predict_split(run, split, data, data_dir, bfloat16):
        assert split == "validation"
        doubt = recipes[run.folder.name].learning_rate
        gender, age = np.array([0, 1] * 20), np.arange(40)
        said = np.eye(2)[np.where(np.arange(40) < 400 * doubt, 1 - gender, gender)]
        truth = {"gender": gender, "age": age}
        names = np.array([f"{i}" for i in range(40)])
        return Predictions(names, truth, {"gender": said}, {"gender": labels.GENDERS}, age + 0.5)

    monkeypatch.setattr(sweep_module, "fit", fit)
    monkeypatch.setattr(sweep_module, "predict_split", predict_split)
    monkeypatch.setattr(sweep_module, "score_history", lambda trials: Figure())
    monkeypatch.setattr(sweep_module, "score_by_field", lambda trials: Figure())
    monkeypatch.setattr(keras.utils, "clear_session", lambda: None)
    return recipes


def table(folder):
    with open(folder / "sweep.csv", newline="") as stream:
        return list(csv.DictReader(stream))


def test_trains_scores_and_reports_for_real(data_dir, tmp_path):
    made = sweep(Shade(), tmp_path / "sweep", 2, data_dir, "cpu")
    first, second = table(tmp_path / "sweep")
    assert (first["trial"], first["learning_rate"], first["batch_size"]) == ("0", "0.01", "16")
    assert second["learning_rate"] != first["learning_rate"]
    assert 0 <= float(first["gender accuracy"]) <= 1 < float(first["age MAE"])
    names = {path.name for path in (tmp_path / "sweep" / "trial-0001").iterdir()}
    assert names == {"config.json", "metrics.jsonl", "trained.keras", "done.json"}
    page = made["markdown"].read_text()
    assert "Sweep of Shades" in page
    assert made["html"].exists()
    assert {path.name for path in made["figures"].iterdir()} == {"history.svg", "fields.svg"}


def test_goes_on_to_the_number_that_is_wanted(data_dir, tmp_path, trained, capsys):
    folder = tmp_path / "sweep"
    sweep(Shade(), folder, 3, data_dir)
    assert list(trained) == ["trial-0000", "trial-0001", "trial-0002"]
    before = table(folder)
    trained.clear()
    sweep(Shade(), folder, 5, data_dir)
    assert list(trained) == ["trial-0003", "trial-0004"]
    assert table(folder)[:3] == before
    trained.clear()
    capsys.readouterr()
    sweep(Shade(), folder, 4, data_dir)
    assert not trained
    assert "trial" not in capsys.readouterr().out.replace(str(folder), "")


def test_broken_and_unbroken_sweeps_are_the_same(data_dir, tmp_path, trained, monkeypatch):
    sweep(Shade(), tmp_path / "whole", 12, data_dir)  # ten at random, then two that the first ten led to
    whole = dict(trained)
    trained.clear()
    fit = sweep_module.fit

    def killed(*args, **options):
        raise KeyboardInterrupt

    for trials in (1, 11):
        sweep(Shade(), tmp_path / "parts", trials, data_dir)
        monkeypatch.setattr(sweep_module, "fit", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(Shade(), tmp_path / "parts", 12, data_dir)
        monkeypatch.setattr(sweep_module, "fit", fit)
    sweep(Shade(), tmp_path / "parts", 12, data_dir)
    assert trained == whole
    assert len({recipe.learning_rate for recipe in whole.values()}) == 12
    assert table(tmp_path / "parts") == table(tmp_path / "whole")
    sweep(Shade(seed=1), tmp_path / "other", 2, data_dir)
    assert trained["trial-0001"].learning_rate != whole["trial-0001"].learning_rate


def test_any_seed_of_a_recipe_is_one_of_a_sweep(data_dir, tmp_path, trained):
    sweep(Shade(seed=(1 << 32) - 1), tmp_path / "sweep", 2, data_dir)
    assert len(table(tmp_path / "sweep")) == 2


def test_failed_trials_count_and_have_no_score(data_dir, tmp_path, trained, capsys):
    folder = tmp_path / "sweep"
    made = sweep(Shade(), folder, 8, data_dir)
    rows = table(folder)
    failed = [row for row in rows if int(row["batch_size"]) > 24]
    assert len(rows) == len(trained) == 8
    assert 0 < len(failed) < 7
    assert {row["failure"] for row in failed} == {"Epoch 0 ended with NaN"}
    assert {(row["state"], row["score"], row["gender accuracy"]) for row in failed} == {("fail", "", "")}
    assert {row["state"] for row in rows if row not in failed} == {"complete"}
    lines = capsys.readouterr().out.splitlines()
    assert sum("failed (Epoch 0 ended with NaN)" in line for line in lines) == len(failed)
    best = max((row for row in rows if row["score"]), key=lambda row: float(row["score"]))
    assert f"best {float(best['score']):.4f}, trial {best['trial']}" in lines[7]
    page = made["markdown"].read_text()
    assert f"Trial {best['trial']}. " in page
    for name in ("learning_rate", "batch_size", "age"):
        assert f"--set {name}={best[name]}" in page


def test_the_search_keeps_away_from_what_failed(data_dir, tmp_path, trained):
    sweep(Shade(), tmp_path / "sweep", 24, data_dir)
    states = [row["state"] for row in table(tmp_path / "sweep")]
    assert "fail" in states[:10]  # at random
    assert "fail" not in states[19:]


def test_the_table_holds_every_trial_as_it_was_trained(data_dir, tmp_path, trained):
    sweep(Shade(), tmp_path, 4, data_dir)
    for row in table(tmp_path):
        recipe = trained[f"trial-{int(row['trial']):04d}"]
        assert row["learning_rate"] == str(recipe.learning_rate)
        assert (int(row["batch_size"]), row["age"]) == (recipe.batch_size, recipe.age)
        if row["state"] == "complete":
            wrong = min(40, int(np.ceil(400 * recipe.learning_rate)))
            assert float(row["gender accuracy"]) == pytest.approx(1 - wrong / 40)
            # The median guess of ages 0 to 39 is 10 years off on average.
            assert float(row["score"]) == pytest.approx((1 - wrong / 20 + 0.95) / 2)
            assert (row["best_epoch"], row["seconds"]) == ("0", "1.5")


def test_nothing_but_failures_is_said(data_dir, tmp_path, trained):
    with pytest.raises(UserError, match="None of the 1 trials"):
        sweep(Shade(batch_size=32), tmp_path / "sweep", 1, data_dir)
    assert [row["state"] for row in table(tmp_path / "sweep")] == ["fail"]


def test_bad_input_is_said_in_a_line(data_dir, tmp_path, trained, monkeypatch):
    with pytest.raises(UserError, match="at least 1"):
        sweep(Shade(), tmp_path / "sweep", 0, data_dir)
    with pytest.raises(UserError, match="not prepared"):
        sweep(Shade(data="nothing"), tmp_path / "sweep", 1, data_dir)
    with pytest.raises(UserError, match="has no search space"):
        sweep(Recipe(data="shades"), tmp_path / "sweep", 1, data_dir)
    with pytest.raises(UserError, match=r"searches race_weight over .*low=0\.03.* Received: race_weight=0\.0"):
        sweep(RECIPES["arg"](race_weight=0.0), tmp_path / "sweep", 1, data_dir)
    with pytest.raises(UserError, match=r"gender as it stands leaves nothing to search: .*low=0\.2, high=0\.1"):
        sweep(RECIPES["gender"](lowest_rate=0.2), tmp_path / "sweep", 1, data_dir)
    assert not (tmp_path / "sweep").exists()
    sweep(Shade(), tmp_path / "sweep", 1, data_dir)
    with pytest.raises(UserError, match="epochs was 2, is 3"):
        sweep(Shade(epochs=3), tmp_path / "sweep", 1, data_dir)
    # One that a version before began goes on: what it did not know is at its default, or was not looked at.
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{tmp_path / 'sweep' / 'study.db'}")
    searched = study.user_attrs["searched"]
    known = {key: value for key, value in searched.items() if key not in ("mixup", "train labels")}
    study.set_user_attr("searched", known)
    sweep(Shade(), tmp_path / "sweep", 1, data_dir)
    study.set_user_attr("searched", searched)
    with monkeypatch.context() as patch:
        patch.setattr(sweep_module.pipeline, "label_digest", lambda builder, split: f"other labels of {split}")
        with pytest.raises(UserError, match="train labels was"):
            sweep(Shade(), tmp_path / "sweep", 1, data_dir)
    (tmp_path / "sweep" / "study.db").write_text("not a data base" * 100)
    with pytest.raises(UserError, match=r"study\.db cannot be read or written .*not a database"):
        sweep(Shade(), tmp_path / "sweep", 1, data_dir)


def test_a_study_that_cannot_be_written_is_said_and_goes_on_later(data_dir, tmp_path, trained):
    folder = tmp_path / "sweep"
    sweep(Shade(), folder, 1, data_dir)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))  # as a full disk
    try:
        with pytest.raises(UserError, match=r"study\.db cannot be read or written .* run the same command again"):
            sweep(Shade(), folder, 2, data_dir)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sweep(Shade(), folder, 2, data_dir)
    assert [row["trial"] for row in table(folder)] == ["0", "1"]


def test_a_sweep_keeps_other_processes_out(data_dir, tmp_path, trained):
    with files.held(tmp_path / "sweep", "--out"), pytest.raises(UserError, match="written by another process"):
        sweep(Shade(), tmp_path / "sweep", 1, data_dir)
    assert not (tmp_path / "sweep" / "study.db").exists()


def test_other_faces_beside_the_data_set_are_another_sweep(data_dir, tmp_path, trained, monkeypatch):
    sweep(Shade(extra_data="shades"), tmp_path / "sweep", 1, data_dir)
    before = sweep_module.pipeline.fingerprint
    joined = sweep_module.pipeline.Joined
    monkeypatch.setattr(
        sweep_module.pipeline, "fingerprint", lambda one, split: before(one, split) + "x" * isinstance(one, joined)
    )
    with pytest.raises(UserError, match="with_extra was"):
        sweep(Shade(extra_data="shades"), tmp_path / "sweep", 2, data_dir)


def test_constant_answers_score_nothing_and_the_truth_scores_one():
    gender, age = np.array([0, 0, 0, 1]), np.array([10, 20, 20, 70])
    truth, classes = {"gender": gender, "age": age}, {"gender": labels.GENDERS}
    keys = np.array(list("abcd"))
    constant = Predictions(keys, truth, {"gender": np.eye(2)[[0, 0, 0, 0]]}, classes, np.full(4, 20.0))
    right = Predictions(keys, truth, {"gender": np.eye(2)[gender]}, classes, age.astype(float))
    half = Predictions(keys, truth, {"gender": np.eye(2)[gender]}, classes, np.full(4, 20.0))
    assert [score(constant), score(right), score(half)] == pytest.approx([0, 1, 0.5])
    # A task of which all have one label cannot be got wrong by a constant: it takes no part.
    women = {"gender": np.ones(4, int), "age": age}
    assert score(Predictions(keys, women, {"gender": np.eye(2)[[0, 0, 0, 1]]}, classes, np.full(4, 20.0))) == 0
    alike = {"gender": np.ones(4, int)}
    with pytest.raises(UserError, match="the same labels"):
        score(Predictions(keys, alike, {"gender": np.eye(2)[[0, 0, 0, 1]]}, classes))


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"occluded"}))  # its score would be that of pairs
def test_the_recipes_own_values_lie_in_their_search_space(name):
    recipe = RECIPES[name]()
    for changed in (recipe, *map(recipe.variant, recipe.variants)):
        own = optuna.trial.FixedTrial(changed.to_json())
        assert changed.changed(**changed.search_space(own)) == changed
        # What would do nothing is not searched: changes of pixels on cached features, the weight of a single task.
        assert not changed.train_from or not own.distributions.keys() & PIXELS.keys()
        assert len(changed.tasks()) > 1 or not any(field_name.endswith("_weight") for field_name in own.distributions)
        for field_name, kind in own.distributions.items():
            assert kind._contains(kind.to_internal_repr(own.params[field_name]))


@pytest.mark.parametrize(
    ("name", "changes", "kept"),
    [
        ("arg", {"age": "distribution", "distill_from": "runs/arg-years/seed-0"}, "age"),
        ("race", {"loss": "crossentropy", "label_smoothing": 0.1}, "loss"),
    ],
)
def test_what_no_other_value_could_be_trained_with_is_not_searched(name, changes, kept):
    trial = optuna.create_study().ask()
    assert RECIPES[name](**changes).search_space(trial)[kept] == changes[kept]
    assert trial.distributions[kept].choices == (changes[kept],)


def test_figures_show_every_trial():
    ranges = {
        "learning_rate": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
        "age": optuna.distributions.CategoricalDistribution(("bins", "classes", "exact")),
    }
    states = {"state": optuna.trial.TrialState.FAIL}, {"value": 0.5}, {"value": 0.7}, {"value": 0.6}
    drawn = [
        ({"learning_rate": 1e-2, "age": "bins"}, ranges),
        ({"learning_rate": 1e-3, "age": "exact"}, ranges),
        ({"learning_rate": 1e-4, "age": "bins"}, ranges),
        ({"learning_rate": 2e-3}, {"learning_rate": ranges["learning_rate"]}),  # a space may have branches
    ]
    trials = [
        optuna.trial.create_trial(params=params, distributions=kinds, **state)
        for (params, kinds), state in zip(drawn, states, strict=True)
    ]
    for number, trial in enumerate(trials):
        trial.number = number
    rate, age = score_by_field(trials).axes
    points, ring, crosses = rate.lines
    assert points.get_xydata().tolist() == [[1e-3, 0.5], [1e-4, 0.7], [2e-3, 0.6]]
    assert ring.get_xydata().tolist() == [[1e-4, 0.7]]
    assert crosses.get_xdata() == [1e-2]
    assert (rate.get_xscale(), age.get_xscale()) == ("log", "linear")
    assert age.lines[0].get_xydata().tolist() == [[2, 0.5], [0, 0.7]]
    points, best, crosses = score_history(trials).axes[0].lines
    assert points.get_xydata().tolist() == [[1, 0.5], [2, 0.7], [3, 0.6]]
    assert best.get_ydata().tolist() == [0.5, 0.7, 0.7, 0.7]
    assert crosses.get_xdata() == [0]
