"""UTKFace, a TFDS data set."""
