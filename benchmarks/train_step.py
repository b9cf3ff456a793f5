"""What paper 1's additions cost: a training step of TCGF-ResNet beside one of keras.applications' ResNet50.

    python benchmarks/train_step.py                           # 64x64, 16 images, graph and XLA
    python benchmarks/train_step.py --size 224 --batch 64 --precision float32 mixed_bfloat16    # a GPU
    python benchmarks/train_step.py --networks resnet50 tcgf relu no-cbam                       # which part costs what

All networks take turns in one run on the same images, so that whatever else the machine does slows all of them; of the
repeats the best counts, by the clock and, on a CPU, by the processor's time, which others' work touches less. `ratio`
is the cost over that of keras.applications' ResNet50. `loss` is that after the steps that were timed, which all
precisions take from the same start: what precision costs in training. float16 skips its first steps, until its
gradients are scaled so that none overflows. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tfface import labels, models, tasks

RACE = (tasks.classification("race", tuple(labels.GROUPINGS["four_races"][1])),)

NETWORKS = {
    "resnet50": lambda shape: keras.applications.ResNet50(weights=None, classes=4, input_shape=shape),
    "tcgf": lambda shape: models.tcgf_resnet(RACE, shape),
    "relu": lambda shape: models.tcgf_resnet(RACE, shape, activation="relu"),
    "no-cbam": lambda shape: models.tcgf_resnet(RACE, shape, attention=False),
}
"""The first is what the others are measured by."""


class Step:
    """A training step of one network on one batch.

    Args:
        name: in `NETWORKS`.
        size, batch: side of the images in pixels, and how many.
        jit: whether XLA compiles the step.
        precision: a Keras dtype policy.
    """

    def __init__(self, name: str, size: int, batch: int, jit: bool, precision: str):
        keras.mixed_precision.set_dtype_policy(precision)
        keras.utils.set_random_seed(0)
        self.model = NETWORKS[name]((size, size, 3))
        random = np.random.default_rng(0)
        self.images = random.uniform(0, 255, (batch, size, size, 3)).astype("float32")
        truth = np.eye(4, dtype="float32")[random.integers(4, size=batch)]
        self.truth = {"race": truth} if isinstance(self.model.output, dict) else truth
        if name == "resnet50":
            self.images /= 255  # ours scale inside
        self.model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "categorical_crossentropy", jit_compile=jit)
        self.clock, self.processor, self.loss = [], [], None
        self.run()  # compiles
        self.clock, self.processor = [], []

    def run(self) -> None:
        """Take a step and note what it took."""
        clock, processor = time.perf_counter(), time.process_time()
        self.model.reset_metrics()
        self.loss = float(np.ravel(self.model.train_on_batch(self.images, self.truth))[0])
        self.clock.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["resnet50", "tcgf"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--jit", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--precision", nargs="+", default=["float32"], help="dtype policies, such as mixed_bfloat16")
    options = parser.parse_args()
    for jit in options.jit:
        for precision in options.precision:
            steps = {name: Step(name, options.size, options.batch, jit == "on", precision) for name in options.networks}
            for _ in range(options.repeats):
                for step in steps.values():
                    step.run()
            base = next(iter(steps.values()))
            for name, step in steps.items():
                print(
                    f"{name:9} {options.size}x{options.size} batch {options.batch} XLA {jit} {precision}: "
                    f"{min(step.clock) * 1e3:.0f} ms, ratio {min(step.clock) / min(base.clock):.2f}; processor "
                    f"{min(step.processor) * 1e3:.0f} ms, ratio {min(step.processor) / min(base.processor):.2f}; "
                    f"loss {step.loss:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
