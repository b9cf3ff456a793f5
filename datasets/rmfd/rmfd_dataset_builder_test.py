"""The builder on drawn pictures, one of them twice."""

import tensorflow_datasets as tfds

from . import rmfd_dataset_builder as rmfd


class RMFDTest(tfds.testing.DatasetBuilderTestCase):
    """Registration, tags, features."""

    DATASET_CLASS = rmfd.Builder
    SPLITS = {"test": 4}  # noqa: RUF012
