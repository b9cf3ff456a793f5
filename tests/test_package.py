"""What a wheel holds: an installed tfface finds its builders and files without a checkout."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_a_wheel_holds_assets_and_builders(tmp_path):
    library = tmp_path / "lib"
    build = ["setup.py", "-q", "build", "--build-base", str(tmp_path / "build"), "--build-lib", str(library)]
    subprocess.run([sys.executable, *build], cwd=ROOT, check=True, capture_output=True)
    built = {path.name for path in (library / "tfface" / "datasets").iterdir()}
    assert built == {path.name for path in (ROOT / "datasets").iterdir() if (path / "__init__.py").exists()}
    assert not list((library / "tfface" / "datasets").rglob("*_test.py"))
    for path in (ROOT / "tfface" / "assets").rglob("*"):
        assert (library / path.relative_to(ROOT)).exists(), path
    line = "import tfface.files; print(tfface.files.BUILDERS)"
    environment = os.environ | {"PYTHONPATH": str(library)}
    found = subprocess.run(
        [sys.executable, "-c", line], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == library / "tfface" / "datasets"


def _raised(node, caught=()):
    """Names of the errors that a function raises itself, but for those that it catches."""
    if isinstance(node, ast.Raise) and node.exc is not None:
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        yield from {getattr(kind, "id", "")} - set(caught)
    for field, part in ast.iter_fields(node):
        handled = {name.id for each in getattr(node, "handlers", ()) for name in ast.walk(each) if hasattr(name, "id")}
        for child in part if isinstance(part, list) else [part]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.FunctionDef):
                yield from _raised(child, {*caught, *handled} if field == "body" else caught)


def test_public_functions_name_their_arguments_and_errors():
    lacking = []
    for path in sorted((ROOT / "tfface").rglob("*.py")):
        for function in ast.parse(path.read_text()).body:
            if not isinstance(function, ast.FunctionDef) or function.name.startswith("_"):
                continue
            words = ast.get_docstring(function) or ""
            arguments = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
            named = re.split(r"\W+", words.partition("Args:")[2])
            wanted = {name for name in arguments if "Args:" in words and name not in named}
            wanted |= {name for part in function.body for name in _raised(part)} & {"UserError", "ValueError"} - {
                name for name in ("UserError", "ValueError") if f"{name}:" in words
            }
            lacking += [f"{path.relative_to(ROOT)}: {function.name}: {name}" for name in sorted(wanted)]
    assert not lacking
