"""RMFD: photos of people in real masks, to see whether what holds on drawn masks holds on real ones."""

from __future__ import annotations

from typing import ClassVar

import tensorflow as tf
import tensorflow_datasets as tfds

from tfface.data import aligned, originals
from tfface.errors import UserError
from tfface.faces.photos import SUFFIXES


class Builder(aligned.AlignableBuilder):
    """Masked faces, without identities."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar = {"1.0.0": "Every photo once."}
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get RWMFD_part_1 of the repository X-zhangyang/Real-World-Masked-Face-Dataset (for research) or some of its "
        "photos, unpack it and give the folder as manual_dir."
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=(None, None, 3)), "masked": tf.bool, "key": tfds.features.Text()}
            ),
            homepage="https://github.com/X-zhangyang/Real-World-Masked-Face-Dataset",
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = originals.manual_folder(dl_manager)
        paths = [path for path in originals.files_below(folder) if path.suffix.lower() in SUFFIXES]
        photos = [
            originals.Photo(originals.readable(path.relative_to(folder).as_posix()), path, True) for path in paths
        ]
        images, left_out = originals.distinct(photos)
        if not images:
            found = ", ".join(sorted(path.name for path in folder.iterdir())[:5])
            raise UserError(
                f"no photos in {folder}: expected the folders of RWMFD_part_1 (or their JPEG and PNG files), found "
                f"{found}; {len(photos)} files that are photos by name cannot be decoded; unpack RMFD again"
            )
        originals.log_left_out(self.info.full_name, len(images), left_out)
        self.info.metadata["left_out"] = left_out
        return self.aligned({"test": self._generate_examples(images)})

    def _generate_examples(self, images):
        for digest, photo in images.items():
            yield digest, {"image": self.image_of(photo), "masked": photo.labels, "key": photo.name}
