"""The mean of runs' weights: what goes in, what is left out, what cannot be mixed."""

import json
import shutil

import numpy as np
import pytest

from tfface import commands
from tfface.cli import main
from tfface.errors import UserError
from tfface.models.saved import load_saved
from tfface.training.run import Run
from tfface.training.soup import soup


@pytest.fixture(scope="module")
def copy(tiny_run, tmp_path_factory):
    """`copy(name, change)`: a run whose trained weights are those of `tiny_run`, changed."""
    folder = tmp_path_factory.mktemp("soups")

    def made(name, change):
        run = Run(shutil.copytree(tiny_run.folder, folder / name))
        part = load_saved(run.trained_file)
        part.set_weights([change(weight) for weight in part.get_weights()])
        part.save(run.trained_file)
        return run

    return made


def test_what_helps_goes_in_and_what_harms_does_not(tiny_run, copy, data_dir, tmp_path, capsys):
    near = copy("near", lambda weight: weight * 1.01)
    other = copy("other", lambda weight: weight[::-1])
    runs = [str(run.folder) for run in (other, near, tiny_run)]
    assert main(["soup", *runs, "--out", str(tmp_path / "soup"), "--data-dir", str(data_dir)]) == 0
    said = json.loads((tmp_path / "soup" / "soup.json").read_text())
    told = {row["run"]: row for row in said["runs"]}
    assert not told[runs[0]]["in"]
    assert told[runs[2]]["in"] or told[runs[1]]["in"]
    assert np.mean(list(said["accuracy"].values())) > np.mean(list(told[runs[0]]["accuracy"].values()))
    mixed = Run(tmp_path / "soup")
    chosen = [Run(name) for name in mixed.config()["soup"]]
    assert mixed.done
    parts = [load_saved(run.trained_file).get_weights() for run in chosen]
    for mean, *own in zip(load_saved(mixed.trained_file).get_weights(), *parts, strict=True):
        np.testing.assert_allclose(mean, np.mean(own, axis=0), rtol=1e-5, atol=1e-6)
    images = np.random.default_rng(0).uniform(0, 255, (2, *mixed.recipe().image_size, 3)).astype("float32")
    assert np.isfinite(mixed.model().predict(images, verbose=0)["gender"]).all()
    assert "taken: " in capsys.readouterr().out


def test_equal_runs_are_all_taken_where_a_soup_was_killed_before(tiny_run, copy, data_dir, tmp_path, monkeypatch):
    same = copy("same", lambda weight: weight)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tfface.files.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            soup([tiny_run.folder, same.folder], tmp_path / "soup", data_dir)
    assert not (tmp_path / "soup").exists()
    mixed = soup([tiny_run.folder, same.folder], tmp_path / "soup", data_dir)
    assert len(mixed.config()["soup"]) == 2
    commands.evaluate(mixed.folder, "test", data_dir=data_dir)
    report = json.loads(commands.report(mixed.folder, data_dir)["json"].read_text())
    assert report["summary"].startswith(f"The mean of the weights of {tiny_run.folder} and {same.folder}; the best of")


def test_what_cannot_be_mixed_is_named(tiny_run, copy, data_dir, tmp_path):
    with pytest.raises(UserError, match="two runs or more, each once"):
        soup([tiny_run.folder, tiny_run.folder], tmp_path / "out")
    with pytest.raises(UserError, match="No run is in"):
        soup([tiny_run.folder, tmp_path / "absent"], tmp_path / "out")
    unfinished = copy("unfinished", lambda weight: weight)
    unfinished.done_file.unlink()
    with pytest.raises(UserError, match="is not finished"):
        soup([tiny_run.folder, unfinished.folder], tmp_path / "out")
    stranger = copy("stranger", lambda weight: weight)
    config = stranger.config()
    config["recipe"]["train_from"] = "Mixed_7a"
    stranger.config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="of another network"):
        soup([tiny_run.folder, stranger.folder], tmp_path / "out")
    with pytest.raises(UserError, match="holds files already"):
        soup([tiny_run.folder, unfinished.folder], tiny_run.folder)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds files already"):
        soup([tiny_run.folder, unfinished.folder], tmp_path / "file")
    assert not (tmp_path / "out").exists()
    diverged = copy("diverged", lambda weight: weight * np.nan)
    assert soup([diverged.folder, tiny_run.folder], tmp_path / "out", data_dir).config()["soup"] == [
        str(tiny_run.folder)
    ]
