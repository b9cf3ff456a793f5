"""What docs/own_training.md shows works as it stands there, and its recipe has the verbs."""

import re
import shutil
from pathlib import Path

import pytest

from tfface import cli
from tfface.data import pipeline
from tfface.recipes import RECIPES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "own_training.md").read_text()
BUILDER = re.search(r"```python\n((?:(?!```).)*class Builder.*?)```", PAGE, re.S)[1]


@pytest.mark.pages
def test_the_page_runs(data_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = PAGE.replace(BUILDER, "").replace(
        '("synthetic_faces/small")', f'("synthetic_faces/small", {str(data_dir)!r})'
    )
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


def test_the_builder_of_the_page_builds(samples, tmp_path):
    builder = tmp_path / "sets" / "studio" / "studio_dataset_builder.py"
    builder.parent.mkdir(parents=True)
    builder.write_text(BUILDER)
    photos = tmp_path / "in" / "photos"
    photos.mkdir(parents=True)
    rows = ["file,age,emotion,split"]
    chosen = sorted((samples / "men_women" / "men").iterdir())[:3]
    for path, split in zip(chosen, ("train", "validation", "test"), strict=True):
        shutil.copy(path, photos)
        rows.append(f"{path.name},{20 + len(rows)},sad,{split}")
    (photos.parent / "labels.csv").write_text("\n".join(rows))
    options = [
        "--builders",
        str(tmp_path / "sets"),
        "--manual-dir",
        str(photos.parent),
        "--data-dir",
        str(tmp_path / "data"),
    ]
    assert cli.main(["build", "studio", *options]) == 0
    data = pipeline.open_dataset("studio", tmp_path / "data")
    labels = pipeline.label_arrays(data, "test")
    assert (labels["age"].tolist(), labels["emotion"].tolist()) == ([23], [2])
    assert len(data.info.metadata["landmarks"]) == 5
