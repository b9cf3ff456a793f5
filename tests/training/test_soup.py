"""The mean of runs' weights: what goes in, what is left out, what cannot be mixed."""

import json
import shutil

import numpy as np
import pytest

from tfface import commands
from tfface.cli import main
from tfface.errors import UserError
from tfface.models.saved import load_saved
from tfface.training.fit import fit
from tfface.training.run import Run
from tfface.training.soup import soup


@pytest.fixture
def run(colour, colours, tmp_path):
    """A finished run that was trained from cached features."""
    return fit(colour(train_from="mean", epochs=4, learning_rate=0.03), tmp_path / "run", colours, verbose=0)


@pytest.fixture
def copy(run, tmp_path):
    """`copy(name, change)`: a run whose trained weights are those of `run`, changed."""

    def made(name, change):
        copied = Run(shutil.copytree(run.folder, tmp_path / name))
        part = load_saved(copied.trained_file)
        part.set_weights([change(weight) for weight in part.get_weights()])
        part.save(copied.trained_file)
        return copied

    return made


def test_what_helps_goes_in_and_what_harms_does_not(run, copy, colours, tmp_path, capsys):
    near = copy("near", lambda weight: weight * 1.01)
    nearer = copy("nearer", lambda weight: weight * 0.98)
    other = copy("other", lambda weight: weight[::-1])
    runs = [str(one.folder) for one in (other, near, run, nearer)]
    assert main(["soup", *runs, "--out", str(tmp_path / "soup"), "--data-dir", str(colours)]) == 0
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


def test_equal_runs_are_all_taken_where_a_soup_was_killed_before(run, copy, colours, tmp_path, monkeypatch):
    same = copy("same", lambda weight: weight)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tfface.files.write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            soup([run.folder, same.folder], tmp_path / "soup", colours)
    assert not (tmp_path / "soup").exists()
    mixed = soup([run.folder, same.folder], tmp_path / "soup", colours)
    assert len(mixed.config()["soup"]) == 2
    commands.evaluate(mixed.folder, "test", data_dir=colours)
    report = json.loads(commands.report(mixed.folder, colours)["json"].read_text())
    assert report["summary"].startswith(f"The mean of the weights of {run.folder} and {same.folder}; the best of")


def test_what_cannot_be_mixed_is_named(run, copy, colours, tmp_path):
    with pytest.raises(UserError, match="two runs or more, each once"):
        soup([run.folder, run.folder], tmp_path / "out")
    with pytest.raises(UserError, match="No run is in"):
        soup([run.folder, tmp_path / "absent"], tmp_path / "out")
    unfinished = copy("unfinished", lambda weight: weight)
    unfinished.done_file.unlink()
    with pytest.raises(UserError, match="is not finished"):
        soup([run.folder, unfinished.folder], tmp_path / "out")
    stranger = copy("stranger", lambda weight: weight)
    config = stranger.config()
    config["recipe"]["train_from"] = "Mixed_7a"
    stranger.config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match="of another network"):
        soup([run.folder, stranger.folder], tmp_path / "out")
    config["recipe"] = {**run.config()["recipe"], "genders": ["Woman", "Man"]}
    stranger.config_file.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"learnt gender as Woman, Man and .* gender as Male, Female"):
        soup([run.folder, stranger.folder], tmp_path / "out")
    with pytest.raises(UserError, match="holds files already"):
        soup([run.folder, unfinished.folder], run.folder)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="holds files already"):
        soup([run.folder, unfinished.folder], tmp_path / "file")
    assert not (tmp_path / "out").exists()
    diverged = copy("diverged", lambda weight: weight * np.nan)
    assert soup([diverged.folder, run.folder], tmp_path / "out", colours).config()["soup"] == [str(run.folder)]
