"""Predictions that look like those of a real model, small."""

import numpy as np
import pytest

from tfface import labels
from tfface.evaluation.evaluate import Predictions


@pytest.fixture(scope="session")
def predictions() -> Predictions:
    """400 people, five races of unlike number, every head of ARG."""
    random, n = np.random.default_rng(0), 400
    age = random.gamma(4, 9, n).astype(int).clip(1, 100)
    truth = {
        "gender": random.integers(0, 2, n),
        "race": random.choice(5, n, p=[0.42, 0.19, 0.15, 0.17, 0.07]),
        "age": age,
        "age_bins": labels.age_bin(age),
    }
    classes = {"gender": labels.GENDERS, "race": labels.UTKFACE_RACES, "age_bins": labels.ARG_AGES}
    probabilities = {}
    for task, names in classes.items():
        logits = random.normal(0, 1, (n, len(names)))
        logits[np.arange(n), truth[task]] += 2
        probabilities[task] = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    spread = 1 + 0.1 * age
    years = (age + random.normal(0, spread)).clip(0)
    key = np.array([f"{i}.jpg" for i in range(n)])
    return Predictions(key, truth, probabilities, classes, years, spread)
