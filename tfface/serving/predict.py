"""Predict the faces of many photos in bounded memory: pictures, JSON and CSV; what cannot be read is said."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from tfface import files
from tfface.errors import UserError

PHOTOS_AT_ONCE = 8


def predict_photos(
    paths: Iterable[str | Path],
    model: str | Path = "compact",
    detector: str = "mtcnn",
    out: Sequence[str] = ("picture",),
    to: str | Path = "predictions",
    embeddings: bool = False,
) -> int:
    """Predict the attributes of every face in photos; a photo that cannot be read is said and the rest goes on.

    Args:
        paths: photos, folders or globs.
        model: a run's folder or a shipped model.
        detector: name of a detector.
        out: any of "picture" (an annotated JPEG for each photo), "json", "csv" (one file each).
        to: folder of the results.
        embeddings: write them too, into the JSON; for a model that learnt one.

    Returns:
        Exit code: 0 every photo gave faces, 1 some photo has no face, 2 some photo could not be read.

    Raises:
        UserError: no such model or detector, or embeddings without JSON or of a model that has none.
    """
    from tqdm import tqdm

    from tfface.data.pipeline import in_groups
    from tfface.faces.crops import encode
    from tfface.faces.draw import annotate
    from tfface.faces.photos import common_folder, counted, photos_outside, read_photo, usable_paths
    from tfface.serving.predictor import Predictor

    if embeddings and "json" not in out:
        raise UserError(f"Embeddings go into the JSON: add json to --out. Received: {','.join(out)}.")
    predictor = Predictor(model, detector)
    if embeddings and "embedding" not in predictor.model.output:
        raise UserError(f"The model {model} learnt no embedding: expected one that has, such as compact.")
    to = Path(to)
    named, total, wrong = usable_paths(paths, to)
    seen = broken = empty = faces_found = 0

    def readable(bar):
        nonlocal seen, broken
        for path in photos_outside(named, to):
            seen += 1
            bar.update()
            try:
                yield path, read_photo(path)
            except UserError as error:
                broken += 1
                bar.write(f"tfface: {error}", file=sys.stderr)

    if not named:  # what an earlier run left stays
        print(f"no photo to look at; nothing was written to {to}", flush=True)
        return 2
    below = common_folder(named)
    tables = [to / f"predictions.{kind}" for kind in ("json", "csv") if kind in out]
    replaced = [path.name for path in tables if path.exists()]
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=total, unit=" photos", leave=False, disable=None))
        writers = []
        if "json" in out:
            writers.append(_json_writer(stack.enter_context(_text_aside(to / "predictions.json")), stack, embeddings))
        if "csv" in out:
            writers.append(_csv_writer(stack.enter_context(_text_aside(to / "predictions.csv")), stack))
        for group in in_groups(readable(bar), PHOTOS_AT_ONCE):
            for (path, photo), faces in zip(group, predictor([photo for _, photo in group]), strict=True):
                faces_found += len(faces)
                if faces:
                    bar.write(f"{path}: {'; '.join(', '.join(face.caption()) for face in faces)}")
                else:
                    empty += 1
                    bar.write(f"tfface: no face was found in {path}", file=sys.stderr)
                for write in writers:
                    write(path, faces)
                if "picture" in out and faces:
                    picture = annotate(photo, [face.box for face in faces], [face.caption() for face in faces])
                    with files.written_aside(to / _picture_name(path, below)) as aside:
                        # Not by imwrite: names that are no UTF-8 end the process in it, a full disk it does not tell.
                        aside.write_bytes(encode(picture, quality=92))
    broken += len(wrong)
    if replaced:
        print(f"tfface: {' and '.join(replaced)} of an earlier run in {to} replaced", file=sys.stderr)
    said = [counted(seen, "photo"), counted(faces_found, "face")]
    said += [f"{empty} without a face"] * bool(empty) + [f"{broken} could not be read"] * bool(broken)
    print(f"{', '.join(said)}; results in {to}", flush=True)
    return 2 if broken else 1 if empty else 0


def _picture_name(path: Path, below: str) -> Path:
    """Below the folder of the results as the photo lies in the folders given; a name belongs to one photo only."""
    from tfface.faces.photos import SUFFIXES

    name = Path(os.path.relpath(path, below))
    plain = name.suffix == ".jpg" and Path(name.stem).suffix.lower() not in SUFFIXES  # else another may have the stem
    return name.with_name(f"{name.stem if plain else name.name}-faces.jpg")


@contextlib.contextmanager
def _text_aside(path: Path):
    # Names that are no UTF-8 are written as the bytes that they are.
    text = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    with files.written_aside(path) as aside, open(aside, "w", **text) as stream:
        yield stream


def _json_writer(stream, stack, embeddings):
    separator = "[\n"

    def write(path, faces):
        nonlocal separator
        said = [face.to_json(embeddings) for face in faces]
        stream.write(separator + json.dumps({"photo": str(path), "faces": said}))
        separator = ",\n"

    stack.callback(lambda: stream.write("\n]\n" if separator == ",\n" else "[]\n"))
    return write


def _csv_writer(stream, stack):
    table = None
    # Where there was no face the columns of a face are not known; a table without any is none to who reads it.
    stack.callback(lambda: table or csv.writer(stream).writerow(("photo", "x0", "y0", "x1", "y1", "score")))

    def write(path, faces):
        nonlocal table
        for face in faces:
            said = face.to_json()
            row = {"photo": path, **dict(zip(("x0", "y0", "x1", "y1"), said["box"], strict=True))}
            row |= {key: value for key, value in said.items() if key not in ("box", "probabilities")}
            for task, classes in said["probabilities"].items():
                row |= {f"{task}: {name}": value for name, value in classes.items()}
            if table is None:
                table = csv.DictWriter(stream, row)
                table.writeheader()
            table.writerow(row)

    return write
