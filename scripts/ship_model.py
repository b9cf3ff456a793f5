"""Put a trained run into the package: python scripts/ship_model.py runs/arg-years/seed-0 --name arg

Writes tfface/assets/models/NAME: the configuration, the trained part (weights rounded to half precision's mantissa of
10 bits, or to --mantissa bits, which compress to half the size) and the model card with the figures of the run's
metrics.json, per group. With --whole the network is written from pixels to outputs, where the frozen part is none that
is fetched:

    python scripts/ship_model.py runs/compact-heads/seed-0 --name compact --whole --set teacher=facenet \\
        --teacher runs/compare/report.json
    python scripts/ship_model.py runs/compact-fairface/seed-0 --name fairface --whole --mantissa 7
"""

import argparse
import io
import json
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np

from tfface import files
from tfface.recipes.recipe import parse_settings
from tfface.training.run import Run

MODELS = Path(__file__).resolve().parent.parent / "tfface" / "assets" / "models"

CARD = """# {title}

{what} Made by

    {command}

and `python scripts/ship_model.py`. SHA-256 of trained.keras: `{sha256}`.

- **Learnt from:** {data}.
  Identical files are on one side of the split only; files whose copies carry conflicting labels were left out.
- **Labels:** age, gender and race as annotators perceived them in a photo, in the data sets' coarse, binary classes.
{about}
- **Meant for:** research on face analysis, teaching, measuring bias. **Ruled out:** identifying people, deciding about
  people, inferring who somebody is, surveillance.

## Measured

The epoch was chosen on `validation`. 95 % intervals.

{scores}
{groups}
"""

TITLES = {"fairface": "The network from FairFace alone: age group, gender and race"}
"""Where it is not the recipe's."""

WHAT = {
    "arg": "Heads of `tfface predict --model arg`: the trained part of the recipe `arg`; the backbone (FaceNet, 92 MB) "
    "is fetched\non first use and verified.",
    "compact": "What `tfface predict` takes: age, gender, race and an embedding in one pass. The recipe `compact`, "
    "FaceNet without most\nof its channels, which learnt the embeddings of the whole one. Nothing is fetched.",
    "fairface": "What `tfface predict --model fairface` takes: age group, gender and race, learnt from FairFace alone: "
    "no other\ndata, no teacher, no pretrained weights, for those who cannot use what is for research only. Paper 5's "
    "small\nnetwork, by the recipe `compact --variant fairface`. Nothing is fetched.",
}

ABOUT = {
    "arg": """\
- **Input:** a face aligned by five landmarks to UTKFace's tight crop, 160x160 RGB (`tfface predict` does it).
- **Output:** probabilities of gender (2) and race (5), a distribution over ages 0 to 116 with its mean and spread.
- **Licence:** for research use: UTKFace is for non-commercial research, FaceNet's weights come from a research set.
- **Limits:** the gender of children under six is often wrong, years are furthest off for people over 62, the class
  Others is seldom recognised (see the tables), and crops that are not aligned as above are judged worse than measured
  here.""",
    "compact": """\
- **Input:** a face with FaceNet's margin, as `tfface align --align margin` cuts it, 112x112 RGB (`tfface predict` does
  it).
- **Output:** probabilities of gender (2), race (the 7 of FairFace and, by another head, the 5 of UTKFace), a
  distribution over ages 0 to 116 with its mean and spread (and FairFace's nine groups as sums), an embedding of 128
  numbers of length 1.
- **Also learnt from,** without labels or identities, for the embedding alone: 5,619 photos of CelebA.
- **Licence:** for research use: UTKFace and CelebA are for non-commercial research, the teacher's weights come from a
  research set.
- **Limits:** trained for eleven epochs, a hundred minutes of two CPU cores. The gender of children is often wrong,
  about half of Latino_Hispanic and Middle Eastern faces are recognised (see the tables); the embedding is a student's,
  weaker than FaceNet's own: for choosing and grouping, not for identifying anybody.
- **What was done for the groups it knew worst:** on FairFace the version before, on paper 5's tight crops, was weakest
  at the gender of children of 3 to 9 (0.783), at the ages 10 to 19 (0.377) and over 70 (0.417) and at Latino_Hispanic
  and Middle Eastern faces (0.511 and 0.545). Crops that show the hair, four epochs more and more photos brought these
  to 0.804, 0.456, 0.542, 0.538 and 0.549, and the gender of Black faces from 0.885 to 0.873. No group was weighted.
- **In bad pictures:** blur costs most, a mask up to a tenth of the races: the curves are in the repository's
  docs/robustness.md.""",
    "fairface": """\
- **Input:** a face with the surroundings of FairFace's crops of padding 0.25, any size, scaled to 112x112 RGB
  (`tfface predict` does it).
- **Output:** probabilities of gender (2), race (7) and age group (9). No age in years and no embedding.
- **Licence:** CC BY 4.0, as FairFace: name Karkkainen and Joo, FairFace: Face Attribute Dataset for Balanced Race,
  Gender, and Age (WACV 2021).
- **Limits:** it saw 37,943 faces, 44 % of FairFace's training set, for twenty epochs on one GPU (seven minutes). It
  errs more often than the network that `tfface` takes by default, with eleven times as many multiply-adds (1.8 thousand
  million a face); errors per group are below. All figures are of the weights as they are here, rounded.""",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", choices=sorted(WHAT), default="arg")
    parser.add_argument("--command", default="tfface reproduce arg --variant years --seeds 0,1,2 --bfloat16")
    parser.add_argument("--whole", action="store_true", help="the whole network, also what was frozen")
    parser.add_argument(
        "--mantissa", type=int, default=10, metavar="BITS", help="of each weight, 1 to 22 (default: 10)"
    )
    parser.add_argument("--teacher", type=Path, help="report.json of `tfface compare TEACHER RUN`, for the card")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="in the recipe, as paths")
    options = parser.parse_args()
    run, target = Run(options.run), MODELS / options.name
    target.mkdir(parents=True, exist_ok=True)
    config, recipe = run.config(), run.recipe()
    changes = parse_settings(recipe, options.set) | ({"train_from": ""} if options.whole else {})
    config["recipe"] = recipe.changed(**changes).to_json()
    files.write_json(target / "config.json", config)
    files.write_json(target / "done.json", files.read_json(run.done_file, "done.json"))
    network = run.model() if options.whole else keras.saving.load_model(run.trained_file, compile=False)
    shrink(network, target / "trained.keras", options.mantissa)
    metrics = files.read_json(run.figures_file, "The run's figures")
    tests = {name: figures for name, figures in metrics.items() if name.endswith("test")}
    card = CARD.format(
        title=f"{TITLES.get(options.name, recipe.title)}: the model card",
        what=WHAT[options.name],
        about=ABOUT[options.name],
        command=options.command.replace("\\n", "\n    "),
        sha256=files.sha256(target / "trained.keras"),
        data="+".join(filter(None, (config["data"]["name"], config["recipe"].get("extra_data")))).replace("+", " and "),
        scores="\n\n".join(
            [scores(name, figures) for name, figures in tests.items()]
            + pairs(metrics)
            + beside_teacher(options.teacher)
        ),
        groups="".join(f"\n## Per group, {name}\n\n{groups(figures['groups'])}\n" for name, figures in tests.items()),
    )
    files.write_text(target / "README.md", card)
    print(f"{target}: {sum(path.stat().st_size for path in target.iterdir()) / 1e6:.1f} MB")


def shrink(network: keras.Model, target: Path, bits: int):
    """Write a .keras file with its weights rounded to so many bits of mantissa and its members compressed."""
    plain = target.with_name("plain.keras")
    network.save(plain)
    with (
        files.written_aside(target) as aside,
        zipfile.ZipFile(plain) as old,
        zipfile.ZipFile(aside, "w") as new,
    ):
        for name in old.namelist():
            data = old.read(name)
            if name.endswith(".weights.h5"):
                data = rounded(data, bits)
            # The same run gives the same bytes: a fixed date here, and none inside.
            if name == "metadata.json":
                data = json.dumps({key: value for key, value in json.loads(data).items() if key != "date_saved"})
            new.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_LZMA)
    plain.unlink()


def rounded(data: bytes, bits: int) -> bytes:
    """An HDF5 file with every float32 tensor rounded to so many bits of mantissa."""
    buffer = io.BytesIO(data)
    with h5py.File(buffer, "r+") as file:
        file.visititems(lambda _, item: round_tensor(item, bits) if isinstance(item, h5py.Dataset) else None)
    return buffer.getvalue()


def round_tensor(item, bits):
    values = item[...]
    if values.dtype == np.float32:
        last = 1 << (23 - bits)  # float32 has 23
        item[...] = ((values.view(np.uint32) + np.uint32(last // 2)) & np.uint32(2**32 - last)).view(np.float32)


def scores(name, metrics):
    rows = [f"**{name}**, n = {metrics['n']:,}\n", "| figure | value | interval |", "|---|---:|---|"]
    for task, values in metrics["tasks"].items():
        accuracy = values["accuracy"]
        row = f"| {task}, {len(values['per_class'])} classes, accuracy | {accuracy['value']:.3f}"
        rows.append(f"{row} | {interval(accuracy, 3)} |")
        rows.append(
            f"| {task}, expected calibration error | {values['calibration']['expected_calibration_error']:.3f} | |"
        )
    if "age" in metrics:
        mae = metrics["age"]["mae"]
        rows.append(f"| age, mean absolute error, years | {mae['value']:.2f} | {interval(mae, 2)} |")
    return "\n".join(rows)


def pairs(metrics):
    """Accuracy on pairs of faces, where the network has an embedding."""
    if not (verified := metrics.get("verification")):
        return []
    rows = ["**same person or not**, ten folds\n", "| pairs | accuracy | deviation over folds |", "|---|---:|---:|"]
    rows += [f"| {name} | {one['accuracy']:.4f} | {one['deviation']:.4f} |" for name, one in verified.items()]
    return ["\n".join(rows)]


def beside_teacher(page):
    """What the network loses against the one that it learnt from, and in which groups of people most."""
    if page is None:
        return []
    compared = files.read_json(page, "The comparison")
    rows = [
        "**Beside its teacher** (heads on the whole FaceNet's frozen features), on the same "
        f"{compared['n']:,} faces of FairFace's\ntest split; the three groups of 30 faces or more that lose most\n",
        "| figure | teacher | difference (95 % interval) | loses most |",
        "|---|---:|---:|---|",
    ]
    for figure, about in compared["figures"].items():
        teacher, own = about["rows"]
        judged = [group for group in about["groups"] if not group["too_small"]]
        judged.sort(key=lambda group: group["rows"][1]["difference"]["value"])
        worst = ", ".join(f"{one['group']} {one['rows'][1]['difference']['value']:+.3f}" for one in judged[:3])
        low, high = own["difference"]["interval"]
        told = f"{own['difference']['value']:+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append(f"| {figure.replace('_', ' ')} | {teacher['value']:.3f} | {told} | {worst} |")
    return ["\n".join(rows)]


def interval(figure, digits):
    if figure["interval"] is None:  # one face has none
        return "–"
    low, high = figure["interval"]
    return f"{low:.{digits}f} to {high:.{digits}f}"


def groups(result):
    text = []
    for name, division in result["by"].items():
        shown = [figure for figure in division["groups"][0]["figures"] if figure.endswith(("_accuracy", "age_mae"))]
        heads = [figure.removesuffix("_accuracy").replace("age_mae", "age MAE, years") for figure in shown]
        rows = [f"**{name}**\n", f"| group | n | {' | '.join(heads)} |", "|---" + "|---:" * (len(shown) + 1) + "|"]
        for row in division["groups"]:
            cells = [cell(row["figures"][figure], 2 if figure == "age_mae" else 3) for figure in shown]
            small = " (too few to judge)" if row["too_small"] else ""
            rows.append(f"| {', '.join(row['group'])}{small} | {row['n']} | {' | '.join(cells)} |")
        text.append("\n".join(rows))
    return "\n\n".join(text)


def cell(figure, digits):
    return "–" if figure["value"] is None else f"{figure['value']:.{digits}f} ({interval(figure, digits)})"


if __name__ == "__main__":
    main()
