"""The Beam transforms by which a TFDS builder aligns faces: see `tfface.data.aligned`, which builders use."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import socket
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import create_runner
from etils import epath

import tfface
from tfface.data.aligned import AlignableConfig
from tfface.errors import UserError
from tfface.faces.crops import MIN_FACE_SIZE, Alignment, describe, encode, main_face
from tfface.faces.detect import Detector, load_detector
from tfface.faces.photos import read_photo

PHOTOS_AT_ONCE = 32
"""Photos that a worker detects in together, and loses at most when it is killed."""


class AlignedSplit(beam.PTransform):
    """The examples of one split -> the examples with their images aligned, those left out that cannot be.

    Args:
        examples: (key, example) pairs; the image is `example["image"]`, a path or encoded bytes.
        config: how to align.
        found: folder in which what was found is kept, a file for `PHOTOS_AT_ONCE` photos: what is there is not looked
            for again.

    Attributes:
        photos: how many examples there are.
    """

    def __init__(self, examples: Iterable, config: AlignableConfig, found: epath.Path):
        super().__init__()
        self._chunks = list(_chunks(examples, f"{config.detector} {MIN_FACE_SIZE} {tfface.__version__}"))
        self._align = _Align(config, found)
        self._found = found
        self.photos = sum(len(group) for _, group in self._chunks)

    def expand(self, pipeline):
        return pipeline | "Photos" >> beam.Create(self._chunks) | "Align" >> beam.ParDo(self._align)

    def looked_at(self) -> int:
        """In how many photos faces have been looked for so far."""
        there = {path.stem for path in self._found.glob("*.json")}
        return sum(len(group) for digest, group in self._chunks if digest in there)

    def found(self) -> list[dict]:
        """What was found, once the pipeline has run: for each photo its "name", and its "face" or the "error"."""
        return [line for digest, _ in self._chunks for line in json.loads((self._found / f"{digest}.json").read_text())]


def _chunks(examples: Iterable, settings: str) -> Iterator[tuple[str, list]]:
    """Examples in groups of `PHOTOS_AT_ONCE`, each with a digest of its images and of what faces are found with."""
    examples = iter(examples)
    while group := list(itertools.islice(examples, PHOTOS_AT_ONCE)):
        parts = [settings]
        for _, example in group:
            image = example["image"]
            if isinstance(image, bytes):
                parts.append(hashlib.sha256(image).hexdigest())
            else:
                status = os.stat(image)
                parts.append(f"{os.fspath(image)} {status.st_size} {status.st_mtime_ns}")
        yield hashlib.sha256("\n".join(parts).encode()).hexdigest(), group


class _Align(beam.DoFn):
    """A chunk of examples -> the examples with their images aligned.

    Args:
        config: how to align.
        found: folder in which what was found is kept, a file a chunk: there it is not looked for again.
    """

    def __init__(self, config: AlignableConfig, found: epath.Path):
        self._alignment = Alignment(config.align, config.size)
        self._centre = config.no_face == "centre"
        self._detector = config.detector
        self._found = os.fspath(found)

    def process(self, chunk: tuple[str, list]) -> Iterator[tuple]:
        digest, examples = chunk
        photos = [_read(example["image"]) for _, example in examples]
        for (key, example), photo, line in zip(examples, photos, self._lines(digest, examples, photos), strict=True):
            if "error" in line or not (line["face"] or self._centre):
                beam.metrics.Metrics.counter("tfface", "left out").inc()
            else:
                beam.metrics.Metrics.counter("tfface", "aligned").inc()
                yield key, {**example, "image": encode(self._alignment.crop(photo, line["face"]))}

    def _lines(self, digest: str, examples: list, photos: list) -> list[dict]:
        """For each photo its name and its main face, None without one, or what is wrong with it."""
        path = epath.Path(self._found) / f"{digest}.json"
        if path.exists():
            return json.loads(path.read_text())
        found = iter(_detector(self._detector)([photo for photo in photos if not isinstance(photo, UserError)]))
        lines = []
        for (key, example), photo in zip(examples, photos, strict=True):
            line = {"name": str(example.get("key", key))}
            line |= {name: str(example[name]) for name in ("label", "identity") if name in example}
            if isinstance(photo, UserError):
                line["error"] = str(photo)
            else:
                faces = next(found)
                line["face"] = describe(faces, main_face(faces, photo.shape)) if len(faces) else None
            lines.append(line)
        aside = path.with_name(f".{digest}.{uuid.uuid4().hex}.part")
        try:
            aside.write_text(json.dumps(lines))
            aside.replace(path)
        except OSError as error:
            raise UserError(
                f"{path.parent} cannot be written on {socket.gethostname()}: {error.strerror}. Expected --data-dir to "
                "be a folder, with room in it, that every worker sees under the same path; nothing was built."
            ) from error
        return lines


@functools.cache
def _detector(name: str) -> Detector:
    """One detector a process, whatever the number of splits."""
    if "CONTROL_API_SERVICE_DESCRIPTOR" in os.environ:
        # Beam started this process; there is one for each core.
        import cv2
        import tensorflow as tf

        cv2.setNumThreads(1)
        with contextlib.suppress(RuntimeError):  # TensorFlow is at work already
            tf.config.threading.set_intra_op_parallelism_threads(1)
    return load_detector(name, min_face_size=MIN_FACE_SIZE)


def _read(image) -> np.ndarray | UserError:
    """The photo, or what is wrong with it.

    Raises:
        UserError: this machine does not see the file, which was there when the photos were listed.
    """
    try:
        data = image if isinstance(image, bytes) else Path(image).read_bytes()
    except OSError as error:
        raise UserError(
            f"{image} cannot be read on {socket.gethostname()}: {error.strerror}. Expected the files of --manual-dir "
            "in a folder that every worker sees under the same path; nothing was built."
        ) from error
    try:
        return read_photo(data)
    except UserError as error:
        return error


def pipeline_options(workers: int = 1, options: str = "") -> PipelineOptions:
    """Options for Beam: so many workers on this machine, unless `options` name a runner.

    Args:
        workers: how many align at once; 0 for one a core.
        options: "key=value,key=value", as on the command line of a Beam pipeline, for example
            "runner=FlinkRunner,flink_master=host:8081".

    Raises:
        UserError: fewer than no workers, a runner that cannot be had, or options that Beam does not know.
    """
    if workers < 0:
        raise UserError(f"--workers must be 0 (one a core) or more. Received: {workers}.")
    given = [f"--{option.strip()}" for option in options.split(",") if option.strip()]
    if any(option.startswith("--runner") for option in given):
        cluster = PipelineOptions(given)
        try:
            create_runner(cluster.view_as(StandardOptions).runner)
        except (ValueError, ImportError, AttributeError) as error:
            raise UserError(
                f"Beam has no such runner, or lacks what it needs. Received: {options}. It says: {error}"
            ) from error
        return cluster
    count = workers or os.cpu_count()
    # Processes, each with a detector of its own. Beam's threads share coders that are not made for it: with two of
    # them, 43,000 crops of 224 pixels came out of their groups broken ("Unknown type tag", None for an example).
    mode = "in_memory" if count == 1 else "multi_processing"
    local = PipelineOptions(
        [
            "--runner=DirectRunner",
            "--allow_unsafe_triggers",  # there are none; but else the runner would first fetch another from the network
            f"--direct_num_workers={count}",
            f"--direct_running_mode={mode}",
            "--default_sdk_harness_log_level=ERROR",
            *given,
        ]
    )
    # Of a cluster's runner nobody here can tell: it may know more than Beam's Python does.
    if unknown := local.get_all_options(retain_unknown_options=True).keys() - local.get_all_options().keys():
        raise UserError(
            f"Beam has no option {', '.join(sorted(unknown))}. Expected KEY=VALUE,... such as runner=FlinkRunner,"
            f"flink_master=HOST:8081. Received: {options}."
        )
    return local
