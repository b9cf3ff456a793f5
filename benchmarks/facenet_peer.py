"""facenet-pytorch's MTCNN in a process of its own: `benchmarks/detect.py --facenet-python PYTHON` starts this.

PyTorch's threads and TensorFlow's would slow each other in one process, and facenet-pytorch wants an older NumPy. Each
line of standard input is {"photos": FILE.npy, "min_face_size": PIXELS}; each line of standard output answers with the
boxes of each photo and the processor time, milliseconds.
"""

import functools
import json
import sys
import time

import numpy as np
import torch
from facenet_pytorch import MTCNN

load = functools.cache(np.load)


@functools.cache
def detector(min_face_size):
    return MTCNN(keep_all=True, min_face_size=min_face_size, device="cpu")


with torch.no_grad():
    for line in sys.stdin:
        request = json.loads(line)
        photos = load(request["photos"])
        start = time.process_time()
        found, _ = detector(request["min_face_size"]).detect(photos)
        spent = (time.process_time() - start) * 1e3
        boxes = [[] if rows is None else np.asarray(rows, float).tolist() for rows in found]
        print(json.dumps({"boxes": boxes, "processor": spent}), flush=True)
