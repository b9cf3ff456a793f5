"""Data sets aligned by Beam: the crops of the verb, in one process or several, and what a killed build leaves."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from tfface import cli, files
from tfface.data import aligned, alignment_pipeline, originals
from tfface.data.aligned import AlignableConfig, aligned_config
from tfface.data.pipeline import open_dataset
from tfface.errors import UserError
from tfface.faces.crops import Alignment, encode
from tfface.faces.detect import Faces
from tfface.faces.prepare import align_photos

BLANK = "33_0_0_20170101000000000.jpg.chip.jpg"


@pytest.fixture(scope="module")
def photos(samples, tmp_path_factory):
    """Forty photos of UTKFace and one without a face."""
    folder = tmp_path_factory.mktemp("manual") / "UTKFace"
    folder.mkdir()
    for path in sorted((samples / "utkface" / "UTKFace").glob("3*.jpg"))[:40]:
        shutil.copy(path, folder)
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(folder / BLANK)
    return folder


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(alignment_pipeline, "PHOTOS_AT_ONCE", 8)


def build(photos, data_dir, *options, data="utkface"):
    return cli.main(["build", data, "--manual-dir", str(photos), "--data-dir", str(data_dir), *options])


def examples(data, data_dir):
    """Split -> key -> (age, encoded image), in the order of the records."""
    builder = open_dataset(data, data_dir)
    return {
        split: {
            example["key"].decode(): (example["age"], example["image"])
            for example in tfds.as_numpy(
                builder.as_dataset(split=split, decoders={"image": tfds.decode.SkipDecoding()}, shuffle_files=False)
            )
        }
        for split in builder.info.splits
    }


@pytest.fixture(scope="module")
def prepared(photos, tmp_path_factory):
    """Aligned by two processes, and as they are, in one folder."""
    folder = tmp_path_factory.mktemp("data")
    processes = ("--workers", "2")
    assert build(photos, folder, "--align", "five-point", *processes) == 0
    assert build(photos, folder) == 0
    return folder


def test_crops_are_those_of_the_verb(photos, prepared, tmp_path):
    assert align_photos([photos], "five-point", faces="largest", to=tmp_path / "crops") == 1
    aligned, original = examples("utkface/five-point", prepared), examples("utkface", prepared)
    assert sum(map(len, aligned.values())) == 40
    for split, rows in original.items():
        assert set(rows) - {BLANK} == set(aligned[split])
        for key, (age, image) in aligned[split].items():
            assert image == (tmp_path / "crops" / key).read_bytes()
            assert age == rows[key][0]
    assert BLANK in set().union(*original.values())  # as it is, it is in the set


def test_metadata_say_where_the_landmarks_are_and_what_is_left_out(prepared):
    aligned, original = (open_dataset(data, prepared).info for data in ("utkface/five-point", "utkface"))
    assert aligned.full_name == "utkface/five-point/1.0.0"
    assert aligned.metadata["landmarks"] == Alignment("five-point").landmarks
    assert aligned.metadata["left_out"] == {**original.metadata["left_out"], "no_face": [BLANK]}
    assert original.full_name == "utkface/1.0.0"
    assert "no_face" not in original.metadata["left_out"]
    assert original.metadata["landmarks"] != aligned.metadata["landmarks"]
    assert sorted(path.name for path in (prepared / "utkface" / "five-point").iterdir()) == ["1.0.0"]


def test_a_killed_build_goes_on_in_two_threads_and_ends_with_the_records_of_two_processes(
    photos, prepared, tmp_path, monkeypatch
):
    real, seen = alignment_pipeline._detector, []

    def detector(name):
        def detect(images):
            if len(seen) == 3:
                raise RuntimeError("killed")
            seen.append(len(images))
            return real(name)(images)

        return detect

    monkeypatch.setattr(alignment_pipeline, "_detector", detector)
    with pytest.raises(RuntimeError, match="killed"):
        build(photos, tmp_path, "--align", "five-point")
    assert [path.name for path in (tmp_path / "utkface" / "five-point").iterdir()] == ["found"]
    before = sum(seen)
    seen[:] = [0] * 4
    assert build(photos, tmp_path, "--align", "five-point") == 0
    assert before + sum(seen) == 41  # nothing is looked for twice
    one, two = (examples("utkface/five-point", folder) for folder in (tmp_path, prepared))
    assert one == two
    assert [list(rows) for rows in one.values()] == [list(rows) for rows in two.values()]


def when_detecting(monkeypatch, act):
    """A detector that finds no face, and does something in the middle of the build."""

    def detector(name):
        def detect(images):
            act()
            return [Faces(np.zeros((0, 4)), np.zeros(0))] * len(images)

        return detect

    monkeypatch.setattr(alignment_pipeline, "_detector", detector)


def test_a_worker_works_in_another_folder(photos, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    when_detecting(monkeypatch, lambda: os.chdir(tmp_path / "elsewhere"))
    manual = os.path.relpath(photos, tmp_path)
    assert build(manual, "data", "--align", "five-point", "--no-face", "centre") == 0
    assert sum(map(len, examples("utkface/five-point-centre", tmp_path / "data").values())) == 41
    assert not any((tmp_path / "elsewhere").iterdir())


def test_what_a_worker_does_not_see_is_not_left_out_in_silence(photos, tmp_path, monkeypatch, capsys):
    manual, data = tmp_path / "manual", tmp_path / "data"
    shutil.copytree(photos, manual)
    when_detecting(monkeypatch, lambda: [path.unlink() for path in manual.glob("3*.jpg")])
    assert build(manual, data, "--align", "five-point", "--no-face", "centre") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"tfface: {manual}" in error
    assert "No such file or directory. Expected the files of --manual-dir in" in error
    when_detecting(monkeypatch, lambda: shutil.rmtree(data))
    assert build(photos, data, "--align", "five-point", "--no-face", "centre") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"tfface: {data}" in error
    assert "No such file or directory. Expected --data-dir to be" in error


def test_a_split_without_a_face_and_a_killed_worker_are_a_line_each(photos, tmp_path, monkeypatch, capsys):
    when_detecting(monkeypatch, lambda: None)
    assert build(photos, tmp_path, "--align", "five-point") == 2
    assert "tfface: no face was found in any photo of the split" in capsys.readouterr().err

    def killed():
        raise RuntimeError("Channel closed prematurely.")  # so says Beam of one of several processes

    when_detecting(monkeypatch, killed)
    assert build(photos, tmp_path, "--align", "eyes") == 2
    assert "tfface: A worker was killed while it aligned utkface/eyes/1.0.0" in capsys.readouterr().err


def test_photos_without_a_face_are_cut_at_the_centre_or_stop_the_build(photos, prepared, tmp_path, monkeypatch, capsys):
    assert build(photos, tmp_path, "--align", "five-point", "--no-face", "error") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"tfface: no face was found in 1 of 41 photos of utkface/five-point/1.0.0: {BLANK}")
    assert not list(tmp_path.rglob("*.tfrecord*"))
    # What stands there was built with --no-face skip.
    assert build(photos, prepared, "--align", "five-point", "--no-face", "error") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"is prepared already; no face was found in 1 of its photos, which it lacks: {BLANK}. Take it as" in error
    # What was found then is not looked for again.
    found = tmp_path / "utkface" / "five-point" / "found"
    shutil.copytree(found, tmp_path / "utkface" / "five-point-centre" / "found")
    monkeypatch.setattr(alignment_pipeline, "_detector", None)
    assert build(photos, tmp_path, "--align", "five-point", "--no-face", "centre") == 0
    rows = {
        key: row for split in examples("utkface/five-point-centre", tmp_path).values() for key, row in split.items()
    }
    assert len(rows) == 41
    metadata = json.loads((tmp_path / "utkface/five-point-centre/1.0.0/metadata.json").read_text())
    assert metadata["cut_at_centre"] == [BLANK]
    assert metadata["left_out"]["no_face"] == []


def test_a_detector_that_is_not_there_is_said_at_once(photos, tmp_path, capsys):
    assert build(photos, tmp_path, "--align", "margin", "--detector", "nosuch", "--workers", "2") == 2
    assert "nosuch" in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_class_without_a_face_is_not_lost_in_silence(samples, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("cars", "women"):
        (tmp_path / "in" / name).mkdir(parents=True)
    for number, path in enumerate(sorted((samples / "men_women" / "women").glob("*.jpg"))[:12]):
        shutil.copy(path, tmp_path / "in" / "women")
        noise = rng.integers(0, 256, (160, 160, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / "in" / "cars" / f"{number}.png")
    assert build(tmp_path / "in", tmp_path / "data", "--align", "margin", data="image_folder/in") == 2
    assert "no face was found in any photo of cars in the split" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


def test_images_of_lfw_are_aligned_without_a_gap(samples, tmp_path, capsys):
    manual = tmp_path / "manual"
    manual.mkdir()
    (manual / "lfw-deepfunneled").symlink_to((samples / "lfw" / "lfw-deepfunneled").resolve())
    _, *lines = (samples / "lfw" / "pairs.txt").read_text().splitlines()
    (manual / "pairs.txt").write_text("\n".join(["1 4", *lines[:4], *lines[300:304], ""]))
    assert build(manual, tmp_path, "--align", "margin", data="lfw_pairs/images") == 2
    assert "--no-face centre" in capsys.readouterr().err
    assert build(manual, tmp_path, "--align", "margin", "--no-face", "centre", data="lfw_pairs/pairs") == 2
    assert build(manual, tmp_path, "--align", "margin", "--no-face", "centre", data="lfw_pairs/images") == 0
    images = open_dataset("lfw_pairs/images-margin-centre", tmp_path)
    rows = list(tfds.as_numpy(images.as_dataset(split="test")))
    assert [row["key"] for row in rows] == sorted({row["key"] for row in rows})
    assert {row["image"].shape for row in rows} == {(160, 160, 3)}
    margin = Alignment("margin")  # by which faces of photos are aligned for networks that learnt from these
    assert (images.info.metadata["landmarks"], images.info.metadata["stretch"]) == (margin.landmarks, margin.stretch)


def test_metadata_of_a_margin_are_of_the_detector_that_gave_its_boxes(tmp_path, monkeypatch):
    from utkface.utkface_dataset_builder import Builder as UTKFace

    monkeypatch.setattr(aligned, "load_detector", lambda *_, **__: None)
    for detector, known in ((name, Alignment("margin").by_detector(name)) for name in ("mtcnn", "dlib")):
        builder = UTKFace(config=aligned_config(UTKFace(), "margin", detector=detector), data_dir=tmp_path)
        builder.aligned({})
        assert (builder.info.metadata["landmarks"], builder.info.metadata.get("stretch", 1.0)) == known


def test_names_of_configs_tell_what_changes_the_images():
    from lfw_pairs.lfw_pairs_dataset_builder import Builder as LFW
    from synthetic_faces.synthetic_faces_dataset_builder import Builder as Synthetic
    from utkface.utkface_dataset_builder import Builder as UTKFace

    assert aligned_config(UTKFace(), "eyes").name == "eyes"
    other = aligned_config(UTKFace(), "five-point", (112, 112), "centre", "dlib:68-point")
    assert other.name == "five-point-112x112-dlib_68-point-centre"
    config = aligned_config(LFW(config="images"), "margin", detector="mtcnn")
    assert (config.name, config.unaligned, config.detector) == ("images-margin", "images", "mtcnn")
    assert isinstance(LFW(config=config).builder_config, AlignableConfig)
    with pytest.raises(UserError, match="synthetic_faces cannot be aligned"):
        aligned_config(Synthetic(), "eyes")
    with pytest.raises(UserError, match="no_face must be one of skip, centre, error, received 'drop'"):
        aligned_config(UTKFace(), "eyes", no_face="drop")
    for align, detector in (("eyes", "yolo"), ("five-point", "dlib")):
        with pytest.raises(UserError, match=f"{align} needs landmarks that the detector {detector} does not find"):
            aligned_config(UTKFace(), align, detector=detector)


def test_photos_that_exif_turns_wait_as_files_to_be_aligned(tmp_path):
    """As pictures without loss they would fill the memory, and Beam would take minutes to pass them on."""
    from utkface.utkface_dataset_builder import Builder as UTKFace

    exif = Image.Exif()
    exif[0x0112] = 6
    photo = originals.Photo("30_0_0_1.jpg", tmp_path / "30_0_0_1.jpg", (30, 0, 0))
    Image.new("RGB", (30, 20)).save(photo.path, exif=exif)
    builder = UTKFace(data_dir=tmp_path)
    aligned = UTKFace(config=aligned_config(builder, "margin"), data_dir=tmp_path)
    for each, kind in ((builder, bytes), (aligned, Path)):
        [(_, example)] = each._generate_examples({"digest": photo})
        assert isinstance(example["image"], kind)


def test_a_photo_that_cannot_be_read_moves_no_face_to_another(tmp_path, monkeypatch):
    pictures = [encode(np.full((60, 60, 3), level, np.uint8), ".png") for level in (50, 100, 150)]
    pictures.insert(1, b"no picture")
    examples = [(key, {"image": image, "identity": f"of {key}"}) for key, image in enumerate(pictures)]

    def detect(images):  # a face as large as its photo is bright
        sides = [image[0, 0, 0] / 5 for image in images]
        return [Faces(np.array([[0, 0, side, side]], np.float32), np.ones(1, np.float32)) for side in sides]

    monkeypatch.setattr(alignment_pipeline, "_detector", lambda name: detect)
    config = AlignableConfig(name="margin", align="margin", size=(32, 32), detector="mtcnn")
    split = alignment_pipeline.AlignedSplit(examples, config, epath.Path(tmp_path))
    kept = [row for chunk in split._chunks for row in split._align.process(chunk)]
    assert [key for key, _ in kept] == [0, 2, 3]
    lines = split.found()
    assert [line["identity"] for line in lines] == ["of 0", "of 1", "of 2", "of 3"]
    assert [line["face"]["box"][2] if "face" in line else line["error"][:5] for line in lines] == [10, "photo", 20, 30]
    assert split.looked_at() == 4


def test_what_was_found_is_of_these_files_and_this_detector(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"one")

    def digest(image=photo, detector="mtcnn"):
        config = AlignableConfig(name="margin", align="margin", detector=detector)
        [(digest, _)] = alignment_pipeline.AlignedSplit([(0, {"image": image})], config, tmp_path)._chunks
        return digest

    assert digest() == digest()
    digests = {digest(), digest(detector="dlib"), digest(b"one"), digest(b"two")}
    os.utime(photo, (0, 0))  # another of the same length
    digests.add(digest())
    photo.write_bytes(b"longer")
    os.utime(photo, (0, 0))
    digests.add(digest())
    assert len(digests) == 6


def test_people_without_a_face_are_named_and_a_class_without_one_ends_the_build(tmp_path):
    from utkface.utkface_dataset_builder import Builder as UTKFace

    builder = UTKFace(config=aligned_config(UTKFace(), "margin"), data_dir=tmp_path)
    face = {"box": [0, 0, 9, 9]}
    one, other = {"face": face, "identity": "a", "label": "x"}, {"face": None, "identity": "b", "label": "x"}
    builder._check_classes({"train": [one, other, {**one, "identity": "c"}]})
    assert builder.info.metadata["without_images"] == ["b"]
    broken = {"error": "damaged", "label": "y"}
    with pytest.raises(UserError, match="no face was found in any photo of y in the split test"):
        builder._check_classes({"train": [one], "test": [one, broken]})


def test_options_of_beam():
    with pytest.raises(UserError, match="Received: -1"):
        alignment_pipeline.pipeline_options(-1)
    for workers, mode in ((1, "in_memory"), (2, "multi_processing"), (16, "multi_processing")):
        local = alignment_pipeline.pipeline_options(workers).get_all_options()
        assert (local["direct_num_workers"], local["direct_running_mode"]) == (workers, mode)
    cluster = alignment_pipeline.pipeline_options(4, "runner=FlinkRunner,flink_master=host:8081").get_all_options()
    assert (cluster["runner"], cluster["direct_num_workers"]) == ("FlinkRunner", 1)
    for wrong, said in (
        ("runner=Flnk", "no such runner"),
        ("runer=FlinkRunner", "no option runer"),
        ("no", "option no"),
    ):
        with pytest.raises(UserError, match=f"{said}.*Received: {wrong}"):
            alignment_pipeline.pipeline_options(1, wrong)


def test_two_builds_at_once_do_not_harm_each_other(photos, tmp_path, capsys):
    with files.held(tmp_path / "utkface", "--data-dir"):
        assert build(photos, tmp_path) == 2
    assert "utkface is being written by another process" in capsys.readouterr().err
