"""Synthetic faces, a TFDS data set."""
