"""The main job from end to end on synthetic faces, by the very commands that a user would type."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from tfface import cli, files


def demo(out: str | Path = "runs/demo") -> int:
    """Build a data set, train ARG on it, evaluate, report, export, and predict a photo; what stands is reused.

    Args:
        out: folder of everything that it makes.

    Returns:
        Exit code: 0, or that of the command at which it stopped.
    """
    out = Path(out)
    photo = out / "photo.jpg"
    data = ("--data-dir", out / "data")
    commands = (
        ("weights", "fetch", "facenet"),
        ("build", "synthetic_faces/small", *data),
        ("reproduce", "arg", "--variant", "years", "--tiny", *data, "--out", out),
        ("predict", photo, "--model", out / "seed-0", "--out", "picture,json", "--to", out),
        ("predict", photo, "--to", out / "compact"),
    )
    for number, command in enumerate(commands, 1):
        words = [str(word) for word in command]
        print(f"\n[{number}/{len(commands)}] tfface {shlex.join(words)}", flush=True)
        if words[0] == "predict":
            draw_photo(photo)
        if code := cli.main(words):
            print(f"tfface: the demo stopped at `tfface {shlex.join(words)}`.", file=sys.stderr)
            return code
    print("\nThe demo is done: synthetic faces of nobody, real weights, the commands above.")
    for what, path in (
        ("report", out / "report.html"),
        ("annotated picture, by what was trained", out / "photo-faces.jpg"),
        ("annotated picture, by the model of the package", out / "compact" / "photo-faces.jpg"),
        ("SavedModel", out / "saved_model"),
    ):
        print(f"  {what}: {os.path.relpath(path)}")
    return 0


def draw_photo(path: Path) -> None:
    """Write a photo of five synthetic people."""
    if path.exists():
        return
    from PIL import Image

    from tfface.faces.synthesize import photo

    with files.written_aside(path) as aside:
        Image.fromarray(photo(seed=7, count=5)[0]).save(aside, quality=92)
