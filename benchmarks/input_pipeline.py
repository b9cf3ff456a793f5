"""How fast images come: tfface's pipelines beside the bare decoding and scaling of the same files.

    python benchmarks/input_pipeline.py [--data utkface] [--size 160x160] [--split train] [--epochs 3] [--repeats 3]

"Bare" is the least that must be done: JPEG bytes in memory, decoded and scaled by plain TensorFlow on every core, in
batches. The pipelines do more: they read TFRecords, shuffle, encode labels, and cross from epoch to epoch. All take
turns in one run, so that whatever else the machine does slows all of them; of the repeats the best counts. Beside the
images a second by the clock stands the processor time of an image, which a busy machine disturbs less, and from which
follows what other machines reach: cores / processor time. `longest wait` is that for one batch after the first, epoch
ends included. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import tensorflow as tf

from tfface.cli import _size
from tfface.data import pipeline
from tfface.data.pipeline import PARALLEL, View
from tfface.recipes.gender import Gender
from tfface.training import batches

BATCH = 64


def decoded(data):
    return tf.io.decode_jpeg(data, channels=3)


def plain(size, antialias: bool) -> Callable:
    """Decoding and scaling as TensorFlow's documentation has it."""
    return lambda data: tf.image.resize(tf.cast(decoded(data), tf.float32), size, antialias=antialias)


def from_memory(images: list[bytes], prepare: Callable) -> tf.data.Dataset:
    """The least that tf.data can do with encoded images."""
    examples = tf.data.Dataset.from_tensor_slices(images).map(prepare, num_parallel_calls=PARALLEL)
    return examples.batch(BATCH).prefetch(2).with_options(pipeline.options())


def in_threads(images: list[bytes], prepare: Callable):
    """Batches from a plain loop over as many threads as there are cores, no tf.data."""
    graph = tf.function(prepare, input_signature=[tf.TensorSpec((), tf.string)])
    with ThreadPoolExecutor(PARALLEL) as threads:
        for group in pipeline.in_groups(threads.map(graph, images), BATCH):
            yield tf.stack(group)


def measured(rows: Callable) -> tuple[float, float, float]:
    """Seconds by the clock, of processor time, and longest wait after the first batch, to go through `rows()`."""
    stream = iter(rows())
    clock, processor = time.perf_counter(), time.process_time()
    waits = []
    while True:
        before = time.perf_counter()
        if next(stream, None) is None:
            break
        waits.append(time.perf_counter() - before)
    return time.perf_counter() - clock, time.process_time() - processor, max(waits[1:], default=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="utkface", help="prepared data set of JPEGs with the label `gender`")
    parser.add_argument("--data-dir", help="where data sets are prepared")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=_size, default=(160, 160), metavar="HEIGHTxWIDTH")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    builder = pipeline.open_dataset(options.data, options.data_dir)
    rows = pipeline.examples(builder, options.split).map(lambda row: row["image"])
    images = list(rows.as_numpy_iterator())
    recipe = Gender(data=options.data, label="gender", image_size=options.size, batch_size=BATCH, epochs=options.epochs)
    recipe = recipe.changed(random_crop=1.0, views=(View(),)).adapted(pipeline.class_names(builder))
    mirrored = recipe.changed(views=(View(), View(mirror=True)))
    zoomed = mirrored.changed(views=tuple(View(zoom, mirror) for zoom in (1.0, 0.9, 0.8) for mirror in (False, True)))
    size, epochs = options.size, options.epochs

    def training(recipe):
        return lambda: batches.image_batches(builder, options.split, recipe, 0)

    def bare(prepare):
        return lambda: from_memory(images, prepare)

    ways = {
        "bare: decode only": (1, bare(decoded)),
        "bare: decode, scale without antialiasing": (1, bare(plain(size, False))),
        "bare: decode, tf.image.resize antialiased, in threads": (1, lambda: in_threads(images, plain(size, True))),
        "bare: decode, tf.image.resize antialiased, tf.data": (1, bare(plain(size, True))),
        "bare: decode, tfface's resize (the same numbers)": (
            1,
            bare(lambda data: pipeline.resize(decoded(data), size)),
        ),
        "tfface evaluation": (1, lambda: batches.evaluation_images(builder, options.split, recipe, View(), BATCH)),
        "tfface training, no augmentation": (epochs, training(recipe)),
        "tfface training, mirrored": (epochs, training(mirrored)),
        "tfface training, mirrored, zoomed": (epochs, training(zoomed)),
        "tfface training, mirrored, zoomed, cropped": (epochs, training(zoomed.changed(random_crop=0.75))),
        "tfface training, mirrored, zoomed, cropped, noise": (
            epochs,
            training(zoomed.changed(random_crop=0.75, noise=5.0)),
        ),
        "tfface training, all of these, mixup": (
            epochs,
            training(zoomed.changed(random_crop=0.75, noise=5.0, mixup=0.2)),
        ),
    }
    if any(tf.image.is_jpeg(data).numpy().item() is False for data in images[:100]):
        raise SystemExit("The images of this data set are no JPEGs: the bare ways cannot decode them.")
    results = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, (_, make) in ways.items():
            results[name].append(measured(make))
    mean = sum(map(len, images)) / len(images)
    print(
        f"{builder.info.full_name}, {options.split}: {len(images):,} JPEGs of {mean:,.0f} bytes on average, to "
        f"{size[0]}x{size[1]}; {epochs} epochs of training; {os.cpu_count()} cores; TensorFlow {tf.__version__}; "
        f"best of {options.repeats}"
    )
    reference = "bare: decode, tf.image.resize antialiased, tf.data"
    rate_of = {name: passes * len(images) / min(r[0] for r in results[name]) for name, (passes, _) in ways.items()}
    cost_of = {name: min(r[1] for r in results[name]) / passes / len(images) for name, (passes, _) in ways.items()}
    print(f"{'':52}{'images/s':>9}{'of bare':>9}{'processor us':>14}{'of bare':>9}{'longest wait s':>16}")
    for name in ways:
        wait = min(result[2] for result in results[name])
        print(
            f"{name:52}{rate_of[name]:9,.0f}{rate_of[name] / rate_of[reference]:9.2f}{cost_of[name] * 1e6:14,.0f}"
            f"{cost_of[reference] / cost_of[name]:9.2f}{wait:16.3f}"
        )
    cost = cost_of["tfface training, mirrored"]
    print(f"on 16 such cores: 16 / {cost * 1e6:,.0f} us = {16 / cost:,.0f} images a second (training, mirrored)")


if __name__ == "__main__":
    main()
