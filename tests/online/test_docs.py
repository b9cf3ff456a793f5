"""What docs/stream.md shows works as it stands there."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "stream.md").read_text()


def test_your_own_loop(light_run, clip, capsys):
    """The ten lines of the page, on a clip and with a model that are at hand."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(block.splitlines()) <= 10
    assert textwrap.indent(block, " " * 4) in (ROOT / "README.md").read_text()
    model = f"load({str(light_run.folder)!r}, "
    for shown, ours in (("load(", model), ('"0"', repr(str(clip))), ('"yolo"', '"mtcnn"')):
        assert shown in block
        block = block.replace(shown, ours)
    exec(compile(block, "docs/stream.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert {line.split()[0] for line in lines} == {"1", "2"}
    assert all(re.search(r" \d+ (Male|Female) \d+", line) for line in lines)
