"""Any folder of class folders, a TFDS data set."""
