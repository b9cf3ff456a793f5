"""Pictures that get worse: what each harm does to a picture, and the curves of a real model."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from tfface import labels
from tfface.cli import main
from tfface.data import pipeline
from tfface.errors import UserError
from tfface.evaluation import robustness as module
from tfface.evaluation.evaluate import evaluate, mean, proportion
from tfface.evaluation.predictions import predict_split
from tfface.evaluation.robustness import (
    HARMS,
    MASK,
    dark,
    example_faces,
    hidden_below,
    robustness,
    small,
    write_robustness,
)
from tfface.faces.occlude import generator
from tfface.faces.synthesize import face
from tfface.recipes import RECIPES
from tfface.serving.predictor import find_model

DATA = "synthetic_faces/small"


@pytest.fixture(scope="module")
def image():
    return face(3, size=112).image[:, 8:104]


@pytest.mark.parametrize("name", HARMS)
def test_every_step_of_a_harm_is_further_from_the_picture(name, image):
    harm = HARMS[name]
    errors = []
    for strength in harm.strengths:
        harmed = harm.apply(image, strength, generator("a", 0))
        assert (harmed.shape, harmed.dtype) == (image.shape, np.uint8)
        assert np.array_equal(harmed, harm.apply(image, strength, generator("a", 0)))  # the key decides
        errors.append(np.abs(harmed.astype(float) - image).mean())
    assert errors[0] > 0
    # where an object lies is chance: of covers only the two ends are compared
    assert errors[0] < errors[-1] if name == "covered" else errors == sorted(errors)


def test_dark_is_less_light_and_not_less_grey_level():
    grey = np.full((100, 100, 3), 200, np.uint8)
    # a tenth of the light: 200 * 0.1 ** (1 / 2.2) = 70.2
    darker = dark(grey, 0.1, generator("a"))
    assert darker.mean() == pytest.approx(70.2, abs=0.1)
    assert darker.std() == pytest.approx((2**2 + 1 / 12) ** 0.5, abs=0.05)  # of the sensor and of whole grey levels


def test_chance_hangs_on_the_seed_and_on_the_key(image):
    harmed = {
        (key, seed): module._harmed(HARMS["low light"], 0.5, seed, image, key)
        for key in (b"a", b"b")
        for seed in (0, 1)
    }
    for (key, seed), picture in harmed.items():
        same = [other for other in harmed if np.array_equal(harmed[other], picture)]
        assert same == [(key, seed)]
        assert np.array_equal(picture, dark(image, 0.5, generator(key.decode(), seed)))


def test_hidden_from_below_by_hand(image):
    harmed = hidden_below(image, 0.25, None)
    assert np.array_equal(harmed[:84], image[:84])
    assert (harmed[84:] == MASK).all()


def test_small_keeps_what_small_faces_show():
    """Columns of 8 pixels are gone at an eighth of the size, an even grey stays."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 200
    assert np.ptp(small(stripes, 8, None)) <= 1
    assert small(stripes, 8, None).mean() == pytest.approx(100, abs=1)
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, np.arange(128) % 4 < 2] = 200  # two columns become one, in a crop that is not square too
    assert np.ptp(small(wide, 32, None)) > 150


@pytest.fixture
def two_harms(monkeypatch):
    kept = {name: HARMS[name] for name in ("blur", "hidden from below")}
    monkeypatch.setattr(
        module, "HARMS", {name: module.Harm(harm.apply, (0.08,), harm.unit) for name, harm in kept.items()}
    )


def test_curves_of_the_shipped_network(two_harms, data_dir, tmp_path, capsys):
    out = tmp_path / "page"
    arguments = ["robustness", "compact", "--data", DATA, "--split", "test[:12]", "--data-dir", str(data_dir)]
    assert main([*arguments, "--out", str(out)]) == 0
    assert "undamaged: gender accuracy" in capsys.readouterr().out
    result = json.loads((out / "report.json").read_text())
    assert result["n"] == 12
    blur = result["harms"]["blur"]
    assert blur["strengths"] == [None, 0.08]
    assert {"gender accuracy", "age error"} <= set(blur["figures"])
    # every curve begins at the same place, and that is what an evaluation gives
    whole = result["harms"]["hidden from below"]["figures"]["age error"][0]
    assert blur["figures"]["age error"][0] == whole
    assert blur["figures"]["age error"][1] != whole
    expected = evaluate(predict_split(find_model("compact"), "test[:12]", DATA, data_dir, progress=False))
    assert whole["value"] == pytest.approx(expected["age"]["mae"]["value"], abs=1e-4)
    assert (out / "figures" / "hidden-from-below.svg").exists()
    assert (out / "figures" / "examples-blur.jpg").exists()


def test_faces_that_the_network_learnt_from_are_said(two_harms, light_run, data_dir):
    said = {}
    for split in ("train[:8]", "test[:8]"):
        lines = []
        result = module.robustness(light_run, split, data_dir=data_dir, progress=lines.append)
        said[split] = (result["learnt_from"], any("learnt from images of" in line for line in lines))
    assert said == {"train[:8]": (True, True), "test[:8]": (False, False)}


def test_the_error_of_one_face_has_no_interval(tmp_path):
    figures = {"gender accuracy": [proportion(1, 1), proportion(0, 1)], "age error": [mean([3.0]), mean([40.0])]}
    harms = {"blur": {"unit": HARMS["blur"].unit, "strengths": [None, 0.08], "figures": figures}}
    result = {"data": DATA, "split": "test[:1]", "n": 1, "seed": 0, "learnt_from": True, "harms": harms}
    made = write_robustness(result, tmp_path, "One face")
    page = made["markdown"].read_text()
    assert "40.00 (one face)" in page
    assert "The network learnt from images of test" in page


def test_examples_begin_undamaged(data_dir):
    shown = example_faces(pipeline.open_dataset(DATA, data_dir), "test")
    assert shown.keys() == HARMS.keys()
    for name, tiles in shown.items():
        assert [caption for _, caption in tiles] == ["undamaged", *(f"{one:g}" for one in HARMS[name].strengths)]


def test_labels_that_the_network_does_not_tell_are_refused(monkeypatch):
    classes = {"gender": labels.GENDERS, "race": labels.FAIRFACE_RACES, "age_group": labels.FAIRFACE_AGES}
    features = dict.fromkeys(("key", *classes))
    builder = SimpleNamespace(info=SimpleNamespace(features=features, full_name="own"))
    for name, gives in (("open_dataset", builder), ("class_names", classes), ("label_arrays", {})):
        monkeypatch.setattr(pipeline, name, lambda *which, gives=gives: gives)
    outputs = dict.fromkeys(("gender", "race_utkface", "age", "age_group"))
    recipe = RECIPES["compact"](known="utkface")
    run = SimpleNamespace(recipe=lambda: recipe, model=lambda: SimpleNamespace(output=outputs))
    with pytest.raises(UserError, match="own has labels for race, which this network does not tell"):
        robustness(run, data="own")


def test_joined_data_are_refused():
    with pytest.raises(UserError, match="name one of them with --data"):
        robustness(find_model("compact"))
