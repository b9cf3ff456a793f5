"""`tfface detect` and `tfface align`: what they write, what they say, and that a stopped run ends as any other."""

import json
import resource
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from tfface import files
from tfface.errors import UserError
from tfface.faces import ALIGNMENTS, align, crops, prepare
from tfface.faces.crops import Alignment, describe, main_face
from tfface.faces.detect import Faces, load_detector
from tfface.faces.photos import read_photo


@pytest.fixture(scope="module")
def mtcnn():
    return load_detector("mtcnn", min_face_size=40)


@pytest.fixture
def detector(mtcnn, monkeypatch):
    """Loads MTCNN once for all tests; the list holds how many photos each batch had."""
    batches = []

    def detect(photos):
        batches.append(len(photos))
        return mtcnn(photos)

    monkeypatch.setattr(prepare, "load_detector", lambda *_, **__: detect)
    return batches


@pytest.fixture
def photos(samples, tmp_path):
    """Eleven photos in three folders: two of one name, one without a face, one broken, one with three faces."""
    root = tmp_path / "photos"
    faces = sorted((samples / "lfw" / "lfw-deepfunneled").glob("A*/*_0001.jpg"))[:8]
    for number, face in enumerate(faces):
        (root / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(face, root / "ab"[number % 2] / f"{number // 2}.jpg")
    shutil.copy(samples / "photos" / "dlib_faces" / "2007_007763.jpg", root / "group.jpg")
    Image.fromarray(np.full((90, 120, 3), 200, np.uint8)).save(root / "grey.png")
    (root / "a" / "broken.jpg").write_bytes(faces[0].read_bytes()[:700])
    return root


def lines_of(folder: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (folder / "faces.jsonl").read_text().splitlines()]
    assert len({line["path"] for line in lines}) == len(lines)
    return {line["path"]: line for line in lines}


def content_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "settings.json"
    }


def test_detect_writes_a_line_a_photo_and_pictures(photos, detector, tmp_path, capsys):
    to = tmp_path / "faces"
    assert prepare.detect_photos([photos], out=("json", "picture"), to=to) == 2
    lines = lines_of(to)
    assert len(lines) == 11
    face = lines[str(photos / "a" / "0.jpg")]
    assert (face["width"], face["height"]) == (250, 250)
    x0, y0, x1, y1 = face["faces"][0]["box"]
    assert 60 < x0 < 110 < 140 < x1 < 190  # LFW has its faces in the middle
    assert all(x0 < x < x1 and y0 < y < y1 for x, y in face["faces"][0]["landmarks"])
    assert face["faces"][0]["score"] > 0.9
    assert lines[str(photos / "grey.png")]["faces"] == []
    assert "damaged" in lines[str(photos / "a" / "broken.jpg")]["error"]
    said = capsys.readouterr()
    assert "11 photos" in said.out
    assert f"1 without a face ({photos / 'grey.png'})" in said.out
    assert f"1 could not be read ({photos / 'a' / 'broken.jpg'})" in said.out
    assert said.err.count("\n") == 1
    pictures = {str(path.relative_to(to)) for path in to.rglob("*.jpg")}
    assert pictures == {f"{folder}/{number}.jpg" for folder in "ab" for number in range(4)} | {"group.jpg"}
    drawn, photo = read_photo(to / "group.jpg"), read_photo(photos / "group.jpg")
    assert drawn.shape == photo.shape
    assert np.abs(drawn.astype(int) - photo).max() > 100


def test_crops_keep_the_folders_and_have_eyes_nose_and_mouth_where_they_belong(photos, detector, mtcnn, tmp_path):
    to = tmp_path / "aligned"
    assert prepare.align_photos([photos], "five-point", size=(224, 192), faces="largest", to=to) == 2
    lines = lines_of(to)
    assert {str(path.relative_to(to)) for path in to.rglob("*.jpg")} == {
        f"{folder}/{number}.jpg" for folder in "ab" for number in range(4)
    } | {"group.jpg"}
    assert all(line["faces"][0]["crop"] in content_of(to) for line in lines.values() if line.get("faces"))
    expected = np.array(Alignment("five-point", (224, 192)).landmarks) * (192, 224) - 0.5
    found = [mtcnn([read_photo(to / "ab"[index % 2] / f"{index // 2}.jpg")])[0].landmarks[0] for index in range(8)]
    assert np.abs(np.mean(found, axis=0) - expected).max() < 6
    # The crop is made of what the line says.
    path = str(photos / "b" / "2.jpg")
    crop = Alignment("five-point", (224, 192)).crop(read_photo(path), lines[path]["faces"][0])
    assert crops.encode(crop) == (to / "b" / "2.jpg").read_bytes()


def test_names_that_would_be_one_are_kept_apart(detector, tmp_path, photos):
    names = ("a.jpg", "a.JPG", "b.png", "b.png.jpg")
    (tmp_path / "in").mkdir()
    for name in names:
        picture = read_photo(photos / "group.jpg")
        Image.fromarray(picture).save(tmp_path / "in" / name, "PNG")
    assert prepare.align_photos([tmp_path / "in"], "margin", faces="largest", to=tmp_path / "out") == 0
    crops = [line["faces"][0]["crop"] for line in lines_of(tmp_path / "out").values()]
    assert len(set(crops)) == len(names)
    assert all((tmp_path / "out" / crop).exists() for crop in crops)


def test_all_faces_of_several_folders_collide_nowhere(photos, detector, tmp_path):
    shutil.copy(photos / "group.jpg", photos / "a" / "group.jpg")
    to = tmp_path / "aligned"
    prepare.align_photos([photos / "a", photos / "b", photos / "*.jpg"], "margin", suffix=".png", to=to)
    written = {path for path in content_of(to) if path.endswith(".png")}
    assert written == {face["crop"] for line in lines_of(to).values() for face in line.get("faces", [])}
    assert {"a/0.jpg-0.png", "b/0.jpg-0.png", "group.jpg-0.png", "group.jpg-1.png", "a/group.jpg-1.png"} <= written
    assert cv2.imread(str(to / "group.jpg-1.png")).shape == (160, 160, 3)


def test_a_photo_without_a_face_is_skipped_cut_at_the_centre_or_an_error(photos, detector, tmp_path, capsys):
    one = photos / "grey.png"
    assert prepare.align_photos([one], "five-point", no_face="skip", to=tmp_path / "skip") == 1
    assert f"1 without a face, skipped ({one})" in capsys.readouterr().out
    assert prepare.align_photos([one], "five-point", no_face="centre", to=tmp_path / "centre") == 0
    crop = read_photo(tmp_path / "centre" / lines_of(tmp_path / "centre")[str(one)]["crop"])
    assert crop.shape == (112, 96, 3)
    assert np.abs(crop.astype(int) - 200).max() < 3
    with pytest.raises(UserError, match=r"no face was found in grey\.png"):
        prepare.align_photos([one], "five-point", no_face="error", to=tmp_path / "error")


def test_centre_keeps_the_middle():
    photo = np.zeros((100, 300, 3), np.uint8)
    photo[:, 100:200] = 255
    crop = Alignment("margin", (50, 50)).crop(photo, None)
    assert crop[:, 1:-1].min() == 255
    np.testing.assert_array_equal(crop, crop[::-1, ::-1])


@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_stopped_run_goes_on_and_ends_with_the_same_files(photos, detector, tmp_path, monkeypatch, stop_at):
    monkeypatch.setattr(prepare, "PHOTOS_AT_ONCE", 3)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    prepare.align_photos([photos], "five-point", to=whole)
    assert detector == [3, 3, 2, 2]  # one of the third is broken
    detector.clear()

    real = prepare.files.written_aside
    writes = []

    def written(path):
        writes.append(path)
        if len(detector) > stop_at:
            raise KeyboardInterrupt
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(prepare.files, "written_aside", written)
        with pytest.raises(KeyboardInterrupt):
            prepare.align_photos([photos], "five-point", to=stopped)
    assert len(lines_of(stopped)) == 3 * stop_at
    # What a kill may leave besides: half a line, a file that was not renamed yet.
    with open(stopped / "faces.jsonl", "a") as stream:
        stream.write('{"path": "/somewhere/el')
    (stopped / "a" / ".9.jpg.77.part.jpg").write_bytes(b"half")
    detector.clear()
    prepare.align_photos([photos], "five-point", to=stopped)
    assert detector == [3, 3, 2, 2][stop_at:]
    assert content_of(stopped) == content_of(whole)
    detector.clear()
    assert prepare.align_photos([photos], "five-point", to=stopped) == 2
    assert detector == []


def test_a_photo_that_was_changed_is_done_again(photos, detector, tmp_path):
    to = tmp_path / "aligned"
    prepare.align_photos([photos], "five-point", to=to)
    shutil.copy(photos / "a" / "1.jpg", photos / "a" / "broken.jpg")  # mended
    shutil.copy(photos / "b" / "1.jpg", photos / "group.jpg")  # fewer faces than before
    detector.clear()
    assert prepare.align_photos([photos], "five-point", to=to) == 1
    assert detector == [2]
    assert (to / "a" / "broken.jpg-0.jpg").read_bytes() == (to / "a" / "1.jpg-0.jpg").read_bytes()
    assert [path.name for path in to.glob("group*")] == ["group.jpg-0.jpg"]


def test_a_photo_that_could_not_be_opened_is_tried_again(photos, detector, tmp_path, monkeypatch):
    one, read = photos / "group.jpg", prepare.read_photo

    def forbidden(path):
        raise UserError(f"cannot read photo {path}: Permission denied") from PermissionError(13, "Permission denied")

    monkeypatch.setattr(prepare, "read_photo", forbidden)
    assert prepare.detect_photos([one], to=tmp_path / "out") == 2
    monkeypatch.setattr(prepare, "read_photo", read)
    assert prepare.detect_photos([one], to=tmp_path / "out") == 0
    assert lines_of(tmp_path / "out")[str(one)]["faces"]


def test_the_picture_of_a_photo_that_was_changed_goes(photos, detector, tmp_path):
    one = tmp_path / "in" / "x.png"
    one.parent.mkdir()
    Image.fromarray(read_photo(photos / "group.jpg")).save(one)
    assert prepare.detect_photos([one], out=("json", "picture"), to=tmp_path / "out") == 0
    assert (tmp_path / "out" / "x.png.jpg").exists()
    Image.fromarray(np.full((90, 120, 3), 127, "uint8")).save(one)
    prepare.detect_photos([one], out=("json", "picture"), to=tmp_path / "out")
    assert not (tmp_path / "out" / "x.png.jpg").exists()


def test_other_settings_and_other_files_are_never_written_over(photos, detector, tmp_path):
    to = tmp_path / "aligned"
    prepare.align_photos([photos / "grey.png"], "five-point", to=to)
    with pytest.raises(UserError, match=r"other settings: align five-point, size \[112, 96\] there, align margin"):
        prepare.align_photos([photos / "grey.png"], "margin", to=to)
    # A first try that failed at once does not keep the folder from the next.
    with pytest.raises(UserError, match="choose --no-face skip or centre"):
        prepare.align_photos([photos / "grey.png"], "margin", no_face="error", to=tmp_path / "again")
    assert prepare.align_photos([photos / "grey.png"], "margin", no_face="centre", to=tmp_path / "again") == 0
    before = content_of(photos)
    with pytest.raises(UserError, match="holds other files"):
        prepare.align_photos([photos / "b"], "margin", faces="largest", to=photos / "a")
    assert content_of(photos) == before
    # Results inside the folder of the photos are not taken for photos.
    prepare.align_photos([photos], "margin", to=photos / "out")
    prepare.align_photos([photos], "margin", to=photos / "out")
    assert len(lines_of(photos / "out")) == 11


def test_a_batch_that_ends_in_an_error_leaves_no_crop_among_those_of_the_next_try(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for name in "ab":
        Image.new("RGB", (64, 64)).save(tmp_path / "in" / f"{name}.png")
    one = Faces(np.array([[8, 8, 56, 56]], np.float32), np.ones(1, np.float32))
    monkeypatch.setattr(prepare, "load_detector", lambda *_, **__: lambda photos: [one, one.select([])])
    options = {"paths": [tmp_path / "in"], "align": "margin", "to": tmp_path / "out"}
    with pytest.raises(UserError, match="choose --no-face skip or centre"):
        prepare.align_photos(**options, no_face="error")
    assert prepare.align_photos(**options, faces="largest") == 1
    assert set(content_of(tmp_path / "out")) == {"a.png.jpg", "faces.jsonl"}


def test_a_folder_of_results_belongs_to_one_process_at_a_time(photos, detector, tmp_path):
    with files.held(tmp_path / "out", "--to"), pytest.raises(UserError, match="written by another process"):
        prepare.detect_photos([photos], to=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / ".settings.json.7.part.json").write_text("{")  # of one that was killed at once
    prepare.detect_photos([photos / "group.jpg"], to=tmp_path / "out")


def test_lines_for_which_there_is_no_room_are_not_lost_in_silence(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    for number in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / "in" / f"{number}.png")
    none = Faces(np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    monkeypatch.setattr(prepare, "load_detector", lambda *_, **__: lambda photos: [none] * len(photos))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:  # as on a disk that fills up, a part is written
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="too large"):
            prepare.detect_photos([tmp_path / "in"], to=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "out" / "faces.jsonl").stat().st_size == 1000
    assert prepare.detect_photos([tmp_path / "in"], to=tmp_path / "out") == 1
    assert len(lines_of(tmp_path / "out")) == 20


def test_a_path_that_is_not_there_is_said_and_the_rest_goes_on(photos, detector, tmp_path, capsys):
    assert prepare.detect_photos(["/no/such/folder", photos / "b"], to=tmp_path / "faces") == 2
    assert len(lines_of(tmp_path / "faces")) == 4
    said = capsys.readouterr()
    assert "1 could not be read (/no/such/folder)" in said.out
    assert said.err.startswith("tfface: no such file or folder: /no/such/folder")
    assert prepare.detect_photos(["/no/such/folder"], to=tmp_path / "none") == 2
    assert not (tmp_path / "none").exists()


def test_an_alignment_without_its_landmarks_is_one_clear_line(photos, tmp_path, monkeypatch):
    box, score = np.array([[10, 10, 60, 60]], np.float32), np.ones(1, np.float32)
    points = np.full((1, 5, 2), np.nan, np.float32)
    points[0, :3] = [(20, 30), (50, 30), (35, 45)]  # as dlib's five-point predictor has them
    for found in (Faces(box, score), Faces(box, score, points)):
        monkeypatch.setattr(prepare, "load_detector", lambda *_, found=found, **__: lambda photos: [found])
        with pytest.raises(UserError, match="needs the first 5 of five landmarks"):
            prepare.align_photos([photos / "group.jpg"], "five-point", to=tmp_path / "five")
    with pytest.raises(UserError, match="needs landmarks that the detector yolo does not find"):
        prepare.align_photos([photos / "group.jpg"], "five-point", detector="yolo", to=tmp_path / "none")
    assert not (tmp_path / "none").exists()
    assert prepare.align_photos([photos / "group.jpg"], "eyes", to=tmp_path / "eyes") == 0
    assert lines_of(tmp_path / "eyes")[str(photos / "group.jpg")]["faces"][0]["landmarks"][3:] == [None, None]


@pytest.mark.parametrize(("name", "value"), [("faces", "each"), ("no_face", "center")])
def test_another_word_is_not_taken_for_the_last_one(name, value, tmp_path):
    with pytest.raises(UserError, match=f"{name} must be one of .* Received: {value}"):
        prepare.align_photos([tmp_path], "margin", to=tmp_path / "out", **{name: value})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("nose", None, "unknown alignment 'nose'; expected one of eyes, five-point, margin"),
        ("eyes", (112, 96), "eyes crops are square, received 112x96"),
        ("five-point", (100, 96), "five-point crops are 112x96 or 112x112"),
        ("margin", (8, 8), "16 to 4096 pixels"),
    ],
)
def test_bad_alignments(name, size, said):
    with pytest.raises(UserError, match=said):
        Alignment(name, size)


def test_every_alignment_has_its_size_detector_and_landmarks():
    assert ALIGNMENTS == tuple(crops.SIZES) == tuple(crops.DETECTOR_OF) == tuple(crops.NEEDED)


def test_landmarks_of_a_crop_are_shares_of_it():
    wide, square = (np.array(Alignment("five-point", size).landmarks) for size in ((112, 96), (224, 224)))
    np.testing.assert_allclose(wide * (96, 112) - 0.5, crops.align.FIVE_POINTS_112x96, atol=0.01)
    np.testing.assert_allclose(square * 112 - 0.5, np.add(crops.align.FIVE_POINTS_112x96, (8, 0)), atol=0.26)
    assert Alignment("eyes").landmarks[0] == [0.32, 0.38]
    assert Alignment("margin").stretch > 1 == Alignment("five-point").stretch


def test_the_face_that_a_photo_is_of_is_large_and_near_the_middle():
    boxes = np.array([[0, 0, 60, 60], [70, 70, 125, 125], [95, 95, 105, 105]], np.float32)
    assert crops.main_face(Faces(boxes, np.ones(3, np.float32)), (200, 200, 3)) == 1


def test_crops_have_landmarks_and_stretch_as_is_said_of_them(samples, mtcnn):
    """By these, faces of photos are cut for networks that learnt from such crops: medians over three sets."""
    sets = (samples / "utkface" / "UTKFace", samples / "fairface" / "val", samples / "lfw" / "lfw-deepfunneled")
    paths = [sorted(folder.rglob("*.jpg")) for folder in sets]
    photos = [read_photo(path) for some in paths for path in some[:: len(some) // 15]]
    found = [
        describe(one, main_face(one, photo.shape)) for photo, one in zip(photos, mtcnn(photos), strict=True) if one
    ]
    assert len(found) > 44
    for name in ("margin", "eyes"):
        alignment = Alignment(name)
        places = [align.transform(face["landmarks"], alignment._matrix(face)) + 0.5 for face in found]
        np.testing.assert_allclose(np.median(places, axis=0) / alignment.size[0], alignment.landmarks, atol=0.02)
    x0, y0, x1, y1 = np.transpose([face["box"] for face in found])
    assert 1 / np.median((x1 - x0) / (y1 - y0)) == pytest.approx(Alignment("margin").stretch, abs=0.05)


@pytest.mark.parametrize("name", ["yolo", "dlib"])
def test_crops_with_a_margin_are_as_the_boxes_of_their_detector(samples, mtcnn, name):
    paths = sorted((samples / "lfw" / "lfw-deepfunneled").glob("*/*_0001.jpg"))[::25]
    photos = [read_photo(path) for path in paths]
    detector, margin = load_detector(name, **({"predictor": None} if name == "dlib" else {})), Alignment("margin")
    pairs = [(a, b) for a, b in zip(mtcnn(photos), detector(photos), strict=True) if len(a) == len(b) == 1]
    places = [align.transform(a.landmarks[0], margin._matrix(describe(b, 0))) + 0.5 for a, b in pairs]
    sides = np.array([b.boxes[0, 2:] - b.boxes[0, :2] for _, b in pairs])
    landmarks, stretch = margin.by_detector(f"{name}:68-point" if name == "dlib" else name)
    np.testing.assert_allclose(np.median(places, axis=0) / 160, landmarks, atol=0.045)
    assert 1 / np.median(sides[:, 0] / sides[:, 1]) == pytest.approx(stretch, abs=0.05)
    assert margin.by_detector("mtcnn") == (margin.landmarks, margin.stretch)
