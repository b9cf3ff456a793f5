"""The builder on drawn pictures of 12 people, one of whom has a single one, and a truncated file."""

import tensorflow_datasets as tfds

from . import casia_webface_dataset_builder as casia_webface


class ImagesTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features, splits without overlap."""

    DATASET_CLASS = casia_webface.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["images"]  # noqa: RUF012
    SPLITS = {"train": 28, "validation": 6}  # noqa: RUF012


class PairsTest(tfds.testing.DatasetBuilderTestCase):
    """Features of the pairs."""

    DATASET_CLASS = casia_webface.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["pairs"]  # noqa: RUF012
    SPLITS = {"validation": 12}  # noqa: RUF012
