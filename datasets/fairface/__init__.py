"""FairFace, a TFDS data set."""
