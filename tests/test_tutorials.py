"""The tutorials work from top to bottom: their snippets and commands run in one folder, in the order of the page."""

import json
import re
import shlex
from pathlib import Path

import pytest

from tfface import cli, commands

pytestmark = pytest.mark.pages

PAGES = Path(__file__).resolve().parent.parent / "docs" / "tutorials"

SMALLER = {"count=400": "count=24", "--seeds 0,1,2": "--seeds 0 --set epochs=4"}
"""What is shrunk here: text -> text."""

ELSEWHERE = {
    "tfface doctor": "tests/test_cli.py",
    "tfface lr-find gender": "minutes; at tiny size in tests/training",
    "tfface reproduce gender --data": "wants a GPU; at tiny size in tests/recipes",
    "tfface build image_folder/races": "wants folders of four races: tests/datasets/test_image_folder.py",
    "tfface reproduce race": "the same; at tiny size in tests/recipes",
    "tfface export": "tests/serving",
    "tfface train gender": "minutes; at tiny size in tests/training",
    "tfface evaluate runs/finetuned": "what that would have trained",
}
"""Beginnings of commands that are not run here, and why."""

BLOCK = re.compile(r"```python\n(?P<code>.*?)```|^ {4}(?P<command>tfface [^\n]+)$", re.S | re.M)


def follow(page: str, folder: Path) -> None:
    """Do what a tutorial says."""
    text = (PAGES / page).read_text()
    for long, short in SMALLER.items():
        text = text.replace(long, short)
    scope = {}
    for found in BLOCK.finditer(text):
        if found["code"]:
            exec(compile(found["code"], page, "exec"), scope)
        else:
            command = found["command"]
            if not command.startswith(tuple(ELSEWHERE)):
                prepared = (
                    ["--data-dir", str(folder / "prepared")]
                    if re.search(r" image_folder/|calibrate|evaluate", command)
                    else []
                )
                assert cli.main([*shlex.split(command)[1:], *prepared]) == 0, command


@pytest.fixture
def folder(facenet, home, tmp_path, monkeypatch):
    """An empty folder to work in, with one photo."""
    from PIL import Image

    from tfface.faces.synthesize import photo

    monkeypatch.chdir(tmp_path)
    Image.fromarray(photo(4, 2, size=(480, 320))[0]).save("photo.jpg")
    return tmp_path


def test_own_folders(folder, monkeypatch):
    monkeypatch.setattr(commands, "export", lambda run, out: None)  # minutes of all tests: tests/serving
    follow("own_folders.md", folder)
    figures = json.loads((folder / "runs" / "people" / "seed-0" / "metrics.json").read_text())["test"]
    assert figures["tasks"]["label"]["accuracy"]["value"] > 0.7


def test_prune_your_model(folder, capsys):
    follow("prune_your_model.md", folder)
    said = dict(re.findall(r"^([a-z ]+): (0\.\d+|1\.0+)$", capsys.readouterr().out, re.M))
    assert float(said["before"]) > 0.95
    assert float(said["trained on"]) > float(said["before"]) - 0.02
    assert float(said["on a schedule"]) > 0.9
