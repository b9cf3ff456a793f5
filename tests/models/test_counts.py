"""The networks of the papers at full size: their counts of parameters, published or worked out by hand."""

import itertools

import keras
import numpy as np
import pytest

from tfface import labels, tasks
from tfface.models import alexnet, applications, densenet, multitask_cnn, recognition_resnet, resnet, rnet
from tfface.pruning import multiply_adds

THREE = (
    tasks.classification("age_group", labels.FAIRFACE_AGES),
    tasks.classification("gender", labels.GENDERS),
    tasks.classification("race", labels.FAIRFACE_RACES),
)
ONE = (tasks.classification("gender", labels.GENDERS),)
RACE = (tasks.classification("race", tuple(labels.GROUPINGS["four_races"][1])),)
IMAGENET = (tasks.classification("class", tuple(map(str, range(1000)))),)


def trainable(model):
    """What other libraries call the number of parameters: without the moving statistics of batch norms."""
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


def test_multitask_cnn_has_the_papers_count():
    model = multitask_cnn(THREE)
    assert 35_250_000 < model.count_params() < 35_350_000
    # Three branches on 8 * 8 * 512 features take most of it.
    branches = 3 * (8 * 8 * 512 * 256 + 256) + (256 + 1) * (9 + 2 + 7)
    convolutions = sum(9 * a * b + b for a, b in ((3, 64), (64, 128), (128, 512), *[(512, 512)] * 4))
    assert trainable(model) == branches + convolutions + 2 * (64 + 128 + 5 * 512)


@pytest.mark.parametrize(
    ("network", "published", "billions"),
    [
        (lambda heads: resnet(heads, 34), 21.8e6, 3.66),
        (densenet, 28.7e6, 7.73),
        (alexnet, 61.1e6, 0.71),
        (lambda heads: applications("MobileNetV2", heads), 3.5e6, 0.30),
    ],
    ids=["resnet34", "densenet161", "alexnet", "mobilenetv2"],
)
def test_baselines_of_paper_2_with_their_original_heads(network, published, billions):
    """Parameters, and multiply-adds as torchvision's documentation prints them, which strides and pools decide."""
    model = network(IMAGENET)
    assert trainable(model) == pytest.approx(published, rel=0.005)
    assert multiply_adds(model) == pytest.approx(billions * 1e9, abs=0.0051e9)


def test_densenet161_with_three_heads_has_the_count_that_paper_2_prints():
    assert trainable(densenet(THREE)) == pytest.approx(26.6e6, rel=0.005)


@pytest.mark.parametrize(
    ("depth", "millions"), [(10, 5.42), (18, 11.69), (34, 21.80), (50, 25.56), (101, 44.55), (152, 60.19)]
)
def test_resnets_have_their_known_counts(depth, millions):
    assert trainable(resnet(IMAGENET, depth)) == pytest.approx(millions * 1e6, abs=5e3)


def test_resnet34_with_two_classes():
    assert trainable(resnet(ONE, 34)) == 21_285_698


def test_the_plain_network_lacks_the_projections_only():
    projections = 64 * 128 + 128 * 256 + 256 * 512 + 2 * (128 + 256 + 512)
    plain = resnet(ONE, 34, shortcuts=False)
    assert trainable(plain) == 21_285_698 - projections
    assert not any(isinstance(layer, keras.layers.Add) for layer in plain.layers)


def test_resnet50_is_that_of_keras_applications():
    theirs = keras.applications.ResNet50(weights=None, classes=4, input_shape=(64, 64, 3))
    ours = resnet((tasks.classification("race", tuple("abcd")),), 50, (64, 64, 3), use_bias=True)
    assert ours.count_params() == theirs.count_params() == 23_595_908
    random = np.random.default_rng(0)
    values = [random.normal(1 if w.path.endswith(("gamma", "variance")) else 0, 0.02, w.shape) for w in ours.weights]
    theirs.set_weights(values)
    ours.set_weights(values)
    pixels = random.uniform(0, 255, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(ours(pixels)["race"], theirs(pixels / 127.5 - 1), atol=1e-6)


@pytest.mark.parametrize(
    ("network", "count"), [("ResNet50", 23_595_908), ("MobileNet", 3_232_964), ("VGG16", 14_716_740)]
)
def test_baselines_of_paper_1_with_four_classes(network, count):
    model = applications(network, RACE, (64, 64, 3))
    assert model.count_params() == count
    # All networks of a table forget their batch norms' first values alike.
    momenta = {layer.momentum for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert momenta == (set() if network == "VGG16" else {0.9})


def test_rnet_by_hand():
    widths = (1, 32, 32, 64, 64, 128, 128)
    convolutions = sum(9 * a * b + 4 * b for a, b in itertools.pairwise(widths))
    assert rnet(RACE).count_params() == convolutions + (5 * 5 * 128 + 1) * 256 + (256 + 1) * 4


def test_attention_stands_in_the_identity_blocks_only():
    seen = []

    def attention(x, name):
        seen.append(name)
        return x

    resnet(ONE, 50, (64, 64, 3), attention=attention)
    assert len(seen) == 12
    assert not any("block1_" in name for name in seen)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: resnet(ONE, 33),
        lambda: resnet(ONE, pooling=("mean",)),
        lambda: resnet(ONE, attention=lambda x, name: x, shortcuts=False),
        lambda: multitask_cnn(ONE, (4, 4, 3)),
        lambda: multitask_cnn(()),
        lambda: alexnet(ONE, (32, 32, 3)),
        lambda: applications("NASNet", ONE),
        lambda: rnet(ONE, (4, 40, 3)),
    ],
)
def test_bad_arguments_are_named(wrong):
    with pytest.raises(ValueError, match="Received"):
        wrong()


@pytest.mark.parametrize(("block", "count"), [("table1", 9_361_344), ("ir", 41_793_472)])
def test_recognition_resnet_has_its_papers_count(block, count):
    """9.4 million by table 1 of paper 5, 41.8 of LResNet50E-IR; table1's convolutions by hand."""
    assert recognition_resnet(block).count_params() == count
    if block == "table1":
        pairs = [(c, max(c // 2, 64), before) for c, before in ((64, 64), (128, 64), (256, 128), (512, 256))]
        by_hand = 9 * 3 * 64 + sum(
            before * c * (before != c) + before * narrow + c * narrow * (n - 1) + n * 9 * narrow * c
            for (c, narrow, before), n in zip(pairs, (3, 4, 14, 3), strict=True)
        )
        kernels = [w for w in recognition_resnet(block).weights if w.path.endswith("conv/kernel")]
        assert sum(int(np.prod(kernel.shape)) for kernel in kernels) == by_hand


def test_the_mask_has_the_shape_of_the_last_maps():
    from tfface.models.recognition import with_feature_mask

    masked = with_feature_mask(recognition_resnet("table1"))
    assert masked.get_layer("mask").output.shape == (None, 7, 6, 512)
