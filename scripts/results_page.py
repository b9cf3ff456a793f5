"""Write results/README.md from the tables beside it, or keep what a run measured there for the notebooks.

    python scripts/results_page.py                       # tables -> README.md; fills in the differences
    python scripts/results_page.py --keep RUN NAME       # curves and test figures of a run -> results/runs/NAME.json
    python scripts/results_page.py --keep PAGE NAME      # what `tfface compare` wrote there -> the same

A table is results/paperN.csv, one row a figure: `published` is what the paper prints (empty: nothing), `ours` what the
command gave (empty: not run, and `note` says why), `spread` its standard deviation over `seeds` (seeds or folds).
"""

import argparse
import csv
import io
import json
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "results"

TITLES = {
    "paper1": "Paper 1: race, TCGF-ResNet",
    "paper2": "Paper 2: age group, gender and race, residual multitask network",
    "paper3": "Paper 3: man or woman, ResNet34 and one cycle",
    "paper4": "Paper 4: age, race and gender by transfer from FaceNet (ARG)",
    "paper5": "Paper 5: occluded faces, pruned residual network",
}

HEAD = """# Results

Every figure of the five papers, what was measured here, and the command that measures it. Accuracies are shares of 1;
± is the standard deviation over seeds or folds. The number under *how* leads to its data, command, hardware and
date below the table, or to the reason why it was **not run**. Papers and we rarely have the same images: a difference
across different data is a hint, not a ranking.

`python scripts/results_page.py` writes this page from the CSV file of each paper; new results go into those. `runs/`
holds the training curves and test figures of some runs, which the notebooks draw.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--keep",
        nargs=2,
        metavar=("RUN", "NAME"),
        help="the folder of a run or of a comparison, and the name to keep it under",
    )
    options = parser.parse_args()
    if options.keep:
        keep(Path(options.keep[0]), options.keep[1])
        return
    for path in sorted(RESULTS.glob("*.csv")):
        path.write_text(with_differences(path.read_text()))
    (RESULTS / "README.md").write_text(page())


def with_differences(text: str) -> str:
    """The table with its column `difference` filled in, ours minus published."""
    rows = list(csv.DictReader(text.splitlines()))
    for row in rows:
        values = row["published"], row["ours"]
        digits = max(len(value.partition(".")[2]) for value in values)
        row["difference"] = f"{float(row['ours']) - float(row['published']):+.{digits}f}" if all(values) else ""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def page() -> str:
    """What README.md says."""
    parts = [HEAD]
    for path in sorted(RESULTS.glob("*.csv")):
        parts += [f"## {TITLES[path.stem]}\n", f"[{path.name}]({path.name})\n"]
        parts += ["| row | metric | published | ours | difference | n | how |", "|---|---|---:|---:|---:|---:|---:|"]
        hows: list[str] = []
        for row in csv.DictReader(path.read_text().splitlines()):
            if (how := made(row)) not in hows:
                hows.append(how)
            spread = f" ± {row['spread']}" if row["spread"] else ""
            ours = f"**{row['ours']}**{spread}" if row["ours"] else "not run"
            cells = row["row"], row["metric"], row["published"], ours, row["difference"], row["n"], hows.index(how) + 1
            parts.append(f"| {' | '.join(map(str, cells))} |")
        parts += ["", *(f"{number}. {how}" for number, how in enumerate(hows, 1)), ""]
    return "\n".join(parts)


def made(row: dict[str, str]) -> str:
    """How a row was measured, or why it was not."""
    command = f"`{row['command']}`" if row["command"] else ""
    if not row["ours"]:
        return f"Not run: {row['note']}. {command}".strip()
    where = ", ".join(filter(None, (row["hardware"], row["seeds"], row["date"])))
    return "; ".join(filter(None, (row["data"], command, where, row["note"]))) + "."


def keep(run: Path, name: str) -> None:
    """Keep a run's recipe, curves and figures on its test split, without the smallest cells of its groups; or runs
    compared, without their folders and groups."""
    if not (run / "config.json").exists():
        compared = json.loads((run / "report.json").read_text())
        for figure in compared["figures"].values():
            del figure["groups"]
            for row in figure["rows"]:
                del row["folder"]
        (RESULTS / "runs" / f"{name}.json").write_text(json.dumps(rounded(compared), separators=(",", ":")) + "\n")
        return
    config = json.loads((run / "config.json").read_text())
    figures = json.loads((run / "metrics.json").read_text())["test"]
    figures["groups"]["by"] = {key: rows for key, rows in figures["groups"]["by"].items() if key.count(" x ") < 2}
    history = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = {"config": config, "history": history, "test": rounded(figures)}
    (RESULTS / "runs" / f"{name}.json").write_text(json.dumps(kept, separators=(",", ":")) + "\n")


def rounded(value):
    """Numbers to six digits: more is noise."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
