"""The LFW builder on the 1,583 real images of the first two folds."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from lfw_pairs import lfw_pairs_dataset_builder as lfw_pairs
from lfw_pairs import occlusion

from tfface.data.aligned import aligned_config
from tfface.errors import UserError
from tfface.faces.crops import Alignment
from tfface.faces.occluders import load_occluders


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


def few(samples, folder, first, count):
    """A folder of the real images with a list of one fold: `count` pairs of each kind, from the `first` on."""
    folder.mkdir()
    (folder / "lfw-deepfunneled").symlink_to((samples / "lfw" / "lfw-deepfunneled").resolve())
    _, *lines = (samples / "lfw" / "pairs.txt").read_text().splitlines()
    lines = [*lines[first : first + count], *lines[300 + first : 300 + first + count]]
    (folder / "pairs.txt").write_text("\n".join([f"1 {count}", *lines, ""]))
    return folder


def prepare(manual_dir, data_dir, config, align=None, decode=True, **options):
    """File name -> example."""
    builder = lfw_pairs.Builder(data_dir=data_dir, config=config)
    if align:
        options = {"no_face": "centre", **options}
        builder = lfw_pairs.Builder(data_dir=data_dir, config=aligned_config(builder, align, **options))
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    decoders = None if decode else {"image": tfds.decode.SkipDecoding()}
    dataset = builder.as_dataset(split="test", decoders=decoders)
    return {example["key"].decode(): example for example in tfds.as_numpy(dataset)}


@pytest.mark.parametrize("config", ["occ_lfw", "mask_lfw", "lower_half"])
def test_occlusion_depends_on_the_image_alone(samples, tmp_path, config):
    some = prepare(few(samples, tmp_path / "some", 4, 6), tmp_path / "a", config, decode=False)
    more = prepare(few(samples, tmp_path / "more", 0, 14), tmp_path / "b", config, decode=False)
    assert len(some) > 8
    assert set(some) < set(more)
    for name, example in some.items():
        assert example["image"] == more[name]["image"], name
        np.testing.assert_array_equal(example["box"], more[name]["box"])


@pytest.mark.parametrize("align", ["five-point", "margin"])
@pytest.mark.parametrize("config", ["occ_lfw", "mask_lfw", "lower_half"])
def test_occluded_faces_are_aligned_as_the_clean_ones(samples, tmp_path, config, align):
    manual_dir = few(samples, tmp_path / "manual", 0, 8)
    clean = prepare(manual_dir, tmp_path, "images", align)
    occluded = prepare(manual_dir, tmp_path, config, align)
    assert set(occluded) == {pair.second for pair in lfw_pairs.read_pairs(manual_dir / "pairs.txt")}
    for name, example in occluded.items():
        difference = np.abs(example["image"].astype(float) - clean[name]["image"]).mean(axis=-1)
        inside = np.zeros(difference.shape, bool)
        x0, y0, x1, y1 = example["box"].astype(int)
        inside[y0:y1, x0:x1] = True
        near = np.zeros_like(inside)
        near[max(0, y0 - 12) : y1 + 12, max(0, x0 - 12) : x1 + 12] = True  # what JPEG's blocks smear
        assert difference[inside].mean() > 10, name
        assert difference[~near].mean() < 2 if (~near).any() else True, name
        if config == "lower_half" and align == "margin":
            np.testing.assert_allclose(example["image"][84:], 128, atol=12)
            np.testing.assert_allclose(example["box"], (0, 80, 160, 160), atol=2)


def test_occluders_hide_what_they_should(samples):
    photos = sorted((samples / "lfw" / "lfw-deepfunneled").glob("A*/*_0001.jpg"))[:12]
    occluders, shares = load_occluders(), []
    detect = occlusion.load_detector("mtcnn", min_face_size=40)
    for path in photos:
        photo = occlusion.read_photo(path)
        faces = detect([photo])[0]
        face = occlusion.describe(faces, occlusion.main_face(faces, photo.shape))
        random, mask, half = (occlusion.hide(photo, face, path.name, config, occluders) for config in occlusion.CONFIGS)
        shares.append(Alignment("five-point").crop(random.alpha, face).mean() / 255)
        left_eye, right_eye, nose, left_mouth, right_mouth = np.rint(face["landmarks"]).astype(int)
        for x, y in (nose, left_mouth, right_mouth):
            assert mask.alpha[y, x] > 200, path.name
        for x, y in (left_eye, right_eye):
            assert mask.alpha[y, x] == half.alpha[y, x] == 0, path.name
        assert half.alpha[left_mouth[1], left_mouth[0]] == 255
    np.testing.assert_allclose(shares, occlusion.SHARE, atol=0.01)


def test_occluded_images_are_aligned_by_the_landmarks_that_placed_the_occluder(samples, tmp_path):
    manual_dir = few(samples, tmp_path / "manual", 0, 1)
    with pytest.raises(UserError, match="received the detector dlib: give --detector mtcnn"):
        prepare(manual_dir, tmp_path, "mask_lfw", "eyes")
    with pytest.raises(UserError, match="without a gap"):
        prepare(manual_dir, tmp_path, "mask_lfw", "five-point", no_face="skip")
