"""Paper 1's network: its blocks, its counts, and the weights that it takes over from a ResNet50."""

import keras
import numpy as np
import pytest

from tfface import labels, tasks
from tfface.faces import synthesize
from tfface.models import applications, tcgf_resnet
from tfface.models.tcgf_resnet import open_attention
from tfface.training.fit import precision
from tfface.training.run import carry_weights

RACE = (tasks.classification("race", tuple(labels.GROUPINGS["four_races"][1])),)
SHAPE = (32, 32, 3)


@pytest.fixture(scope="module")
def network():
    return tcgf_resnet(RACE, SHAPE)


def test_parameters(network):
    # An identity block of C channels: an MLP C -> C/16 -> C with biases, a 7x7 convolution of two maps.
    blocks = ((256, 2), (512, 3), (1024, 5), (2048, 2))
    attention = sum(n * (2 * c * c // 16 + c // 16 + c + 2 * 49) for c, n in blocks)
    assert network.count_params() == 23_595_908 + attention + 4 * 2048  # the maximum beside the average


def test_every_activation_is_gelu(network):
    activations = [layer for layer in network.layers if isinstance(layer, keras.layers.Activation)]
    kinds = [layer.activation.__name__ for layer in activations]
    assert kinds.count("gelu") == 49
    assert set(kinds) == {"gelu", "softmax"}
    relu = tcgf_resnet(RACE, SHAPE, activation="relu")
    assert [w.shape for w in relu.weights] == [w.shape for w in network.weights]


def test_attention_stands_between_the_last_norm_and_the_addition(network):
    adds = [layer for layer in network.layers if isinstance(layer, keras.layers.Add)]
    before = [[tensor._keras_history.operation.name for tensor in layer.input] for layer in adds]
    attended = [any(name.endswith("attention_spatial") for name in names) for names in before]
    assert len(adds) == 16
    assert sum(attended) == 12
    assert not any(hit for layer, hit in zip(adds, attended, strict=True) if "block1_" in layer.name)
    assert not any("attention" in layer.name for layer in tcgf_resnet(RACE, SHAPE, attention=False).layers)


def test_it_starts_undecided(network):
    faces = np.stack([synthesize.face(seed, size=32).image for seed in range(16)]).astype("float32")
    assert np.asarray(network(faces, training=True)["race"]).max() < 0.4


def test_a_grey_image_is_as_good_as_its_coloured_one(network):
    pixels = np.random.default_rng(0).integers(0, 256, (2, *SHAPE)).astype("float32")
    grey = (pixels @ np.array([0.299, 0.587, 0.114], "float32"))[..., None].repeat(3, -1)
    np.testing.assert_allclose(network(pixels)["race"], network(grey)["race"], atol=1e-5)


def test_all_convolutions_of_a_resnet50_are_carried(network, tmp_path):
    source = applications("ResNet50", RACE, SHAPE)
    random = np.random.default_rng(0)
    for weight in source.weights:
        weight.assign(random.normal(size=weight.shape))
    source.save(tmp_path / "source.keras")
    carried, fresh = carry_weights(network, tmp_path / "source.keras")
    kinds = [type(network.get_layer(name)).__name__ for name in carried]
    assert kinds.count("Conv2D") == kinds.count("BatchNormalization") == 53
    assert len(kinds) == 106
    # What is new: the attention, and a classifier that sees the maximum too.
    assert [name for name in fresh if "attention" not in name] == ["race_logits"]
    assert len(fresh) == 2 * 12 + 1
    for name in carried:
        for mine, theirs in zip(
            network.get_layer(name).get_weights(), source.get_layer(name).get_weights(), strict=True
        ):
            np.testing.assert_array_equal(mine, theirs)


def test_bfloat16_trains_to_the_same_loss():
    # float16 is checked on a smaller network in tests/training/test_precision.py: CPUs compute it very slowly.
    pixels = np.random.default_rng(0).uniform(0, 255, (8, *SHAPE)).astype("float32")
    truth = {"race": np.eye(4, dtype="float32")[np.arange(8) % 4]}
    losses = {}
    for policy in ("float32", "mixed_bfloat16"):
        with precision(policy):
            keras.utils.set_random_seed(0)
            model = tcgf_resnet(RACE, SHAPE, depth=18)
        # Three steps take less time than their graph takes to be traced.
        model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "categorical_crossentropy", run_eagerly=True)
        losses[policy] = model.fit(pixels, truth, batch_size=8, epochs=3, shuffle=False, verbose=0).history["loss"]
    assert losses["float32"][-1] < losses["float32"][0] / 2
    assert losses["mixed_bfloat16"][0] == pytest.approx(losses["float32"][0], rel=0.05)
    assert losses["mixed_bfloat16"][-1] == pytest.approx(losses["float32"][-1], abs=0.03)


def test_open_attention_says_what_the_carried_network_said():
    """With the fresh attention open, the features are those of the same network without attention, to rounding."""
    plain, network = (tcgf_resnet(RACE, SHAPE, attention=attention) for attention in (False, True))
    random = np.random.default_rng(0)
    for layer in plain.layers:
        if isinstance(layer, keras.layers.BatchNormalization):  # as after training: no two channels alike
            layer.set_weights([random.uniform(0.5, 1.5, weight.shape) for weight in layer.get_weights()])
    for layer in plain.layers:
        if layer.weights:
            network.get_layer(layer.name).set_weights(layer.get_weights())
    fresh = [layer.name for layer in network.layers if "attention" in layer.name]
    pixels = random.uniform(0, 255, (2, *SHAPE)).astype("float32")
    before = keras.Model(plain.input, plain.get_layer("features").output)(pixels)
    after = keras.Model(network.input, network.get_layer("features").output)
    assert np.abs(after(pixels) - before).max() > 0.1 * np.abs(before).max()
    open_attention(network, fresh)
    np.testing.assert_allclose(after(pixels), before, rtol=1e-3, atol=1e-4 * np.abs(before).max())
    with pytest.raises(ValueError, match="alone"):
        open_attention(network, fresh[:1])
