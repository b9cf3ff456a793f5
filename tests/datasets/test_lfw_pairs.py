"""The LFW builder on the 1,583 real images of the first two folds."""

import pytest
import tensorflow_datasets as tfds
from lfw_pairs import lfw_pairs_dataset_builder as lfw_pairs

from tfface.errors import UserError


@pytest.fixture
def two_folds(samples, tmp_path):
    """The real images with a list cut to two folds."""
    manual_dir = tmp_path / "manual"
    manual_dir.mkdir()
    (manual_dir / "lfw-deepfunneled").symlink_to((samples / "lfw" / "lfw-deepfunneled").resolve())
    _, *lines = (samples / "lfw" / "pairs.txt").read_text().splitlines()
    (manual_dir / "pairs.txt").write_text("\n".join(["2 300", *lines[:1200], ""]))
    return tfds.download.DownloadConfig(manual_dir=manual_dir)


def test_published_list_is_ten_folds_of_300_and_300(samples):
    pairs = lfw_pairs.read_pairs(samples / "lfw" / "pairs.txt")
    assert len(pairs) == 6000
    assert len({name for pair in pairs for name in pair[:2]}) == 7701
    for fold in range(10):
        same = [pair.same for pair in pairs if pair.fold == fold]
        assert same == [True] * 300 + [False] * 300
    assert pairs[0] == ("Abel_Pacheco_0001.jpg", "Abel_Pacheco_0004.jpg", True, 0)


def test_two_folds(two_folds, samples, tmp_path):
    pairs = lfw_pairs.Builder(data_dir=tmp_path, config="pairs")
    pairs.download_and_prepare(download_config=two_folds)
    examples = list(
        tfds.as_numpy(
            pairs.as_dataset(
                split="test",
                decoders={"first": tfds.decode.SkipDecoding(), "second": tfds.decode.SkipDecoding()},
            )
        )
    )
    assert [(e["first_key"].decode(), e["second_key"].decode(), e["same"], e["fold"]) for e in examples] == (
        lfw_pairs.read_pairs(samples / "lfw" / "pairs.txt")[:1200]
    )
    images = lfw_pairs.Builder(data_dir=tmp_path, config="images")
    images.download_and_prepare(download_config=two_folds)
    assert images.info.splits["test"].num_examples == 1583


def test_a_missing_image_stops_the_build(samples, tmp_path):
    builder = lfw_pairs.Builder(data_dir=tmp_path)
    config = tfds.download.DownloadConfig(manual_dir=samples / "lfw")
    with pytest.raises(UserError, match=r"6118 of the 7701 images in pairs\.txt are missing, the first: .*\.jpg"):
        builder.download_and_prepare(download_config=config)
    assert not builder.is_prepared()
