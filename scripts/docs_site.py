"""What `make docs` adds to the pages of docs/: the verbs from the parser, results, notebooks, and every page's place.

MkDocs calls the functions below by their names (`hooks` in mkdocs.yml).
"""

import argparse
import re
from pathlib import Path

from mkdocs.structure.files import File

from tfface import cli

ROOT = Path(__file__).resolve().parent.parent


def on_files(files, config):
    """Add pages that are made elsewhere, and list under "Guides" what the navigation does not name."""
    results = ROOT / "results"
    if results.exists():
        page = (results / "README.md").read_text()
        files.append(File.generated(config, "results/index.md", content=page))
        for table in sorted(results.glob("*.csv")):
            files.append(File.generated(config, f"results/{table.name}", abs_src_path=str(table)))
    files.append(File.generated(config, "commands.md", content=verbs()))
    named = re.findall(r"[\w/]+\.md", str(config.nav))
    guides = next(part["Guides"] for part in config.nav if "Guides" in part)
    guides += sorted(page.src_uri for page in files.documentation_pages() if page.src_uri not in named)
    return files


def verbs() -> str:
    """The page of the command line: each verb with its options, as `tfface.cli` has them."""
    lines = ["# Command line", "", f"`tfface VERB --help` says the same. {cli._parser().epilog}", ""]
    for name, (about, _, add_options, example) in cli.VERBS.items():
        lines += [
            f"## {name}",
            "",
            f"{about[0].upper()}{about[1:]}.",
            "",
            f"    {example}",
            "",
            "| argument | |",
            "|---|---|",
        ]
        parser = argparse.ArgumentParser(add_help=False)
        add_options(parser)
        for option in parser._actions:
            value = option.metavar or option.dest.upper()
            if option.choices:
                value = f"{{{','.join(option.choices)}}}"
            words = f"{', '.join(option.option_strings)} {value if option.nargs != 0 else ''}".strip()
            text = (option.help or "").replace("%%", "%")  # as argparse shows it
            lines.append(f"| `{words}` | {text} |")
        lines.append("")
    return "\n".join(lines)
