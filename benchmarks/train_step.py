"""What paper 1's additions cost: a training step of TCGF-ResNet beside one of keras.applications' ResNet50.

    python benchmarks/train_step.py                           # 64x64, 16 images, graph and XLA
    python benchmarks/train_step.py --networks resnet50 tcgf torch-resnet50 --size 224 --batch 256 --jit on \
        --precision mixed_bfloat16 --peak 989      # a GPU, with Keras on JAX, beside PyTorch, where that is installed
    python benchmarks/train_step.py --networks resnet50 tcgf relu no-cbam                       # which part costs what

All networks take turns in one run on the same images, so that whatever else the machine does slows all of them; of the
repeats the best counts, by the clock and, on a CPU, by the processor's time, which others' work touches less. `ratio`
is the cost over that of keras.applications' ResNet50. `loss` is that after the steps that were timed, which all
precisions take from the same start: what precision costs in training. float16 skips its first steps, until its
gradients are scaled so that none overflows. The images lie on the device before the clock starts. The share of the peak
counts six operations for each multiply-add of the network: a multiplication and an addition, forward and twice
backward. A network of PyTorch runs as its users run it on a GPU: channels last, autocast, cuDNN's search for the best
kernels, on images of its own and without XLA. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from tfface import labels, models, tasks
from tfface.pruning.measure import multiply_adds
from tfface.training.batch_norm import fused_batch_norms

RACE = (tasks.classification("race", tuple(labels.GROUPINGS["four_races"][1])),)


def facenet(shape: tuple[int, int, int]) -> keras.Model:
    """FaceNet's network, all of it trained, with a head of four classes."""
    backbone = models.inception_resnet_v1(shape)
    head = keras.layers.Dense(4, activation="softmax", dtype="float32", name="race")
    return keras.Model(backbone.input, {"race": head(backbone.output)})


def fine_tuned(shape: tuple[int, int, int]) -> keras.Model:
    """FaceNet's network with frozen batch norms, as `arg` fine-tunes it."""
    model = facenet(shape)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return model


NETWORKS = {
    "resnet50": lambda shape: keras.applications.ResNet50(weights=None, classes=4, input_shape=shape),
    "tcgf": lambda shape: models.tcgf_resnet(RACE, shape),
    "relu": lambda shape: models.tcgf_resnet(RACE, shape, activation="relu"),
    "no-cbam": lambda shape: models.tcgf_resnet(RACE, shape, attention=False),
    "facenet": facenet,
    "facenet-frozen-norms": fine_tuned,
}
"""The first is what the others are measured by."""


TORCH = "torch-resnet50"
"""torchvision's ResNet50."""


class Step:
    """A training step of one network on one batch.

    Args:
        name: in `NETWORKS`.
        size, batch: side of the images in pixels, and how many.
        jit: whether XLA compiles the step.
        precision: a Keras dtype policy.
        fused: whether batch norms are computed as the training loop does, or as Keras does.
    """

    def __init__(self, name: str, size: int, batch: int, jit: bool, precision: str, fused: bool):
        keras.mixed_precision.set_dtype_policy(precision)
        keras.utils.set_random_seed(0)
        self.model = NETWORKS[name]((size, size, 3))
        random = np.random.default_rng(0)
        self.multiply_adds = multiply_adds(self.model)
        images = random.uniform(0, 255, (batch, size, size, 3)).astype("float32")
        truth = keras.ops.convert_to_tensor(np.eye(4, dtype="float32")[random.integers(4, size=batch)])
        self.truth = {"race": truth} if isinstance(self.model.output, dict) else truth
        # Ours scale inside.
        self.images = keras.ops.convert_to_tensor(images / 255 if name == "resnet50" else images)
        self.model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "categorical_crossentropy", jit_compile=jit)
        with fused_batch_norms(self.model) if fused else contextlib.nullcontext():
            self.warm_up()

    def warm_up(self) -> None:
        """Take two steps that do not count: they compile, and search for kernels."""
        self.clock, self.processor, self.loss = [], [], None
        self.run()
        self.run()
        self.clock, self.processor = [], []

    def run(self) -> None:
        """Take a step and note what it took."""
        clock, processor = time.perf_counter(), time.process_time()
        self.loss = self.step()
        self.clock.append(time.perf_counter() - clock)
        self.processor.append(time.process_time() - processor)

    def step(self) -> float:
        """Train on the batch; its loss, so that nothing is still under way."""
        self.model.reset_metrics()
        return float(np.ravel(self.model.train_on_batch(self.images, self.truth))[0])


class TorchStep(Step):
    """The same of torchvision's ResNet50, on a GPU where PyTorch sees one.

    Args:
        size, batch, precision: as of `Step`.
        multiply_adds: of one image through ResNet50.
    """

    def __init__(self, size: int, batch: int, precision: str, multiply_adds: int):
        import torch
        import torchvision

        torch.manual_seed(0)
        torch.backends.cudnn.benchmark = True
        self.torch, self.multiply_adds = torch, multiply_adds
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.autocast = {"mixed_bfloat16": torch.bfloat16, "mixed_float16": torch.float16}.get(precision)
        model = torchvision.models.resnet50(num_classes=4).train()
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9)
        images = torch.rand((batch, 3, size, size), device=self.device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.truth = torch.randint(4, (batch,), device=self.device)
        self.warm_up()

    def step(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        with self.torch.autocast(self.device, self.autocast, enabled=self.autocast is not None):
            loss = self.torch.nn.functional.cross_entropy(self.model(self.images), self.truth)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=[*NETWORKS, TORCH], default=["resnet50", "tcgf"])
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--jit", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--precision", nargs="+", default=["float32"], help="dtype policies, such as mixed_bfloat16")
    parser.add_argument("--batch-norms", nargs="+", choices=["fused", "keras"], default=["fused"], help="computed how")
    parser.add_argument("--peak", type=float, help="of the device in that precision, 10^12 operations a second")
    options = parser.parse_args()
    for jit in options.jit:
        for precision in options.precision:
            steps = {
                f"{name}{', Keras batch norms' * (norms == 'keras')}": Step(
                    name, options.size, options.batch, jit == "on", precision, norms == "fused"
                )
                for name in options.networks
                if name != TORCH
                for norms in options.batch_norms
            }
            if TORCH in options.networks:
                count = multiply_adds(NETWORKS["resnet50"]((options.size, options.size, 3)))
                steps[TORCH] = TorchStep(options.size, options.batch, precision, count)
            for _ in range(options.repeats):
                for step in steps.values():
                    step.run()
            base = next(iter(steps.values()))
            for name, step in steps.items():
                rate = options.batch / min(step.clock)
                peak = rate * 6e-12 * step.multiply_adds / options.peak if options.peak else 0
                xla = "off" if name == TORCH else jit
                print(
                    f"{name:14} {options.size}x{options.size} batch {options.batch} XLA {xla} {precision}: "
                    f"{min(step.clock) * 1e3:.0f} ms, ratio {min(step.clock) / min(base.clock):.2f}, "
                    f"{rate:,.0f} images a second{f', {peak:.0%} of peak' if peak else ''}; processor "
                    f"{min(step.processor) * 1e3:.0f} ms, ratio {min(step.processor) / min(base.processor):.2f}; "
                    f"loss {step.loss:.4f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
