"""BUPT-Balancedface, a TFDS data set."""
