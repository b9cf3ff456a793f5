"""Put a trained run into the package: python scripts/ship_model.py runs/arg-years/seed-0 --name arg

Writes tfface/assets/models/NAME: the configuration, the trained part (weights rounded to half precision's mantissa,
which compress to half the size) and the model card with the figures of the run's metrics.json, per group.
"""

import argparse
import io
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from tfface import files
from tfface.training.run import Run

MODELS = Path(__file__).resolve().parent.parent / "tfface" / "assets" / "models"

CARD = """# {title}

Shipped heads of `tfface predict`: the trained part of the recipe `{recipe}`; the backbone (FaceNet, 92 MB) is fetched
on first use and verified. Made by

    {command}

and `python scripts/ship_model.py`. SHA-256 of trained.keras: `{sha256}`.

- **Learnt from:** {data}, {counts}.
  Identical files are on one side of the split only; files whose copies carry conflicting labels were left out.
- **Labels:** age, gender and race as annotators perceived them in a photo, in the data set's coarse, binary classes.
- **Input:** a face aligned by five landmarks to UTKFace's tight crop, 160x160 RGB (`tfface predict` does it).
- **Output:** probabilities of gender (2) and race (5), a distribution over ages 0 to 116 with its mean and spread.
- **Licence:** for research use: UTKFace is for non-commercial research, FaceNet's weights come from a research set.
- **Meant for:** research on face analysis, teaching, measuring bias. **Ruled out:** identifying people, deciding about
  people, inferring who somebody is, surveillance.
- **Limits:** {limits}

## Measured

On the `test` split of {data}, n = {n:,}; the epoch was chosen on `validation`. 95 % intervals.

{scores}

Mean and standard deviation over seeds of the same recipe stand in the README of tfface.

## Per group

{groups}
"""

LIMITS = (
    "the gender of children under six is often wrong, years are furthest off for people over 62, the class Others is\n"
    "  seldom recognised (see the tables), and crops that are not aligned as above are judged worse than measured here."
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="arg")
    parser.add_argument("--command", default="tfface reproduce arg --variant years --seeds 0,1,2 --bfloat16")
    options = parser.parse_args()
    run, target = Run(options.run), MODELS / options.name
    target.mkdir(parents=True, exist_ok=True)
    files.write_json(target / "config.json", run.config())
    files.write_json(target / "done.json", files.read_json(run.done_file, "done.json"))
    shrink(run.trained_file, target / "trained.keras")
    metrics = files.read_json(run.folder / "metrics.json", "The run's figures")["test"]
    config = run.config()
    card = CARD.format(
        title=f"{run.recipe().title}: the model card",
        recipe=f"{run.recipe().name}",
        command=options.command,
        sha256=files.sha256(target / "trained.keras"),
        data=config["data"]["name"],
        counts="16,462 images for training, 1,852 for validation",
        limits=LIMITS,
        n=metrics["n"],
        scores=scores(metrics),
        groups=groups(metrics["groups"]),
    )
    files.write_text(target / "README.md", card)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")


def shrink(source: Path, target: Path):
    """Copy a .keras file with its weights rounded to half precision's mantissa and its members compressed."""
    plain = target.with_name("plain.keras")
    keras.saving.load_model(source, compile=False).save(plain)
    with (
        files.written_aside(target) as aside,
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(aside, "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".weights.h5"):
                data = rounded(data)
            # A fixed date: the same run gives the same bytes.
            new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)
    plain.unlink()


def rounded(data: bytes) -> bytes:
    """An HDF5 file with every float32 tensor rounded to 10 bits of mantissa."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        file.visititems(lambda _, item: round_tensor(item) if isinstance(item, h5py.Dataset) else None)
    return buffer.getvalue()


def round_tensor(item):
    values = item[...]
    if values.dtype == np.float32:
        bits = values.view(np.uint32)
        item[...] = ((bits + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32)


def scores(metrics):
    rows = ["| figure | value | interval |", "|---|---:|---|"]
    named = {"gender": "gender accuracy", "race": "race accuracy, 5 classes", "age_bins": "age, 9 bins, accuracy"}
    for task, values in metrics["tasks"].items():
        accuracy = values["accuracy"]
        rows.append(f"| {named.get(task, task)} | {accuracy['value']:.3f} | {interval(accuracy, 3)} |")
    mae = metrics["age"]["mae"]
    rows.append(f"| age, mean absolute error, years | {mae['value']:.2f} | {interval(mae, 2)} |")
    return "\n".join(rows)


def interval(figure, digits):
    low, high = figure["interval"]
    return f"{low:.{digits}f} to {high:.{digits}f}"


def groups(result):
    text = []
    for name in ("gender", "race", "age group", "gender x race"):
        rows = [
            f"**{name}**\n",
            "| group | n | gender | race | 9 bins | age MAE, years |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for row in result["by"][name]["groups"]:
            cells = [
                f"{row['figures'][figure]['value']:.{digits}f} ({interval(row['figures'][figure], digits)})"
                for figure, digits in (
                    ("gender_accuracy", 3),
                    ("race_accuracy", 3),
                    ("age_bins_accuracy", 3),
                    ("age_mae", 2),
                )
            ]
            small = " (too few to judge)" if row["too_small"] else ""
            rows.append(f"| {', '.join(row['group'])}{small} | {row['n']} | {' | '.join(cells)} |")
        text.append("\n".join(rows))
    return "\n\n".join(text)


if __name__ == "__main__":
    main()
