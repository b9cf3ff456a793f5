"""The verbs `detect` and `align`: folders of photos become boxes, pictures and crops, in bounded memory.

`faces.jsonl` in the folder of the results holds a line a photo, written as the work goes on: a run that was stopped
goes on behind it and ends with the same files as one that was not. A photo that has changed since is done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from tfface import files
from tfface.errors import UserError
from tfface.faces.crops import DETECTOR_OF, MIN_FACE_SIZE, Alignment, describe, encode, main_face
from tfface.faces.detect import Faces, load_detector
from tfface.faces.draw import COLOURS, annotate
from tfface.faces.photos import SUFFIXES, common_folder, counted, photos_outside, read_photo, usable_paths

LINES, SETTINGS = "faces.jsonl", "settings.json"
"""In the folder of the results: what was found, a line a photo; what the results were made with."""

PHOTOS_AT_ONCE, PIXELS_AT_ONCE = 64, 1 << 23
"""A batch ends at so many photos or pixels, whichever comes first. Three batches are in memory at most: one being
read, one waiting, one being worked on."""

NAMED = 5
"""So many photos without a face, and so many broken ones, are named at the end; the lines tell all of them."""


def detect_photos(
    paths: Iterable[str | os.PathLike],
    detector: str = "mtcnn",
    min_face_size: int | None = None,
    out: Iterable[str] = ("json",),
    to: str | os.PathLike = "faces",
) -> int:
    """Find the faces in photos.

    Args:
        paths: photos, folders or globs.
        detector: a name that `tfface.faces.detect.load_detector` knows.
        min_face_size: the smallest face to be found, pixels; the detector's own if None.
        out: "json" (the lines of `faces.jsonl`, which are always written) and "picture" (a JPEG for each photo that
            has a face, with boxes, scores and landmarks, under its path below the folders given).
        to: folder of the results.

    Returns:
        Exit code: 0 every photo has a face, 1 some photo has none, 2 some photo could not be read.

    Raises:
        UserError: an unknown detector or kind of output, or a folder that holds other results.
    """
    if unknown := set(out) - {"json", "picture"}:
        raise UserError(f"detect writes json and picture, received {', '.join(sorted(unknown))}")
    pictures = "picture" in out
    options = {} if min_face_size is None else {"min_face_size": min_face_size}
    settings = {"verb": "detect", "detector": detector, **options, "pictures": pictures}

    def results(photo, faces, name):
        found = [describe(faces, index) for index in range(len(faces))]
        outputs = {_named(name, ".jpg"): encode(_drawn(photo, faces))} if pictures and len(faces) else {}
        return {"faces": found}, outputs

    tally = _prepare(paths, Path(to), settings, lambda: load_detector(detector, **options), results)
    print(f"{tally.text()}; results in {to}", flush=True)
    return 2 if tally.broken.count else 1 if tally.without.count else 0


def align_photos(
    paths: Iterable[str | os.PathLike],
    align: str,
    size: tuple[int, int] | None = None,
    faces: str = "all",
    no_face: str = "skip",
    detector: str | None = None,
    min_face_size: int = MIN_FACE_SIZE,
    suffix: str = ".jpg",
    to: str | os.PathLike = "aligned",
) -> int:
    """Cut the faces out of photos, aligned, under the photos' paths below the folders given.

    Args:
        paths: photos, folders or globs.
        align: "eyes", "five-point" or "margin".
        size: (height, width) of the crops, pixels; the paper's own if None.
        faces: "all" (PHOTO.jpg-0.jpg, PHOTO.jpg-1.jpg, the surest first), or "largest" (one a photo, under its own
            name; a face far from the middle counts as smaller).
        no_face: what is done with a photo without a face: "skip", "centre" (its middle is cut out), or "error".
        detector: name of a detector; the one that the alignment's paper used if None.
        min_face_size: the smallest face to be cut out, pixels.
        suffix: ".jpg" (quality 95) or ".png".
        to: folder of the results.

    Returns:
        Exit code: 0 every photo gave a crop, 1 some photo without a face was skipped, 2 some photo could not be read.

    Raises:
        UserError: an unknown alignment or detector, another word for `faces` or `no_face`, a folder that holds other
            results, a detector without the landmarks that the alignment needs, or a photo without a face where that is
            an error.
    """
    for name, value, known in (("faces", faces, ("all", "largest")), ("no_face", no_face, ("skip", "centre", "error"))):
        if value not in known:
            raise UserError(f"{name} must be one of {', '.join(known)}. Received: {value}.")
    alignment = Alignment(align, size)
    detector = detector or DETECTOR_OF[align]
    alignment.check_detector(detector)
    settings = {
        "verb": "align",
        "detector": detector,
        "min_face_size": min_face_size,
        "align": align,
        "size": list(alignment.size),
        "faces": faces,
        "no_face": no_face,
        "suffix": suffix,
    }

    def results(photo, found, name):
        if not len(found):
            if no_face == "error":
                raise UserError(f"no face was found in {name}; leave it out, or choose --no-face skip or centre")
            if no_face == "skip":
                return {"faces": []}, {}
            target = _named(name, suffix)
            return {"faces": [], "crop": target}, {target: encode(alignment.crop(photo, None), suffix)}
        lines, outputs = [], {}
        for index in range(len(found)) if faces == "all" else [main_face(found, photo.shape)]:
            face = describe(found, index)
            target = f"{name}-{index}{suffix}" if faces == "all" else _named(name, suffix)
            outputs[target] = encode(alignment.crop(photo, face), suffix)
            lines.append({**face, "crop": target})
        return {"faces": lines}, outputs

    tally = _prepare(paths, Path(to), settings, lambda: load_detector(detector, min_face_size=min_face_size), results)
    print(
        f"{tally.text({'skip': ', skipped', 'centre': ', cut at the centre'}.get(no_face, ''))}; results in {to}",
        flush=True,
    )
    return 2 if tally.broken.count else 1 if tally.without.count and no_face == "skip" else 0


@dataclass
class _Names:
    """Photos that share a fate: their number, and the first few names."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if self.count <= NAMED:
            self.first.append(name)

    def text(self, what: str) -> list[str]:
        more = f" and {self.count - NAMED} more" if self.count > NAMED else ""
        return [f"{self.count} {what} ({', '.join(self.first)}{more})"] * bool(self.count)


@dataclass
class _Tally:
    """What the lines of a folder say, added up."""

    photos: int = 0
    faces: int = 0
    without: _Names = field(default_factory=_Names)
    broken: _Names = field(default_factory=_Names)

    def add(self, line: dict) -> None:
        self.photos += 1
        if "error" in line:
            self.broken.add(line["path"])
        elif line["faces"]:
            self.faces += len(line["faces"])
        else:
            self.without.add(line["path"])

    def text(self, done: str = "") -> str:
        parts = [counted(self.photos, "photo"), counted(self.faces, "face")]
        return "; ".join(
            [", ".join(parts), *self.without.text(f"without a face{done}"), *self.broken.text("could not be read")]
        )


def _prepare(
    paths: Iterable[str | os.PathLike],
    to: Path,
    settings: dict,
    load: Callable[[], Callable],
    results: Callable[[np.ndarray, Faces, str], tuple[dict, dict[str, bytes]]],
) -> _Tally:
    """Detects and writes what `results` makes of each photo, and its line.

    Args:
        paths: photos, folders or globs.
        to: folder of the results.
        settings: what the results depend on.
        load: makes the detector; not called when nothing is left to do.
        results: (photo, its faces, its path below the folders given) -> (what its line says, path -> file).
    """
    named, total, wrong = usable_paths(paths, to)
    tally = _Tally()
    if named:
        base = common_folder(named)
        detector = None
        with contextlib.ExitStack() as stack:
            stack.enter_context(files.held(to, "--to"))
            tally, done = _claim(to, {**settings, "below": base})
            bar = stack.enter_context(
                tqdm(total=total, initial=min(len(done), total), unit=" photos", leave=False, disable=None)
            )
            stream = stack.enter_context(open(to / LINES, "ab"))
            for batch in _ahead(_batches(_left(named, to, done))):
                detector = detector or load()
                photos = [photo for _, _, photo in batch if isinstance(photo, np.ndarray)]
                found = iter(detector(photos))
                lines, written = [], []
                try:
                    for path, stamp, photo in batch:
                        line = {"path": path, **stamp}
                        if isinstance(photo, UserError):
                            bar.write(f"tfface: {photo}", file=sys.stderr)
                            line["error"] = str(photo)
                            # Forbidden, or the disk away: not the file's fault.
                            if getattr(photo.__cause__, "errno", None):
                                line["retry"] = True
                        else:
                            line |= {"width": photo.shape[1], "height": photo.shape[0]}
                            said, outputs = results(photo, next(found), Path(path).relative_to(base).as_posix())
                            line |= said
                            for target, data in outputs.items():
                                with files.written_aside(to / target) as aside:
                                    aside.write_bytes(data)
                                written.append(to / target)
                        tally.add(line)
                        lines.append(json.dumps(line, ensure_ascii=False) + "\n")
                except BaseException:
                    # No line will tell of them: a run of other settings would leave them among its own.
                    for target in written:
                        target.unlink(missing_ok=True)
                    raise
                # In one piece: a run that goes on then starts where a batch starts, as one that was not stopped.
                # Of a name that is no UTF-8, "backslashreplace" makes what JSON itself would write.
                stream.write("".join(lines).encode(errors="backslashreplace"))
                stream.flush()
                bar.update(len(batch))
    for path in wrong:
        tally.broken.add(path)
    return tally


def _left(named: list[str], to: Path, done: set[int]) -> Iterator[str]:
    for photo in map(os.path.abspath, photos_outside(named, to)):
        if (key := _key(photo)) not in done:
            done.add(key)
            yield photo


def _key(path: str) -> int:
    """64 bits that stand for a path: a million paths done take 60 MB instead of 200."""
    return int.from_bytes(hashlib.blake2b(path.encode(errors="surrogateescape"), digest_size=8).digest())


def _stamp(path: str) -> dict:
    try:
        status = os.stat(path)
    except OSError:
        return {}
    return {"bytes": status.st_size, "modified": status.st_mtime_ns}


def _batches(paths: Iterable[str]) -> Iterator[list[tuple[str, dict, np.ndarray | UserError]]]:
    """Photos with the stamps of their files; instead of one that cannot be read, what is wrong with it."""
    batch, pixels = [], 0
    for path in paths:
        stamp = _stamp(path)
        try:
            photo = read_photo(path)
            size = photo.shape[0] * photo.shape[1]
        except UserError as error:
            photo, size = error, 0
        if len(batch) == PHOTOS_AT_ONCE or (batch and pixels + size > PIXELS_AT_ONCE):
            yield batch
            batch, pixels = [], 0
        batch.append((path, stamp, photo))
        pixels += size
    if batch:
        yield batch


def _ahead(batches: Iterator[list]) -> Iterator[list]:
    """The same batches, each read while the one before it is worked on."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, batches, None)
        while batch := coming.result():
            coming = thread.submit(next, batches, None)
            yield batch


def _claim(to: Path, settings: dict) -> tuple[_Tally, set[int]]:
    """Takes a folder for results of these settings: new, empty, or with a part of the very same results.

    Returns:
        What the lines there add up to, and the keys of their photos.

    Raises:
        UserError: the folder holds something else.
    """
    tally, done, path = _Tally(), set(), to / SETTINGS
    if not path.exists():
        # Of a run that was killed in its first moment nothing but this is there.
        if any(not path.name.startswith(f".{SETTINGS}.") for path in to.iterdir()):
            raise UserError(
                f"{to} holds other files; expected a new or empty folder, or one of this verb: name it with --to"
            )
        files.write_json(path, settings)
        return tally, done
    before = files.read_json(path, f"What the results in {to} were made with")
    lines = to / LINES
    if before != settings and not (lines.exists() and lines.stat().st_size):  # of a run that failed at once
        files.write_json(path, settings)
        return tally, done
    if before != settings:
        changed = sorted(key for key in before | settings if before.get(key) != settings.get(key))
        raise UserError(
            f"{to} holds results of other settings: {', '.join(f'{key} {before.get(key)}' for key in changed)} there, "
            f"{', '.join(f'{key} {settings.get(key)}' for key in changed)} now; name another folder with --to"
        )
    for leftover in to.rglob(".*.part*"):  # of a run that was killed
        leftover.unlink()
    if not (to / LINES).exists():
        return tally, done
    with files.written_aside(to / LINES) as aside, open(to / LINES, "rb") as stream, open(aside, "wb") as kept:
        for text in stream:
            try:
                line = json.loads(text)
            except ValueError:  # cut off when the run was killed
                continue
            stamp = _stamp(line["path"])
            if line.get("retry") or (stamp and stamp != {key: line.get(key) for key in stamp}):
                for face in [line, *line.get("faces", [])]:
                    if "crop" in face:
                        (to / face["crop"]).unlink(missing_ok=True)
                if settings["verb"] == "detect":
                    drawn = _named(Path(os.path.relpath(line["path"], settings["below"])).as_posix(), ".jpg")
                    (to / drawn).unlink(missing_ok=True)
                continue
            kept.write(text)
            tally.add(line)
            done.add(_key(line["path"]))
    return tally, done


def _named(name: str, suffix: str) -> str:
    """A photo's name for the one picture made of it; its own suffix stays where it is another one.

    "b.png.jpg" keeps its own too: "b.png" beside it becomes that.
    """
    path = Path(name)
    alone = path.suffix.lower() == suffix and Path(path.stem).suffix.lower() not in SUFFIXES
    return name if alone else name + suffix


def _drawn(photo: np.ndarray, faces: Faces) -> np.ndarray:
    picture = annotate(photo, faces.boxes, [[f"{score:.2f}"] for score in faces.scores])
    if faces.landmarks is None:
        return picture
    picture = picture.copy()
    # As `annotate` takes the colours: in turn, by the order of the faces.
    for index, (box, points) in enumerate(zip(faces.boxes, faces.landmarks, strict=True)):
        radius = max(1, round(float(max(box[2:] - box[:2])) / 50))
        for x, y in points[np.isfinite(points).all(axis=1)]:
            centre = round(float(x)), round(float(y))
            cv2.circle(picture, centre, radius, COLOURS[index % len(COLOURS)], -1, cv2.LINE_AA)
    return picture
