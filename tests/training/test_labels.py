"""Labels that are unknown, absent or in another order: nothing is learnt of what is not known, nor in silence."""

import json
import os
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import commands, files
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation import predictions
from tfface.evaluation.calibrate import calibrate
from tfface.evaluation.predictions import measured_parts, predict_split
from tfface.labels import GENDERS, GROUPINGS, UTKFACE_RACES
from tfface.recipes import RECIPES
from tfface.training import batches
from tfface.training.fit import fit, monitored
from tfface.training.run import Run, runs_in
from tfface.training.soup import soup


@pytest.fixture
def data_dir(colours):
    return colours


def test_an_unknown_label_of_one_data_set_teaches_nothing(colour, data_dir, tmp_path, monkeypatch):
    recipe = colour(data="half_known", batch_size=64)
    builder = pipeline.open_dataset("half_known", data_dir)
    (_, targets, weights), *_ = batches.image_batches(builder, "train", recipe, 0).take(1)
    # Of 64 the first 32 are unknown, of the others every second is a man.
    assert weights["gender"].numpy().sum() == 32
    assert (targets["gender"].numpy()[:, 0] * weights["gender"].numpy()).sum() == 16
    assert weights["age"].numpy().sum() == 64
    run = fit(recipe, tmp_path / "run", data_dir, verbose=0)
    assert set(calibrate(run.folder, data_dir)) == {"gender", "age"}
    with pytest.raises(UserError, match="gender of 32 of 64 images is known"):
        predict_split(run, "test", data_dir=data_dir)
    known = pipeline.label_arrays
    monkeypatch.setattr(pipeline, "label_arrays", lambda *which: {**known(*which), "age": known(*which)["age"] + 100})
    assert set(calibrate(run.folder, data_dir)) == {"gender", "age"}  # of more than 116 years no target is known


def test_an_unknown_label_is_in_no_group(data_dir, monkeypatch):
    monkeypatch.setitem(GROUPINGS, "women", ("gender", {"Women": ("Female",)}))
    builder = pipeline.open_dataset("half_known@women", data_dir)
    known = pipeline.label_arrays(builder, "train")
    assert set(known["key"].tolist()) == {f"train{i}" for i in range(33, 64, 2)}  # the first 32 are unknown
    assert set(known["gender"].tolist()) == {0}
    assert "train0" in builder.info.metadata["left_out"]["gender not known"]


def test_classes_in_another_order_are_not_trained_on(colour, data_dir, tmp_path):
    with pytest.raises(
        UserError, match=r"in another order or by other names. Expected: Male, Female. Received: Female, Male"
    ):
        fit(colour(data="swapped"), tmp_path / "run", data_dir, verbose=0)
    assert not (tmp_path / "run").exists()
    # A network that was trained on the right order is measured by the names.
    run = fit(colour(epochs=5), tmp_path / "right", data_dir, verbose=0)
    one, other = (predict_split(run, "test", data, data_dir) for data in ("colours", "swapped"))
    np.testing.assert_array_equal(one.truth["gender"], other.truth["gender"])


def test_classes_of_a_joined_set_in_another_order_are_put_in_order_each_time(colour, data_dir):
    swapped = pipeline.Joined([pipeline.open_dataset("swapped", data_dir)])
    expected = 1 - pipeline.label_arrays(swapped, "test")["gender"]
    for _ in range(2):
        _, truth, classes = predictions.truth_of(colour(), swapped, "test")
        np.testing.assert_array_equal(truth["gender"], expected)
        assert classes["gender"] == GENDERS


def test_another_number_of_classes_is_not_measured(colour, data_dir):
    class AnyClasses(colour):
        def adapted(self, classes):
            return self.changed(genders=classes["gender"])

    builder = pipeline.open_dataset("colours", data_dir)
    assert predictions.truth_of(AnyClasses(), builder, "test")[0][0].classes == GENDERS
    with pytest.raises(UserError, match=r"tells A, B, C apart. Received: colours/1.0.0 with Male, Female"):
        predictions.truth_of(AnyClasses(genders=("A", "B", "C")), builder, "test")


@pytest.mark.parametrize(("kind", "said"), [(None, "not there"), (tf.string, "string")])
def test_people_whom_the_data_do_not_number_are_not_learnt(kind, said, monkeypatch):
    features = {"key": tf.string} | ({"identity": kind} if kind else {})
    builder = SimpleNamespace(info=SimpleNamespace(features=features, full_name="own"))
    monkeypatch.setattr(pipeline, "class_names", lambda builder: {})
    with pytest.raises(
        UserError, match=f"learns who is who.* own, whose identity is {said}. Name a data set of people"
    ):
        batches.check_labels(RECIPES["occluded"](), builder)
    features["identity"] = tf.int64
    batches.check_labels(RECIPES["occluded"](), builder)
    batches.check_labels(
        RECIPES["occluded"](teacher="facenet"), SimpleNamespace(info=SimpleNamespace(features={"key": 0}))
    )


@pytest.mark.parametrize("known", ["all", "utkface", "fairface"])
def test_races_of_another_output_are_put_in_its_order(known, monkeypatch):
    theirs = ("Others", "Indian", "Asian", "Black", "White")
    features = dict.fromkeys(("key", "gender", "race", "age"), tf.int64)
    builder = SimpleNamespace(info=SimpleNamespace(features=features, full_name="own"))
    arrays = {name: np.array([0, 4, -1]) for name in features}
    monkeypatch.setattr(pipeline, "label_arrays", lambda *which: dict(arrays))
    monkeypatch.setattr(pipeline, "class_names", lambda builder: {"gender": GENDERS, "race": theirs})
    # Where FairFace was joined, the output of five races learnt a label of another name; of it alone, it is a sum.
    tasks, truth, classes = predictions.truth_of(RECIPES["compact"](known=known), builder, "test")
    assert truth["race"].tolist() == [4, 0, -1]
    assert classes["race"] == next(task for task in tasks if task.label == "race").classes == UTKFACE_RACES
    theirs = ("A", "B", "C", "D", "E")
    with pytest.raises(UserError, match=r"tells White, Black, Asian, Indian, Others apart. Received: own with A, B"):
        predictions.truth_of(RECIPES["compact"](known=known), builder, "test")


def test_classes_that_are_called_otherwise_are_neither_trained_on_nor_measured(colour, data_dir, tmp_path):
    with pytest.raises(UserError, match=r"Expected: Male, Female. Received: Woman, Man"):
        fit(colour(data="renamed"), tmp_path / "run", data_dir, verbose=0)
    run = fit(colour(data="lowercase"), tmp_path / "right", data_dir, verbose=0)
    with pytest.raises(UserError, match=r"tells Male, Female apart. Received: renamed/1.0.0 with Woman, Man"):
        predict_split(run, "test", "renamed", data_dir)
    one, other = (predict_split(run, "test", data, data_dir) for data in ("colours", "lowercase"))
    np.testing.assert_array_equal(one.truth["gender"], other.truth["gender"])


def test_a_label_that_is_absent_is_said(colour, data_dir, tmp_path):
    with pytest.raises(UserError, match="learns age, which ageless"):
        fit(colour(data="ageless"), tmp_path / "run", data_dir, verbose=0)
    run = fit(colour(), tmp_path / "right", data_dir, verbose=0)
    with pytest.raises(UserError, match="tells age, which ageless"):
        predict_split(run, "test", "ageless", data_dir)


@pytest.mark.parametrize(
    ("age", "said"),
    [
        (tfds.features.ClassLabel(names=["0-2", "3-9"]), "own.*, whose age is 0-2, 3-9"),
        (tfds.features.Scalar(np.float32), "whose age is float32"),
        (tfds.features.Text(), "whose age is string"),
    ],
)
def test_an_age_that_is_no_number_of_years_is_refused(age, said, colour, tmp_path):
    features = {"image": tfds.features.Image(), "gender": tfds.features.ClassLabel(names=GENDERS), "age": age}
    builder = SimpleNamespace(info=SimpleNamespace(full_name="own/1.0.0", features=features))
    with pytest.raises(UserError, match=r"own/1\.0\.0 has no feature key"):
        batches.require_labels(colour(), builder, "learns")
    features["key"] = tfds.features.Text()
    with pytest.raises(UserError, match=f"learns age in whole years.*{said}"):
        batches.require_labels(colour(), builder, "learns")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "colours+unlabelled", "mixup": 0.2}, "mixup blends labels"),
        (
            {"monitor": "val_accuracy"},
            r"monitor must be one of age_loss, .*val_gender_loss, val_loss\. Received: val_accuracy",
        ),
        ({"occluded": 0.5, "worn_masks": 0.5}, "landmarks lie in one place, which colours"),
        ({"train_from": "mean", "mixup": 0.2, "occluded": 0.5}, r"occluded, mixup: .*Set occluded=0.0 mixup=0.0"),
        ({"train_from": "mean", "random_crop": 0.8}, "features that were cached before"),
        ({"teacher": "facenet"}, "an output embedding, which the recipe colour has not"),
    ],
)
def test_choices_that_cannot_be_prepared_do_not_take_the_folder(colour, changes, said, data_dir, tmp_path):
    with pytest.raises(UserError, match=said):
        fit(colour(**changes), tmp_path / "run", data_dir, verbose=0)
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.fixture
def exported(monkeypatch):
    """Exports that leave nothing but a card, in no time."""

    def export(folder, out):
        card = {"recipe": Run(folder).recipe().to_json(), "trained": files.sha256(Run(folder).trained_file)}
        files.write_json(out / "assets.extra" / "tfface.json", card)

    monkeypatch.setattr(commands, "export", export)


def test_a_part_without_labels_is_learnt_with_and_not_measured(colour, data_dir, tmp_path, capsys, exported):
    recipe = colour(data="colours+unlabelled", epochs=2)
    assert measured_parts(recipe, data_dir) == ["colours"]
    made = commands.reproduce(recipe, [0], tmp_path / "runs", data_dir=data_dir)
    assert "unlabelled holds none of the labels of colour" in capsys.readouterr().out
    assert "colours-test" in made["markdown"].read_text()
    calibrate(tmp_path / "runs" / "seed-0", data_dir)


def test_splits_that_are_there_are_reported_and_the_first_seed_is_exported(
    colour, data_dir, tmp_path, exported, monkeypatch
):

    recipe, out = colour(data="unvalidated", validation_split="test"), tmp_path / "runs"
    monkeypatch.setattr(commands, "report", lambda *_: {})
    for seeds in ([1], [0], [1, 0]):
        made = commands.reproduce(recipe, seeds, out, data_dir=data_dir)
        card = json.loads((made["saved_model"] / "assets.extra" / "tfface.json").read_text())
        assert card["recipe"]["seed"] == min(int(path.name[-1]) for path in out.glob("seed-*"))
    assert set(json.loads((out / "seed-0" / "metrics.json").read_text())) == {"test"}


def test_figures_of_a_network_that_was_replaced_meanwhile_are_not_kept(colour, data_dir, tmp_path, monkeypatch):
    run = fit(colour(), tmp_path / "run", data_dir, verbose=0)

    def replaced(run, split, data, data_dir, bfloat16, model):
        told = predict_split(run, split, data, data_dir, bfloat16, model=model)
        run.save_trained(run.model())  # as a training in another process does
        return told

    monkeypatch.setattr(predictions, "predict_split", replaced)
    with pytest.raises(UserError, match="given another network while this one was measured"):
        commands.evaluate(run.folder, data_dir=data_dir)
    assert not run.figures_file.exists()


def test_what_is_exported_is_known_by_its_bytes(colour, data_dir, tmp_path, exported, monkeypatch):
    monkeypatch.setattr(commands, "report", lambda *_: {})
    made = commands.reproduce(colour(), [0], tmp_path / "runs", data_dir=data_dir)
    run, card = Run(tmp_path / "runs" / "seed-0"), made["saved_model"] / "assets.extra" / "tfface.json"
    calibrate(run.folder, data_dir)
    os.utime(run.trained_file, (0, 0))  # a clock that was ahead when it was exported, or a copied folder
    commands.reproduce(colour(), [0], tmp_path / "runs", data_dir=data_dir)
    assert json.loads(card.read_text())["trained"] == files.sha256(run.trained_file)


def test_of_two_that_come_to_the_end_of_their_seeds_one_waits(colour, data_dir, tmp_path, exported, monkeypatch):
    done, waits, out = [], threading.Event(), tmp_path / "runs"
    monkeypatch.setattr(commands, "report", lambda *_: done.append("report") or {})
    monkeypatch.setattr("builtins.print", lambda *words, **_: waits.set() if "waiting" in words[0] else None)
    with files.held(out, "--out"):  # as the other does, while it reports and exports
        thread = threading.Thread(target=commands.reproduce, args=(colour(), [0], out, "", data_dir))
        thread.start()
        assert waits.wait(60)
        assert Run(out / "seed-0").figures_file.exists()
        assert not done
    thread.join()
    assert done


def test_labels_of_the_test_split_that_were_corrected_are_measured_anew(
    colour, data_dir, tmp_path, exported, monkeypatch
):
    monkeypatch.setattr(commands, "report", lambda *_: {})
    (tmp_path / "data").mkdir()
    shutil.copytree(data_dir / "colours", tmp_path / "data" / "colours")
    out, figures_file = tmp_path / "runs", tmp_path / "runs" / "seed-0" / "metrics.json"
    commands.reproduce(colour(), [0], out, data_dir=tmp_path / "data")
    before = json.loads(figures_file.read_text())
    # Every label turned round, in a record of the same length.
    (file,) = (tmp_path / "data").rglob("*test.tfrecord*")
    rows = [tf.train.Example.FromString(row.numpy()) for row in tf.data.TFRecordDataset(str(file))]
    with tf.io.TFRecordWriter(str(file)) as writer:
        for row in rows:
            value = row.features.feature["gender"].int64_list.value
            value[0] = 1 - value[0]
            writer.write(row.SerializeToString())
    commands.reproduce(colour(), [0], out, data_dir=tmp_path / "data")
    after = json.loads(figures_file.read_text())
    right = [figures["test"]["tasks"]["gender"]["accuracy"]["value"] for figures in (before, after)]
    assert sum(right) == 1
    assert right[0] != right[1]
    assert after["validation"] == before["validation"]


def test_seeds_of_other_choices_are_no_seeds(colour, data_dir, tmp_path, exported, monkeypatch):
    monkeypatch.setattr(commands, "report", lambda *_: {})
    for seed in (0, 1):
        recipe = colour(initial=f"runs/before/seed-{seed}")
        fit(colour(seed=seed), tmp_path / "runs" / f"seed-{seed}", data_dir, verbose=0)
        config = json.loads((tmp_path / "runs" / f"seed-{seed}" / "config.json").read_text())
        config["recipe"]["initial"] = recipe.initial
        files.write_json(tmp_path / "runs" / f"seed-{seed}" / "config.json", config)
    assert len(runs_in(tmp_path / "runs")) == 2
    with pytest.raises(
        UserError, match=r"seed-0 is not the same training with another seed \(.*rate was 0\.1, is 0\.2"
    ):
        commands.reproduce(recipe.changed(learning_rate=0.2), [2], tmp_path / "runs", data_dir=data_dir)
    assert not (tmp_path / "runs" / "seed-2").exists()
    config["data"]["labels"]["train"] = "of another day"
    files.write_json(tmp_path / "runs" / "seed-1" / "config.json", config)
    with pytest.raises(UserError, match=r"seed-1 is not the same training with another seed \(labels was"):
        runs_in(tmp_path / "runs")


def test_names_of_figures_are_those_that_keras_gives(colour, data_dir, tmp_path):
    run = fit(colour(), tmp_path / "run", data_dir, verbose=0)
    assert set(run.history()[0]) - {"epoch", "seconds"} == monitored(colour())


def test_runs_of_a_soup_are_each_measured_with_their_own_network(colour, data_dir, tmp_path):
    runs = [
        fit(colour(epochs=3, activation=activation, image_size=size, seed=seed), tmp_path / name, data_dir, verbose=0)
        for name, activation, size, seed in (("a", "relu", (4, 4), 0), ("b", "tanh", (8, 8), 1))
    ]
    own = {}
    for run in runs:
        predictions = predict_split(run, "validation", data_dir=data_dir)
        own[str(run.folder)] = np.mean(
            predictions.probabilities["gender"].argmax(axis=1) == predictions.truth["gender"]
        )
    mixed = soup([run.folder for run in runs], tmp_path / "soup", data_dir)

    said = json.loads((tmp_path / "soup" / "soup.json").read_text())
    assert {row["run"]: row["accuracy"]["gender"] for row in said["runs"]} == pytest.approx(own)
    predictions = predict_split(mixed, "validation", data_dir=data_dir)
    right = np.mean(predictions.probabilities["gender"].argmax(axis=1) == predictions.truth["gender"])
    assert said["accuracy"]["gender"] == pytest.approx(right)
