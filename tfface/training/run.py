"""A run: one folder with everything that a training was and gave.

config.json      the recipe, every field; versions, device, fingerprint of the data
metrics.jsonl    one row an epoch
events/          TensorBoard
state.npz        weights, optimizer and random states at the last epoch's end: what a killed run resumes from
trained.keras    the trained part of the network at its best validation score (all of it, if nothing was frozen, or if
                 what was frozen is not the recipe's own)
done.json        written last: best epoch, seconds of all epochs
"""

from __future__ import annotations

import json
import platform
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from tfface import files
from tfface.errors import UserError
from tfface.models.saved import finalize, in_float32, load_saved
from tfface.packages import installed_version
from tfface.recipes import RECIPES, Recipe

PACKAGES = ("tfface", "keras", "tensorflow", "tensorflow-datasets", "numpy")


class Run:
    """A run's folder.

    Args:
        folder: its path; it need not exist yet.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.config_file = self.folder / "config.json"
        self.state_file = self.folder / "state.npz"
        self.trained_file = self.folder / "trained.keras"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.figures_file = self.folder / "metrics.json"
        self.calibration_file = self.folder / "calibration.json"
        self.done_file = self.folder / "done.json"

    @property
    def done(self) -> bool:
        """Whether training came to its end."""
        return self.done_file.exists()

    def config(self) -> dict:
        """What `config.json` says.

        Raises:
            UserError: there is no run in this folder.
        """
        if not self.config_file.exists():
            held = sorted(str(path.parent) for path in self.folder.glob(f"*/{self.config_file.name}"))
            within = f" It holds runs; name one of them: {', '.join(held)}."
            raise UserError(
                f"No run is in {self.folder}: expected {self.config_file.name}, which `tfface train` writes there."
                + within * bool(held)
            )
        return files.read_json(self.config_file, "The run's configuration")

    @property
    def name(self) -> str:
        """What tells it from other runs: the name of its folder, of seed-N with that of the folder above."""
        path = self.folder.resolve()
        return f"{path.parent.name}-{path.name}" if path.name.startswith("seed-") else path.name

    @property
    def pruned(self) -> str:
        """How its network was pruned, in the words of `tfface prune`'s options; empty where it was not."""
        choices = self.config().get("data", {}).get("model", {})
        return ", ".join(
            f"{name} {value}" for name, value in choices.items() if value and name not in ("source", "network")
        )

    def recipe(self) -> Recipe:
        """The recipe that the run was trained by.

        Raises:
            UserError: there is no run in this folder, or this version has not its recipe.
        """
        values = self.config()["recipe"]
        if values.get("recipe") not in RECIPES:
            raise UserError(
                f"{self.config_file} names the recipe {values.get('recipe')}, which this version has not. "
                f"Expected one of: {', '.join(RECIPES)}. Of a recipe of your own, run the verb by its file, `python "
                "FILE.py VERB ...` (docs/own_training.md)."
            )
        return RECIPES[values["recipe"]].from_json(values)

    def begin(self, recipe: Recipe, data: dict, device: str) -> None:
        """Write the configuration, or check that the one that stands there is the same.

        Raises:
            UserError: the folder holds a run of another recipe, other values or other data.
        """
        wanted = json.loads(json.dumps({"recipe": recipe.to_json(), "data": data}))
        if self.config_file.exists():
            present = {key: self.config()[key] for key in wanted}
            if "labels" in wanted["data"]:  # a version before did not look at them
                present["data"]["labels"] = {**wanted["data"]["labels"], **present["data"].get("labels", {})}
            # It follows from the rest, but a version before left the recipe's size out: it is written anew below.
            noted, stretch = (each["data"].get("stretch", 1.0) for each in (present, wanted))
            present["data"]["stretch"] = wanted["data"]["stretch"] = stretch
            if present["recipe"].get("recipe") == wanted["recipe"]["recipe"]:  # fields that came later: their defaults
                present["recipe"] = json.loads(json.dumps(self.recipe().to_json()))
            if changed := differences(present["recipe"] | present["data"], wanted["recipe"] | wanted["data"]):
                raise UserError(
                    f"{self.folder} holds a run with other choices ({changed}). "
                    "Name another folder with --out, or remove that one."
                )
            if noted != stretch:
                config = self.config()
                files.write_json(self.config_file, {**config, "data": {**config["data"], "stretch": stretch}})
            return
        environment = {
            "python": platform.python_version(),
            "machine": f"{platform.system()} {platform.machine()}",
            "backend": keras.backend.backend(),
            "device": device,
            **{name: installed_version(name) or "unknown" for name in PACKAGES},
        }
        files.write_json(self.config_file, {**wanted, "environment": environment})

    def check_seed(self, recipe: Recipe, data: dict) -> None:
        """Check that a training differs from this run in its seed alone, and in what bears a seed's number in its name.

        Args:
            recipe: the other training's, adapted to its data set.
            data: what `config.json` says of its data, as far as it is known.

        Raises:
            UserError: it differs in more.
        """
        own = self.config().get("data", {})
        here, there = (
            json.loads(re.sub(r"seed-\d+", "seed-N", json.dumps(one.changed(seed=0).to_json() | described)))
            for one, described in (
                (self.recipe(), {name: own[name] for name in data if name in own}),
                (recipe, {name: data[name] for name in own if name in data}),
            )
        )
        if changed := differences(here, there):
            raise UserError(
                f"{self.folder} is not the same training with another seed ({changed}): their mean would be that of "
                "nothing. Give each choice a folder of its own with --out."
            )

    def history(self) -> list[dict]:
        """One row of figures for each epoch that is part of the run."""
        if not self.metrics_file.exists():
            return []
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    def save_trained(self, model: keras.Model, temperatures: Mapping[str, float] | None = None) -> None:
        """Write the trained part, aside and renamed. What is known of the one before is no longer the run's.

        Args:
            model: the trained part.
            temperatures: what the logits of its heads were divided by, see `temperatures`; kept in the same file.
        """
        with files.written_aside(self.trained_file) as aside:
            model.save(aside)
            if temperatures:
                with zipfile.ZipFile(aside, "a") as box:
                    box.writestr(self.calibration_file.name, json.dumps(dict(temperatures)))
            for stale in (self.figures_file, self.calibration_file, *self.folder.glob("predictions-*.npz")):
                stale.unlink(missing_ok=True)

    def temperatures(self) -> dict[str, float]:
        """Head -> what the logits of the trained network were divided by to calibrate it; those of other heads are 1.

        They stand in the network's own file, and in calibration.json for people: a command may be killed between both.
        """
        with zipfile.ZipFile(self.trained_file) as box:
            if self.calibration_file.name in box.namelist():
                return json.loads(box.read(self.calibration_file.name))
        # A version before kept them in calibration.json alone.
        return files.read_json(self.calibration_file, "The run's calibration") if self.calibration_file.exists() else {}

    def save_state(self, model: keras.Model, history: list[dict]) -> None:
        """Write the whole state at an epoch's end, aside and renamed; last, as what it holds is not done again."""
        files.write_text(self.metrics_file, "".join(json.dumps(row) + "\n" for row in history))
        arrays = {
            f"variable_{index:05d}": keras.ops.convert_to_numpy(variable)
            for index, variable in enumerate(self._variables(model))
        }
        with files.written_aside(self.state_file) as aside:
            np.savez(aside, history=np.array(json.dumps(history)), **arrays)

    def restore_state(self, model: keras.Model) -> list[dict]:
        """Bring a built and compiled model back to the saved state; the rows of the epochs that are done.

        Raises:
            UserError: the state is damaged or of another network.
        """
        if not self.state_file.exists():
            return []
        try:
            with np.load(self.state_file) as state:
                variables = self._variables(model)
                stored = sorted(name for name in state.files if name.startswith("variable_"))
                if [tuple(v.shape) for v in variables] != [state[name].shape for name in stored]:
                    raise UserError(
                        f"{self.state_file} is of another network than this recipe's: expected {len(variables)} "
                        f"variables, received {len(stored)} or other shapes. Name another folder with --out."
                    )
                for variable, name in zip(variables, stored, strict=True):
                    variable.assign(state[name])
                return json.loads(str(state["history"]))
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{self.state_file} is damaged ({error}). Remove it to begin this run anew.") from error

    @staticmethod
    def _variables(model):
        # `model.variables` holds the states of the random generators too, so dropout goes on where it stopped.
        return [*model.variables, *model.optimizer.variables]

    def model(self, float32: bool = True) -> keras.Model:
        """The whole trained network, from pixels to outputs: where a part was frozen, with the trained part read in.

        Args:
            float32: let it compute in float32, whatever precision it was trained in or Keras is set to (its weights are
                float32 anyway).

        Raises:
            UserError: training has not kept a model yet, or the file is damaged.
        """
        recipe = self.recipe()
        if not self.trained_file.exists():
            raise UserError(f"{self.folder} holds no trained model yet. Train it: `tfface train {recipe.name}`.")
        if recipe.train_from:
            model = recipe.model()
            read_trained(model, self.trained_file)
        else:  # the file is the whole network: nothing else is needed, no pretrained file either
            model = load_saved(self.trained_file)
        return in_float32(model) if float32 else model


def differences(present: dict, wanted: dict) -> str:
    """In which values two runs differ, in words; empty where they are alike."""
    return "; ".join(
        f"{key} was {present.get(key)!r}, is {wanted.get(key)!r}"
        for key in {**present, **wanted}
        if present.get(key) != wanted.get(key)
    )


def runs_in(folder: str | Path) -> list[Run]:
    """The finished runs of several seeds that a folder holds, in the order of their names; or its own run alone.

    Raises:
        UserError: they differ in more than their seeds.
    """
    first, *others = [Run(path) for path in sorted(Path(folder).glob("seed-*")) if Run(path).done] or [Run(folder)]
    for run in others:
        run.check_seed(first.recipe(), first.config().get("data", {}))
    return [first, *others]


def read_trained(model: keras.Model, file: str | Path) -> None:
    """Read the weights of a trained part into the layers of `model` that have its names.

    Raises:
        UserError: the file is damaged, or a layer is absent or has other shapes.
    """
    put_trained(model, load_saved(file), file)


def put_trained(model: keras.Model, part: keras.Model, file: str | Path = "") -> None:
    """Put the weights of a trained part, read from `file`, into the layers of `model` that have its names.

    Raises:
        UserError: a layer is absent or has other shapes.
    """
    names = {layer.name for layer in model.layers}
    for layer in part.layers:
        if not layer.weights:
            continue
        shapes = [tuple(weight.shape) for weight in layer.weights]
        own = model.get_layer(layer.name).weights if layer.name in names else []
        if [tuple(weight.shape) for weight in own] != shapes:
            raise UserError(
                f"The model file {file} does not fit this recipe: layer {layer.name} has shapes {shapes}, "
                f"expected {[tuple(weight.shape) for weight in own] or 'no such layer'}."
            )
        model.get_layer(layer.name).set_weights(layer.get_weights())
        finalize(model.get_layer(layer.name))


def carry_weights(model: keras.Model, file: str | Path) -> tuple[list[str], list[str]]:
    """Carry the weights of a trained network into another one, wherever names and shapes of layers agree.

    Args:
        model: the network that takes them.
        file: a `.keras` file.

    Returns:
        Names of the layers of `model` with weights: those carried, and those that stay fresh.

    Raises:
        UserError: the file is damaged or absent, or no layer agrees.
    """
    source = {layer.name: layer for layer in load_saved(file).layers if layer.weights}
    carried, fresh = [], []
    for layer in model.layers:
        if not layer.weights:
            continue
        theirs = source[layer.name].weights if layer.name in source else []
        if [tuple(weight.shape) for weight in theirs] == [tuple(weight.shape) for weight in layer.weights]:
            layer.set_weights(source[layer.name].get_weights())
            finalize(layer)
            carried.append(layer.name)
        else:
            fresh.append(layer.name)
    if not carried:
        raise UserError(
            f"No layer of {model.name} has the name and shapes of one in {file}: expected the run of a related network."
        )
    return carried, fresh


def split_at(model: keras.Model, name: str, outputs: Sequence[str] | None = None) -> tuple[keras.Model, keras.Model]:
    """Cut a functional model after a layer into a lower and an upper part, which share its layers.

    Args:
        model: a functional model with one input.
        name: the layer after which it is cut.
        outputs: names of those that the upper part gives; all unless given. Others may pass by the cut.

    Returns:
        `(lower, upper)`, with `model(x) == upper(lower(x))`.

    Raises:
        UserError: no such layer, or the graph does not pass through it alone.
    """
    layers = {layer.name for layer in model.layers}
    if name not in layers:
        raise UserError(f"train_from must name a layer of {model.name}. Received: {name}.")
    tensor = model.get_layer(name).output
    try:
        wanted = model.output if outputs is None else {output: model.output[output] for output in outputs}
        upper = keras.Model(tensor, wanted, name=f"{model.name}_upper")
    except ValueError as error:
        raise UserError(
            f"{model.name} cannot be cut after {name}: other branches pass by it. "
            "Choose a layer that all of them meet in."
        ) from error
    return keras.Model(model.input, tensor, name=f"{model.name}_lower"), upper
