"""The RMFD builder on 80 real photos of masked faces, and on folders that are not RMFD."""

import pytest
import tensorflow_datasets as tfds
from rmfd import rmfd_dataset_builder as rmfd

from tfface.errors import UserError


def build(manual_dir, data_dir):
    builder = rmfd.Builder(data_dir=data_dir)
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    return builder


def test_every_photo_once_and_masked(samples, tmp_path):
    builder = build(samples / "rmfd", tmp_path)
    examples = list(tfds.as_numpy(builder.as_dataset(split="test")))
    left_out = builder.info.metadata["left_out"]
    assert left_out["copies"] == [["0001_0235.jpg", "0007_0004.jpg"]]  # one photo in two folders
    names = {path.name for path in (samples / "rmfd").iterdir()} - {"0007_0004.jpg"}
    assert {example["key"].decode() for example in examples} == names
    assert all(example["masked"] and example["image"].shape[2] == 3 for example in examples)
    assert not left_out["undecodable"]


def test_what_cannot_be_used_is_named(tmp_path):
    folder = tmp_path / "manual"
    dummy = rmfd.Builder.code_path.parent / "dummy_data" / "RWMFD_part_1"
    (folder / "0001").mkdir(parents=True)
    content = (dummy / "0001" / "0001_0000.jpg").read_bytes()
    for name, data in (("a.jpg", content), ("b.jpg", content), ("c.jpg", content[:200])):
        (folder / "0001" / name).write_bytes(data)
    (folder / "0001" / "d.jpg").symlink_to("nowhere.jpg")
    (folder / "0001" / "._a.jpg").write_bytes(b"of a Mac")
    builder = build(folder, tmp_path / "data")
    assert builder.info.splits["test"].num_examples == 1
    left_out = builder.info.metadata["left_out"]
    assert left_out["undecodable"] == ["0001/c.jpg", "0001/d.jpg"]
    assert left_out["copies"] == [["0001/a.jpg", "0001/b.jpg"]]


def test_a_wrong_folder_is_one_clear_line(tmp_path):
    (tmp_path / "manual").mkdir()
    (tmp_path / "manual" / "notes.txt").write_text("no photos")
    with pytest.raises(UserError, match=r"no photos in .*found notes\.txt") as error:
        build(tmp_path / "manual", tmp_path / "data")
    assert "\n" not in str(error.value)
