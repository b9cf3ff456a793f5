"""One check over every recipe: shrunk to seconds it trains, evaluates, reports and exports on synthetic faces."""

import json

import pytest
import tensorflow as tf

from tfface import commands, recipes
from tfface.data import pipeline
from tfface.recipes import RECIPES


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"arg"}))  # arg goes the same way in tests/training and serving
def test_the_whole_way(name, data_dir, tmp_path, capsys):
    recipe = recipes.load(name, settings=["epochs=1"], tiny=True)
    made = commands.reproduce(recipe, [0], tmp_path / name, data_dir=data_dir)
    run = tmp_path / name / "seed-0"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    figures = json.loads((run / "metrics.json").read_text())["test"]
    assert figures["n"] == 120
    for task in recipe.adapted(pipeline.class_names(pipeline.open_dataset(recipe.data, data_dir))).tasks():
        assert 0 < figures["tasks"][task.name]["accuracy"]["value"] <= 1
    report = json.loads(made["json"].read_text())
    assert report["title"] == recipe.title
    assert [row["source"] for row in report["comparison"]] == [row[3] for row in recipe.published]
    served = tf.saved_model.load(str(made["saved_model"])).signatures["serving_default"]
    answer = served(images=tf.zeros((2, 50, 40, 3), tf.uint8))
    for task in figures["tasks"]:
        assert answer[f"{task}_probabilities"].shape == (2, len(figures["tasks"][task]["classes"]))
