"""Imports go one way, and what trains on every Keras backend never touches TensorFlow."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "tfface"

LAYERS = (
    {"errors", "labels", "files", "packages", "weights", "losses", "metrics", "optimizers", "layers", "tasks"},
    {"faces", "data", "models"},
    {"recipes"},
    {"training", "evaluation", "pruning"},
    {"serving", "online"},
    {"commands"},
    {"cli", "demo", "__main__"},
)
"""A module may import its own row and the rows above it."""

BACKEND_FREE = ("layers", "models", "losses", "metrics", "optimizers", "tasks")


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def row_of(name: str) -> int:
    rows = [index for index, row in enumerate(LAYERS) if name in row]
    assert rows, f"tfface.{name} has no place in LAYERS: give it one"
    return rows[0]


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    own = room(path)
    if own == "__init__":
        return
    for name in imported(path):
        if name.startswith("tfface.") and name != "tfface.__version__":
            other = name.split(".")[1]
            assert row_of(other) <= row_of(own), f"{path} imports {name}, which stands above it"


@pytest.mark.parametrize(
    "path", [path for path in modules() if room(path) in BACKEND_FREE], ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_networks_do_not_touch_tensorflow(path):
    assert not {name for name in imported(path) if name.split(".")[0] == "tensorflow"}


def names_in(module: str) -> set[str]:
    """What may be imported from a module of the package: what it defines or imports itself, and what lies below it."""
    path = PACKAGE.parent.joinpath(*module.split("."))
    below = {entry.stem for entry in path.glob("*") if entry.suffix == ".py" or entry.is_dir()}
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            below.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            below |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            below.add(node.id)
    return below


@pytest.mark.parametrize("folder", ["benchmarks", "scripts", "datasets"])
def test_what_no_test_runs_imports_what_is_there(folder):
    """Nobody would notice a renamed function there but the one who wants a figure."""
    found = 0
    for path in sorted((PACKAGE.parent / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "tfface":
                names = {alias.name for alias in node.names}
                assert names <= names_in(node.module), f"{path}: {node.module} has no {names - names_in(node.module)}"
                found += 1
    assert found


def test_datasets_is_not_a_package():
    assert not (PACKAGE.parent / "datasets" / "__init__.py").exists()


def test_no_module_is_a_drawer_of_odds_and_ends():
    assert not {path.stem for path in modules()} & {"utils", "util", "common", "helpers", "misc"}
