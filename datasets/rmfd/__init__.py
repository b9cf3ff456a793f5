"""Photos of people in real masks, a TFDS data set."""
