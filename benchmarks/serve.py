"""Exported networks against onnxruntime, side by side: images a second, and what each step of the export brings.

    python benchmarks/serve.py [--networks ResNet50 facenet] [--batches 1 32] [--csv benchmarks/serve.csv]

Every network is written to disk in each of the ways, loaded again as a user would, and called on the same images; all
take turns in one run, so that whatever else the machine does slows all of them, and of the repeats the best counts.
Besides the time by the clock stands the processor time of all threads, which a busy machine disturbs less. `ratio` is
the throughput over onnxruntime's (default options, the ONNX file of Keras' own exporter, which onnxruntime optimises
when it loads it). `error` is the greatest difference from the Keras model's outputs, over the greatest of them. Weights
are random, statistics of batch norms and biases as a training could have left them. A call comes alone, after a pause,
unless `--in-a-row` lets several follow. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from tfface import labels, models, tasks
from tfface.files import written_aside
from tfface.serving import optimize

GENDER = (tasks.classification("gender", labels.GENDERS),)

NETWORKS = {
    "ResNet50": lambda: keras.applications.ResNet50(weights=None, classifier_activation=None),
    "resnet34": lambda: models.resnet(GENDER, 34),
    "resnet50": lambda: models.resnet(GENDER, 50),
    "facenet": lambda: models.inception_resnet_v1(),
}
"""Capitals: of keras.applications. All at 224 pixels but facenet, at 160."""


def unsettled(model: keras.Model) -> keras.Model:
    """The model with statistics in its batch norms, and biases, that a training could have left.

    TensorFlow drops an addition of zeros when it loads a file, and then no longer recognises convolution, bias,
    residual addition and ReLU as one operation: FaceNet with untrained biases is slower than trained.
    """
    draw = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(draw.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(draw.uniform(0.5, 2, layer.moving_mean.shape))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(draw.normal(0, 0.1, layer.bias.shape))
    return model


def write_saved_model(function: Callable, model: keras.Model, folder: Path) -> None:
    archive = keras.export.ExportArchive()
    archive.add_endpoint("serving_default", function, [tf.TensorSpec(model.input.shape, tf.float32, name="images")])
    archive.write_out(str(folder), verbose=False)


def write_keras(model, folder):
    write_saved_model(lambda images: model(images, training=False), model, folder)


def write_tfface(model, folder, bfloat16=False, fold=True, xla=False):
    network = optimize.join(optimize.fold(model, bfloat16)) if fold else model
    spec = tf.TensorSpec(model.input.shape, tf.float32)
    function = optimize.freeze(lambda images: network(images, training=False), [spec])
    write_saved_model(tf.function(function, jit_compile=True) if xla else function, model, folder)


def write_onnx(model, folder):
    folder.mkdir()
    model.export(folder / "model.onnx", format="onnx", verbose=False)


def load(folder: Path, threads: int | None = None) -> Callable:
    """What was written, as a function of an array of images that gives an array."""
    if (folder / "model.onnx").exists():
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or os.cpu_count()
        session = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {session.get_inputs()[0].name: images})[0]
    served = tf.saved_model.load(str(folder))
    # `served` must live as long as its signature does.
    signature = served.signatures["serving_default"]
    return lambda images, served=served: next(iter(signature(images=tf.constant(images)).values())).numpy()


WAYS = {
    "onnxruntime": write_onnx,
    "keras": write_keras,
    "folded": lambda model, folder: write_keras(optimize.fold(model), folder),
    "frozen": lambda model, folder: write_tfface(model, folder, fold=False),
    "tfface": write_tfface,
    "tfface-xla": lambda model, folder: write_tfface(model, folder, xla=True),
    "tfface-bfloat16": lambda model, folder: write_tfface(model, folder, bfloat16=True),
}
"""How a network is exported -> a function of a Keras model and a folder that writes it there. `keras` is what Keras'
own exporter writes; `tfface` is folded, joined and frozen."""


def prepared(
    network: str, ways: list[str], folder: Path, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray, dict[str, Callable]]:
    """Write what is not in the folder yet and load it: images, the model's outputs of the first, way -> function."""
    images, outputs = folder / "images.npy", folder / "outputs.npy"
    missing = [way for way in ways if not (folder / way).exists()]
    if missing:
        keras.utils.set_random_seed(0)  # the same weights, where others of its files are there already
        model = unsettled(NETWORKS[network]())
        folder.mkdir(parents=True, exist_ok=True)
        if not outputs.exists():
            np.save(images, np.random.default_rng(1).uniform(0, 255, (32, *model.input_shape[1:])).astype("float32"))
            np.save(outputs, keras.tree.flatten(model.predict(np.load(images)[:4], verbose=0))[0])
        for way in missing:
            with written_aside(folder / way) as aside:
                WAYS[way](model, aside)
    return np.load(images), np.load(outputs), {way: load(folder / way, threads) for way in ways}


def measure(
    ways: dict[str, Callable], images: np.ndarray, repeats: int, in_a_row: int
) -> dict[str, tuple[float, float]]:
    """Way -> the least seconds of a batch by the clock, and the least processor time, the ways taking turns."""
    spent = {way: [] for way in ways}
    for number in range(repeats + 1):
        for way, call in ways.items():
            time.sleep(0.05)  # onnxruntime's threads spin for a while after a call, which would slow the next one
            for _ in range(in_a_row):
                clock, processor = time.perf_counter(), time.process_time()
                call(images)
                if number:
                    spent[way].append((time.perf_counter() - clock, time.process_time() - processor))
    return {way: tuple(map(min, zip(*rounds, strict=True))) for way, rounds in spent.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="up to 32")
    parser.add_argument("--repeats", type=int, default=5, help="of the largest batch; smaller ones are repeated more")
    parser.add_argument(
        "--in-a-row",
        type=int,
        default=1,
        metavar="N",
        help="calls after each pause: 1 a lone request, 10 a busy server",
    )
    parser.add_argument(
        "--threads",
        type=int,
        default=os.cpu_count(),
        help="that share one operation (TensorFlow's intra-op parallelism)",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep what is exported here, and take what is here")
    parser.add_argument("--csv", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(arguments.threads)
    about = f"{os.cpu_count()} CPU cores, {arguments.threads} threads, TensorFlow {tf.__version__}"
    print(about, flush=True)
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for network in arguments.networks:
            folder = (arguments.keep or Path(temporary)) / network
            images, expected, ways = prepared(network, arguments.ways, folder, arguments.threads)
            scale = np.abs(expected).max()
            error = {way: np.abs(call(images[:4]) - expected).max() / scale for way, call in ways.items()}
            for batch in arguments.batches:
                repeats = arguments.repeats * (1 if batch == max(arguments.batches) else 6)
                measured = measure(ways, images[:batch], repeats, arguments.in_a_row)
                best = measured.get("onnxruntime", (float("nan"),) * 2)
                for way, (clock, processor) in measured.items():
                    rows.append(
                        {
                            "network": network,
                            "batch": batch,
                            "exported": way,
                            "ms": round(clock * 1e3, 1),
                            "images a second": round(batch / clock, 1),
                            "ratio": round(best[0] / clock, 3),
                            "ms, processor": round(processor * 1e3, 1),
                            "ratio, processor": round(best[1] / processor, 3),
                            "error": f"{error[way]:.1e}",
                        }
                    )
                    print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.csv:
        with written_aside(arguments.csv) as aside, aside.open("w", newline="") as stream:
            stream.write(f"# python benchmarks/serve.py ({about}; see its docstring)\n")
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
