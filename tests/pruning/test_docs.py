"""What docs/pruning.md shows works as it stands there."""

import re
import shlex
from pathlib import Path

import matplotlib
import numpy as np
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "pruning.md").read_text()


@pytest.mark.pages
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(block, "docs/pruning.md", "exec"), scope)
    said = capsys.readouterr().out
    base, pruned = (int(count.replace(",", "")) for count in re.findall(r"([\d,]+) parameters", said))
    assert pruned < 0.3 * base
    assert float(re.search(r"after three epochs: (\S+)", said)[1]) > 0.9
    assert re.search(r"stem 16 channels, made by \('stem', 'a_out', 'b_out'\)", said)
    assert {name: len(kept) for name, kept in scope["pruning"].keep.items()} == {"stem": 8, "a_wide": 16, "b_wide": 16}
    assert float(re.search(r"outputs by (\S+) at most", said)[1]) < 1e-4
    assert float(re.search(r"zeros in a_wide: (\S+)", said)[1]) == 0.8
    assert np.isclose(np.mean(list(scope["ratios"].values())), 0.4, atol=0.1)
    assert "(16,)" in said
    assert "Received: 1.5" in said
    assert {path.name for path in tmp_path.iterdir()} == {"smaller.keras", "sensitivity.png"}


def test_commands_parse():
    from tfface import cli

    commands = re.findall(r"^    (tfface prune .*)$", PAGE, re.M)
    assert commands
    for command in commands:
        cli._parser().parse_args(shlex.split(command)[1:])
