"""What the README tells a reader to type is understood: every command parses, every path and file named is there."""

import re
import shlex
from pathlib import Path

import pytest

from tfface import cli, weights
from tfface.recipes import RECIPES

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
COMMANDS = sorted(
    {line.split("#")[0].strip() for line in re.findall(r"^    (tfface .*)$", README, re.M)}
    | set(re.findall(r"`(tfface [a-z]+ [^`]*)`", README))
)


@pytest.mark.parametrize(
    "command", [command for command in COMMANDS if "VERB" not in command and "NAME" not in command]
)
def test_commands_parse(command):
    options = cli._parser().parse_args(shlex.split(command)[1:])
    if getattr(options, "recipe", None):
        assert not options.variant or options.variant in RECIPES[options.recipe].variants


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, re.S))
def test_snippets_compile(block):
    compile(block, "README.md", "exec")


def test_rows_name_the_pinned_files():
    for entry in weights.PRETRAINED.values():
        assert entry.sha256[:8] in README


def test_links_lead_somewhere():
    root = Path(__file__).resolve().parent.parent
    prose = re.sub(r"```.*?```", "", README, flags=re.S)
    for target in re.findall(r"\]\(([^)#]+)\)", prose):
        assert (root / target).exists(), target
