"""CASIA-WebFace, a TFDS data set."""
