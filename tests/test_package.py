"""What a wheel holds: an installed tfface finds its builders and files without a checkout."""

import os
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
    line = "import tfface.commands; print(tfface.commands.BUILDERS)"
    environment = os.environ | {"PYTHONPATH": str(library)}
    found = subprocess.run(
        [sys.executable, "-c", line], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert Path(found.stdout.strip()) == library / "tfface" / "datasets"
