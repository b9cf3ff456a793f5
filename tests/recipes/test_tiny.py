"""One check over every recipe: shrunk to seconds it trains, evaluates, reports and exports on synthetic faces."""

import json

import pytest
import tensorflow as tf

from tfface import commands, recipes
from tfface.data import pipeline
from tfface.recipes import RECIPES


@pytest.mark.filterwarnings("error:Your input ran out of data")
@pytest.mark.parametrize("recipe_name", sorted(set(RECIPES) - {"arg", "occluded"}))  # arg: tests/training and serving
def test_the_whole_way(recipe_name, data_dir, tmp_path):
    recipe = recipes.load(recipe_name, settings=["epochs=1"], tiny=True)
    made = commands.reproduce(recipe, [0], tmp_path / recipe_name, data_dir=data_dir)
    run = tmp_path / recipe_name / "seed-0"
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 1
    figures = json.loads((run / "metrics.json").read_text())["test"]
    # All 120, but those of the race that four races leave out.
    assert figures["n"] == pipeline.open_dataset(recipe.data, data_dir).info.splits["test"].num_examples <= 120
    for task in recipe.adapted(pipeline.class_names(pipeline.open_dataset(recipe.data, data_dir))).tasks():
        name = "age_bins" if task.is_age else task.name
        assert 0 < figures["tasks"][name]["accuracy"]["value"] <= 1
    report = json.loads(made["json"].read_text())
    assert report["title"] == recipe.title
    sources = [row["source"] for row in report["comparison"] if row["published"] is not None]
    assert sources == [row[3] for row in recipe.published]
    served = tf.saved_model.load(str(made["saved_model"])).signatures["serving_default"]
    answer = served(images=tf.zeros((2, 50, 40, 3), tf.uint8))
    for task in figures["tasks"]:
        assert answer[f"{task}_probabilities"].shape == (2, len(figures["tasks"][task]["classes"]))


def test_the_whole_way_of_a_recipe_that_tells_people_apart(data_dir, tmp_path):
    recipe = recipes.load("occluded", settings=["epochs=1"], tiny=True)
    made = commands.reproduce(recipe, [0], tmp_path, data_dir=data_dir)
    verified = json.loads((tmp_path / "seed-0" / "metrics.json").read_text())["verification"]["synthetic_faces/small"]
    assert verified["n"] >= 100
    assert 0.3 < verified["accuracy"] <= 1
    report = json.loads(made["json"].read_text())
    assert [row["metric"] for row in report["comparison"]] == ["same person or not, synthetic_faces/small"]
    served = tf.saved_model.load(str(made["saved_model"])).signatures["serving_default"]
    embedding = served(images=tf.zeros((2, 50, 40, 3), tf.uint8))
    assert list(embedding) == ["embedding"]
    assert embedding["embedding"].shape == (2, 32)
