import json
import os
import shutil

import numpy as np
import pytest

from tfface import commands, files, recipes
from tfface.errors import UserError
from tfface.evaluation.calibrate import calibrate, fit_temperature
from tfface.training.lr_find import find_for_recipe


def softmax(logits):
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4))
    truth = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    assert fit_temperature(softmax(logits * temperature), truth) == pytest.approx(temperature, rel=0.05)


@pytest.mark.parametrize("temperature", [10.0, 18.0])
def test_the_temperature_of_a_very_sure_network_is_found(temperature):
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 4)) - 3 * np.eye(4)[rng.integers(4, size=20_000)]
    truth = np.array([rng.choice(4, p=row) for row in softmax(logits)])
    said = softmax((logits * temperature).astype("float32"))
    assert (said < 1e-12).mean() > 0.3
    assert fit_temperature(said, truth) == pytest.approx(temperature, rel=0.05)


def test_a_known_temperature_is_found_from_sums():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 6))
    groups = [0, 0, 1, 1, 1, 2]
    truth = np.array([groups[rng.choice(6, p=row)] for row in softmax(logits)])
    assert fit_temperature(softmax(logits * 2), truth, groups) == pytest.approx(2, rel=0.05)


def test_a_run_is_not_calibrated_while_it_is_trained(tiny_run, data_dir):
    before = tiny_run.trained_file.read_bytes()
    with files.held(tiny_run.folder, "--out"), pytest.raises(UserError, match="written by another process"):
        calibrate(tiny_run.folder, data_dir)
    assert tiny_run.trained_file.read_bytes() == before


def test_a_run_is_calibrated_and_no_label_changes(tiny_run, data_dir, tmp_path):
    from tfface.training.run import Run

    run = Run(shutil.copytree(tiny_run.folder, tmp_path / "run"))
    inputs = np.random.default_rng(0).uniform(0, 255, (8, *run.recipe().image_size, 3)).astype("float32")
    before = run.model().predict(inputs, verbose=0)
    temperatures = calibrate(run.folder, data_dir)
    assert set(temperatures) == {"gender", "race", "age"}
    calibrated = run.model()
    after = calibrated.predict(inputs, verbose=0)
    for name, temperature in temperatures.items():
        np.testing.assert_array_equal(before[name].argmax(1), after[name].argmax(1))
        np.testing.assert_allclose(after[name], softmax(np.log(before[name]) / temperature), atol=1e-4)
    assert json.loads((run.folder / "calibration.json").read_text()) == pytest.approx(temperatures)
    # What was measured before is no longer the run's: neither a report nor a comparison takes it for that.
    assert not run.figures_file.exists()
    assert not list(run.folder.glob("predictions-*"))
    # a second time there is little left to do
    run.calibration_file.unlink()  # as if the command had been killed before it was written
    again = calibrate(run.folder, data_dir)
    assert all(abs(value - 1) < 0.02 for value in again.values())
    products = {name: value * again[name] for name, value in temperatures.items()}
    assert json.loads((run.folder / "calibration.json").read_text()) == pytest.approx(products)
    # An epoch that is kept after it, of a run that goes on, was not calibrated.
    run.save_trained(calibrated)
    assert not run.calibration_file.exists()
    assert run.temperatures() == {}
    files.write_json(run.calibration_file, temperatures)  # of a version before, which kept them there alone
    assert run.temperatures() == temperatures


def test_long_work_is_not_begun_where_its_results_cannot_be_written(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("of a person")
    place = tmp_path / "file" / "results"
    for work in (
        lambda: find_for_recipe(recipes.load("gender", tiny=True), place, tmp_path),
        lambda: commands.robustness("compact", data_dir=tmp_path, out=place),
        lambda: commands.verify("compact", data_dir=tmp_path, out=place),
    ):
        with pytest.raises(UserError, match=r"Nothing can be written to .*results: .*file is no folder"):
            work()
    files.check_writable(tmp_path / "new" / "below")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    monkeypatch.setattr(os, "access", lambda *_: False)  # the folder of somebody else
    with pytest.raises(UserError, match=r"Nothing can be written to"):
        commands.evaluate(tiny_run.folder)
    with pytest.raises(UserError, match=r"Nothing can be written to"), files.held(tmp_path):
        pass
