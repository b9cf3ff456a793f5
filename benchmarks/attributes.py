"""tfface beside what users run for the same: attributes, embeddings, a training step; one table, one run, one machine.

    python3 -m venv peers && peers/bin/pip install torch torchvision requests pillow tqdm
    peers/bin/pip install --no-deps facenet-pytorch  # it names an older PyTorch than it needs
    python benchmarks/attributes.py --peers peers/bin/python --csv benchmarks/attributes.csv

- age, gender and race of aligned face crops: tfface's exported SavedModels of the two shipped models, ARG (uint8 crops
  in, preprocessing, the mirrored view and all three answers inside) and the compact network (uint8 crops in, the three
  answers out) | the three VGG-Face graphs at 224 pixels that deepface 0.0.9x runs, with random weights, one face and
  one graph after the other as its `analyze` does | FairFace's ResNet34 in PyTorch, one face after the other as its
  `predict.py` does;
- embeddings of 160x160 crops: tfface's exported FaceNet | facenet-pytorch's, the same architecture;
- a training step of keras.applications' ResNet50, 224 pixels, SGD with momentum: as `tfface train` takes it, with its
  batch norms fused | as Keras does, with and without XLA | torchvision's.

Detection has its own benchmark, `detect.py`; so has a training step of TCGF-ResNet, `train_step.py`. All of a group
take turns, the best of the repeats counts, by the clock and by processor time (which others' work touches less).
PyTorch runs in a process of its own under `--peers`. Faces are noise: no network here looks at them. Nothing is
asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from serve import prepared

from tfface.files import written_aside
from tfface.serving.export import export_saved_model
from tfface.serving.predictor import find_model
from tfface.training.batch_norm import fused_batch_norms


class Peers:
    """PyTorch's networks, run by `benchmarks/torch_networks.py` under another interpreter."""

    def __init__(self, python: str, folder: Path):
        command = [python, str(Path(__file__).with_name("torch_networks.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._folder, self._sent = folder, {}

    def __call__(self, what: str) -> Callable:
        def run(images):
            if id(images) not in self._sent:
                self._sent[id(images)] = str(self._folder / f"{len(self._sent)}.npy")
                np.save(self._sent[id(images)], images.astype("float32"))
            request = {"what": what, "images": self._sent[id(images)]}
            print(json.dumps(request), file=self._process.stdin, flush=True)
            return json.loads(self._process.stdout.readline())

        return run


def timed(function: Callable) -> Callable:
    """A function of images as one that gives its seconds by the clock and of processor time."""

    def run(images):
        clock, processor = time.perf_counter(), time.process_time()
        function(images)
        return time.perf_counter() - clock, time.process_time() - processor

    return run


def vgg_face(classes: int) -> keras.Model:
    """VGG-Face (Parkhi et al., Deep Face Recognition, BMVC 2015) with a head of some classes."""
    x = inputs = keras.Input((224, 224, 3))
    for filters, depth in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(depth):
            x = layers.Conv2D(filters, 3, activation="relu")(layers.ZeroPadding2D(1)(x))
        x = layers.MaxPooling2D(2, 2)(x)
    x = layers.Conv2D(4096, 7, activation="relu")(x)
    x = layers.Conv2D(4096, 1, activation="relu")(x)
    x = layers.Flatten()(layers.Conv2D(classes, 1)(x))
    return keras.Model(inputs, layers.Softmax()(x))


def deepface_networks() -> Callable:
    graphs = [vgg_face(classes) for classes in (101, 2, 6)]  # age, gender, race

    def analyze(images):
        for image in images:
            for graph in graphs:
                graph(image[None], training=False).numpy()

    return analyze


def exported(model: str, folder: Path, bfloat16: bool = False) -> Callable:
    """A shipped model as users get it: `tfface export`, loaded again."""
    if not folder.exists():
        export_saved_model(find_model(model), folder, bfloat16)
    served = tf.saved_model.load(str(folder))
    signature = served.signatures["serving_default"]
    return lambda images, served=served: signature(images=tf.constant(images))["age"].numpy()


def train_step(jit_compile: bool, fused: bool = False) -> Callable:
    model = keras.applications.ResNet50(weights=None)
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), loss, jit_compile=jit_compile)

    def step(images):
        with fused_batch_norms(model) if fused else contextlib.nullcontext():  # only the first call traces
            model.train_on_batch(images, np.arange(len(images)) % 1000)

    return step


def attributes(peers, folder):
    """Yield (what, who, faces, function of faces that gives its seconds)."""
    draw = np.random.default_rng(0)
    crops = draw.integers(0, 256, (32, 200, 200, 3), "uint8")
    what = "age, gender, race"
    for model in ("arg", "compact"):
        ours = exported(model, folder / model)
        bfloat16 = exported(model, folder / f"{model}-bfloat16", bfloat16=True)
        yield what, f"tfface, {model}, 32 at once", crops, timed(ours)
        yield what, f"tfface, {model}, one at a time", crops[:1], timed(ours)
        yield what, f"tfface, {model} --bfloat16, 32 at once", crops, timed(bfloat16)
    large = draw.uniform(0, 1, (1, 224, 224, 3)).astype("float32")
    yield what, "deepface's three VGG-Face graphs", large, timed(deepface_networks())
    if peers:
        yield what, "FairFace's ResNet34, PyTorch", large * 255, peers("fairface")


def embeddings(peers, folder):
    faces, _, served = prepared("facenet", ["tfface", "onnxruntime"], folder / "facenet")
    for batch in (faces, faces[:1]):
        what = f"embeddings, {len(batch)} at once"
        yield what, "tfface, FaceNet", batch, timed(served["tfface"])
        yield what, "onnxruntime, the same network", batch, timed(served["onnxruntime"])
        if peers:
            yield what, "facenet-pytorch", batch, peers("facenet")


def training(peers, folder):
    images = np.random.default_rng(0).uniform(0, 255, (16, 224, 224, 3)).astype("float32")
    what = "training step, ResNet50, 16 images"
    yield what, "tfface", images, timed(train_step(False, fused=True))
    yield what, "Keras", images, timed(train_step(False))
    yield what, "Keras, XLA", images, timed(train_step(True))
    if peers:
        yield what, "PyTorch", images, peers("resnet50")
        yield what, "PyTorch, channels last", images, peers("resnet50_channels_last")


GROUPS = {"attributes": attributes, "embeddings": embeddings, "training": training}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--peers", help="Python that has facenet-pytorch; without it PyTorch is left out")
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep what is exported here, and take what is here")
    parser.add_argument("--csv", type=Path, help="write the rows to this file too")
    arguments = parser.parse_args()
    about = f"{os.cpu_count()} CPU cores, TensorFlow {tf.__version__}, Keras {keras.__version__}"
    print(about, flush=True)
    rows = []
    for group in arguments.groups:
        with tempfile.TemporaryDirectory() as temporary:
            peers = Peers(arguments.peers, Path(temporary)) if arguments.peers else None
            entries = list(GROUPS[group](peers, arguments.keep or Path(temporary)))
            spent = [[] for _ in entries]
            for number in range(arguments.repeats + 1):
                for (_, _, images, run), seconds in zip(entries, spent, strict=True):
                    time.sleep(0.05)  # threads that spin after a call would slow the next one
                    seconds.append(run(images))
                    if not number:
                        seconds.clear()  # the first round compiles
            for (what, who, images, _), seconds in zip(entries, spent, strict=True):
                clock, processor = (min(each) / len(images) for each in zip(*seconds, strict=True))
                row = {"what": what, "who": who, "a second": round(1 / clock, 2), "ms each": round(clock * 1e3, 1)}
                rows.append(row | {"ms each, processor": round(processor * 1e3, 1)})
                print("  ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
    if arguments.csv:
        with written_aside(arguments.csv) as aside, aside.open("w", newline="") as stream:
            stream.write(f"# python {' '.join(sys.argv)} ({about}; see its docstring)\n")
            writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
