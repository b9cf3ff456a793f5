"""Alignment inside TFDS builders: a set of faces, cut anew by eyes, five points or margin, as a Beam pipeline.

In a builder three lines change:

    class Builder(aligned.AlignableBuilder):            # instead of tfds.core.GeneratorBasedBuilder
        BUILDER_CONFIGS = [aligned.AlignableConfig(...)]  # if it has configs; a subclass may add fields
        def _split_generators(self, dl_manager):
            ...
            return self.aligned({"train": self._generate_examples(...), ...})

Examples are those of the set as it is; the image is the feature "image", a path or encoded bytes. Then

    builder = Builder(data_dir=...)
    Builder(config=aligned.aligned_config(builder, "five-point"), data_dir=...).download_and_prepare(...)

prepares NAME/five-point (NAME/CONFIG-five-point where the set has configs) beside the set as it is.
"""

from __future__ import annotations

import dataclasses
import re
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import tensorflow_datasets as tfds
from absl import logging
from etils import epath
from tqdm import tqdm

from tfface.data import originals
from tfface.errors import UserError
from tfface.faces.crops import DETECTOR_OF, MIN_FACE_SIZE, Alignment
from tfface.faces.detect import load_detector

NO_FACE = ("skip", "centre", "error")


@dataclasses.dataclass(eq=False, kw_only=True)
class AlignableConfig(tfds.core.BuilderConfig):
    """A config of a data set whose images may be aligned.

    Attributes:
        align: "eyes", "five-point" or "margin" (`tfface.faces.crops.Alignment`); "" for the images as they are.
        size: (height, width) of the crops, pixels; the paper's own if None.
        no_face: what is done with a photo without a face: "skip", "centre" (its middle is cut out) or "error".
        detector: name of a detector; the one that the alignment's paper used if "".
        unaligned: name of the config of the images as they are; this one's own where nothing is aligned.
    """

    align: str = ""
    size: tuple[int, int] | None = None
    no_face: str = "skip"
    detector: str = ""
    unaligned: str = ""

    def __post_init__(self):
        self.unaligned = self.unaligned or self.name


def aligned_config(
    builder: AlignableBuilder,
    align: str,
    size: tuple[int, int] | None = None,
    no_face: str = "skip",
    detector: str = "",
) -> AlignableConfig:
    """The config of the aligned form of a data set.

    Args:
        builder: a builder of the data set as it is, with the config that is to be aligned.
        align, no_face: see `AlignableConfig`.
        size: (height, width) of the crops, pixels; the paper's own if None.
        detector: see `AlignableConfig`; that of the alignment if empty.

    Returns:
        A config to make the builder anew with. All that changes the images is in its name: "five-point",
        "images-eyes-centre", "five-point-112x112-dlib".

    Raises:
        UserError: the data set cannot be aligned, or an unknown alignment, size or treatment.
    """
    base = builder.builder_config or AlignableConfig(name="")
    if not (isinstance(builder, AlignableBuilder) and isinstance(base, AlignableConfig)):
        raise UserError(
            f"{builder.name} cannot be aligned: expected a builder and configs that derive from AlignableBuilder and "
            "AlignableConfig of tfface.data.aligned"
        )
    alignment = Alignment(align, size)
    alignment.check_detector(detector)
    if no_face not in NO_FACE:
        raise UserError(f"no_face must be one of {', '.join(NO_FACE)}, received {no_face!r}")
    own_size, own_detector = alignment == Alignment(align), detector in ("", DETECTOR_OF[align])
    pixels = "x".join(map(str, alignment.size))
    parts = [
        base.name,
        align,
        "" if own_size else pixels,
        "" if own_detector else re.sub(r"[^\w.-]", "_", detector),
        "centre" if no_face == "centre" else "",
    ]
    return dataclasses.replace(
        base,
        name="-".join(filter(None, parts)),
        description=f"{base.description or ''} Aligned: {align}, {pixels}.".strip(),
        align=align,
        size=alignment.size,
        no_face=no_face,
        detector=detector or DETECTOR_OF[align],
    )


class AlignableBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of photos of faces that can also prepare them aligned."""

    _aligned = None

    def download_and_prepare(self, **options):
        """As TFDS does; a bar counts the photos in which faces were looked for, on whatever machines they are.

        Raises:
            UserError: a worker cannot read a photo or was killed, or no face was found in a split or a class.
        """
        done = threading.Event()
        watch = threading.Thread(target=self._show_progress, args=(done,), daemon=True)
        watch.start()
        try:
            super().download_and_prepare(**options)
        except Exception as error:
            if why := self._why("".join(traceback.format_exception_only(error))):
                raise UserError(why) from error
            raise
        finally:
            done.set()
            watch.join()

    def _show_progress(self, done: threading.Event) -> None:
        while self._aligned is None:  # the photos are still being listed, or there is nothing to align
            if done.wait(1):
                return
        total = sum(split.photos for split in self._aligned.values())
        with tqdm(desc="Finding faces", total=total, unit=" photos", leave=False) as bar:
            while not done.wait(1):
                found = sum(split.looked_at() for split in self._aligned.values())
                bar.update(max(0, found - bar.n))  # in the end their folder is removed
        # It stood below TFDS's bars, and leaves the cursor in the middle of a line for them to go on; they have gone.
        sys.stderr.write("\r")

    def _why(self, failure: str) -> str:
        """What ended the pipeline, in a line, by the text that Beam gives of it; "" if it is of no known kind."""
        if said := re.search(r"tfface\.errors\.UserError: (.+) \[while running", failure):
            return said[1]
        if split := re.search(r"number of generated examples is 0 for split (\w+)", failure):
            return (
                f"no face was found in any photo of the split {split[1]} of {self.info.full_name}; nothing was built: "
                "choose --no-face centre, or another --detector"
            )
        if "Channel closed prematurely" in failure:
            return (
                f"A worker was killed while it aligned {self.info.full_name}, perhaps because memory ran out. What was "
                "found is kept: run the same command again to go on, with fewer --workers."
            )
        return ""

    def image_of(self, photo: originals.Photo) -> Path | bytes:
        """What an example holds of a file: as it is to be stored, or its path where it will be aligned.

        Aligning reads a path as it would be stored, and until then all examples are in memory.

        Raises:
            UserError: it cannot be read.
        """
        return photo.path if getattr(self.builder_config, "align", "") else originals.content(photo.path)

    def aligned(self, splits: dict[str, Iterable]) -> dict:
        """What `_split_generators` returns: the splits as they are, or as Beam transforms that align them.

        Args:
            splits: split -> (key, example) pairs.
        """
        config = self.builder_config
        if not getattr(config, "align", ""):
            return splits
        from tfface.data.alignment_pipeline import AlignedSplit  # Beam takes seconds to import

        alignment = Alignment(config.align, config.size)
        load_detector(config.detector, min_face_size=MIN_FACE_SIZE)  # what is wrong is said here, not by workers
        self.info.metadata["landmarks"], stretch = alignment.by_detector(config.detector)
        if stretch != 1:
            self.info.metadata["stretch"] = stretch
        # Beside the folder that is being built: it outlives a build that is killed, and on a cluster every worker
        # reaches it, as it writes its records there.
        self._found = epath.Path(self.data_dir).parent / "found"
        self._found.mkdir(parents=True, exist_ok=True)
        self._aligned = {split: AlignedSplit(examples, config, self._found) for split, examples in splits.items()}
        return self._aligned

    def _process_pipeline_result(self, pipeline_result) -> None:
        """Names the photos without a face in the metadata, as soon as all were looked at."""
        del pipeline_result
        config = self.builder_config
        found = {name: split.found() for name, split in self._aligned.items()}
        lines = [line for split in found.values() for line in split]
        broken = sorted(line["name"] for line in lines if "error" in line)
        without = sorted(line["name"] for line in lines if "error" not in line and line["face"] is None)
        for names, what in ((without, f"without a face ({config.no_face})"), (broken, "could not be read (left out)")):
            if names:
                more = ", ..." if len(names) > 5 else ""
                logging.warning(
                    "%s: %d of %d photos %s: %s%s",
                    self.info.full_name, len(names), len(lines), what, ", ".join(names[:5]), more,
                )  # fmt: skip
        if without and config.no_face == "error":
            raise UserError(
                f"no face was found in {len(without)} of {len(lines)} photos of {self.info.full_name}: "
                f"{', '.join(without[:20])}{', ...' if len(without) > 20 else ''}; nothing was built: "
                "choose --no-face skip or centre"
            )
        self._check_classes(found)
        left_out = {"undecodable": broken, "no_face": without if config.no_face == "skip" else []}
        before = self.info.metadata.get("left_out", {})
        self.info.metadata["left_out"] = before | {
            reason: before.get(reason, []) + names for reason, names in left_out.items()
        }
        if config.no_face == "centre":
            self.info.metadata["cut_at_centre"] = without
        self._found.rmtree()

    def _check_classes(self, found: dict[str, list[dict]]) -> None:
        """Count what is left of each class; name the people of whom nothing is.

        Args:
            found: split -> what was found in its photos.

        Raises:
            UserError: a class has lost all its photos of a split.
        """
        kept = self.builder_config.no_face == "centre"
        vanished = set()
        for split, lines in found.items():
            left = [line for line in lines if "error" not in line and (line["face"] or kept)]
            if lost := {line["label"] for line in lines if "label" in line} - {line.get("label") for line in left}:
                raise UserError(
                    f"no face was found in any photo of {', '.join(sorted(lost))} in the split {split} of "
                    f"{self.info.full_name}; nothing was built: choose --no-face centre, or another --detector"
                )
            if counts := Counter(line["label"] for line in left if "label" in line):
                by_class = ", ".join(f"{name} {number:,}" for name, number in sorted(counts.items()))
                tqdm.write(f"{self.info.full_name}: with a face: {split} {counts.total():,} ({by_class})")
            people = [{line["identity"] for line in part if "identity" in line} for part in (lines, left)]
            vanished |= people[0] - people[1]
        if vanished:
            logging.warning(
                "%s: %d people without a photo in which a face was found: %s%s",
                self.info.full_name, len(vanished), ", ".join(sorted(vanished)[:5]), ", ..." * (len(vanished) > 5),
            )  # fmt: skip
            self.info.metadata["without_images"] = sorted(vanished)
