"""Synthetic faces as a TFDS data set: nothing to download, every label true by construction."""

from __future__ import annotations

import dataclasses

import numpy as np
import tensorflow_datasets as tfds

from tfface.faces import synthesize
from tfface.labels import GENDERS, UTKFACE_RACES

SHOTS = 2
"""Pictures of each identity, so that pairs of the same person exist."""

FIRST_IDENTITY = {"train": 0, "validation": 1_000_000, "test": 2_000_000}
"""Splits draw their identities from ranges of their own: no one stands in two of them, in any config."""

LANDMARKS = [[0.3664, 0.4494], [0.6320, 0.4502], [0.5009, 0.5914], [0.3797, 0.7210], [0.6231, 0.7225]]
"""Where left eye, right eye, nose and mouth corners lie, as shares of width and height: medians over 300 faces. Faces
of photos are aligned to them before a model that learnt from this set predicts them."""

SHARE = {"train": 0.7, "validation": 0.1, "test": 0.2}


@dataclasses.dataclass(kw_only=True)
class SyntheticFacesConfig(tfds.core.BuilderConfig):
    """How many pictures: `count` over all splits."""

    count: int = 5_000


class Builder(tfds.core.GeneratorBasedBuilder):
    """Faces of nobody from `tfface.faces.synthesize`, with the features of the UTKFace builder and more truth."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First release."}  # noqa: RUF012 (TFDS' own interface)
    BUILDER_CONFIGS = [  # noqa: RUF012
        SyntheticFacesConfig(name="5k", description="5,000 pictures of 2,500 identities.", count=5_000),
        SyntheticFacesConfig(name="small", description="600 pictures of 300 identities.", count=600),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
                    "age": np.int32,
                    "gender": tfds.features.ClassLabel(names=GENDERS),
                    "race": tfds.features.ClassLabel(names=UTKFACE_RACES),
                    "key": tfds.features.Text(),
                    "identity": np.int64,
                    "yaw": np.float32,
                    "landmarks": tfds.features.Tensor(shape=(5, 2), dtype=np.float32),
                }
            ),
            supervised_keys=None,
            metadata=tfds.core.MetadataDict(landmarks=LANDMARKS),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        del dl_manager
        return {
            split: self._generate_examples(FIRST_IDENTITY[split], round(share * self.builder_config.count))
            for split, share in SHARE.items()
        }

    def _generate_examples(self, first_identity, count):
        pairs = [(first_identity + i // SHOTS, i % SHOTS) for i in range(count)]
        # A few hundred are drawn before other processes would have started.
        for (identity, shot), face in zip(pairs, synthesize.pictures(pairs, 1 if count < 500 else None), strict=True):
            key = f"{identity:07d}_{shot}"
            yield (
                key,
                {
                    "image": face.image,
                    "age": face.age,
                    "gender": face.gender,
                    "race": face.race,
                    "key": key,
                    "identity": face.identity,
                    "yaw": face.yaw,
                    "landmarks": face.landmarks,
                },
            )
