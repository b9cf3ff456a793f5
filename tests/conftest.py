"""Fixtures that every test may use."""

import ctypes
import fcntl
import gc
import os
import shutil
import sys
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent


LONGEST = ("test_jax.py", "test_distribute.py", "test_tiny.py", "test_fit.py")
"""Files with few, long tests: they go first, or at the end one core would work and the others wait."""

TRAINING = ("evaluation", "models", "pruning", "recipes", "training")
"""Rooms of tests/ whose networks train for a step or two and are left."""

APART = {
    "families": "every family of keras.applications, three minutes: `pytest tests/pruning -m families`",
    "pages": "pages of docs/ from top to bottom, two minutes: part of `make notebooks`",
}
"""Marks of tests that run only where they are asked for: mark -> what they are."""


def pytest_configure(config):
    for mark, words in APART.items():
        config.addinivalue_line("markers", f"{mark}: {words}")


def pytest_collection_modifyitems(config, items):
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for mark, words in APART.items():
        if mark not in (config.getoption("markexpr") or ""):
            for item in items:
                if item.get_closest_marker(mark):
                    item.add_marker(pytest.mark.skip(reason=words))


@pytest.fixture(scope="module", autouse=True)
def memory_is_given_back():
    """Networks hold on to themselves, and glibc to what they leave: a process of many files would take 16 GB."""
    if not gc.get_freeze_count() and "tensorflow" in sys.modules:
        gc.freeze()  # half a million objects of libraries, which no collection need look at again
    yield
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def graphs_run_as_they_are(request):
    """For a step or two a graph runs sooner than TensorFlow has optimised it: a quarter of those tests' time.

    Nothing is computed otherwise. What serves, detects and follows faces, and every command of the docs, is tested with
    the optimisation, as users have it.
    """
    if request.path.parent.name not in TRAINING:
        yield
        return
    import tensorflow as tf

    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False})


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
def once(tmp_path_factory):
    """`once(name, make)`: a copy of the folder that `make(folder)` filled in whichever test process came first."""
    base = tmp_path_factory.getbasetemp()
    common = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "common"
    common.mkdir(exist_ok=True)

    def copied(name, make):
        with open(common / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (common / name).exists():
                make(common / f"{name}.half")
                (common / f"{name}.half").rename(common / name)
        return shutil.copytree(common / name, tmp_path_factory.mktemp(name), symlinks=True, dirs_exist_ok=True)

    return copied


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
def data_dir(once):
    """Where the small synthetic data set is prepared, by the same command that a user types."""
    from tfface import cli

    def make(folder):
        assert cli.main(["build", "synthetic_faces/small", "--data-dir", str(folder)]) == 0

    return once("data", make)


@pytest.fixture(scope="session")
def tiny_recipe():
    """The recipe that `tiny_run` was trained by."""
    from tfface import recipes

    return recipes.load("arg", "years", ["epochs=4"], tiny=True)


@pytest.fixture(scope="session")
def tiny_run(home, data_dir, tiny_recipe, once):
    """A finished run of ARG on synthetic faces, four epochs, with its figures on `test`."""
    from tfface import commands
    from tfface.training.fit import fit
    from tfface.training.run import Run

    def make(folder):
        run = fit(tiny_recipe, folder / "arg" / "seed-0", data_dir, verbose=0)
        commands.evaluate(run.folder, "test", data_dir=data_dir)
        shutil.copytree(home / "features", folder / "features")

    folder = once("runs", make)
    shutil.copytree(folder / "features", home / "features", dirs_exist_ok=True)
    return Run(folder / "arg" / "seed-0")


@pytest.fixture(scope="session")
def light_run(tmp_path_factory):
    """A run as if it had been trained: ARG's outputs, years among them, two views, of a small network's first weights.

    For what must not wait until FaceNet is built and traced, ten times as long.
    """
    import keras

    from tfface import recipes
    from tfface.faces.crops import Alignment
    from tfface.training.run import Run

    recipe = recipes.load("arg", "years", tiny=True).changed(train_from="", test_mirror=True, image_size=(48, 48))
    run = Run(tmp_path_factory.mktemp("light") / "run")
    run.begin(recipe, {"name": recipe.data, "landmarks": Alignment("margin").landmarks}, "cpu")
    keras.utils.set_random_seed(0)
    image = keras.Input((*recipe.image_size, 3), name="image")
    x = keras.layers.Conv2D(8, 5, strides=2, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
    x = keras.layers.Flatten()(x)  # left and right are told apart
    heads = {task.name: keras.layers.Dense(task.width, "softmax", name=task.name)(x) for task in recipe.tasks()}
    keras.Model(image, heads).save(run.trained_file)
    return run
