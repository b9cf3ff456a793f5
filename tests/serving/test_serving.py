import copy
import csv
import errno
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from tfface import cli, commands, labels
from tfface.errors import UserError
from tfface.faces import synthesize
from tfface.faces.crops import Alignment
from tfface.faces.detect import Detector
from tfface.faces.photos import read_photo
from tfface.faces.yolo import TinyYOLO
from tfface.serving import optimize
from tfface.serving.predictor import SHIPPED, Predictor, find_model, typical_points
from tfface.tasks import bins_of, years_of

SERVE = """
import sys
for name in ("tfface", "keras", "tf_keras"):
    sys.modules[name] = None  # only TensorFlow is there
import numpy as np
import tensorflow as tf
folder, crops, out, *photos = sys.argv[1:]
crops = np.load(crops)
served = tf.saved_model.load(folder).signatures
images = served["serving_default"](images=tf.constant(crops))
png = [tf.io.encode_png(crop) for crop in crops[:-1]]
encoded = served["jpeg"](jpeg=tf.stack([*png, tf.io.read_file(photos[0])]))
arrays = {f"images/{k}": v.numpy() for k, v in images.items()} | {f"jpeg/{k}": v.numpy() for k, v in encoded.items()}
np.savez(out, **{k: v.astype(str) if v.dtype == object else v for k, v in arrays.items()})
"""


@pytest.fixture(scope="module")
def predictor(light_run):
    return Predictor(light_run.folder)


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    image, truths = synthesize.photo(4, 5)
    path = tmp_path_factory.mktemp("photos") / "group.png"
    Image.fromarray(image).save(path)
    return path, image, truths


def test_saved_model_equals_the_keras_model_with_only_tensorflow(light_run, tmp_path):
    assert cli.main(["export", str(light_run.folder), "--out", str(tmp_path / "saved")]) == 0
    predictor = Predictor(light_run.folder)
    size = predictor.recipe.image_size[::-1]
    faces = (synthesize.face(seed).image for seed in (3_000_000, 3_000_001, 3_000_002))
    crops = np.stack([cv2.resize(face, size, interpolation=cv2.INTER_AREA) for face in faces])
    # The last one is a JPEG: the server must decode it as whoever else reads it, to the grey level.
    Image.fromarray(crops[-1]).save(tmp_path / "last.jpg", quality=90)
    crops[-1] = read_photo(tmp_path / "last.jpg")
    np.save(tmp_path / "crops.npy", crops)
    arguments = [tmp_path / name for name in ("saved", "crops.npy", "out.npz", "last.jpg")]
    subprocess.run([sys.executable, "-c", SERVE, *map(str, arguments)], check=True, timeout=300)
    expected = predictor.predict_crops(crops)
    with np.load(tmp_path / "out.npz") as answer:
        for signature in ("images", "jpeg"):
            for task in ("gender", "race"):
                received = answer[f"{signature}/{task}_probabilities"]
                np.testing.assert_allclose(received, expected[task], atol=1e-5)
                names = answer[f"{signature}/{task}_classes"]
                assert names.shape == received.shape
                assert answer[f"{signature}/{task}"].tolist() == [
                    row[index] for row, index in zip(names, received.argmax(1), strict=True)
                ]
            years = expected["age"] @ np.arange(117)
            np.testing.assert_allclose(answer[f"{signature}/age"], years, atol=1e-3)
            (age,) = (task for task in predictor.tasks if task.is_age)
            np.testing.assert_allclose(answer[f"{signature}/age_spread"], years_of(age, expected["age"])[1], atol=1e-2)
            bins = bins_of(age, expected["age"])
            np.testing.assert_allclose(answer[f"{signature}/age_bins_probabilities"], bins, atol=1e-5)
            assert answer[f"{signature}/age_bins_classes"].tolist() == [list(labels.ARG_AGES)] * len(crops)


def test_faces_are_stretched_as_the_data_set_shows_them(predictor):
    """A photo whose colours are its coordinates: each landmark comes to its place in the stretched crop."""
    wide = copy.copy(predictor)
    margin = Alignment("margin")
    wide.landmarks, wide.stretch = margin.landmarks, margin.stretch
    height, width = wide.recipe.image_size
    target = np.array(margin.landmarks) * (width, height)
    landmarks = target / (margin.stretch, 1) * 1.1 + (30, 20) - 0.5  # a face as it is, larger and elsewhere
    x, y = np.meshgrid(np.arange(250), np.arange(250))
    crop = wide.align(np.dstack([x, y, y]).astype("uint8"), None, landmarks)
    assert crop.shape == (height, width, 3)
    offsets = []
    for place, point in zip(target - 0.5, landmarks, strict=True):
        column, row = np.rint(place).astype(int)
        seen = point + ((column, row) - place) * (1.1 / margin.stretch, 1.1)  # at that pixel's centre
        offsets.append(crop[row, column, :2] - seen)
    assert np.abs(offsets).max() < 1
    assert np.abs(np.mean(offsets, axis=0)).max() < 0.3  # no half pixel too far
    landmarks[3:] = np.nan  # dlib's five points know no mouth: the others say as much
    partly = wide.align(np.dstack([x, y, y]).astype("uint8"), None, landmarks)
    np.testing.assert_allclose(partly, crop.astype(int), atol=1)


def test_points_for_detectors_that_give_none_lie_where_faces_have_them(predictor, group):
    (faces,) = predictor.detector([group[1]])
    for box, landmarks in zip(faces.boxes, faces.landmarks, strict=True):
        np.testing.assert_allclose(
            typical_points(box, Detector.landmarks_in_box), landmarks, atol=0.15 * (box[3] - box[1])
        )
    wide, high = (
        typical_points(np.array(box), Detector.landmarks_in_box) for box in ((10, 20, 110, 70), (20, 10, 70, 110))
    )
    np.testing.assert_allclose(wide - (10, 20), (high - (20, 10)) * (2, 0.5))


def test_faces_without_landmarks_are_aligned_by_the_boxes_of_their_own_detector(predictor, group):
    box, other = np.array([300.0, 200, 420, 330]), copy.copy(predictor)
    other.detector = TinyYOLO
    points = typical_points(box, TinyYOLO.landmarks_in_box)
    np.testing.assert_array_equal(other.align(group[1], box, None), predictor.align(group[1], box, points))
    assert (predictor.align(group[1], box, None) != predictor.align(group[1], box, points)).any()


def test_every_face_of_a_photo_is_found(predictor, group):
    _, image, truths = group
    faces = predictor([image])[0]
    assert len(faces) == len(truths)
    for truth in truths:
        centre = (truth.box[0] + truth.box[2]) / 2
        face = min(faces, key=lambda face: abs((face.box[0] + face.box[2]) / 2 - centre))
        assert face.box[0] < centre < face.box[2]
        for row in face.probabilities.values():
            assert sum(row.values()) == pytest.approx(1, abs=1e-4)
        assert 0 <= face.age <= 116


def test_a_batch_is_the_same_as_one_by_one(predictor, group):
    _, image, _ = group
    blank = np.full((90, 120, 3), 127, "uint8")
    together = predictor([image, blank, image])
    assert together[1] == []
    for one, other in zip(together[0], together[2], strict=True):
        assert one.label("gender") == other.label("gender")
        assert one.age == pytest.approx(other.age, abs=1e-2)


def test_one_photo_without_a_list_is_said(predictor, group):
    with pytest.raises(UserError, match=r"pass \[photo\]"):
        predictor(group[1])
    assert len(predictor(group[1][None])[0]) == 5


def test_crops_of_another_kind_are_said(predictor):
    height, width = predictor.recipe.image_size
    crops = np.zeros((2, height, width, 3), np.uint8)
    assert len(predictor.predict_crops(crops[:1])["gender"]) == 1
    for wrong, said in (
        (crops[:, 1:], f"have shape (2, {height - 1}, {width}, 3)"),  # it would end the process
        (crops[0], "crop[None]"),
        (crops[:0], "no crops"),
        (crops / 255, "dtype float64"),
        (list(crops), "are a list"),
    ):
        with pytest.raises(UserError, match=re.escape(said)) as error:
            predictor.predict_crops(wrong)
        assert f"expected a uint8 array (n, {height}, {width}, 3)" in str(error.value)


def test_predict_goes_on_after_broken_photos(light_run, group, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    Image.fromarray(np.full((90, 120, 3), 127, "uint8")).save(tmp_path / "blank.png")
    (tmp_path / "empty").mkdir()
    words = [str(tmp_path / "broken.jpg"), str(tmp_path / "blank.png"), str(tmp_path / "empty"), str(group[0])]
    to = tmp_path / "out"
    code = cli.main(["predict", *words, "--model", str(light_run.folder), "--out", "picture,json,csv", "--to", str(to)])
    assert code == 2
    said = capsys.readouterr()
    for word in ("broken.jpg", "blank.png", "empty"):
        assert len([line for line in said.err.splitlines() if word in line and line.startswith("tfface:")]) == 1
    results = {row["photo"]: row["faces"] for row in json.loads((to / "predictions.json").read_text())}
    assert len(results[str(group[0])]) == 5
    assert results[words[1]] == []
    assert set(results[str(group[0])][0]["probabilities"]) == {"gender", "race", "age_bins"}
    with open(to / "predictions.csv") as stream:
        rows = list(csv.DictReader(stream))
    for row, face in zip(rows, results[str(group[0])], strict=True):
        assert [float(row[side]) for side in ("x0", "y0", "x1", "y1")] == face["box"]
        assert float(row["race: Black"]) == face["probabilities"]["race"]["Black"]
    assert said.out.count("group.png: ") == 1  # the answer stands on the terminal too
    (picture,) = to.rglob("group.png-faces.jpg")
    assert np.median(np.abs(np.asarray(Image.open(picture)) - group[1].astype(int)), axis=(0, 1)).max() < 4
    words = ["predict", words[1], "--model", str(light_run.folder), "--out", "csv", "--to", str(tmp_path / "none")]
    assert cli.main(words) == 1
    assert (tmp_path / "none" / "predictions.csv").read_text().splitlines() == ["photo,x0,y0,x1,y1,score"]


def test_predict_takes_the_compact_network_where_none_is_named(group, tmp_path, monkeypatch):
    """Offline: it needs no weights but those of the package, and gives embeddings."""
    monkeypatch.setattr("tfface.serving.predictor.Predictor", functools.cache(Predictor))  # loaded once for both
    assert cli.main(["predict", str(group[0]), "--out", "json,csv", "--embeddings", "--to", str(tmp_path)]) == 0
    ((_, faces),) = [row.values() for row in json.loads((tmp_path / "predictions.json").read_text())]
    assert len(faces) == 5
    assert {"gender", "race", "race_utkface", "age_bins", "age_group"} == set(faces[0]["probabilities"])
    embeddings = np.array([face["embedding"] for face in faces])
    assert embeddings.shape == (5, 128)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-4)
    assert (embeddings @ embeddings.T)[~np.eye(5, dtype=bool)].max() < 0.95  # five people, told apart
    assert "embedding" not in (tmp_path / "predictions.csv").read_text().splitlines()[0]
    assert cli.main(["predict", str(group[0]), "--out", "json", "--to", str(tmp_path)]) == 0
    assert "embedding" not in (tmp_path / "predictions.json").read_text()


def test_the_network_from_fairface_alone_says_groups_and_no_years(group, tmp_path):
    words = ["predict", str(group[0]), "--model", "fairface", "--out", "picture,json", "--to", str(tmp_path)]
    assert cli.main(words) == 0
    ((_, faces),) = [row.values() for row in json.loads((tmp_path / "predictions.json").read_text())]
    assert len(faces) == 5
    for face in faces:
        assert set(face["probabilities"]) == {"gender", "race", "age_group"}
        assert "age" not in face
    assert len(faces[0]["probabilities"]["race"]) == 7
    assert (SHIPPED / "fairface" / "README.md").read_text().count("CC BY 4.0")


def test_the_network_from_fairface_alone_knows_real_faces(samples):
    with open(samples / "fairface" / "fairface_label_val.csv") as stream:
        rows = list(csv.DictReader(stream))
    known = [row for row in rows if (samples / "fairface" / row["file"]).exists()][:128]
    size = (112, 112)
    crops = np.stack(
        [np.asarray(Image.open(samples / "fairface" / row["file"]).convert("RGB").resize(size)) for row in known]
    )
    outputs = Predictor("fairface").predict_crops(crops)
    for task, classes, least in (("gender", labels.GENDERS, 0.8), ("race", labels.FAIRFACE_RACES, 0.5)):
        truth = [classes.index(row[task]) for row in known]
        assert (outputs[task].argmax(axis=1) == truth).mean() > least


def test_embeddings_that_cannot_be_written_are_said(light_run, group, tmp_path, capsys):
    words = ["predict", str(group[0]), "--embeddings", "--to", str(tmp_path / "out")]
    model = ("--model", str(light_run.folder))
    for more, said in (((), "add json to --out"), (("--out", "json", *model), "no embedding")):
        assert cli.main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_photos_of_one_name_keep_a_picture_each(light_run, group, tmp_path, capsys):
    for place in ("one/a.jpg", "two/a.jpg", "two/a.png"):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        Image.open(group[0]).save(tmp_path / place)
    to = tmp_path / "one" / "out"  # inside a folder that is searched
    named = ("one", "two", "two/a.png")  # one of them twice
    words = ["predict", *(str(tmp_path / name) for name in named), "--model", str(light_run.folder)]
    for _ in range(2):
        assert cli.main([*words, "--out", "picture,json", "--to", str(to)]) == 0
        assert capsys.readouterr().out.splitlines()[-1].startswith("3 photos, 15 faces")
    pictures = sorted(str(path.relative_to(to)) for path in to.rglob("*.jpg"))
    assert pictures == ["one/a-faces.jpg", "two/a-faces.jpg", "two/a.png-faces.jpg"]


def test_photos_below_the_folder_of_the_results_are_not_passed_over_in_silence(
    light_run, group, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    Image.open(group[0]).save(tmp_path / "in" / "a.jpg")
    (tmp_path / "predictions.json").write_text("an earlier one")
    for to in (".", "in"):
        assert cli.main(["predict", "in", "--model", str(light_run.folder), "--out", "json", "--to", to]) == 2
        assert "in lies in the folder of the results" in capsys.readouterr().err
    assert (tmp_path / "predictions.json").read_text() == "an earlier one"


def test_pictures_of_names_that_would_be_one_are_kept_apart():
    from tfface.serving.predict import _picture_name

    names = ("a.jpg", "a.JPG", "b.png", "b.png.jpg")
    assert len({_picture_name(Path("in") / name, "in") for name in names}) == len(names)


def test_no_face_is_exit_code_one(light_run, tmp_path):
    Image.fromarray(np.full((90, 120, 3), 127, "uint8")).save(tmp_path / "blank.png")
    words = ["predict", str(tmp_path / "blank.png"), "--model", str(light_run.folder), "--to", str(tmp_path / "out")]
    assert cli.main(words) == 1


def test_a_folder_that_holds_no_run_does_not_hide_a_model_of_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "compact").mkdir()
    assert find_model("compact").folder.parent == SHIPPED
    (tmp_path / "compact" / "config.json").write_text("{}")
    assert find_model("compact").folder == Path("compact")
    with pytest.raises(UserError, match=r"No run is in \."):
        find_model(".").config()


def test_unknown_model_lists_the_shipped():
    with pytest.raises(UserError, match="shipped models"):
        find_model("no-such-model")


def test_nothing_is_exported_into_the_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tfface.serving.onnx.export_onnx", lambda run, target: target)
    assert commands.export("compact", form="onnx") == Path("runs/compact/model.onnx")


def test_an_export_replaces_a_saved_model_and_nothing_else(light_run, tmp_path):
    before = sorted(path.name for path in light_run.folder.iterdir())
    for folder, words in ((light_run.folder, "config.json"), (tmp_path, "mine.txt")):
        (tmp_path / "mine.txt").write_text("of a person")
        with pytest.raises(UserError, match=rf"would be lost: .*{words}"):
            commands.export(light_run.folder, folder)
    assert sorted(path.name for path in light_run.folder.iterdir()) == before
    with pytest.raises(UserError, match="--int8"):
        commands.export(light_run.folder, tmp_path / "x", data="synthetic_faces/small")


def test_an_export_to_a_disk_that_takes_nothing_is_one_line(light_run, tmp_path, monkeypatch):
    def refused(path, *_, **__):
        if path != tmp_path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "mkdir", refused)
    for place, name in ((optimize, "fold"), (optimize, "freeze"), (keras.export.ExportArchive, "add_endpoint")):
        monkeypatch.setattr(
            place, name, lambda network, *_: network
        )  # what is written does not matter, and takes seconds
    with pytest.raises(UserError, match="saved cannot be written: Read-only file system"):
        commands.export(light_run.folder, tmp_path / "saved")


def test_names_that_are_no_utf8(light_run, group, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    name = b"latin\xe9.png"
    (photos / os.fsdecode(name)).write_bytes(group[0].read_bytes())
    words = ["predict", str(photos), "--model", str(light_run.folder), "--to", str(tmp_path / "out")]
    assert cli.main([*words, "--out", "picture,json,csv"]) == 0
    assert (tmp_path / "out" / os.fsdecode(b"latin\xe9.png-faces.jpg")).stat().st_size > 1000
    assert name in (tmp_path / "out" / "predictions.csv").read_bytes()
    assert json.loads((tmp_path / "out" / "predictions.json").read_text())[0]["photo"].endswith(os.fsdecode(name))
