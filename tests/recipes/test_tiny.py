"""One check over every recipe: shrunk to seconds it trains, evaluates, reports and exports on synthetic faces."""

import functools
import json
import shutil
import zipfile
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfface import commands, recipes
from tfface.data import pipeline
from tfface.data.pipeline import View
from tfface.errors import UserError
from tfface.evaluation import plots
from tfface.pruning import checkpoint, retrain
from tfface.recipes import RECIPES
from tfface.serving.predictor import SHIPPED
from tfface.training import batches
from tfface.training.fit import fit, prepared
from tfface.training.run import Run


@pytest.fixture(scope="module")
def reproduced(data_dir, tmp_path_factory):
    """`reproduced(recipe name)`: its recipe, and what was made of one epoch; each is made once."""

    @functools.cache
    def reproduced(name):
        recipe = recipes.load(name, settings=["epochs=1"], tiny=True)
        with pytest.MonkeyPatch.context() as patch:  # that figures can be drawn is the matter of tests/evaluation
            patch.setattr(plots, "svg", lambda figure: b"<svg/>")
            return recipe, commands.reproduce(recipe, [0], tmp_path_factory.mktemp(name), data_dir=data_dir)

    return reproduced


@pytest.mark.filterwarnings("error:Your input ran out of data")
@pytest.mark.parametrize("recipe_name", sorted(set(RECIPES) - {"arg", "occluded"}))  # arg: tests/training and serving
def test_the_whole_way(recipe_name, reproduced, data_dir):
    recipe, made = reproduced(recipe_name)
    run = made["saved_model"].parent / "seed-0"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    figures = json.loads((run / "metrics.json").read_text())["test"]
    # All 120, but those of the race that four races leave out.
    assert figures["n"] == pipeline.open_dataset(recipe.data, data_dir).info.splits["test"].num_examples <= 120
    for task in recipe.adapted(pipeline.class_names(pipeline.open_dataset(recipe.data, data_dir))).tasks():
        name = "age_bins" if task.is_age else task.name
        assert 0 < figures["tasks"][name]["accuracy"]["value"] <= 1
    report = json.loads(made["json"].read_text())
    assert report["title"] == recipe.title
    sources = [row["source"] for row in report["comparison"] if row["published"] is not None]
    assert sources == [row[3] for row in recipe.published]
    served = tf.saved_model.load(str(made["saved_model"])).signatures["serving_default"]
    answer = served(images=tf.zeros((2, 50, 40, 3), tf.uint8))
    for task in figures["tasks"]:
        assert answer[f"{task}_probabilities"].shape == (2, len(figures["tasks"][task]["classes"]))


def test_compact_heads_on_a_trained_compact_network(reproduced, data_dir, tmp_path):
    """The heads are learnt anew, what lies below and the embedding stay as they are, whatever becomes of its file."""
    first = Run(reproduced("compact")[1]["saved_model"].parent / "seed-0")
    network = tmp_path / "network.keras"
    shutil.copy(first.trained_file, network)
    tiny = recipes.load("compact", tiny=True).variant("heads")
    recipe = tiny.changed(network=str(network), epochs=2, batch_size=32, bottleneck_width=16)
    run = fit(recipe, tmp_path / "heads", data_dir, verbose=0)
    pixels = np.random.default_rng(0).uniform(0, 255, (2, 48, 48, 3)).astype("float32")
    other = first.model(float32=False)
    before = other(pixels)
    other.set_weights([weight / 2 for weight in other.get_weights()])
    other.save(network)
    after = run.model()(pixels)
    assert set(after) == set(before)
    np.testing.assert_allclose(after["embedding"], before["embedding"], atol=1e-6)
    assert np.abs(after["gender"] - before["gender"]).max() > 1e-3
    assert commands.evaluate(run.folder, "test", data_dir=data_dir)["n"] == 120


def test_the_network_of_the_package_is_verified_by_its_name(data_dir, tmp_path):
    result = commands.verify("compact", "synthetic_faces/small", data_dir, out=tmp_path)
    assert result["model"] == "compact"
    assert result["accuracy"] > 0.8
    assert (tmp_path / "roc.png").exists()


def test_masks_are_worn_by_covered_and_aligned_faces_only(data_dir, tmp_path):
    recipe = recipes.load("occluded", settings=["worn_masks=0.5"], tiny=True)
    with pytest.raises(UserError, match="set occluded too"):
        fit(recipe, tmp_path / "run", data_dir, verbose=0)
    assert not (tmp_path / "run").exists()
    elsewhere = SimpleNamespace(info=SimpleNamespace(metadata=None, full_name="elsewhere/1.0.0"))
    with pytest.raises(UserError, match=r"elsewhere/1\.0\.0 does not say: build it with --align five-point"):
        batches.covering(recipe.changed(occluded=0.5), elsewhere)


def test_masks_are_worn_where_a_crop_and_a_view_leave_the_face(data_dir, monkeypatch):
    settings = ["occluded=1.0", "worn_masks=1.0", "random_crop=0.5"]
    recipe = recipes.load("occluded", settings=settings, tiny=True).changed(views=(View(0.8),), seed=5)
    told = []

    def noses(image, landmarks, key, epoch, **options):
        told.append(options)
        return tf.fill(image.shape, landmarks[2, 1]), tf.constant(0, tf.int64)

    monkeypatch.setattr(batches.augment, "occlude", noses)
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    nose = builder.info.metadata["landmarks"][2][1]
    (images, *_), *_ = batches.image_batches(builder, "train", recipe, 0).take(1)
    (same, *_), *_ = batches.validation_images(builder, recipe).take(1)
    assert np.std(images[:, 0, 0, 0]) > 0.05
    np.testing.assert_allclose(same, nose, atol=1e-6)
    assert told == [{"seed": 5, "share": 1.0, "worn_masks": 1.0}] * 2


def test_each_epoch_covers_faces_anew_and_each_seed_has_its_own_order(data_dir, monkeypatch):
    recipe = recipes.load("occluded", settings=["occluded=1.0", "batch_size=100"], tiny=True).changed(epochs=3)
    covered = {}

    def epochs(image, landmarks, key, epoch, seed, **_):
        return tf.fill(image.shape, tf.cast(epoch, tf.float32)), tf.constant(0, tf.int64)

    monkeypatch.setattr(batches.augment, "occlude", epochs)
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    steps = batches.steps_of(pipeline.label_arrays(builder, "train"), recipe)[1]
    for seed in (0, 1):
        shown = list(batches.image_batches(builder, "train", recipe.changed(seed=seed), 1).as_numpy_iterator())
        assert [set(images.ravel()) for images, *_ in shown] == [{1.0}] * steps + [{2.0}] * steps
        covered[seed] = [targets["identity"].tolist() for _, targets, *_ in shown]
    assert covered[0][:steps] != covered[0][steps:]
    assert covered[0] != covered[1]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mixup": 0.2}, "between two identities there is none"),
        ({"label_smoothing": 0.1}, "learnt by cross-entropy, and the recipe occluded has none"),
        ({"distill_from": str(SHIPPED / "compact")}, "nothing to teach"),
    ],
)
def test_what_is_of_no_use_to_identities_is_refused(changes, said, data_dir, tmp_path):
    with pytest.raises(UserError, match=said):
        fit(recipes.load("occluded", tiny=True).changed(**changes), tmp_path / "run", data_dir, verbose=0)


def test_patterns_of_faces_that_nothing_covers_are_refused():
    with pytest.raises(UserError, match=r"covers none: set occluded too, such as occluded=0\.67, or masked=False"):
        batches.check_effects(recipes.load("occluded", settings=["masked=True"]))


def test_the_whole_way_of_a_recipe_that_tells_people_apart(data_dir, tmp_path, monkeypatch):
    recipe = recipes.load("occluded", settings=["epochs=1"], tiny=True)
    made = commands.reproduce(recipe, [0], tmp_path, data_dir=data_dir)
    verified = json.loads((tmp_path / "seed-0" / "metrics.json").read_text())["verification"]["synthetic_faces/small"]
    assert verified["n"] >= 100
    assert 0.3 < verified["accuracy"] <= 1
    report = json.loads(made["json"].read_text())
    assert [row["metric"] for row in report["comparison"]] == ["same person or not, synthetic_faces/small"]
    served = tf.saved_model.load(str(made["saved_model"])).signatures["serving_default"]
    embedding = served(images=tf.zeros((2, 50, 40, 3), tf.uint8))
    assert list(embedding) == ["embedding"]
    assert embedding["embedding"].shape == (2, 32)
    # What stands there is taken, until the run has gone on and has another network.
    exported = []
    with monkeypatch.context() as patch:
        patch.setattr(commands, "export", lambda *folders: exported.append(folders))
        patch.setattr(commands, "report", lambda *_: {})
        commands.reproduce(recipe, [0], tmp_path, data_dir=data_dir)
        assert exported == []
        with zipfile.ZipFile(tmp_path / "seed-0" / "trained.keras", "a") as archive:
            archive.comment = b"another network"
        commands.reproduce(recipe, [0], tmp_path, data_dir=data_dir)
        assert exported == [(tmp_path / "seed-0", made["saved_model"])]
    # Paper 5's stages 1 and 2: each block loses by its sensitivity. Stage 3 goes on from there, identities and all.
    for name, fewer in (("MEASURED_RATIOS", (0.5, 0.95)), ("REPEATS", 1)):
        monkeypatch.setattr(checkpoint, name, fewer)
    monkeypatch.setattr(retrain, "SENSITIVITY_IMAGES", 32)
    smaller = checkpoint.prune_checkpoint(tmp_path / "seed-0", 0.4, scope="sensitivity", finetune=1, data_dir=data_dir)
    pruned = Path(smaller["file"])
    assert "synthetic_faces/small pairs accuracy" in {row["name"] for row in smaller["rows"]}
    measured = json.loads((pruned.parent / "sensitivity.json").read_text())
    units = {row["block"]: row["units"] for row in measured["rows"]}
    before, after = np.array(list(smaller["groups"].values())).T
    assert 0.35 < 1 - after.sum() / before.sum() < 0.45  # in multiples of eight
    assert len(set(1 - after / before)) > 2  # not all alike
    assert set(units) == {"conv1_conv", *(f"stage{stage}_block1_add" for stage in (1, 2, 3, 4))}
    assert (pruned.parent / "sensitivity.png").stat().st_size > 1000
    third = recipe.changed(masked=True, occluded=2 / 3, network=str(pruned), initial=str(pruned))
    ready = prepared(third, pipeline.open_dataset(recipe.data, data_dir))
    assert {name.split("_")[0] for name in ready.fresh} == {"mask", "pattern"}
    for name in ("stage4_block1_2_conv", "fc_norm", "identity"):
        weights = keras.saving.load_model(pruned, compile=False).get_layer(name).get_weights()
        for mine, theirs in zip(ready.whole.get_layer(name).get_weights(), weights, strict=True):
            np.testing.assert_array_equal(mine, theirs)
    # On another backend, which writes no SavedModel, everything else is made.
    shutil.rmtree(made["saved_model"])
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert set(commands.reproduce(recipe, [0], tmp_path, data_dir=data_dir)) == set(made) - {"saved_model"}
