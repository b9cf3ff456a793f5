"""Draw the pictures of notebooks/pictures: what real data sets look like on average, and how their labels are spread.

    python scripts/average_faces.py --utkface FOLDER --fairface FOLDER --men-women FOLDER

An average of hundreds of faces shows nobody; no photo of a data set is in this repository.
"""

import argparse
import csv
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib.figure import Figure

from tfface import labels
from tfface.evaluation import plots

PICTURES = Path(__file__).resolve().parent.parent / "notebooks" / "pictures"

LEAST, MOST = 100, 2000
"""Photos behind an average: fewer might show somebody, more change nothing."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--utkface", type=Path, help="folder of UTKFace's files")
    parser.add_argument("--fairface", type=Path, help="folder of FairFace: train/, val/ and the two label files")
    parser.add_argument("--men-women", type=Path, help="folder of two folders")
    options = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    if options.utkface:
        utkface(options.utkface)
    if options.fairface:
        fairface(options.fairface)
    if options.men_women:
        folders = sorted(path for path in options.men_women.iterdir() if path.is_dir())
        men, women = (average(sorted(folder.iterdir())) for folder in folders)
        difference = np.clip(128 + women - men, 0, 255)
        write("men_women", [men, women, difference], [*(folder.name for folder in folders), "difference"], 3)


def utkface(folder: Path) -> None:
    """Ages of UTKFace, and the average face of each of ARG's nine bins."""
    files = [path for path in sorted(folder.iterdir()) if path.name.partition("_")[0].isdecimal()]
    ages = np.array([int(path.name.partition("_")[0]) for path in files])
    bins = labels.age_bin(ages)
    figure = Figure(figsize=(7.4, 2.6), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(ages, np.arange(-0.5, labels.OLDEST + 1.5), color=plots.BLUE)
    for start in labels.ARG_AGE_STARTS[1:]:
        axes.axvline(start - 0.5, color=plots.ORANGE, linewidth=1)
    axes.set(xlabel=f"age, years ({len(ages):,} photos; lines: the nine bins)", ylabel="photos")
    plots.save(figure, PICTURES / "utkface_ages.png", dpi=100)
    faces = [average([file for file, own in zip(files, bins, strict=True) if own == at]) for at in range(9)]
    write("utkface_bins", faces, [f"{name} years" for name in labels.ARG_AGES], 9)


def fairface(folder: Path) -> None:
    """Age groups and races of FairFace as far as its images are there, and the average face of each race."""
    rows = []
    for path in sorted(folder.glob("fairface_label_*.csv")):
        with open(path, newline="") as stream:
            rows += [row for row in csv.DictReader(stream) if (folder / row["file"]).exists()]
    races = np.array([row["race"] for row in rows])
    figure = Figure(figsize=(7.4, 2.6), layout="constrained")
    axes = figure.add_subplot()
    counts = [(races == race).sum() for race in labels.FAIRFACE_RACES]
    axes.barh(range(7), counts, color=plots.BLUE)
    axes.set_yticks(range(7), labels.FAIRFACE_RACES)
    axes.invert_yaxis()
    axes.set(xlabel=f"images ({len(rows):,} in all)")
    plots.save(figure, PICTURES / "fairface_counts.png", dpi=100)
    files = [[folder / row["file"] for row in rows if row["race"] == race] for race in labels.FAIRFACE_RACES]
    write("fairface_groups", [average(group) for group in files], labels.FAIRFACE_RACES, 7)


def average(files: Sequence[Path], size: int = 128) -> np.ndarray:
    """Mean of photos, (size, size, 3) float RGB."""
    if len(files) < LEAST:
        raise SystemExit(f"An average of {len(files)} photos might show somebody: expected at least {LEAST}.")
    chosen = np.random.default_rng(0).permutation(len(files))[:MOST]
    return np.mean(list(read(files[at] for at in chosen)), axis=0)


def read(files: Iterable[Path], size: int = 128) -> Iterable[np.ndarray]:
    for file in files:
        photo = cv2.imread(str(file))
        if photo is None:
            raise SystemExit(f"{file} cannot be read.")
        yield cv2.resize(photo, (size, size), interpolation=cv2.INTER_AREA)[..., ::-1].astype(np.float32)


def write(name: str, faces: Sequence[np.ndarray], captions: Sequence[str], columns: int) -> None:
    """A row of average faces."""
    figure = plots.sheet([np.rint(face).astype(np.uint8) for face in faces], captions, columns)
    plots.save(figure, PICTURES / f"{name}.png", dpi=80)


if __name__ == "__main__":
    main()
