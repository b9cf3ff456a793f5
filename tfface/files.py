"""Where tfface keeps things, and how it writes them: aside first, then renamed, so that nothing is half-written."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tfface.errors import UserError

LONGEST_NAME = 200
"""Bytes of a file's name up to which what is written aside bears it; file systems take 255."""


_PACKAGE = Path(__file__).resolve().parent

BUILDERS = _PACKAGE / "datasets" if (_PACKAGE / "datasets").is_dir() else _PACKAGE.parent / "datasets"
"""The folder of TFDS builders: in an installed package, or beside the package in a checkout."""


def builders_in(folder: Path) -> list[str]:
    """Names of the data sets whose TFDS builders a folder holds, NAME/NAME_dataset_builder.py."""
    return sorted(
        path.parent.name
        for path in folder.glob("*/*_dataset_builder.py")
        if path.name == f"{path.parent.name}_dataset_builder.py"
    )


def home() -> Path:
    """Folder for fetched weights and cached features: `$TFFACE_HOME`, else `~/.cache/tfface`.

    Raises:
        UserError: neither is known.
    """
    if folder := os.environ.get("TFFACE_HOME"):
        return Path(folder)
    try:
        return Path.home() / ".cache" / "tfface"
    except RuntimeError as error:  # a container's user that no table knows
        raise UserError(
            "This user has no home folder, as HOME is not set: name a folder for weights and cached features in "
            "TFFACE_HOME."
        ) from error


def walk(folder: str | os.PathLike, onerror: Callable[[OSError], None]) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`: each folder before those below it, by name, without hidden folders and files.

    Links to folders elsewhere are followed, each once; those that lead into the folder, or to one that holds it, are
    not.

    Args:
        folder: where to begin.
        onerror: is told of a folder that cannot be listed.
    """
    root, seen = os.path.realpath(folder), set()

    def is_reached_otherwise(path):
        if not os.path.islink(path):
            return False
        target = os.path.realpath(path)
        if target in seen or os.path.commonpath([root, target]) in (root, target):
            return True
        seen.add(target)
        return False

    for path, folders, names in os.walk(folder, onerror=onerror, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        folders[:] = [name for name in folders if not is_reached_otherwise(os.path.join(path, name))]
        yield path, folders, sorted(name for name in names if not name.startswith("."))


@contextlib.contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; rename it to `path` when the block ends well, remove it when not.

    The block may make a file or a folder there. An existing target is replaced (a folder target is moved away first,
    as a folder cannot be renamed over one that holds files). Of a link, what it leads to is replaced.

    Raises:
        UserError: the disk is full, or nothing can be written there.
    """
    path = Path(path)
    if path.name in ("", ".."):
        raise UserError(f"{path} names no file or folder of its own to write. Name a new one.")
    if len(os.fsencode(path.name)) > 255:
        raise UserError(f"{path} cannot be written: its name is longer than the 255 bytes that file systems take.")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path} is a pipe or a device, which a file would replace. Name a file.")
    if path.is_symlink():
        path = Path(os.path.realpath(path))
    name = path.name
    if len(os.fsencode(name)) > LONGEST_NAME:  # with what is added it would be longer than file systems take
        name = hashlib.blake2b(os.fsencode(name), digest_size=16).hexdigest()
    # Not by the number of the process: threads share it, and so do containers that write to one network folder.
    unique = uuid.uuid4().hex[:12]
    aside = path.with_name(f".{name}.{unique}.part{path.suffix}")
    ours = True
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        ours = False
        yield aside
        ours = True
        if path.is_dir() and aside.is_dir():
            old = path.with_name(f".{name}.{unique}.old")
            path.rename(old)
            aside.rename(path)
            shutil.rmtree(old)
        else:
            os.replace(aside, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"The disk is full: {path} could not be written and was left as it was. Free some room, then run again."
            ) from error
        if ours or error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR):
            raise UserError(
                f"{path} cannot be written: {error.strerror}. Name another place, in a folder that you may write to."
            ) from error
        raise
    finally:
        if aside.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # nor could it be made
                aside.unlink()


def remove_leftovers(path: str | Path, age: float = 86_400.0) -> None:
    """Remove what commands that were killed while they wrote `path` aside left beside it, which nobody else would.

    Args:
        path: the file or folder, as `written_aside` was given it.
        age: seconds since it was written to; 0 only where no other process can be writing it now.
    """
    path = Path(os.path.realpath(path))
    for kind in (f"part{path.suffix}", "old"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 12}.{glob.escape(kind)}"):
            with contextlib.suppress(OSError):  # another process removes it, too
                if time.time() - leftover.stat().st_mtime >= age:
                    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


@contextlib.contextmanager
def held(folder: str | Path, option: str = "") -> Iterator[None]:
    """Keep other processes out of a folder of results, which is made unless it is there.

    On file systems that know no locks of folders nothing is held.

    Args:
        folder: the folder.
        option: the command's option by which another folder is named; without one it waits for its turn.

    Raises:
        UserError: it may not be written to, or another process has it and another folder may be named.
    """
    make_folder(folder)
    check_writable(folder)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            said = f"{folder} is being written by another process"
            if option:
                raise UserError(f"{said}: wait for its end, or name another {option}") from error
            print(f"tfface: {said}; waiting for its end", file=sys.stderr, flush=True)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a network folder that knows no locks of folders
            pass
        yield
    finally:
        os.close(handle)


def check_writable(folder: str | Path) -> None:
    """Say before long work that its results could not be written. Nothing is made.

    Args:
        folder: of the results; it need not be there.

    Raises:
        UserError: it, or what stands where it would be made, is no folder that may be written to.
    """
    folder = Path(folder)
    place = next((path for path in (folder, *folder.parents) if os.path.exists(path)), folder)
    if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
        raise UserError(f"Nothing can be written to {folder}: {place} is no folder that you may write to.")


def make_folder(path: str | Path) -> Path:
    """Make a folder, and those above it, unless it is there.

    Raises:
        UserError: it cannot be made.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"The folder {path} cannot be made: {error.strerror}. Name another place.") from error
    return path


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file aside and rename it to `path`."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")
    return Path(path)


def write_json(path: str | Path, value) -> Path:
    """Write a JSON file (indented, keys in their order) aside and rename it to `path`."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str):
    """Read a JSON file.

    Args:
        path: the file.
        what: what the file is, for the message, e.g. "the run's configuration".

    Raises:
        UserError: the file is absent or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{what} is not there: expected {path}.") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{what} cannot be read: {path} is not JSON ({error}).") from error


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
