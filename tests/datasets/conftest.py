"""The builders are imported as `tfds build` imports them: from datasets/ on the path, under one name only."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "datasets"))
