"""tfface: face analysis with Keras 3 and TensorFlow: train, verify, shrink and serve.

Importing this package imports neither TensorFlow nor Keras; the modules below it do when they are needed.
"""

__version__ = "0.1.0"
