import json
import shutil
import sys
from types import SimpleNamespace

import keras
import numpy as np
import pytest

from tfface import files, recipes
from tfface.data import pipeline
from tfface.data.pipeline import epoch_order, repeats
from tfface.errors import UserError
from tfface.models.saved import load_saved
from tfface.training import batches
from tfface.training.callbacks import Recorder
from tfface.training.fit import _data_of, device_name, fit, prepared
from tfface.training.run import Run, carry_weights, put_trained, split_at


def weights_of(run):
    model = keras.saving.load_model(run.trained_file, compile=False)
    return [np.asarray(weight) for weight in model.weights]


def figures_of(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history()]


def test_it_learns(tiny_run):
    rows = tiny_run.history()
    assert len(rows) == 4
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["gender_accuracy"] > 0.8
    metrics = json.loads((tiny_run.folder / "metrics.json").read_text())["test"]
    assert metrics["n"] == 120
    assert metrics["tasks"]["gender"]["accuracy"]["value"] > 0.8


def test_a_run_killed_three_times_ends_as_an_unbroken_one(colour, colours, tmp_path, monkeypatch):
    """From cached features, with a dropout, whose draws go on too."""
    recipe = colour(train_from="mean", epochs=4, dropout_rate=0.5)
    unbroken = fit(recipe, tmp_path / "unbroken", colours, verbose=0)

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    whole, run = Recorder.on_epoch_end, Run(tmp_path / "run")

    def between_epochs(self, epoch, logs=None):
        whole(self, epoch, logs)
        killed()

    def in_an_epoch(self, batch, logs=None):
        if batch == 3:
            killed()

    moments = [
        (Recorder, "on_epoch_end", between_epochs, 1),
        (Recorder, "on_train_batch_begin", in_an_epoch, 1),
        (Run, "save_state", killed, 1),  # an epoch is over, and nothing says so yet
    ]
    for place, name, stop, epochs in moments:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, stop)
            with pytest.raises(Killed):
                fit(recipe, run.folder, colours, verbose=0)
        assert len(run.history()) == epochs
        assert not run.done
    run.figures_file.write_text("{}")  # somebody measured the network as it was then
    fit(recipe, run.folder, colours, verbose=0)
    assert run.figures_file.exists() == (json.loads(run.done_file.read_text())["best_epoch"] < 1)
    assert figures_of(run) == figures_of(unbroken)
    seconds = sum(row["seconds"] for row in run.history())  # those of the processes before, too
    assert json.loads(run.done_file.read_text())["seconds"] == round(seconds, 1)
    for mine, other in zip(weights_of(run), weights_of(unbroken), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_a_run_that_is_done_is_left_alone(tiny_run, tiny_recipe, data_dir):
    before = tiny_run.trained_file.stat().st_mtime_ns
    fit(tiny_recipe, tiny_run.folder, data_dir, verbose=0)
    assert tiny_run.trained_file.stat().st_mtime_ns == before


def test_other_choices_in_the_folder_are_refused(tiny_run, tiny_recipe, data_dir):
    with pytest.raises(UserError, match=r"learning_rate was 0.001, is 0.5"):
        fit(tiny_recipe.changed(learning_rate=0.5), tiny_run.folder, data_dir, verbose=0)


def test_a_damaged_state_is_said(tiny_run, tiny_recipe, data_dir, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_bytes(tiny_run.config_file.read_bytes())
    (folder / "state.npz").write_bytes(tiny_run.state_file.read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged"):
        fit(tiny_recipe, folder, data_dir, verbose=0)


def test_a_run_knows_how_its_size_stretches_the_faces_of_its_data(tiny_recipe, data_dir, tmp_path):
    builder = pipeline.open_dataset(tiny_recipe.data, data_dir)  # its images are square
    assert "stretch" not in _data_of(tiny_recipe, builder, data_dir)
    assert _data_of(tiny_recipe.changed(image_size=(112, 96)), builder, data_dir)["stretch"] == pytest.approx(6 / 7)
    builder.info.metadata["stretch"] = 1.227  # as of crops with a margin, whose boxes were squeezed to squares
    data = _data_of(tiny_recipe.changed(image_size=(112, 96)), builder, data_dir)
    assert data["stretch"] == pytest.approx(1.227 * 6 / 7)
    run = Run(tmp_path / "run")  # of a version that did not look at it: the same command notes it
    for noted in ({name: value for name, value in data.items() if name != "stretch"}, data, {**data, "stretch": 1.227}):
        run.begin(tiny_recipe, noted, "cpu")
        assert run.config()["data"] == noted
    with pytest.raises(UserError, match="landmarks"):
        run.begin(tiny_recipe, {**data, "landmarks": data["landmarks"][::-1]}, "cpu")
    assert run.config()["data"] == noted


def test_a_data_set_that_is_not_prepared(tiny_recipe, tmp_path):
    with pytest.raises(UserError, match="tfface build"):
        fit(tiny_recipe, tmp_path / "run", tmp_path, verbose=0)


def test_a_gpu_that_is_not_there_is_an_error():
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="A GPU was asked for"):
        device_name("gpu")
    assert device_name("auto") == device_name("cpu") == "cpu"


def test_on_jax_the_processor_that_was_asked_for_is_the_one_that_computes(monkeypatch):
    gpu, processor = SimpleNamespace(platform="gpu", device_kind="H200"), SimpleNamespace(platform="cpu")
    config, taken = SimpleNamespace(update=lambda name, value: taken.update({name: value})), {}
    jax = SimpleNamespace(devices=lambda: [gpu], local_devices=lambda backend: [processor], config=config)
    monkeypatch.setitem(sys.modules, "jax", jax)
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert device_name("auto") == device_name("gpu") == "H200"
    assert taken == {}
    assert device_name("cpu") == "cpu"
    assert taken == {"jax_default_device": processor}


def test_a_cut_model_is_the_model():
    inputs = keras.Input((4,))
    x = keras.layers.Dense(3, name="low")(inputs)
    y = keras.layers.Dense(2, name="side")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, name="high")(x))
    lower, upper = split_at(model, "low")
    values = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    np.testing.assert_allclose(upper(lower(values)), model(values), atol=1e-6)
    with pytest.raises(UserError, match="must name a layer"):
        split_at(model, "absent")
    crossed = keras.Model(inputs, keras.layers.Concatenate()([x, y]))
    with pytest.raises(UserError, match="other branches pass by"):
        split_at(crossed, "low")


def test_oversampling_counts_and_order():
    labels = {"race": np.array([0, 1, 4]), "gender": np.array([0, 1, 1])}
    counts = repeats(labels, {"race": (1, 2, 3, 3, 4), "gender": (1, 2)})
    assert counts.tolist() == [1, 4, 8]
    order = epoch_order(counts, seed=3, epoch=5)
    assert np.bincount(order).tolist() == [1, 4, 8]
    assert order.tolist() == epoch_order(counts, seed=3, epoch=5).tolist()
    assert order.tolist() != epoch_order(counts, seed=3, epoch=6).tolist()


def test_blended_batches_go_on_as_they_would_have(data_dir):
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    recipe = recipes.RECIPES["multitask"]().tiny().changed(mixup=0.4, epochs=3, batch_size=100)
    steps = batches.steps_of(pipeline.label_arrays(builder, "train"), recipe)[1]
    whole = list(batches.image_batches(builder, "train", recipe, 0).as_numpy_iterator())
    rest = list(batches.image_batches(builder, "train", recipe, 1).as_numpy_iterator())
    assert (len(whole), len(rest)) == (3 * steps, 2 * steps)
    for (images, targets), (same_images, same_targets) in zip(whole[steps:], rest, strict=True):
        np.testing.assert_array_equal(images, same_images)
        np.testing.assert_array_equal(targets["gender"], same_targets["gender"])
    assert ((whole[0][1]["gender"] > 0.01) & (whole[0][1]["gender"] < 0.99)).any()


def test_a_run_may_start_from_another(tiny_run, tiny_recipe, data_dir, tmp_path):
    recipe = tiny_recipe.changed(initial=str(tiny_run.folder), age="bins", epochs=1, learning_rate=1e-9)
    run = fit(recipe, tmp_path / "run", data_dir, verbose=0)
    said = json.loads((run.folder / "carried.json").read_text())
    assert said["fresh"] == ["age_logits"]  # nine classes, where the other run had a distribution over years
    assert {"bottleneck", "gender_logits", "race_logits"} <= set(said["carried"])
    # What was carried is there from the start: at a rate near zero one epoch leaves it as it was.
    assert run.history()[0]["val_gender_accuracy"] == pytest.approx(
        max(row["val_gender_accuracy"] for row in tiny_run.history()), abs=0.1
    )


def test_frozen_layers_that_are_not_the_recipes_own_are_kept(colour, colours, tmp_path, monkeypatch):
    class Deep(colour):
        def model(self):
            image = keras.Input((*self.image_size, 3), name="image")
            below = keras.layers.Dense(3, kernel_initializer="ones", name="below")(image)
            x = keras.layers.GlobalAveragePooling2D(name="mean")(below)
            return keras.Model(image, {t.name: keras.layers.Dense(t.width, name=t.name)(x) for t in self.tasks()})

    monkeypatch.setitem(recipes.RECIPES, "colour", Deep)
    seen = lambda lower, *_, **__: [np.tile(lower(np.ones((1, 4, 4, 3))), (64, 1))]  # noqa: E731
    monkeypatch.setattr("tfface.training.fit.cached_features", seen)
    earlier = Deep().model()
    earlier.get_layer("below").kernel.assign(np.full((3, 3), 5.0))
    earlier.save(tmp_path / "earlier.keras")
    builder, file = pipeline.open_dataset("colours", colours), str(tmp_path / "earlier.keras")
    for name, initial, model, kernel in (("carried", file, None, 5), ("given", "", earlier, 5), ("own", "", None, 1)):
        recipe, run = Deep(train_from="mean", initial=initial), Run(tmp_path / name)
        ready = prepared(recipe, builder, model=model)
        images, _ = next(iter(ready.validation))
        run.begin(recipe, {}, "cpu")
        run.save_trained(keras.Model(ready.whole.input, ready.whole.output))
        whole = run.model()
        np.testing.assert_allclose(whole.get_layer("below").kernel, kernel)
        features = keras.Model(whole.input, whole.get_layer("mean").output)(np.ones((1, 4, 4, 3)))
        np.testing.assert_allclose(features[0], images[0])  # what was trained on is what is seen
        assert ("below" in ready.carried) == bool(initial)
        assert "below" not in ready.fresh
        assert len(load_saved(run.trained_file).layers) == (3 if name == "own" else 5)  # no more than is needed


def test_a_run_may_learn_from_another_and_from_further_faces(tiny_run, tiny_recipe, data_dir, tmp_path):
    recipe = tiny_recipe.changed(
        distill_from=str(tiny_run.folder), distill_share=1.0, extra_data="synthetic_faces/small", epochs=2
    )
    run = fit(recipe, tmp_path / "run", data_dir, verbose=0)
    assert run.config()["data"]["with_extra"]
    assert set(run.config()["data"]["labels"]) == {"train", "validation", "with_extra"}
    first, last = run.history()
    # The labels never taught it: what the other run says of the faces did.
    assert last["loss"] < first["loss"]
    assert last["val_gender_accuracy"] > 0.75
    with pytest.raises(UserError, match="no extra_data"):
        fit(recipe.changed(teacher="facenet"), tmp_path / "both", data_dir, verbose=0)


def test_weights_are_carried_by_name_and_shape(tmp_path):
    def network(name, width):
        inputs = keras.Input((3,))
        x = keras.layers.Dense(4, name="shared")(inputs)
        return keras.Model(inputs, keras.layers.Dense(width, name=name)(x))

    source, target = network("head", 2), network("head", 5)
    source.save(tmp_path / "source.keras")
    assert carry_weights(target, tmp_path / "source.keras") == (["shared"], ["head"])
    np.testing.assert_array_equal(target.get_layer("shared").kernel, source.get_layer("shared").kernel)
    stranger = keras.Sequential([keras.Input((3,)), keras.layers.Dense(7, name="other")])
    with pytest.raises(UserError, match="No layer"):
        carry_weights(stranger, tmp_path / "source.keras")
    with pytest.raises(UserError, match="cannot be read"):
        carry_weights(target, tmp_path / "absent.keras")


def test_an_adapted_normalization_computes_by_the_weights_that_it_is_given(tmp_path):
    def network():
        image = keras.Input((3,))
        return keras.Model(image, keras.layers.Dense(2, name="head")(keras.layers.Normalization(name="scale")(image)))

    values = np.random.default_rng(0).uniform(0, 255, (8, 3)).astype("float32")
    source, carried, read = network(), network(), network()
    source.get_layer("scale").adapt(values)
    source.save(tmp_path / "source.keras")
    carry_weights(carried, tmp_path / "source.keras")
    put_trained(read, source)
    for model in (carried, read):
        np.testing.assert_allclose(model(values), source(values), rtol=1e-5)


def test_the_best_epoch_has_the_highest_accuracy_or_the_lowest_loss():
    history = [{"epoch": 0, "val_accuracy": 0.5, "val_loss": 1.0}, {"epoch": 1, "val_accuracy": 0.7, "val_loss": 2.0}]
    by_accuracy, by_loss = (Recorder(None, None, history, name, patience=1) for name in ("val_accuracy", "val_loss"))
    assert (by_accuracy.best_epoch(), by_loss.best_epoch()) == (1, 0)
    assert (by_accuracy.exhausted(), by_loss.exhausted()) == (False, True)


def test_a_run_of_a_version_without_a_field_goes_on_with_its_default(tmp_path):
    run, recipe = Run(tmp_path / "run"), recipes.load("race")
    data = {"name": "photos", "labels": {"train": "a1", "with_extra": "b2"}}
    run.begin(recipe, data, "cpu")
    config = json.loads(run.config_file.read_text())
    del config["recipe"]["open_attention"], config["data"]["labels"]["with_extra"]
    run.config_file.write_text(json.dumps(config))
    run.begin(recipe, data, "cpu")
    with pytest.raises(UserError, match="labels was"):
        run.begin(recipe, {**data, "labels": {"train": "c3", "with_extra": "b2"}}, "cpu")
    with pytest.raises(UserError, match="open_attention was True, is False"):
        run.begin(recipe.changed(open_attention=False), data, "cpu")


def test_runs_are_told_apart_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "seed-3").mkdir()
    assert Run("runs/arg-years/seed-0").name == "arg-years-seed-0"
    assert Run("runs/compact").name == "compact"
    assert Run("seed-3").name == f"{tmp_path.name}-seed-3"


def test_another_process_in_the_folder_is_refused(tiny_recipe, data_dir, tmp_path, tiny_run):
    with (
        files.held(tmp_path / "run", "--out"),
        pytest.raises(UserError, match="run is being written by another process"),
    ):
        fit(tiny_recipe, tmp_path / "run", data_dir, verbose=0)
    assert not list((tmp_path / "run").iterdir())


def test_corrected_labels_make_another_run(tiny_run, tiny_recipe, data_dir, monkeypatch):
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    before = pipeline.label_digest(builder, "train")
    arrays = pipeline.label_arrays(builder, "train")
    arrays["gender"] = 1 - arrays["gender"]
    monkeypatch.setattr(pipeline, "label_arrays", lambda *_: arrays)
    assert pipeline.label_digest(builder, "train") != before
    with pytest.raises(UserError, match=r"holds a run with other choices \(labels was"):
        fit(tiny_recipe, tiny_run.folder, data_dir, verbose=0)


def test_oversampled_images_are_shown_as_often_as_is_said(data_dir):
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    recipe = recipes.RECIPES["multitask"]().tiny().changed(oversample={"gender": (1, 3)}, epochs=1, batch_size=20)
    labels = pipeline.label_arrays(builder, "train")
    steps = batches.steps_of(labels, recipe)[1]
    assert steps == ((labels["gender"] == 0).sum() + 3 * (labels["gender"] == 1).sum()) // 20
    shown = np.concatenate(
        [y["gender"] for _, y in batches.image_batches(builder, "train", recipe, 0).as_numpy_iterator()]
    )
    assert len(shown) == 20 * steps
    assert abs(shown[:, 1].sum() - 3 * (labels["gender"] == 1).sum()) < 20


@pytest.mark.parametrize(
    "oversample", [{"foo": (1, 2)}, {"key": (1, 2)}, {"gender": 2}, {"gender": ("a",)}, {"gender": (1,)}]
)
def test_factors_that_fit_no_label_are_refused(oversample):
    labels = {"gender": np.array([0, 1]), "key": np.array(["a", "b"])}
    with pytest.raises(UserError, match="oversample"):
        repeats(labels, oversample)


@pytest.mark.parametrize("split", ["train[:50%", "train[:0]", "trian", "train[10:5]"])
def test_what_is_no_part_of_a_split_is_refused(split, data_dir):
    builder = pipeline.open_dataset("synthetic_faces/small", data_dir)
    with pytest.raises(UserError, match="synthetic_faces/small"):
        pipeline.examples(builder, split)


def test_a_figure_that_nobody_measures_is_refused():
    recorder = Recorder(None, None, [], "val_acc", patience=0)
    recorder.on_epoch_begin(0)
    with pytest.raises(UserError, match=r"monitor must be one of loss, val_loss\. Received: val_acc"):
        recorder.on_epoch_end(0, {"loss": 1.0, "val_loss": 1.0})


@pytest.mark.parametrize(
    ("monitor", "best"), [("val_gender_accuracy", 1), ("val_embedding_cosine", 1), ("val_loss", 0)]
)
def test_of_accuracies_and_cosines_the_highest_is_kept(monitor, best):
    history = [{"epoch": epoch, monitor: value} for epoch, value in enumerate((0.2, 0.7, 0.5))]
    assert Recorder(None, None, history, monitor, patience=0).best_epoch() == best


@pytest.mark.parametrize(("patience", "first"), [(2, 0), (2, 4), (0, 0)])
def test_a_better_epoch_is_kept_and_patience_is_counted_from_it(patience, first):
    inputs, kept, stopped = keras.Input((1,)), [], []
    run = SimpleNamespace(save_trained=lambda model: kept.append(len(history)), save_state=lambda model, rows: None)
    losses = (3.0, 2.0, 2.0, 1.5, 1.6, 1.7, 1.8)
    history = [{"epoch": epoch, "val_loss": loss} for epoch, loss in enumerate(losses[:first])]
    recorder = Recorder(run, keras.Model(inputs, keras.layers.ReLU()(inputs)), history, "val_loss", patience)
    recorder.set_model(SimpleNamespace(stop_training=False))
    for epoch in range(first, len(losses)):
        recorder.on_epoch_begin(epoch)
        recorder.on_epoch_end(epoch, {"val_loss": losses[epoch]})
        stopped.append(recorder.model.stop_training)
    assert kept == [epoch for epoch in (0, 1, 3) if epoch >= first]  # no better is the third than the second
    assert stopped == [patience > 0 and epoch >= 5 for epoch in range(first, len(losses))]


def test_a_stop_that_another_callback_asked_for_is_obeyed():
    run = SimpleNamespace(save_state=lambda model, rows: None)
    recorder = Recorder(run, None, [{"epoch": 0, "val_loss": 1.0}], "val_loss", patience=5)
    recorder.set_model(SimpleNamespace(stop_training=True))
    recorder.on_epoch_begin(1)
    recorder.on_epoch_end(1, {"val_loss": 2.0})
    assert recorder.model.stop_training


def test_a_report_tells_of_the_runs_own_data(tiny_run, data_dir, tmp_path):
    from tfface.evaluation.run_report import report

    run = Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    figures = json.loads(run.figures_file.read_text())
    run.figures_file.write_text(json.dumps({"elsewhere-test": figures["test"]}))
    with pytest.raises(UserError, match=r"was not evaluated on its own data, synthetic_faces/small.*elsewhere-test"):
        report(run.folder, data_dir)
