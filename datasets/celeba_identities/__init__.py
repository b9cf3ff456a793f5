"""CelebA with identities, a TFDS data set."""
