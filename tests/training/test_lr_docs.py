"""What docs/learning_rates.md shows works as it stands there."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "learning_rates.md").read_text()


@pytest.mark.pages
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(compile(block, "docs/learning_rates.md", "exec"), scope)
    said = capsys.readouterr().out
    assert float(re.search(r"accuracy: (\S+)", said)[1]) > 0.9
    assert {name for name in scope["curve"].suggestions if name in said} == {"steepest", "valley", "minimum_tenth"}
    assert {path.name for path in tmp_path.iterdir()} == {"lr_find.png", "lr_find.json"}
    assert "{'early': 1e-05, 'middle': 3.2e-05, 'head': 0.0001}" in said
