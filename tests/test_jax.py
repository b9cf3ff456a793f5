"""Models, layers, losses, metrics and optimizers on Keras' JAX backend, in a process of its own."""

import os
import subprocess
import sys

CHECK = """
import sys
from unittest import mock
import jax, keras, numpy as np
from tfface.losses import AgeDistributionLoss
from tfface.metrics import MeanAgeError
from tfface.models import MODELS
from tfface.optimizers import DiscriminativeAdam

assert keras.backend.backend() == "jax"
truth, said = np.array([[0.0, 1.0, 0.0]], "float32"), np.array([[0.2, 0.5, 0.3]], "float32")
assert abs(float(AgeDistributionLoss([10, 20, 30])(truth, said)) - 0.793147) < 1e-5
metric = MeanAgeError([10, 20, 30])
metric.update_state(truth, said)
assert abs(float(metric.result()) - 1.0) < 1e-5
rng = np.random.default_rng(0)

def drawn(key, shape, dtype="float32", **_):
    return jax.numpy.asarray(rng.uniform(-0.1, 0.1, shape), dtype)

# JAX compiles its generators anew for every shape of a weight, minutes for all: NumPy draws them.
quick = mock.patch.multiple(jax.random, truncated_normal=drawn, uniform=drawn)
for name, build in MODELS.items():
    keras.utils.set_random_seed(0)
    with quick:
        model = build()  # JAX traces every layer: what it cannot compute fails here
    if name not in sys.argv[2:]:
        continue
    images = rng.uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
    outputs = model.output if isinstance(model.output, dict) else {"output": model.output}
    targets = {key: np.full((2, *value.shape[1:]), 1 / value.shape[-1], "float32") for key, value in outputs.items()}
    targets = targets if isinstance(model.output, dict) else targets["output"]
    low = next(layer for layer in model.layers if layer.weights)
    before = np.asarray(low.weights[0])
    model.compile(DiscriminativeAdam(1e-3, factors={low.name: 0.0}), "mse")
    history = model.fit(images, targets, batch_size=2, verbose=0)
    assert np.isfinite(history.history["loss"][0]), name
    np.testing.assert_array_equal(np.asarray(low.weights[0]), before)
    model.save(sys.argv[1] + f"/{name}.keras")
    print(name, "ok")
"""


TRAINED = ("multitask_cnn",)
"""Those that are trained and saved too: JAX compiles the steps of each, minutes for all of them."""


def test_networks_train_on_jax_and_load_under_tensorflow(tmp_path):
    import keras
    import numpy as np

    result = subprocess.run(
        [sys.executable, "-c", CHECK, str(tmp_path), *TRAINED],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    for name in TRAINED:
        model = keras.saving.load_model(tmp_path / f"{name}.keras", compile=False)
        outputs = model(np.zeros((1, *model.input_shape[1:]), "float32"))
        for values in outputs.values() if isinstance(outputs, dict) else [outputs]:
            assert np.isfinite(np.asarray(values)).all()
