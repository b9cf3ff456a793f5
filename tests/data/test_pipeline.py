"""Damaged files of a prepared data set: which file it is, and what to do."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import cli
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.labels import GENDERS
from tfface.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def prepared(tmp_path):
    """A prepared data set of 24 pictures in each of three splits, with genders."""
    features = tfds.features.FeaturesDict(
        {"image": tfds.features.Image(shape=(32, 32, 3)), "gender": tfds.features.ClassLabel(names=list(GENDERS))}
    )

    def rows(seed):
        random = np.random.default_rng(seed)
        return [(i, {"image": random.integers(0, 256, (32, 32, 3), "uint8"), "gender": i % 2}) for i in range(24)]

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_faces",
        version="1.0.0",
        features=features,
        split_datasets={split: rows(seed) for seed, split in enumerate(("train", "validation", "test"))},
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    return tmp_path


def shard(folder, split):
    (path,) = Path(folder).glob(f"tiny_faces/1.0.0/*-{split}.tfrecord*")
    return path


def cut_in_a_record(data):
    return data[: len(data) // 2]


def cut_to_nothing(data):
    return b""


def flip_a_bit(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def overwrite_the_start(data):
    return bytes(64) + data[64:]


@pytest.mark.parametrize("damage", [cut_in_a_record, cut_to_nothing, flip_a_bit, overwrite_the_start, None])
def test_a_damaged_file_is_named(damage, prepared):
    path = shard(prepared, "validation")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    builder = pipeline.open_dataset("tiny_faces", prepared)
    assert len(pipeline.label_arrays(builder, "train")["gender"]) == 24
    if damage is None:
        with pytest.raises(UserError, match="it is missing"):
            pipeline.fingerprint(builder, "validation")
    words = {
        cut_in_a_record: r"it holds \d+ of its 24 records",
        cut_to_nothing: "it holds 0 of its 24 records",
        flip_a_bit: r"corrupted record at byte \d+",
        overwrite_the_start: "corrupted record at byte 0",
        None: "it is missing",
    }[damage]
    with pytest.raises(UserError, match=rf"{path.name} .* is damaged: {words}.*`tfface build tiny_faces "):
        pipeline.label_arrays(builder, "validation")


def test_labels_are_read_anew_only_where_files_changed(prepared, monkeypatch):
    read = []
    monkeypatch.setattr(pipeline, "_read", lambda *of: read.append(of[1]) or {"gender": np.arange(24)})
    path = shard(prepared, "validation")
    for _ in range(2):  # what opens it, and how often, does not matter
        labels = pipeline.label_arrays(pipeline.open_dataset("tiny_faces", prepared), "validation")
    with pytest.raises(ValueError, match="read-only"):
        labels["gender"][0] = 1
    pipeline.label_arrays(pipeline.open_dataset("tiny_faces", prepared), "test")
    path.write_bytes(path.read_bytes())
    pipeline.label_arrays(pipeline.open_dataset("tiny_faces", prepared), "validation")
    assert read == ["validation", "test", "validation"]
    for part in range(pipeline.LABELS_KEPT):
        pipeline.label_arrays(pipeline.open_dataset("tiny_faces", prepared), f"train[:{part + 1}]")
    pipeline.label_arrays(pipeline.open_dataset("tiny_faces", prepared), "validation")
    assert read[-1] == "validation"
    assert len(pipeline._labels) <= pipeline.LABELS_KEPT


def test_names_of_images_are_text_of_any_language_and_no_two_alike(tmp_path):
    features = tfds.features.FeaturesDict({"image": tfds.features.Image(), "key": tfds.features.Text()})
    image = np.zeros((4, 4, 3), "uint8")
    names = {"train": ["Jürgen.jpg", "顔.jpg"], "test": ["1.jpg", "1.jpg"]}
    tfds.dataset_builders.store_as_tfds_dataset(
        name="named",
        version="1.0.0",
        features=features,
        split_datasets={
            split: [(i, {"image": image, "key": name}) for i, name in enumerate(some)] for split, some in names.items()
        },
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    builder = pipeline.open_dataset("named", tmp_path)
    assert pipeline.label_arrays(builder, "train")["key"].tolist() == names["train"]
    with pytest.raises(UserError, match=r"named/1\.0\.0, whose split test has 1\.jpg 2 times"):
        pipeline.label_arrays(builder, "test")


def test_whole_files_pass(prepared):
    builder = pipeline.open_dataset("tiny_faces", prepared)
    for split in ("train", "validation", "test", "train+test"):
        pipeline.check_shards(builder, split)


def test_several_splits_are_read_as_one(prepared):
    builder = pipeline.open_dataset("tiny_faces", prepared)
    together = [row["gender"] for row in pipeline.examples(builder, "train+test[:6]").as_numpy_iterator()]
    assert len(together) == pipeline.num_examples(builder, "train+test[:6]") == 30
    np.testing.assert_array_equal(pipeline.label_arrays(builder, "train+test[:6]")["gender"], together)
    assert pipeline.fingerprint(builder, "train+test") != pipeline.fingerprint(builder, "train")
    with pytest.raises(UserError, match=r"no split train\+tset\."):
        pipeline.examples(builder, "train+tset")
    path = shard(prepared, "test")
    path.write_bytes(cut_in_a_record(path.read_bytes()))
    with pytest.raises(UserError, match=path.name):
        pipeline.check_shards(builder, "train+test")


def test_training_says_it_in_one_line(prepared, tmp_path, capsys):
    path = shard(prepared, "train")
    path.write_bytes(flip_a_bit(path.read_bytes()))
    words = [
        "train",
        "gender",
        "--tiny",
        "--data",
        "tiny_faces",
        "--data-dir",
        str(prepared),
        "--out",
        str(tmp_path / "r"),
    ]
    assert cli.main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfface:")]
    assert len(lines) == 1
    assert path.name in lines[0]


def test_a_label_that_is_not_known_is_shown_once():
    counts = pipeline.repeats({"race": np.array([0, 1, -1, 4])}, {"race": (1, 2, 3, 3, 4)})
    assert counts.tolist() == [1, 2, 1, 4]
    for factors in ((1, 2.5), (0, 1)):
        with pytest.raises(UserError, match="integers, at least 1"):
            pipeline.repeats({"race": np.array([0, 1])}, {"race": factors})


@pytest.mark.parametrize(
    ("data", "command"),
    [
        ("utkface", "tfface build utkface --manual-dir FOLDER"),
        ("fairface/padding025", "tfface build fairface/padding025 --manual-dir FOLDER"),
        ("fairface/padding025-margin", "tfface build fairface/padding025 --align margin --manual-dir FOLDER"),
        ("utkface/five-point-112x112-dlib", "tfface build utkface --align five-point --size 112x112 --detector dlib"),
        (
            "casia_webface/images-five-point-centre",
            "tfface build casia_webface/images --align five-point --no-face centre --manual-dir FOLDER",
        ),
        ("synthetic_faces/small", "tfface build synthetic_faces/small"),
        ("studio/square-eyes", "tfface build studio/square --align eyes --builders FOLDER --manual-dir FOLDER"),
    ],
)
def test_what_is_not_prepared_is_told_with_the_command_that_prepares_it(data, command, tmp_path):
    with pytest.raises(UserError, match=re.escape(f"`{command}")) as error:
        pipeline.open_dataset(data, tmp_path)
    assert ("tfface has no builder of it, but of: bupt_balancedface," in str(error.value)) == ("--builders" in command)
    cli._parser().parse_args(shlex.split(pipeline.build_command(data))[1:])


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json", "metadata.json"])
def test_a_half_copied_description_is_told(prepared, name):
    path = prepared / "tiny_faces" / "1.0.0" / name
    path.write_bytes(path.read_bytes()[:9] if path.exists() else b'{"left_out":')
    with pytest.raises(UserError, match=r"tiny_faces in .* is damaged, perhaps copied in part: .*`tfface b") as error:
        pipeline.open_dataset("tiny_faces", prepared)
    assert "\n" not in str(error.value)


def test_a_damaged_description_is_told_where_it_is_built_again(tmp_path, capsys):
    folder = tmp_path / "synthetic_faces" / "small" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{")
    assert cli.main(["build", "synthetic_faces/small", "--data-dir", str(tmp_path)]) == 2
    assert "synthetic_faces/small in" in (said := capsys.readouterr().err)
    assert "is damaged, perhaps copied in part" in said


def test_files_that_tensorflow_cannot_read_are_told(tmp_path):
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_faces",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"age": np.int32}),
        split_datasets={"train": [(0, {"age": 1})]},
        data_dir=tmp_path,
        file_format="array_record",
    )
    with pytest.raises(UserError, match=r"as array_record.*`tfface build tiny_faces"):
        pipeline.open_dataset("tiny_faces", tmp_path)


def test_the_data_of_every_recipe_can_be_built_as_is_said():
    for recipe in RECIPES.values():
        for fields in ({}, *recipe.variants.values()):
            for data in fields.get("data", recipe.data).partition("@")[0].split("+"):
                command = pipeline.build_command(data.partition("@")[0])
                chosen = cli._parser().parse_args(shlex.split(command)[1:])
                name, _, config = chosen.data.partition("/")
                source = (ROOT / "datasets" / name / f"{name}_dataset_builder.py").read_text()
                source += (ROOT / "tfface" / "data" / "identities.py").read_text()
                assert not config or name == "image_folder" or f'"{config}"' in source, command


@pytest.mark.parametrize("size", [(20, 31), (90, 61), (30, 200)])
def test_images_are_scaled_as_tensorflow_does(size):
    images = tf.random.stateless_uniform((2, 60, 101, 3), (1, 2), 0, 255)
    expected = tf.image.resize(images, size, antialias=True)
    np.testing.assert_array_equal(pipeline.resize(images, size), expected)
    np.testing.assert_array_equal(pipeline.resize(images[0], size), expected[0])


def test_large_images_are_scaled_as_tensorflow_does():
    image = np.random.default_rng(0).integers(0, 256, (500, 601, 3), "uint8")
    assert image.size > 3 * pipeline.LARGE
    np.testing.assert_array_equal(pipeline.resize(image, (40, 90)), tf.image.resize(image, (40, 90), antialias=True))


def test_a_zoom_keeps_the_middle():
    image = np.zeros((60, 100, 3), "uint8")
    image[15:45, 25:75] = (200, 100, 50)
    middle = pipeline.decode(tf.io.encode_png(image), (12, 18), zoom=0.5)
    np.testing.assert_allclose(middle, np.broadcast_to((200, 100, 50), (12, 18, 3)), atol=1e-3)
    assert pipeline.decode(tf.io.encode_png(image), (12, 18)).numpy().min() == 0


def test_another_seed_is_another_order():
    counts = np.ones(50, int)
    orders = [pipeline.epoch_order(counts, seed, epoch).tolist() for seed, epoch in ((0, 0), (1, 0), (0, 1))]
    assert len(set(map(tuple, orders))) == 3
    assert all(sorted(order) == list(range(50)) for order in orders)
