"""Answers for new photos: prediction here, exported files, TensorFlow Serving's folder and its client."""
