"""The builder on drawn pictures of 12 people, one of whom has a single one."""

import tensorflow_datasets as tfds

from . import celeba_identities_dataset_builder as celeba_identities


class ImagesTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features, splits without overlap."""

    DATASET_CLASS = celeba_identities.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["images"]  # noqa: RUF012
    SPLITS = {"train": 28, "validation": 6}  # noqa: RUF012


class PairsTest(tfds.testing.DatasetBuilderTestCase):
    """Features of the pairs: two people with three images each make one fold of six and six."""

    DATASET_CLASS = celeba_identities.Builder
    BUILDER_CONFIG_NAMES_TO_TEST = ["pairs"]  # noqa: RUF012
    SPLITS = {"validation": 12}  # noqa: RUF012
