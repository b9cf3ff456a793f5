"""Pairs of Labeled Faces in the Wild, a TFDS data set."""
