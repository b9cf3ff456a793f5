"""Data sets with different labels, joined: each example once, evenly mixed, what is not known takes no part."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import labels, recipes, tasks
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.training import batches, teacher
from tfface.training.features import cached_features


def prepared(folder, name, count, labels, config=None):
    """A data set of `count` images of 4x4 pixels with the given labels, written without a builder of its own."""
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "key": tfds.features.Text(), **labels})

    def examples(start):
        for index in range(start, start + count):
            values = {label: index % getattr(feature, "num_classes", 7) for label, feature in labels.items()}
            yield {"image": np.full((4, 4, 3), index, "uint8"), "key": f"{index}.png", **values}

    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        config=config,
        version="1.0.0",
        data_dir=str(folder),
        split_datasets={
            split: tf.data.Dataset.from_generator(
                lambda start=start: examples(start), output_signature=features.get_tensor_spec()
            )
            for split, start in (("train", 0), ("validation", 100))
        },
        features=features,
    )


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    gender = tfds.features.ClassLabel(names=["Male", "Female"])
    seven, five = (tfds.features.ClassLabel(names=[*"abcdefg"[:count]]) for count in (7, 5))
    prepared(folder, "wide", 9, {"gender": gender, "race": seven})
    prepared(folder, "narrow", 3, {"gender": gender, "race": five, "age": np.int32})
    return pipeline.open_dataset("wide+narrow", folder)


def test_counts_and_classes(joined):
    assert {split: info.num_examples for split, info in joined.info.splits.items()} == {"train": 12, "validation": 12}
    classes = pipeline.class_names(joined)
    assert {name: len(names) for name, names in classes.items()} == {"gender": 2, "race": 7, "race_narrow": 5}


def test_each_example_once_and_evenly_mixed(joined):
    truth = pipeline.label_arrays(joined, "train")
    assert sorted(truth["key"]) == sorted([f"wide/{i}.png" for i in range(9)] + [f"narrow/{i}.png" for i in range(3)])
    places = np.flatnonzero(np.char.startswith(truth["key"], "narrow"))
    assert (np.diff(places) == 4).all()
    # the order is that of the images
    images = [int(tf.io.decode_image(row["image"])[0, 0, 0]) for row in pipeline.examples(joined, "train")]
    assert images == [int(key.split("/")[1].removesuffix(".png")) for key in truth["key"]]


def test_what_is_not_known_is_minus_one_and_weighs_nothing(joined):
    labels = pipeline.label_arrays(joined, "train")
    narrow = np.char.startswith(labels["key"], "narrow")
    assert (labels["race"][narrow] == -1).all()
    assert (labels["race_narrow"][~narrow] == -1).all()
    assert (labels["age"][~narrow] == -1).all()
    assert (labels["gender"] >= 0).all()
    learnt = (tasks.classification("gender", ("Male", "Female")), tasks.classification("race", tuple("abcdefg")))
    weights = batches.weights(learnt, labels)
    np.testing.assert_array_equal(weights["race"], ~narrow)
    np.testing.assert_array_equal(weights["gender"], 1)
    assert batches.encode(learnt, labels)["race"].sum() == 12  # every row a class, the unknown ones without weight


def test_a_teachers_embeddings_follow_the_example(joined):
    taught = np.arange(12, dtype="float16")[:, None]
    labels = pipeline.label_arrays(joined, "train") | {"example": np.arange(12)}
    encoded = batches.encode((tasks.embedding(1),), labels, {"embedding": taught})
    np.testing.assert_array_equal(encoded["embedding"], taught)
    # So they do on validation where cached features are trained on.
    student = SimpleNamespace(tasks=lambda: (tasks.embedding(1),))
    features = np.arange(12, dtype="float32")
    validation = batches.in_order(
        features, pipeline.label_arrays(joined, "validation"), student, taught={"embedding": taught}
    )
    (inputs, targets), *_ = validation
    np.testing.assert_array_equal(targets["embedding"][:, 0], inputs)


def test_fingerprint_changes_with_the_parts(joined):
    one = pipeline.Joined(joined.parts[:1])
    assert pipeline.fingerprint(joined, "train") != pipeline.fingerprint(one, "train")


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Three folders of one data set, with files of the same names and other classes."""
    folder = tmp_path_factory.mktemp("alike")
    for config, names in {"one": "ab", "two": "cd", "three": "dc"}.items():
        prepared(folder, "own", 4, {"label": tfds.features.ClassLabel(names=[*names])}, config)
    return pipeline.open_dataset("own/one+own/two+own/three", folder)


def test_data_sets_of_one_name_keep_their_classes_and_keys_apart(alike):
    classes, rows = pipeline.class_names(alike), pipeline.label_arrays(alike, "train")
    assert classes == {"label": ("a", "b"), "label_own": ("c", "d"), "label_own_3": ("d", "c")}
    said = {
        key: [classes[label][rows[label][row]] for label in classes if rows[label][row] >= 0]
        for row, key in enumerate(rows["key"])
    }
    assert said == {
        f"{name}/{index}.png": [names[index % 2]]
        for name, names in {"own": "ab", "own_2": "cd", "own_3": "dc"}.items()
        for index in range(4)
    }


def test_text_numbers_and_classes_of_one_name_are_three_labels(tmp_path):
    people = {"classes": tfds.features.ClassLabel(names=["x", "y"]), "names": tfds.features.Text(), "numbers": np.int64}
    for name, feature in people.items():
        features = tfds.features.FeaturesDict(
            {"image": tfds.features.Image(), "key": tfds.features.Text(), "who": feature}
        )
        row = {"image": np.zeros((4, 4, 3), "uint8"), "key": "0.png", "who": "x" if name == "names" else 1}
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name, version="1.0.0", data_dir=tmp_path, split_datasets={"train": [(0, row)]}, features=features
        )
    joined = pipeline.open_dataset("classes+names+numbers", tmp_path)
    rows = pipeline.label_arrays(joined, "train")
    assert pipeline.class_names(joined) == {"who": ("x", "y")}
    assert rows["who"].tolist() == [1, -1, -1]
    assert rows["who_names"].tolist() == ["", "x", ""]
    assert rows["who_numbers"].tolist() == [-1, -1, 1]


def test_a_teacher_looks_at_the_photo_of_the_data_set_that_the_student_sees(alike, monkeypatch):
    monkeypatch.setattr(teacher, "inception_resnet_v1", lambda weights: None)
    monkeypatch.setattr(teacher.pipeline, "open_dataset", lambda data, data_dir: alike)
    monkeypatch.setattr(teacher, "_cached", lambda network, part, *_: np.full((4, 128), alike.parts.index(part)))
    embeddings = teacher.teacher_embeddings("facenet", "own/one+own/two+own/three", alike, "train")
    np.testing.assert_array_equal(embeddings[:, 0], alike.order("train"))


@pytest.fixture
def features(joined, tmp_path, monkeypatch):
    """Two views of the training images as a frozen network sees them: their grey level, and its double."""
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path))
    mean = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.GlobalAveragePooling2D()])
    views = (pipeline.View(), pipeline.View(mirror=True))
    return cached_features(mean, joined, "train", (4, 4), views, progress=False)


def test_its_size_is_known(joined):
    """Keras warns that the data ran out where a validation set does not say how large it is."""
    assert pipeline.examples(joined, "train").cardinality() == 12


def test_features_follow_the_joined_order_and_are_kept_for_each_data_set(joined, features, tmp_path):
    keys = pipeline.label_arrays(joined, "train")["key"]
    levels = [float(key.split("/")[1].removesuffix(".png")) for key in keys]
    assert [array.shape for array in features] == [(12, 3)] * 2
    np.testing.assert_array_equal(np.asarray(features[0], "float32")[:, 0], levels)
    np.testing.assert_array_equal(features[1][np.array([5, 2, 2])][:, 0], np.array(levels)[[5, 2, 2]])
    kept = sorted(path.name.split("-")[0] for path in (tmp_path / "features").glob("*.npy"))
    assert kept == ["narrow", "narrow", "wide", "wide"]


def test_batches_of_features_weigh_what_is_known(joined, features):
    recipe = recipes.load("compact", "heads").changed(batch_size=4, epochs=1)
    learnt = (tasks.classification("gender", ("Male", "Female")), tasks.classification("race", tuple("abcdefg")))
    object.__setattr__(recipe, "tasks", lambda: learnt)
    labels = pipeline.label_arrays(joined, "train")
    known = dict(
        zip(np.asarray(features[0], "float32")[:, 0] + 100 * (labels["race"] < 0), labels["race"], strict=True)
    )
    seen = []
    for images, targets, weights in batches.feature_batches(features, labels, recipe, 0, partial=True):
        for image, target, weight, gender in zip(
            images[:, 0].numpy(),
            targets["race"].numpy(),
            weights["race"].numpy(),
            weights["gender"].numpy(),
            strict=True,
        ):
            assert gender == 1
            if weight:
                assert known[image] == target.argmax()
            else:
                assert known[image + 100] == -1
            seen.append(image)
    assert sorted(seen) == sorted(np.asarray(features[0], "float32")[:, 0])  # each once
    *_, weights = next(iter(batches.in_order(np.asarray(features[0]), labels, recipe, partial=True)))
    np.testing.assert_array_equal(weights["race"], labels["race"] >= 0)


def test_mixup_wants_every_label(joined):
    recipe = recipes.RECIPES["compact"]().tiny().changed(known="all", mixup=0.2)
    with pytest.raises(UserError, match="mixup blends labels"):
        batches.image_batches(joined, "train", recipe, 0)


def test_what_a_run_says_is_mixed_with_labels_and_stands_alone_where_there_is_none(joined, tmp_path, monkeypatch):
    """Of each task the share that was asked for; the outputs are read from the cache the second time."""
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path / "home"))
    recipe = recipes.RECIPES["multitask"]().changed(image_size=(4, 4), network="alexnet")
    gender, race = tasks.classification("gender", labels.GENDERS), tasks.classification("race", labels.FAIRFACE_RACES)
    said = {"gender": np.full((12, 2), 0.5), "race": np.tile(np.linspace(0, 0.25, 7), (12, 1))}
    asked = []
    monkeypatch.setattr(teacher, "Run", lambda folder: SimpleNamespace(recipe=lambda: recipe, model=keras.Sequential))
    monkeypatch.setattr("tfface.training.features.model_fingerprint", lambda model: "of the teacher")
    monkeypatch.setattr(
        teacher, "outputs_of", lambda *arguments: asked.append(arguments) or {**said, "age_group": np.zeros((12, 9))}
    )
    truth = pipeline.label_arrays(joined, "train")
    for _ in range(2):
        taught = teacher.distilled_targets("run", 0.2, (gender, race), joined, "train", truth, progress=False)
    assert len(asked) == 1
    [fifth] = np.flatnonzero(truth["key"] == "wide/5.png")  # the second gender, the sixth race
    np.testing.assert_allclose(taught["gender"][fifth], [0.1, 0.9])
    np.testing.assert_allclose(taught["race"][fifth], 0.2 * said["race"][0] + 0.8 * np.eye(7)[5], atol=1e-6)
    unknown = np.char.startswith(truth["key"], "narrow")
    np.testing.assert_allclose(taught["race"][unknown], said["race"][unknown], atol=1e-6)
    # With all targets known, mixup has what it wants, and no weights are needed.
    recipe = recipes.RECIPES["multitask"]().changed(image_size=(4, 4), mixup=0.2, batch_size=4, epochs=1)
    object.__setattr__(recipe, "tasks", lambda: (gender, race))
    seen = list(batches.image_batches(joined, "train", recipe, 0, taught))
    assert [len(batch) for batch in seen] == [2, 2, 2]
    np.testing.assert_allclose(sum(batch[1]["race"].numpy().sum() for batch in seen), taught["race"].sum(), rtol=0.2)
    with pytest.raises(UserError, match="cannot teach race"):
        teacher.distilled_targets(
            "run", 0.5, (tasks.classification("race", labels.UTKFACE_RACES),), joined, "train", truth
        )
