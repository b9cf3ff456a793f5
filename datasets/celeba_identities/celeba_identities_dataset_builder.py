"""CelebA's photos in the wild with its identities, whole or in part.

TFDS' own `celeb_a` has the aligned crops and their attributes, without identities.
"""

from __future__ import annotations

from tfface.data import identities


class Builder(identities.IdentityBuilder):
    """Images of CelebA, or pairs of them, by identity."""

    LISTS = ("identity_CelebA.txt", "Anno/identity_CelebA.txt")
    IMAGES = ("img_celeba", "Img/img_celeba")
    HOMEPAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Get identity_CelebA.txt and the images in the wild of CelebA (img_celeba.7z, or some of them), unpack them "
        "and give the folder that holds identity_CelebA.txt and img_celeba (or Anno and Img) as manual_dir."
    )
