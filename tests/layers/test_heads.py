import keras
import numpy as np

from tfface import tasks
from tfface.layers import task_heads
from tfface.training.fit import precision


def test_an_age_begins_plausible_and_classes_begin_alike_in_float32():
    features = keras.Input((4,))
    with precision("mixed_float16"):
        heads = task_heads(features, (tasks.age_exact(), tasks.classification("race", tuple("abcd"))))
        said = keras.Model(features, heads)(np.zeros((1, 4)))
    assert said["age"].dtype == said["race"].dtype == "float32"
    np.testing.assert_allclose(said["age"], [[35.0]])
    np.testing.assert_allclose(said["race"], [[0.25] * 4])
