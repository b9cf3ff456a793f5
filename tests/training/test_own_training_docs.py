"""What docs/own_training.md shows works as it stands there, and its recipe has the verbs."""

import re
from pathlib import Path

import pytest

from tfface import cli
from tfface.recipes import RECIPES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own_training.md").read_text()


@pytest.mark.pages
def test_the_page_runs(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = PAGE.replace('("synthetic_faces/small")', f'("synthetic_faces/small", {str(data_dir)!r})')
    page = page.replace('"runs/told/seed-0", ', f'"runs/told/seed-0", {str(data_dir)!r}, ')
    scope = {"__name__": "mine"}
    monkeypatch.setitem(RECIPES, "mine", None)  # taken back at the end
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        exec(compile(block, "docs/own_training.md", "exec"), scope)
    assert cli.main(["evaluate", "runs/told/seed-0", "--data-dir", str(data_dir)]) == 0
    assert "epoch 2: 0." in capsys.readouterr().out
    monkeypatch.delitem(RECIPES, "mine")
    assert cli.main(["evaluate", "runs/told/seed-0", "--data-dir", str(data_dir)]) == 2
    assert "run the verb by its file" in capsys.readouterr().err
