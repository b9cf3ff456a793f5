"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

ROOT = Path(__file__).resolve().parent.parent


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
