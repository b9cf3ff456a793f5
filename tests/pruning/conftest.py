"""What every test of pruning needs: values that hide no fault, and the check that a cut is exact."""

import keras
import numpy as np
import pytest

from tfface import pruning


def _fill(model, seed=0):
    generator = np.random.default_rng(seed)
    for variable in model.weights:
        if len(variable.shape) == 1:  # biases and offsets start at 0 and scales at 1, which would hide a wrong index
            positive = any(part in variable.path for part in ("gamma", "variance", "scale"))
            low, high = (0.5, 1.5) if positive else (-0.5, 0.5)
            variable.assign(generator.uniform(low, high, variable.shape))
    return model


def _halves(model, groups):
    return pruning.choose(groups, pruning.importance(model, groups, "random"), 0.5, multiple_of=1)


def _distance(one, other):
    pairs = zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def _check_exact(model, inputs=None, keep=None, **options):
    """Cut half of every group of a model, compare with the silenced model, return the smaller one and the groups."""
    _fill(model)
    if inputs is None:
        generator = np.random.default_rng(1)
        inputs = [generator.normal(size=(2, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
        inputs = inputs if len(inputs) > 1 else inputs[0]
    groups = pruning.channel_groups(model, **options)
    assert groups, "nothing to cut: the test would be empty"
    keep = _halves(model, groups) if keep is None else keep
    weights = [keras.ops.convert_to_numpy(variable).copy() for variable in model.weights]
    before = model(inputs)
    smaller = pruning.cut(model, keep, groups)
    for variable, value in zip(model.weights, weights, strict=True):
        np.testing.assert_array_equal(variable, value)
    pruning.silence(model, keep, groups)
    assert _distance(before, model(inputs)) > 1e-3, "silence changes nothing: the test could not fail"
    after = smaller(inputs)
    keras.tree.assert_same_structure(before, after)
    assert _distance(model(inputs), after) < 1e-4
    assert smaller.count_params() < model.count_params()
    assert [layer.name for layer in smaller.layers] == [layer.name for layer in model.layers]
    return smaller, groups


@pytest.fixture(scope="session")
def check_exact():
    return _check_exact


@pytest.fixture(scope="session")
def fill():
    return _fill
