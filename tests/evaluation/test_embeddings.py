"""`tfface verify` on a small set of pairs: from prepared images to figures, for a network from a file."""

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from tfface import cli, recipes
from tfface.data.pipeline import open_dataset
from tfface.errors import UserError
from tfface.evaluation import embeddings
from tfface.evaluation.embeddings import _cut_otherwise, _seen, embed_images, load_embedder, read_pairs
from tfface.faces.crops import Alignment, describe
from tfface.faces.detect import load_detector
from tfface.faces.synthesize import face
from tfface.models import recognition_resnet
from tfface.models.recognition import FACENET_STAGES
from tfface.training.run import Run

PEOPLE, SHOTS, FOLDS = 6, 3, 2


def store(folder, config, features, examples, split="test"):
    features = tfds.features.FeaturesDict(features)
    tfds.dataset_builders.store_as_tfds_dataset(
        name="people",
        version="1.0.0",
        config=config,
        data_dir=str(folder),
        split_datasets={
            one: tf.data.Dataset.from_generator(lambda: examples, output_signature=features.get_tensor_spec())
            for one in split.split("+")
        },
        features=features,
    )


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    """Six patterns in three shots each, and the pairs of them; one set of pairs names somebody who is not there."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    text, image = tfds.features.Text(), tfds.features.Image(shape=(112, 96, 3), encoding_format="png")
    faces = rng.uniform(40, 215, (PEOPLE, 7, 6, 3)).repeat(16, 1).repeat(16, 2)
    shots = [
        {"image": np.uint8(faces[person] + rng.normal(0, 4, faces[0].shape)), "key": f"{person}_{shot}.png"}
        for person in range(PEOPLE)
        for shot in range(SHOTS)
    ]
    store(folder, "images-five-point-centre", {"image": image, "key": text}, shots)
    named = [{**shot, "identity": shot["key"][0]} for shot in shots]
    features = {"image": image, "key": text, "identity": text}
    store(folder, "own", features, named, split="train")
    store(folder, "few", features, named[: 2 * SHOTS], split="validation")
    pairs = []
    for fold in range(FOLDS):
        members = range(fold, PEOPLE, FOLDS)
        pairs += [(f"{p}_{i}.png", f"{p}_{(i + 1) % SHOTS}.png", True, fold) for p in members for i in range(SHOTS)]
        pairs += [(f"{p}_{i}.png", f"{(p + FOLDS) % PEOPLE}_0.png", False, fold) for p in members for i in range(SHOTS)]
    names = ("first_key", "second_key", "same", "fold")
    features = {"first_key": text, "second_key": text, "same": np.bool_, "fold": np.int32}
    store(folder, "pairs", features, [dict(zip(names, row, strict=True)) for row in pairs])
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("model") / "small.keras"
    recognition_resnet("table1", (112, 96, 3), 32, ((1, 8), (1, 12), (1, 16), (1, 16))).save(path)
    return path


@pytest.fixture(autouse=True)
def fresh_home(monkeypatch, tmp_path):
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path / "home"))


def test_verify_by_the_command(people, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["verify", str(network), "--data", "people", "--data-dir", str(people), "--mirror", "--threshold", "0.9"]
    assert cli.main(command) == 0
    files = sorted(path.name for path in (tmp_path / "runs").rglob("*.*") if path.is_file())
    assert files == ["roc.png", "verification.json"]
    result = json.loads(next((tmp_path / "runs").rglob("verification.json")).read_text())
    assert result["n"] == 36
    assert len(result["folds"]) == FOLDS
    assert result["accuracy"] > 0.9  # shots of one pattern are alike even to a network that has learnt nothing
    assert 0 <= result["at_threshold"]["accuracy"] <= 1
    said = capsys.readouterr().out
    assert "accuracy at the threshold 0.9:" in said
    assert f"mean threshold {result['threshold']}," in said  # to be typed: it judges as the one that was measured
    assert cli.main([*command[:-2], "--subtract-mean"]) == 0
    (folder,) = (tmp_path / "runs" / "verify").glob("*-mirror-subtract-mean")
    assert json.loads((folder / "verification.json").read_text())["subtract_mean"]
    assert "accuracy" in capsys.readouterr().out


def test_pairs_are_drawn_of_the_split_that_is_named(people, network, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["verify", str(network), "--data-dir", str(people), "--data"]
    assert cli.main([*command, "people/own", "--split", "train"]) == 0
    assert json.loads(next((tmp_path / "runs").rglob("*own-train*/verification.json")).read_text())["split"] == "train"
    assert "The network knows faces cut by --align five-point" in capsys.readouterr().out
    assert cli.main([*command, "people/few"]) == 2
    assert "The split validation of people/few/1.0.0 has 2 people" in capsys.readouterr().err
    assert cli.main([*command, "people", "--split", "train"]) == 2
    assert "leave it out" in capsys.readouterr().err
    assert cli.main([*command, "people/other"]) == 2
    assert (
        "There are: people/few, people/images-five-point-centre, people/own, people/pairs." in capsys.readouterr().err
    )


def test_faces_of_nobody_known_are_no_person(people, monkeypatch):
    known = embeddings.pipeline.label_arrays

    def partly(*which):
        labels = known(*which)
        return {**labels, "identity": np.where(labels["identity"] < "2", "", labels["identity"])}

    monkeypatch.setattr(embeddings.pipeline, "label_arrays", partly)
    pairs, *_ = read_pairs("people/own", people, "whole")
    assert {key[0] for key in (*pairs["first_key"], *pairs["second_key"])} == {"2", "3", "4", "5"}
    with pytest.raises(UserError, match=r"drawn of one data set. Received: people/own.people/few; name one"):
        read_pairs("people/own+people/few", people, "whole")


def test_what_a_network_learnt_from_or_knows_otherwise_is_said(tmp_path):
    run = Run(tmp_path / "run")
    recipe = recipes.load("occluded", tiny=True).changed(train_split="train[:50%]")
    run.begin(recipe, {"name": "other/1.0.0+people/images-five-point/1.0.0"}, "cpu")
    examples = [{"key": str(number)} for number in range(8)]
    for config in ("images-five-point", "images"):
        store(tmp_path, config, {"key": tfds.features.Text()}, examples, "train+validation")

    def seen(split, data="people/images-five-point", model=str(run.folder)):
        return " ".join(_seen(model, open_dataset(data, tmp_path), split))

    for split in ("train", "train[:25%]", "train[25%:]", "validation+train"):
        assert f"learnt from faces of the split {split} of people/images-five-point/1.0.0:" in seen(split)
    for others in (("validation",), ("train[50%:]",), ("train", "people/images")):
        assert not seen(*others)
    assert not seen("train", model="facenet")
    assert not _cut_otherwise(str(run.folder), "people/images-five-point")
    assert not _cut_otherwise(str(run.folder), "other")
    # as they were before the faces were cut out
    assert "far too low" in _cut_otherwise(str(run.folder), "people/images")[0]


def test_embeddings_come_from_the_cache_and_mirrors_hold_the_plain_ones(people, network, monkeypatch):
    embedder = load_embedder(str(network))
    _, images, _ = read_pairs("people", people, embedder.crop)
    _, plain, _ = embed_images(embedder, images)
    assert plain.shape == (PEOPLE * SHOTS, 32)
    both = embed_images(embedder, images, mirror=True)[1]
    np.testing.assert_allclose(both[:, :32], plain, atol=1e-6)
    monkeypatch.setattr("tfface.evaluation.embeddings._compute", None)  # would fail if it were asked again
    np.testing.assert_array_equal(embed_images(embedder, images)[1], both[:, :32])


def test_an_image_and_its_mirror_count_alike_whatever_the_length_of_their_embeddings(people, network):
    whole = load_embedder(str(network))
    before_length_one = keras.Model(whole.model.input, whole.model.get_layer("embedding").input)
    _, images, _ = read_pairs("people", people, whole.crop)
    both = embed_images(replace(whole, model=before_length_one), images, mirror=True)[1]
    np.testing.assert_allclose(both, embed_images(whole, images, mirror=True)[1], atol=1e-6)
    last = before_length_one.layers[-1]
    last.set_weights([np.full_like(weight, np.nan) for weight in last.get_weights()])
    with pytest.raises(UserError, match="not finite"):
        embed_images(replace(whole, model=before_length_one), images)


def test_a_pair_that_names_somebody_unknown_is_an_error(people, network, monkeypatch):
    def with_a_stranger(*arguments):
        pairs, first, second = read_pairs(*arguments)
        return {**pairs, "second_key": np.append(pairs["second_key"][:-1], "stranger.png")}, first, second

    monkeypatch.setattr(embeddings, "read_pairs", with_a_stranger)
    with pytest.raises(UserError, match=r"name 1 images.*stranger\.png"):
        embeddings.embed_pairs(load_embedder(str(network)), "people", people)


def test_what_has_no_embedding_or_is_not_prepared_is_said(people, tmp_path, capsys):
    keras.Sequential([keras.Input((112, 96, 3)), keras.layers.Flatten()]).save(tmp_path / "other.keras")
    with pytest.raises(UserError, match="no layer embedding"):
        load_embedder(str(tmp_path / "other.keras"))
    for model in ("table1", "photo.jpg"):  # of the first there are fresh weights only
        with pytest.raises(UserError, match="no trained network"):
            load_embedder(model)
    with pytest.raises(UserError, match="crop must be one of"):
        load_embedder("facenet", "tight")
    with pytest.raises(UserError, match="not prepared"):
        read_pairs("people", people, "margin")
    (tmp_path / "utkface" / "1.0.0").mkdir(parents=True)
    with pytest.raises(UserError, match="utkface holds no pairs"):
        read_pairs("utkface", tmp_path, "margin")
    with pytest.raises(UserError, match="choose another --crop"):
        read_pairs("lfw", people, "whole")
    with pytest.raises(UserError, match="--crop detect; leave it out"):
        read_pairs("people/images", people, "detect")


@pytest.mark.parametrize("side", [112, 160])
def test_a_face_that_is_found_has_the_margin_that_networks_of_any_size_learnt(side):
    photo = face(3, size=256).image
    (found,) = load_detector("mtcnn")([photo])
    (crop,) = embeddings._found([("photo.png", photo)], [], (side, side))
    learnt = Alignment("margin", (side, side)).crop(photo, describe(found, 0))
    assert np.abs(crop - learnt).mean() < 0.1  # the alignment rounds boxes to a hundredth of a pixel


@pytest.mark.parametrize(
    ("shape", "names", "size"),
    [
        ((None, None, 3), FACENET_STAGES, (160, 136)),
        ((None, None, 3), "abc", (112, 96)),
        ((160, 136, 3), "abc", (160, 136)),
        ((112, 112, 3), "abc", (112, 96)),
    ],
)
def test_a_file_is_shown_aligned_faces_at_the_size_that_it_wants(shape, names, size, tmp_path):
    image = x = keras.Input(shape)
    for name in names:
        x = keras.layers.Conv2D(2, 1, name=name)(x)
    x = keras.layers.UnitNormalization(name="embedding")(keras.layers.GlobalAveragePooling2D()(x))
    keras.Model(image, x).save(tmp_path / "small.keras")
    assert load_embedder(str(tmp_path / "small.keras")).size == size


def test_squares_for_a_network_of_other_crops_are_refused(tmp_path):
    recipe = recipes.load("occluded", tiny=True).changed(image_size=(48, 32), people=2)
    run = Run(tmp_path / "run")
    run.begin(recipe, {"name": "people/images-five-point", "fingerprints": {}}, "cpu")
    run.save_trained(recipe.model())
    assert load_embedder(str(run.folder)).size == (48, 32)
    with pytest.raises(UserError, match=r"--crop detect cuts squares.*takes 48x32 pixels"):
        load_embedder(str(run.folder), "detect")


def test_pairs_of_one_fold_are_refused_before_any_work(people, network, monkeypatch):
    def of_one_fold(*arguments):
        pairs, first, second = read_pairs(*arguments)
        return {**pairs, "fold": np.zeros_like(pairs["fold"])}, first, second

    monkeypatch.setattr(embeddings, "read_pairs", of_one_fold)
    monkeypatch.setattr(embeddings, "embed_images", None)  # would fail if it were asked
    with pytest.raises(UserError, match=r"people with \d+ pairs, both kinds, 1 folds"):
        embeddings.embed_pairs(load_embedder(str(network)), "people", people)
