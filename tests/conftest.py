"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent


LONGEST = ("test_jax.py", "test_tutorials.py", "test_distribute.py", "test_tiny.py", "test_fit.py")
"""Files with few, long tests: they go first, or at the end one core would work and the others wait."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


def _samples() -> Path | None:
    named = os.environ.get("TFFACE_TEST_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def samples() -> Path:
    """Folder of real samples of public research sets; a test that asks for it is skipped where it is absent."""
    folder = _samples()
    if folder is None:
        pytest.skip("real samples are absent: set TFFACE_TEST_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def facenet():
    """Path of the pretrained FaceNet file; a test that asks for it is skipped where it cannot be had."""
    from tfface import weights
    from tfface.errors import UserError

    try:
        return weights.fetch("facenet", progress=False)
    except UserError as error:
        pytest.skip(f"pretrained weights are absent: {error}")


@pytest.fixture(scope="session")
def home(facenet, tmp_path_factory):
    """A fresh $TFFACE_HOME for the session: cached features start empty, fetched weights are those of the machine."""
    from tfface import files

    folder = tmp_path_factory.mktemp("home")
    (folder / "weights").symlink_to(files.home() / "weights")
    before = os.environ.get("TFFACE_HOME")
    os.environ["TFFACE_HOME"] = str(folder)
    yield folder
    if before is None:
        del os.environ["TFFACE_HOME"]
    else:
        os.environ["TFFACE_HOME"] = before


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the small synthetic data set is prepared, by the same command that a user types."""
    from tfface import cli

    folder = tmp_path_factory.mktemp("data")
    assert cli.main(["build", "synthetic_faces/small", "--data-dir", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def tiny_recipe():
    """The recipe that `tiny_run` was trained by."""
    from tfface import recipes

    return recipes.load("arg", "years", ["epochs=4"], tiny=True)


@pytest.fixture(scope="session")
def tiny_run(home, data_dir, tiny_recipe, tmp_path_factory):
    """A finished run of ARG on synthetic faces, four epochs, with its figures on `test`."""
    from tfface import commands
    from tfface.training.fit import fit

    run = fit(tiny_recipe, tmp_path_factory.mktemp("runs") / "arg" / "seed-0", data_dir, verbose=0)
    commands.evaluate(run.folder, "test", data_dir=data_dir)
    return run
