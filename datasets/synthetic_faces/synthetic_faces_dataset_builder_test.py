"""The builder at a tiny size: splits disjoint by identity, features and values those of the generator."""

import numpy as np
import pytest
import tensorflow_datasets as tfds

from tfface.faces import synthesize
from tfface.labels import GENDERS, UTKFACE_RACES

from . import synthetic_faces_dataset_builder as synthetic_faces

TINY = synthetic_faces.SyntheticFacesConfig(name="tiny", description="For tests.", count=20)


class SyntheticFacesTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features, splits without overlap."""

    DATASET_CLASS = synthetic_faces.Builder
    EXAMPLE_DIR = synthetic_faces.Builder.code_path.parent  # nothing is read from it
    BUILDER_CONFIG_NAMES_TO_TEST = [TINY]  # noqa: RUF012
    SPLITS = {"train": 14, "validation": 2, "test": 4}  # noqa: RUF012
    SKIP_CHECKSUMS = True  # nothing is downloaded


@pytest.fixture(scope="module")
def examples(tmp_path_factory):
    builder = synthetic_faces.Builder(config=TINY, data_dir=tmp_path_factory.mktemp("data"))
    builder.download_and_prepare()
    return {split: list(tfds.as_numpy(builder.as_dataset(split=split))) for split in builder.info.splits}


def test_no_identity_in_two_splits(examples):
    identities = [{example["identity"] for example in split} for split in examples.values()]
    assert sum(map(len, identities)) == len(set.union(*identities)) == 10


def test_examples_are_the_faces_of_the_generator(examples):
    for example in examples["test"]:
        identity, shot = example["key"].decode().split("_")
        face = synthesize.face(int(shot), identity=int(identity))
        assert example["age"] == face.age
        assert GENDERS[example["gender"]] == face.gender
        assert UTKFACE_RACES[example["race"]] == face.race
        np.testing.assert_array_equal(example["landmarks"], face.landmarks)
        difference = example["image"].astype(int) - face.image
        assert np.sqrt(np.mean(difference**2)) < 6  # JPEG


def test_landmarks_of_the_set_are_the_medians(examples):
    faces = [example for split in examples.values() for example in split]
    shares = [face["landmarks"] / face["image"].shape[1::-1] for face in faces]
    np.testing.assert_allclose(np.median(shares, axis=0), synthetic_faces.LANDMARKS, atol=0.03)


def test_the_homepage_is_not_that_of_photos_of_people():
    assert "fairface" not in synthetic_faces.Builder(config=TINY).info.homepage


def test_first_config_is_the_default():
    assert synthetic_faces.Builder.BUILDER_CONFIGS[0].count == 5_000
