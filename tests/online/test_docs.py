"""What docs/stream.md shows works as it stands there."""

import re
from pathlib import Path

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "stream.md").read_text()


def test_your_own_loop(tiny_run, clip, capsys):
    """The ten lines of the page, on a clip and with a model that are at hand."""
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(block.splitlines()) <= 10
    for shown, ours in (('"arg"', repr(str(tiny_run.folder))), ('"0"', repr(str(clip))), ('"yolo"', '"mtcnn"')):
        assert shown in block
        block = block.replace(shown, ours)
    exec(compile(block, "docs/stream.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines
    assert {line.split()[0] for line in lines} == {"1", "2"}
    assert all(re.search(r" \d+ (Male|Female) \d+$", line) for line in lines)
