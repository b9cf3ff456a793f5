import keras
import numpy as np
import pytest

from tfface import tasks
from tfface.errors import UserError
from tfface.losses import AngularMarginLoss
from tfface.models import inception_resnet_v1, recognition_resnet
from tfface.models.recognition import load_backbone, recognition, with_feature_mask
from tfface.pruning import prune
from tfface.training.fit import precision

STAGES = ((1, 16), (1, 24), (1, 32), (1, 40))


def small(block="table1"):
    keras.utils.set_random_seed(0)
    return recognition_resnet(block, (48, 48, 3), 16, STAGES)


def faces(count=2):
    return np.random.default_rng(0).uniform(0, 255, (count, 48, 48, 3)).astype("float32")


@pytest.mark.parametrize("block", ["table1", "ir"])
def test_embeddings_have_length_1(block):
    np.testing.assert_allclose(np.linalg.norm(small(block)(faces()), axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("block", ["table1", "ir"])
def test_a_mask_that_keeps_everything_changes_nothing(block):
    backbone = small(block)
    before = np.asarray(backbone(faces()))
    masked = with_feature_mask(backbone)
    last = masked.get_layer("mask_conv2")
    last.set_weights([np.zeros_like(last.kernel), np.full(last.bias.shape, 30.0)])  # sigmoid(30) is 1
    np.testing.assert_allclose(masked(faces()), before, atol=1e-5)


def test_facenet_takes_a_mask_that_begins_open():
    keras.utils.set_random_seed(0)
    backbone = inception_resnet_v1((96, 80, 3), normalize=True)
    masked = with_feature_mask(backbone)
    assert masked.get_layer("mask").output.shape == backbone.get_layer("Block8_6_ScaleSum").output.shape
    images = np.random.default_rng(0).uniform(0, 255, (2, 96, 80, 3)).astype("float32")
    mask = keras.Model(masked.input, masked.get_layer("mask").output)(images)
    assert 0.85 < float(keras.ops.mean(mask)) < 1
    cosines = keras.ops.sum(masked(images) * backbone(images), axis=1)
    assert float(keras.ops.min(cosines)) > 0.98
    backbone.trainable = False  # only what the mask adds learns: half the time to trace
    model = recognition(masked, (tasks.embedding(128), tasks.occlusion_pattern(101)))
    model.compile("sgd", {"embedding": "mse", "pattern": "mse"})  # padded maps once ended the process in this step
    taught = {"embedding": np.ones((2, 128), "float32"), "pattern": np.ones((2, 101), "float32")}
    assert np.isfinite(model.train_on_batch(images, taught)).all()


def test_a_masked_backbone_keeps_its_mask():
    masked = with_feature_mask(small())
    assert with_feature_mask(masked) is masked


def test_a_backbone_without_stages_takes_none():
    image = keras.Input((48, 48, 3))
    with pytest.raises(UserError, match="stages of table1, ir or facenet"):
        with_feature_mask(keras.Model(image, keras.layers.GlobalAveragePooling2D()(image)))


def test_a_pruned_file_takes_a_mask_and_another_size(tmp_path):
    pruned = prune(small(), 0.5)
    pruned.save(tmp_path / "pruned.keras")
    loaded = load_backbone(str(tmp_path / "pruned.keras"), (48, 48, 3))
    np.testing.assert_allclose(loaded(faces()), pruned(faces()), atol=1e-6)
    assert loaded.count_params() < 0.5 * small().count_params()
    wider = load_backbone(str(tmp_path / "pruned.keras"), (64, 48, 3))
    assert with_feature_mask(wider).get_layer("mask").output.shape[-1] == loaded.get_layer("stage4").output.shape[-1]


def test_a_file_computes_in_the_policy_of_the_day(tmp_path):
    small().save(tmp_path / "float32.keras")
    file, images = str(tmp_path / "float32.keras"), faces()
    exact = load_backbone(file, (48, 48, 3))
    with precision("mixed_bfloat16"):
        mixed = load_backbone(file, (48, 48, 3))
    assert mixed.get_layer("stage1").compute_dtype == "bfloat16"
    assert mixed.output.dtype == exact.output.dtype == "float32"
    difference = np.abs(np.asarray(mixed(images)) - np.asarray(exact(images))).max()
    assert 0 < difference < 0.05
    mixed.save(tmp_path / "mixed.keras")
    again = load_backbone(str(tmp_path / "mixed.keras"), (48, 48, 3))
    np.testing.assert_allclose(again(images), exact(images), atol=1e-6)


@pytest.mark.parametrize(("written", "now"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_network_within_a_file_computes_in_the_policy_of_the_day(tmp_path, written, now):
    policies = {"float32": "float32", "bfloat16": "mixed_bfloat16"}
    with precision(policies[written]):
        flat = keras.layers.Flatten()
        inner = keras.Sequential([keras.Input((8, 8, 3)), flat, keras.layers.Dense(4, name="dense")], name="inner")
        image = keras.Input((8, 8, 3))
        output = keras.layers.UnitNormalization(dtype="float32", name="embedding")(inner(image))
        network = keras.Model(image, output)
    network.save(tmp_path / "nested.keras")
    with precision(policies[now]):
        loaded = load_backbone(str(tmp_path / "nested.keras"), (8, 8, 3))
    dense = loaded.get_layer("inner").get_layer("dense")
    assert dense.compute_dtype == now
    np.testing.assert_array_equal(dense.kernel, inner.get_layer("dense").kernel)


def test_training_outputs_stand_beside_the_embedding():
    model = recognition(
        with_feature_mask(small()), (tasks.identity(7, AngularMarginLoss()), tasks.occlusion_pattern(101))
    )
    shapes = {name: output.shape for name, output in model.output.items()}
    assert shapes == {"embedding": (None, 16), "identity": (None, 7), "pattern": (None, 101)}


def test_what_cannot_be_is_refused(tmp_path):
    with pytest.raises(UserError, match="table1, ir, facenet"):
        load_backbone("resnet", (48, 48, 3))
    with pytest.raises(UserError, match="set masked=True"):
        recognition(small(), (tasks.occlusion_pattern(101),))
    (tmp_path / "damaged.keras").write_bytes(b"PK")
    with pytest.raises(UserError, match="cannot be read"):
        load_backbone(str(tmp_path / "damaged.keras"))
    flattened = [keras.Input((4, 4, 3)), keras.layers.Flatten(), keras.layers.Dense(2, name="embedding")]
    keras.Sequential(flattened).save(tmp_path / "flattened.keras")
    with pytest.raises(UserError, match=r"flattened\.keras takes no input of \(6, 4, 3\)"):
        load_backbone(str(tmp_path / "flattened.keras"), (6, 4, 3))
    with pytest.raises(ValueError, match="multiples of 16"):
        recognition_resnet("table1", (50, 48, 3))


def test_a_normalization_of_a_file_is_kept_at_another_size(tmp_path):
    image = keras.Input((16, 16, 3))
    scaled = keras.layers.Normalization()
    scaled.adapt(np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)))
    x = keras.layers.Conv2D(4, 3)(scaled(image))
    x = keras.layers.GlobalAveragePooling2D(name="embedding")(x)
    model = keras.Model(image, x)
    model.save(tmp_path / "network.keras")
    images = np.random.default_rng(1).uniform(0, 255, (2, 24, 24, 3)).astype("float32")
    other = load_backbone(str(tmp_path / "network.keras"), (24, 24, 3))
    expected = other.layers[-1](model.layers[2](model.layers[1](images)))
    np.testing.assert_allclose(other(images), expected, rtol=1e-4)
