import errno
import json
import os
from pathlib import Path

import pytest

from tfface import files
from tfface.errors import UserError
from tfface.faces.photos import find_photos


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "result.json"
    files.write_json(target, {"old": 1})

    def write_half():
        with files.written_aside(target) as aside:
            aside.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert json.loads(target.read_text()) == {"old": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_long_name_is_written_too(tmp_path):
    place = tmp_path / ("顔" * 78 + ".jpg")  # 238 bytes
    for text in ("first", "second"):
        with files.written_aside(place) as aside:
            aside.write_text(text)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["second"]
    with (
        pytest.raises(UserError, match="longer than the 255 bytes"),
        files.written_aside(tmp_path / ("x" * 300)) as aside,
    ):
        aside.write_text("more than a file system takes")


def test_a_folder_replaces_a_folder(tmp_path):
    target = tmp_path / "model"
    for content in ("first", "second"):
        with files.written_aside(target) as aside:
            aside.mkdir()
            (aside / "file").write_text(content)
    assert (target / "file").read_text() == "second"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_what_a_link_leads_to_is_written(tmp_path):
    (tmp_path / "disk" / "model").mkdir(parents=True)
    for name in ("model", "new.json"):
        (tmp_path / name).symlink_to(tmp_path / "disk" / name)
    with files.written_aside(tmp_path / "model") as aside:
        aside.mkdir()
        (aside / "file").write_text("new")
    files.write_text(tmp_path / "new.json", "new")
    assert (tmp_path / "disk" / "model" / "file").read_text() == "new"
    assert (tmp_path / "disk" / "new.json").read_text() == "new"
    assert sorted(path.name for path in tmp_path.rglob("*")) == [
        "disk",
        "file",
        "model",
        "model",
        "new.json",
        "new.json",
    ]


def test_what_killed_commands_left_is_removed_once_it_is_old(tmp_path):
    place = tmp_path / "model[1].keras"
    for make in (Path.touch, Path.mkdir):
        with files.written_aside(place) as aside:
            aside.touch()
        make(aside)  # as if the command had been killed before it was renamed
    place.unlink()
    kept = [tmp_path / ".model[1].keras.json", tmp_path / ".model.keras.0123456789ab.part.keras"]
    for path in kept:
        path.touch()
    left = sorted(set(tmp_path.iterdir()) - set(kept))
    assert len(left) == 2
    files.remove_leftovers(place)
    assert all(path.exists() for path in left)  # another process may be writing them
    os.utime(left[0], (0, 0))
    files.remove_leftovers(place)
    assert sorted(tmp_path.iterdir()) == sorted([*kept, left[1]])
    files.remove_leftovers(place, age=0)
    assert sorted(tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_two_that_write_one_file_at_once_write_each_their_own(make, tmp_path):
    with files.written_aside(tmp_path / "model") as one:
        make(one)
        with files.written_aside(tmp_path / "model") as other:
            make(other)
            assert one != other
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_said_in_one_line(tmp_path):
    def write_too_much():
        with files.written_aside(tmp_path / "x") as aside:
            aside.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match="disk is full") as caught:
        write_too_much()
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_json_that_is_none(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        files.read_json(tmp_path / "x.json", "The test's file")
    with pytest.raises(UserError, match="The test's file is not there"):
        files.read_json(tmp_path / "y.json", "The test's file")


@pytest.mark.parametrize("name", ["file/x", "file/x/y", "folder", ".", ".."])
def test_a_place_that_cannot_be_written_is_said_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "of a person").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot be written|names no file"):
        files.write_text(name, "new")
    assert (tmp_path / "file").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="a pipe or a device"):
        files.write_text(tmp_path / "pipe", "new")
    assert (tmp_path / "pipe").is_fifo()


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="cannot be made"):
        files.make_folder(tmp_path / "file")
    assert files.make_folder(tmp_path / "new" / "below").is_dir()


def test_a_user_without_a_home_is_told_where_to_name_one(monkeypatch, tmp_path):
    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(files.Path, "home", unknown)
    monkeypatch.delenv("TFFACE_HOME", raising=False)
    with pytest.raises(UserError, match="TFFACE_HOME"):
        files.home()
    monkeypatch.setenv("TFFACE_HOME", str(tmp_path))
    assert files.home() == tmp_path


def test_links_to_folders_elsewhere_are_followed_once(tmp_path):
    inside, outside = tmp_path / "photos", tmp_path / "more"
    for place in (inside / "own" / "a.jpg", outside / "deep" / "b.jpg"):
        place.parent.mkdir(parents=True)
        place.touch()
    links = {inside / "more": outside, inside / "z": outside, inside / "zz": inside / "own", inside / "up": tmp_path}
    for link, target in {**links, outside / "deep" / "back": outside, outside / "photos": inside}.items():
        link.symlink_to(target)
    found = [Path(path, name).relative_to(inside) for path, _, names in files.walk(inside, print) for name in names]
    assert list(map(str, found)) == ["more/deep/b.jpg", "own/a.jpg"]
    assert [str(path.relative_to(inside)) for path in find_photos(inside)] == ["more/deep/b.jpg", "own/a.jpg"]
