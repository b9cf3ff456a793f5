"""What PyTorch users run, in a process of its own: `benchmarks/attributes.py --peers PYTHON` starts this.

Each line of standard input is {"what": NAME, "images": FILE.npy}, images float32 `(batch, height, width, 3)`; each line
of standard output answers with the seconds of one round by the clock and of processor time. All weights are random.
"""

import functools
import json
import sys
import time

import numpy as np
import torch
import torchvision
from facenet_pytorch import InceptionResnetV1


@functools.cache
def images(file):
    return torch.from_numpy(np.load(file)).permute(0, 3, 1, 2).contiguous() / 127.5 - 1


def fairface():
    """FairFace's network, 7 races + 2 genders + 9 ages, one face after the other as its `predict.py` does."""
    model = torchvision.models.resnet34(num_classes=18).eval()

    @torch.no_grad()
    def each(batch):
        for image in batch:
            model(image[None])

    return each


def facenet():
    model = InceptionResnetV1(pretrained=None).eval()
    return torch.no_grad()(model)


def resnet50():
    """A training step of torchvision's ResNet50."""
    model = torchvision.models.resnet50().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        truth = torch.arange(len(batch)) % 1000
        torch.nn.functional.cross_entropy(model(batch), truth).backward()
        optimizer.step()

    return step


def resnet50_channels_last():
    """The same with images and kernels laid out channels last, which is faster on some processors."""
    model = torchvision.models.resnet50().train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step(batch):
        optimizer.zero_grad(set_to_none=True)
        truth = torch.arange(len(batch)) % 1000
        batch = batch.contiguous(memory_format=torch.channels_last)
        torch.nn.functional.cross_entropy(model(batch), truth).backward()
        optimizer.step()

    return step


WHAT = {each.__name__: functools.cache(each) for each in (fairface, facenet, resnet50, resnet50_channels_last)}

for line in sys.stdin:
    request = json.loads(line)
    run, batch = WHAT[request["what"]](), images(request["images"])
    clock, processor = time.perf_counter(), time.process_time()
    run(batch)
    print(json.dumps([time.perf_counter() - clock, time.process_time() - processor]), flush=True)
