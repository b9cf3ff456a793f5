"""The online module on this machine: frames a second, latency of each stage, and memory over time.

    python benchmarks/stream.py [--source CLIP] [--seconds 30] [--detector yolo] [--bfloat16]     # as fast as it goes
    python benchmarks/stream.py --paced 15 --seconds 600                                          # soak: memory

The default clip has two people at 640x360: two photos of the samples ($TFFACE_TEST_DATA) that sway side by side.
Unpaced, every frame of the looped clip is worked on, so the rate is what the machine can do with capture, detection,
tracking, shots, prediction, drawing and H.264 encoding all running; paced, frames come at a camera's rate, late ones
are dropped, and the resident memory is noted every ten seconds. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from tfface.faces.photos import read_photo
from tfface.online.capture import Source
from tfface.online.live import LiveFaces, load_live_detector
from tfface.online.record import VideoRecorder
from tfface.online.shots import ShotPredictor
from tfface.online.stream import Stream, draw

SAMPLES = Path(os.environ.get("TFFACE_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def two_people(path: Path, rate: float, seconds: float = 8) -> None:
    """A clip, 640x360, in which two real faces move about."""
    photos = [read_photo(path) for path in sorted((SAMPLES / "lfw" / "lfw-deepfunneled").rglob("*.jpg"))[10:50:30]]
    video = VideoRecorder(path, rate)
    for number in range(round(rate * seconds)):
        frame = np.full((360, 640, 3), 110, np.uint8)
        for place, photo in enumerate(photos):
            x = 30 + 310 * place + round(20 * np.sin(2 * np.pi * number / rate / 4 + place))
            frame[60:310, x : x + 250] = photo
        video.write(frame, number / rate)
    video.close()


def resident() -> float:
    """Memory of this process now, MiB (on systems without /proc: its highest so far)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def run(options, source: str, folder: Path) -> dict:
    """Runs the stream and notes what it did."""
    with ShotPredictor(options.model, bfloat16=options.bfloat16) as shots:
        live = LiveFaces(shots, *load_live_detector(options.detector))
        opened = Source(source, every_frame=not options.paced, loop=True)
        stream = Stream(opened, live, drop=bool(options.paced))
        video = VideoRecorder(folder / "out.mp4", opened.rate)
        memory, faces_seen, begun, processor = [], 0, 0.0, 0.0
        latencies = {}
        for frame, faces in stream.run():
            now = time.monotonic()
            if not begun and stream.frames == 30:  # the first frames compile and fill caches
                begun, first, processor = now, stream.frames, time.process_time()
            with stream.timing.measure("draw"):
                picture = draw(frame.image, faces, stream.status())
            with stream.timing.measure("write"):
                video.write(picture, frame.time)
            faces_seen += len(faces)
            if begun and now - begun >= 10 * len(memory):
                memory.append(round(resident(), 1))
                if options.paced:
                    print(
                        f"{now - begun:6.0f} s  {memory[-1]:7.1f} MiB  {stream.status()}", file=sys.stderr, flush=True
                    )
            if begun and now - begun > options.seconds:
                stream.stop()
        taken, processor = time.monotonic() - begun, time.process_time() - processor
        video.close()
        latencies = {f"{share:.0%}": stream.timing.latencies(share) for share in (0.5, 0.95)}
        worked = stream.frames - first
    return {
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "seconds": round(taken, 1),
        "frames": worked,
        "frames_per_second": round(worked / taken, 1),
        "processor_ms_per_frame": round(1e3 * processor / worked, 1),
        "faces_per_frame": round(faces_seen / stream.frames, 2),
        "dropped": stream.dropped,
        "tracks": len(stream.tracks),
        "shots": dict(shots.counts),
        "latency_ms": {share: {k: round(v, 1) for k, v in row.items()} for share, row in latencies.items()},
        "memory_mib": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="a video file (default: two people from the samples)")
    parser.add_argument("--model", default="arg", help="folder of a run, or a shipped model")
    parser.add_argument("--detector", default="yolo", help="as of tfface stream")
    parser.add_argument("--bfloat16", action="store_true", help="compute the model in bfloat16")
    parser.add_argument("--seconds", type=float, default=30, help="how long, after a warm-up of 30 frames")
    parser.add_argument("--paced", type=float, default=0, metavar="RATE", help="frames a second that come in (soak)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = options.source
        if not source:
            source = str(Path(folder) / "people.mp4")
            two_people(Path(source), options.paced or 30)
        print(json.dumps(run(options, source, Path(folder)), indent=2))


if __name__ == "__main__":
    main()
