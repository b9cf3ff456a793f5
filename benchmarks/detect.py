"""Face detection, side by side: tfface | mtcnn | facenet-pytorch | dlib, and where tfface's time goes.

    python benchmarks/detect.py --photos DIR --faces DIR [--repeats 10] [--facenet-python PYTHON]

Every photo of `--photos` is brought to 640 pixels' width and detected alone; the photos of `--faces` that measure
250x250 (LFW) are detected in batches. All detectors take turns in one run, so that whatever else the machine does
slows all of them; of the repeats the best counts. Besides the time by the clock stands the processor time, which a
busy machine disturbs less. facenet-pytorch runs in a process of its own, under the interpreter of an environment that
holds it (`python -m venv DIR; DIR/bin/pip install facenet-pytorch`). Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import tensorflow as tf

from tfface.errors import UserError
from tfface.faces import mtcnn, pyramid
from tfface.faces.detect import load_detector
from tfface.faces.photos import find_photos, read_photo

SAMPLES = Path(os.environ.get("TFFACE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


class Facenet:
    """facenet-pytorch's MTCNN, run by `benchmarks/facenet_peer.py` under another interpreter."""

    def __init__(self, python: str):
        command = [python, str(Path(__file__).with_name("facenet_peer.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._folder = tempfile.TemporaryDirectory()
        self._sent: dict[int, str] = {}
        self.processor = 0.0

    def __call__(self, photos: list[np.ndarray], min_face_size: int) -> list[np.ndarray]:
        if id(photos) not in self._sent:
            self._sent[id(photos)] = f"{self._folder.name}/{len(self._sent)}.npy"
            np.save(self._sent[id(photos)], np.stack(photos))
        request = {"photos": self._sent[id(photos)], "min_face_size": min_face_size}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline())
        self.processor += answer["processor"] / 1e3
        return [np.reshape(boxes, (-1, 4)) for boxes in answer["boxes"]]

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def peers(min_face_size: int, facenet: Facenet | None) -> dict[str, Callable]:
    """Name -> function of a list of photos that gives the boxes (n, 4) of each."""
    import dlib
    from mtcnn import MTCNN

    package, hog = MTCNN(), dlib.get_frontal_face_detector()

    def package_boxes(photos):
        rows = package.detect_faces(list(photos), output_type="numpy", box_format="xyxy", min_face_size=min_face_size)
        rows = np.reshape(rows, (-1, 16))
        return [rows[rows[:, 0] == number, 1:5] for number in range(len(photos))]

    def dlib_boxes(upsample):
        def boxes(photos):
            found = [hog(photo, upsample) for photo in photos]
            return [np.reshape([(r.left(), r.top(), r.right(), r.bottom()) for r in some], (-1, 4)) for some in found]

        return boxes

    def our_boxes(detector):
        return lambda photos: [faces.boxes for faces in detector(photos)]

    table = {
        "tfface mtcnn": our_boxes(load_detector("mtcnn", min_face_size=min_face_size)),
        "mtcnn 1.0.0": package_boxes,
    }
    if facenet:
        larger = 2 * min_face_size
        table["facenet-pytorch"] = lambda photos: facenet(photos, min_face_size)
        table[f"tfface mtcnn, {larger}"] = our_boxes(load_detector("mtcnn", min_face_size=larger))
        table[f"facenet-pytorch, {larger}"] = lambda photos: facenet(photos, larger)
    table["tfface yolo 416"] = our_boxes(load_detector("yolo"))
    table["dlib HOG"] = dlib_boxes(0)
    table["dlib HOG, upsampled"] = dlib_boxes(1)
    return table


def measure(detectors: dict[str, Callable], batches: list[list[np.ndarray]], repeats: int, processor_time: Callable):
    """Milliseconds a photo, by the clock and of processor time, and boxes, the detectors taking turns."""
    photos = sum(map(len, batches))
    results = {}
    for name, detect in detectors.items():
        results[name] = {"boxes": [boxes for batch in batches for boxes in detect(batch)], "clock": [], "processor": []}
    for _ in range(repeats):
        for name, detect in detectors.items():
            clock, processor = time.perf_counter(), processor_time()
            for batch in batches:
                detect(batch)
            results[name]["clock"].append((time.perf_counter() - clock) / photos * 1e3)
            results[name]["processor"].append((processor_time() - processor) / photos * 1e3)
    return results


def agreement(ours: list[np.ndarray], theirs: list[np.ndarray], least: float) -> float:
    """Share of the boxes of `theirs` that have one of `ours` at an intersection over union of `least`."""
    matched = total = 0
    for a, b in zip(ours, theirs, strict=True):
        total += len(b)
        if len(a) and len(b):
            sides = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
            shared = np.clip(sides, 0, None).prod(axis=-1)
            areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
            matched += (shared / (areas[0][:, None] + areas[1] - shared) >= least).any(axis=0).sum()
    return matched / total if total else float("nan")


def report(title: str, results: dict[str, dict]) -> None:
    reference = results["mtcnn 1.0.0"]
    print(f"\n{title}")
    print(
        f"{'':20} {'ms, clock':>10} {'ms, cpu':>9} {'x clock':>8} {'x cpu':>6} {'faces':>6}"
        f" {'of mtcnn at IoU 0.9':>20} {'0.5':>6}"
    )
    for name, result in results.items():
        clock, processor = min(result["clock"]), min(result["processor"])
        found = sum(map(len, result["boxes"]))
        same = [agreement(result["boxes"], reference["boxes"], least) for least in (0.9, 0.5)]
        print(
            f"{name:20} {clock:10.1f} {processor:9.1f} {min(reference['clock']) / clock:8.2f}"
            f" {min(reference['processor']) / processor:6.2f} {found:6d} {same[0]:20.1%} {same[1]:6.1%}"
        )


def multiply_adds(network, *size: int) -> int:
    """Multiply-adds of a network's convolutions and dense layers for one input (height, width, 3)."""
    total = 0
    shape = (1, *size)
    for layer in network.layers[1:]:
        shape = shape if isinstance(layer, mtcnn.PReLU) else layer.compute_output_shape(shape)
        if hasattr(layer, "kernel"):
            places = np.prod(shape[1:-1]) if len(shape) == 4 else 1
            total += int(places * np.prod(layer.kernel.shape))
    return total


def stages(photos: list[np.ndarray], min_face_size: int, repeats: int) -> None:
    """Prints where MTCNN's time goes, stage by stage, one after the other, against its multiply-adds."""
    detector = mtcnn.MTCNN(min_face_size)
    networks = [mtcnn.proposal_network(), mtcnn.refinement_network(), mtcnn.output_network()]
    work = dict.fromkeys(("drawing the pyramid", "P-Net", "R-Net", "O-Net"), 0)
    spent = dict.fromkeys((*work, "cutting out", "all"), 0.0)
    candidates = []

    def timed(stage, function, *values):
        best = float("inf")
        for _ in range(repeats):
            start = time.process_time()
            result = function(*values)
            best = min(best, time.process_time() - start)
        spent[stage] += best * 1e3 / len(photos)
        return result

    for photo in photos:
        timed("all", detector, [photo])
        for canvas in pyramid.pyramid(*photo.shape[:2], detector.min_face_size, mtcnn.PIECE_PIXELS):
            drawn = timed("drawing the pyramid", canvas.draw, photo[None])
            for top in canvas.strips():
                strip = (drawn[:, top : top + canvas.strip_pixels()], canvas.strip_edges(top, 1))
                timed("P-Net", detector._propose, *map(tf.convert_to_tensor, strip))
            for width, height in canvas.boxes[:, 2:] - canvas.boxes[:, :2]:
                work["P-Net"] += multiply_adds(networks[0], height, width, 3)
        rows = detector._proposals(photo[None])
        pixels, counts = tf.convert_to_tensor(photo[None]), []
        for stage, network, compiled, size in zip(
            ("R-Net", "O-Net"), networks[1:], (detector._refine, detector._finish), (24, 48), strict=True
        ):
            counts.append(len(rows))
            work[stage] += len(rows) * multiply_adds(network, size, size, 3)
            crops = timed("cutting out", detector._cut, pixels, tf.convert_to_tensor(rows), tf.constant(size))
            rows = mtcnn._moved(rows, timed(stage, compiled, crops).numpy())
            rows = mtcnn._squared(mtcnn._suppressed(rows[rows[:, 5] > detector.refinement_threshold], 0.7))
        candidates.append(counts)
    counts = np.mean(candidates, axis=0)
    print(f"\nWhere a photo's processor time goes ({counts[0]:.0f} candidates to R-Net, {counts[1]:.0f} to O-Net)")
    print(f"{'':22} {'ms':>7} {'million multiply-adds':>22} {'thousand million a second':>26}")
    rest = spent["all"] - sum(value for stage, value in spent.items() if stage != "all")
    for stage, value in {**spent, "suppression and rest": rest}.items():
        amount = sum(work.values()) if stage == "all" else work.get(stage, 0)
        amount /= len(photos) * 1e6
        print(
            f"{stage:22} {value:7.1f} {amount or float('nan'):22.0f} {amount / value if amount else float('nan'):26.1f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", default=SAMPLES / "photos", help="folder of photos, each detected alone")
    parser.add_argument("--faces", default=SAMPLES / "lfw", help="folder of 250x250 photos, detected in batches")
    parser.add_argument("--batch", type=int, default=32, help="photos a batch")
    parser.add_argument("--min-face-size", type=int, default=20, help="smallest face, pixels")
    parser.add_argument("--facenet-python", help="interpreter of an environment with facenet-pytorch")
    parser.add_argument("--repeats", type=int, default=10, help="runs, of which the best counts")
    options = parser.parse_args()
    try:
        photos = [read_photo(path) for path in find_photos([options.photos])]
        people = [read_photo(path) for path in list(find_photos([options.faces]))[: 2 * options.batch]]
    except UserError as error:
        parser.error(str(error))
    wide = [cv2.resize(p, (640, round(p.shape[0] * 640 / p.shape[1])), interpolation=cv2.INTER_AREA) for p in photos]
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, smallest face {options.min_face_size} pixels")
    facenet = Facenet(options.facenet_python) if options.facenet_python else None
    if not facenet:
        print("facenet-pytorch is left out: --facenet-python names no interpreter that has it")
    detectors = peers(options.min_face_size, facenet)

    def processor_time():
        return time.process_time() + (facenet.processor if facenet else 0)

    results = measure(detectors, [[photo] for photo in wide], options.repeats, processor_time)
    report(f"{len(wide)} photos 640 pixels wide, one at a time", results)
    batches = [people[: options.batch], people[options.batch :]]
    results = measure(detectors, batches, options.repeats, processor_time)
    report(f"{len(people)} photos 250x250, in batches of {options.batch}", results)
    if facenet:
        facenet.close()
    stages(wide, options.min_face_size, options.repeats)


if __name__ == "__main__":
    main()
