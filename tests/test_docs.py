"""What the README and the pages tell a reader to type works: commands run or at least parse, snippets run, links lead.

Pages whose snippets build on each other's results and whose figures are checked have tests of their own: `OWN_TESTS`.
"""

import importlib.util
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from tfface import cli, weights
from tfface.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("*.md", "docs/**/*.md", "datasets/*/README.md", "results/README.md")
    for path in sorted(ROOT.glob(pattern))
}

OWN_TESTS = {
    "docs/pruning.md": "tests/pruning/test_docs.py",
    "docs/learning_rates.md": "tests/training/test_lr_docs.py",
    "docs/own_training.md": "tests/training/test_own_training_docs.py",
    "docs/tutorials/own_folders.md": "tests/test_tutorials.py",
    "docs/tutorials/prune_your_model.md": "tests/test_tutorials.py",
}

ONLY_COMPILED = {
    "docs/serving.md": "needs a server: tests/serving",
    "docs/stream.md": "needs a camera: tests/online",
    "docs/tutorials/serving.md": "needs a server: tests/serving",
}
"""Pages whose snippets are compiled here, what they import imported, and the rest run elsewhere."""

ONLY_PARSED = {
    "app": "a server that runs on: tests/online",
    "build": "needs the files of a data set; the synthetic one is built for all tests",
    "client": "needs a server: tests/serving",
    "compare": "needs runs that were evaluated: tests/evaluation",
    "demo": "the README's commands in a row, which are here",
    "evaluate": "needs a run and its data: tests/training",
    "export": "the shipped model is exported below; bundles in tests/serving",
    "lr-find": "hours; at tiny size in tests/training",
    "prune facenet": "minutes; small networks are pruned in tests/pruning",
    "prune runs/": "needs a run and its data: tests/pruning",
    "reproduce": "hours; every recipe at tiny size in tests/recipes",
    "robustness": "needs a data set of faces: tests/evaluation",
    "soup": "needs runs and their data: tests/training",
    "stream": "needs a camera or a clip: tests/online",
    "sweep": "hours; at tiny size in tests/training",
    "train": "hours; at tiny size in tests/training",
    "verify": "needs LFW: tests/evaluation",
}
"""Beginnings of commands that are parsed here and run elsewhere, with the reason."""


def commands(program: str, pages: dict[str, str] | None = None) -> list[str]:
    """Lines of code that begin with a program's name, comments dropped, and inline code that does."""
    found = set()
    for text in (pages or PAGES).values():
        text = text.replace("\\\n", " ")
        found |= {line.split(" #")[0].strip() for line in re.findall(rf"^(?: {{4}})?({program} .+)$", text, re.M)}
        found |= set(re.findall(rf"`({program} [a-z-]+(?: [^-`\n][^`\n]*)?)`", text))
    return sorted(found)


def snippets(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[page], re.S)


COMMANDS = [command for command in commands("tfface") if command.split()[1] in cli.VERBS]
TUTORIALS = {page for page in PAGES if page.startswith("docs/tutorials/")}
"""Their commands build on each other."""

OTHERS = commands("tfface", {page: text for page, text in PAGES.items() if page not in TUTORIALS})
RUN = [
    command
    for command in COMMANDS
    if command in OTHERS and not command[7:].startswith(tuple(ONLY_PARSED)) and len(command.split()) > 2
]


@pytest.fixture(scope="module")
def workspace(facenet, tmp_path_factory):
    """A folder that holds what the pages speak of: photos, a model, a run and its SavedModel."""
    import keras
    from PIL import Image

    from tfface.faces.synthesize import photo

    folder = tmp_path_factory.mktemp("workspace")
    (folder / "photos").mkdir()
    for path in (folder / "photo.jpg", folder / "holiday.jpg", folder / "photos" / "group.jpg"):
        Image.fromarray(photo(4, 2, size=(480, 320))[0]).save(path)
    keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(16, 3), keras.layers.Conv2D(2, 3)]).save(
        folder / "model.keras"
    )
    shutil.copytree(ROOT / "tfface" / "assets" / "models" / "arg", folder / "runs" / "arg" / "seed-0")
    assert cli.main(["export", "compact", "--out", str(folder / "runs" / "demo" / "saved_model")]) == 0
    return folder


def test_every_verb_named_is_there():
    for command in commands("tfface"):
        verb = command.split()[1]
        assert verb in (*cli.VERBS, "VERB"), command


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_parse(command):
    options = cli._parser().parse_args(shlex.split(command)[1:]) if len(command.split()) > 2 else None
    if getattr(options, "recipe", None) in RECIPES:
        assert not options.variant or options.variant in RECIPES[options.recipe].variants


def written(folder: Path) -> dict[Path, int]:
    """Every file and when it was written: a command may write anew what another has left."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize("command", RUN)
def test_commands_run(command, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    before = written(workspace)
    assert cli.main(shlex.split(command)[1:]) == 0
    assert written(workspace) != before or "weights" in command


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page) and page not in OWN_TESTS | ONLY_COMPILED])
def test_snippets_run(page, workspace, monkeypatch):
    monkeypatch.chdir(workspace)
    scope = {}
    for block in snippets(page):
        exec(compile(block, page, "exec"), scope)


@pytest.mark.parametrize("page", ONLY_COMPILED)
def test_snippets_compile(page):
    for block in snippets(page):
        compile(block, page, "exec")
        exec("\n".join(line for line in block.splitlines() if re.match(r"(from|import) ", line)), {})


@pytest.mark.parametrize("page", OWN_TESTS)
def test_pages_with_tests_of_their_own(page):
    assert Path(page).name in (ROOT / OWN_TESTS[page]).read_text()


def script_named(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_page_of_the_command_line_shows_help_as_the_command_does():
    pytest.importorskip("mkdocs")
    page = script_named("docs_site").verbs()
    assert "the middle 60 %;" in page
    assert "%%" not in page


def test_results_page_is_that_of_its_tables():
    script = script_named("results_page")
    assert script.page() == PAGES["results/README.md"]
    for path in script.RESULTS.glob("*.csv"):
        assert script.with_differences(path.read_text()) == path.read_text(), path.name


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name)
def test_notebooks_are_run_and_define_nothing(path):
    notebook = json.loads(path.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for cell in code:
        assert not re.search(r"^(def|class) ", "".join(cell["source"]), re.M)
        assert all(output["output_type"] != "error" for output in cell["outputs"])
    commands = re.findall(
        r"^    (tfface .+)$", "".join("".join(cell["source"]) + "\n" for cell in notebook["cells"]), re.M
    )
    assert commands
    for command in commands:
        cli._parser().parse_args(shlex.split(command, comments=True)[1:])
    assert path.stat().st_size < 1e6


def test_targets_of_make_are_there():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert {command.split()[1] for command in commands("make") if re.match(r"make [a-z]+\b", command)} <= targets


def test_scripts_and_builders_named_are_there():
    for command in (*commands("python"), *commands("tfds build")):
        name = next((word for word in command.split() if "/" in word), "")
        assert not name.startswith(("benchmarks", "scripts", "datasets")) or (ROOT / name).exists(), command


def test_builds_by_tfds_name_a_config_where_there_are_several():
    """Without one TFDS builds all of them."""
    for command in commands("tfds build"):
        folder = ROOT / command.split()[2]
        source = next(folder.glob("*_dataset_builder.py")).read_text()
        assert "--config" in command or "BUILDER_CONFIGS" not in source, command


def test_every_part_of_the_package_has_its_api_page():
    shown = {name for page in PAGES.values() for name in re.findall(r"^::: tfface\.(\w+)$", page, re.M)}
    parts = {
        path.stem for path in (ROOT / "tfface").iterdir() if path.name[0] not in "_." and path.suffix in ("", ".py")
    }
    assert parts - {"assets"} <= shown


def test_rows_name_the_pinned_files():
    for entry in weights.PRETRAINED.values():
        assert entry.sha256[:8] in PAGES["README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    made = {"commands.md", "results/index.md"}  # by scripts/docs_site.py
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[page], flags=re.S)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        if not target.startswith(("http://", "https://", "mailto:")) and target not in made:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}"
