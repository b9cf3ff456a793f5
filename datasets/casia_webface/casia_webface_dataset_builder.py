"""CASIA-WebFace: the usual training set of face recognition, 494,414 images of 10,575 people."""

from __future__ import annotations

from tfface.data import identities


class Builder(identities.IdentityBuilder):
    """Images of CASIA-WebFace, or pairs of them, by identity."""

    HOMEPAGE = "https://arxiv.org/abs/1411.7923"
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Give the folder that holds a folder for each identity (0000045/001.jpg, ...), as CASIA-WebFace was published "
        "or as its RecordIO file unpacks, as manual_dir; it may hold a list.txt of lines 'FILE IDENTITY'."
    )
