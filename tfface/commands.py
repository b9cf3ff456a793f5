"""What each verb of the command line does. The verbs and their options are in `tfface.cli`."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

from tfface import files
from tfface.errors import UserError

BUILDERS = Path(__file__).resolve().parent.parent / "datasets"
"""The folder of TFDS builders, beside the package in a checkout."""


def say(*words) -> None:
    """Print a line at once, also into a pipe."""
    print(*words, flush=True)


# --- data


def build(
    data: str,
    manual_dir=None,
    data_dir=None,
    builders=BUILDERS,
    beam_pipeline_options=None,
    align=None,
    workers=1,
) -> Path:
    """Prepare a data set with its TFDS builder; one that is prepared is left as it is.

    Args:
        data: `name` or `name/config`.
        manual_dir: folder of the original files, for data sets that are under licence.
        data_dir: where to prepare it; TFDS's own default if None.
        builders: folder of the builders.
        beam_pipeline_options: options for Apache Beam, "key=value,key=value".
        align: how its faces are to be aligned, arguments of `tfface.data.aligned.aligned_config`; as they are if None.
        workers: how many align at once on this machine; 0 for one a core.

    Returns:
        The prepared folder.

    Raises:
        UserError: no such data set, or files that are not those of the data set.
    """
    import tensorflow_datasets as tfds

    name, _, config = data.partition("/")
    folder = Path(builders)
    if not (folder / name / f"{name}_dataset_builder.py").exists():
        known = sorted(path.parent.name for path in folder.glob("*/*_dataset_builder.py"))
        raise UserError(
            f"Unknown data set. Expected one of: {', '.join(known) or f'none in {folder}'}. Received: {name}."
        )
    if manual_dir is not None and not Path(manual_dir).is_dir():
        raise UserError(f"--manual-dir must be a folder that holds the files of {name}. Received: {manual_dir}.")
    # As `tfds build` does: a builder is imported under one name only, or TFDS calls it registered twice.
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    module = importlib.import_module(f"{name}.{name}_dataset_builder")
    try:
        builder = module.Builder(config=config or None, data_dir=data_dir)
    except ValueError as error:
        configs = ", ".join(module.Builder.builder_configs)
        raise UserError(f"{name} has no config {config}. Expected one of: {configs or 'none'}.") from error
    if align:
        from tfface.data.aligned import aligned_config

        builder = module.Builder(config=aligned_config(builder, **align), data_dir=data_dir)
    ready = Path(builder.data_dir)
    if ready.exists():
        say(f"{builder.info.full_name} is prepared already: {ready}")
        return ready
    for leftover in ready.parent.glob("incomplete.*"):
        say(f"Removing {leftover.name}, which a build that was killed left behind.")
        shutil.rmtree(leftover, ignore_errors=True)
    options = {}
    if align or beam_pipeline_options:
        from tfface.data.alignment_pipeline import pipeline_options

        options["beam_options"] = pipeline_options(workers, beam_pipeline_options or "")
    try:
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(
                manual_dir=str(manual_dir) if manual_dir else None, try_download_gcs=False, **options
            )
        )
    except BaseException:
        for leftover in ready.parent.glob("incomplete.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        raise
    counts = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    say(f"{builder.info.full_name} is prepared: {counts}\n{ready}")
    return ready


# --- training and its results


def run_folder(recipe, variant: str = "", data: str = "") -> Path:
    """Where the runs of a recipe go by default: runs/RECIPE[-VARIANT][-DATA]."""
    parts = [recipe.name, variant, data.replace("/", "-")]
    return Path("runs") / "-".join(part for part in parts if part)


def evaluate(folder, split="test", data="", data_dir=None, bfloat16=False, near_copies=True) -> dict:
    """Run the model of a run over a split; write predictions and figures beside it and print the main ones.

    Args:
        folder: the run's folder.
        split: name of the split.
        data: another prepared data set with the same labels; the run's own if empty.
        data_dir: where data sets are prepared.
        bfloat16: compute frozen features in bfloat16.
        near_copies: False leaves out the images that are near copies of one in another split: the same photo, scaled,
            coloured or encoded anew, which no comparison of bytes finds.

    Returns:
        The figures, as they stand in metrics.json under the split's name.
    """
    import numpy as np

    from tfface.evaluation.evaluate import evaluate as figures_of
    from tfface.evaluation.fairness import by_group
    from tfface.evaluation.predictions import predict_split
    from tfface.training.run import Run

    run = Run(folder)
    predictions = predict_split(run, split, data, data_dir, bfloat16)
    name = f"{data.replace('/', '-')}-{split}" if data else split
    if not near_copies:
        from tfface.data import pipeline
        from tfface.data.near_copies import near_others, split_hashes

        builder = pipeline.open_dataset(data or run.recipe().data, data_dir)
        hashes = {part: split_hashes(builder, part) for part in builder.info.splits}
        others = np.concatenate([values for part, values in hashes.items() if part != split])
        near = near_others(hashes[split], others)
        say(f"{near.sum()} of {len(near)} images of {split} have a near copy in another split and are left out.")
        predictions, name = predictions.chosen(~near), f"{name}-without-near-copies"
    figures = {**figures_of(predictions), "groups": by_group(predictions)}
    predictions.save(run.folder / f"predictions-{name}.npz")
    path = run.folder / "metrics.json"
    known = files.read_json(path, "The run's figures") if path.exists() else {}
    files.write_json(path, {**known, name: figures})
    say(f"{run.folder}, {name}, n = {figures['n']}: {', '.join(main_figures(figures))}")
    return figures


def main_figures(figures: dict) -> list[str]:
    """The accuracy of each task and the error of the age, as short texts."""
    texts = [f"{task} {values['accuracy']['value']:.4f}" for task, values in figures["tasks"].items()]
    if "age" in figures:
        texts.append(f"age MAE {figures['age']['mae']['value']:.3f} years")
    return texts


def report(folder, data_dir=None, command="") -> dict[str, Path]:
    """Write report.html, report.md and report.json for a run, or for a folder of runs with several seeds.

    Returns:
        The files by kind.
    """
    import numpy as np

    from tfface.data import pipeline
    from tfface.evaluation.evaluate import Predictions, worst_mistakes
    from tfface.evaluation.report import Comparison, write_report
    from tfface.training.run import Run

    folder = Path(folder)
    runs = [Run(path) for path in sorted(folder.glob("seed-*")) if Run(path).done] or [Run(folder)]
    first = runs[0]
    recipe, config = first.recipe(), first.config()
    every = [files.read_json(run.folder / "metrics.json", "The run's figures (`tfface evaluate`)") for run in runs]
    shown = "test" if "test" in every[0] else next(iter(every[0]))

    def ours(task, metric):
        values = []
        for figures in every:
            figures = figures.get(shown, {})
            part = figures.get("age", {}) if task == "age" else figures.get("tasks", {}).get(task, {})
            if metric in part:
                values.append(part[metric]["value"])
        return values

    def row(task, metric, published, source):
        values = ours(task, metric)
        mean = float(np.mean(values)) if values else None
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
        name = {"age": "age, mean absolute error (years)", "age_bins": "age, nine bins, accuracy"}.get(
            task, f"{task}, {metric}"
        )
        return Comparison(name, published, source, mean, spread, every[0][shown]["n"], len(values))

    rows = [row(*published) for published in recipe.published]
    measured = {(task, "accuracy") for task in every[0][shown]["tasks"]}
    if "age" in every[0][shown]:
        measured.add(("age", "mae"))
    rows += [row(task, metric, None, "") for task, metric in sorted(measured - {p[:2] for p in recipe.published})]

    predictions = Predictions.load(first.folder / f"predictions-{shown}.npz")
    worst = {task: worst_mistakes(predictions, task, 18) for task in predictions.probabilities if task != "age_bins"}
    builder = pipeline.open_dataset(recipe.data, data_dir)
    wanted = {int(index) for entries in worst.values() for index, _ in entries}
    images = {
        index: pipeline.decode(example["image"], (160, 160)).numpy().astype("uint8")
        for index, example in enumerate(pipeline.examples(builder, shown))
        if index in wanted
    }
    seeds = f", {len(runs)} seeds" if len(runs) > 1 else ""
    synthetic = " Synthetic faces: this proves that the machinery runs, not how good it is on people."
    return write_report(
        folder,
        title=recipe.title,
        summary=f"Trained on {config['data']['name']}, reported on its {shown} split "
        f"(n = {every[0][shown]['n']:,}{seeds}); the epoch was chosen on validation."
        + synthetic
        * config["data"]["name"].startswith("synthetic"),
        metrics=every[0],
        predictions=predictions,
        comparison=rows,
        history=first.history(),
        worst={task: [(images[index], text) for index, text in entries] for task, entries in worst.items()},
        config=config["recipe"],
        versions=config["environment"],
        command=command or f"tfface report {folder}",
        licences=recipe.licences,
        notes=notes_on(builder, recipe, len(runs)),
    )


def notes_on(builder, recipe, seeds: int) -> list[str]:
    """What a reader of a report must know of the data and the choices."""
    notes = []
    counts = ", ".join(f"{split} {info.num_examples:,}" for split, info in builder.info.splits.items())
    notes.append(f"{builder.info.full_name}: {counts} images.")
    left_out = (builder.info.metadata or {}).get("left_out")
    if left_out:
        sizes = ", ".join(f"{reason} {len(names)}" for reason, names in left_out.items())
        notes.append(f"Left out when the data set was built (names or groups of names in its metadata.json): {sizes}.")
    if recipe.train_from:
        notes.append(f"Layers up to {recipe.train_from} are the pretrained network's, frozen.")
    if seeds > 1:
        notes.append("Figures with ± are means and standard deviations over seeds; all plots show the first seed.")
    return notes


def reproduce(recipe, seeds: Iterable[int], out=None, variant="", data_dir=None, device="auto", bfloat16=False) -> dict:
    """Train, evaluate, report and export one recipe over several seeds; what is done already is not done again.

    Returns:
        The report's files by kind, and the SavedModel under "saved_model".
    """
    from tfface.training.fit import fit

    folder = Path(out) if out else run_folder(recipe, variant)
    runs = []
    for seed in seeds:
        run = fit(recipe.changed(seed=seed), folder / f"seed-{seed}", data_dir, device, bfloat16)
        known = run.folder / "metrics.json"
        done = files.read_json(known, "The run's figures") if known.exists() else {}
        for split in ("validation", "test"):
            if split not in done:
                evaluate(run.folder, split, data_dir=data_dir, bfloat16=bfloat16)
        runs.append(run)
    made = report(folder, data_dir, " ".join(["tfface", *sys.argv[1:]]))
    saved = folder / "saved_model"
    if not saved.exists():
        export(runs[0].folder, saved)
    return {**made, "saved_model": saved}


def export(folder, out=None) -> Path:
    """Write the SavedModel of a run."""
    from tfface.serving.export import export_saved_model
    from tfface.serving.predictor import find_model

    run = find_model(folder)
    target = Path(out) if out else run.folder / "saved_model"
    return export_saved_model(run, target)


def verify(
    model="facenet", data="lfw_pairs", data_dir=None, crop="mtcnn", mirror=False, bfloat16=False, out=None
) -> dict:
    """Measure an embedding model on pairs of faces, by LFW's protocol; print and write the figures.

    Args:
        model: "facenet".
        data: prepared data set with the configs `pairs` and `images`, as `lfw_pairs` has them.
        data_dir: where it is prepared.
        crop: "centre" (the middle 150 of 250 pixels, no detector) or "mtcnn" (the face's box with FaceNet's margin).
        mirror: add the embedding of the mirror image.
        bfloat16: compute the network in bfloat16.
        out: folder of verification.json; runs/MODEL-DATA-CROP if None.

    Returns:
        What `verify_folds` gives.
    """
    import numpy as np

    from tfface.evaluation.embeddings import embed_images
    from tfface.evaluation.verification import cosine_similarity, verify_folds

    if model != "facenet":
        raise UserError(f"Unknown embedding model. Expected: facenet. Received: {model}.")
    pairs, rows, notes = embed_images(data, data_dir, crop, mirror, bfloat16)
    first, second = (rows[pairs[name]] for name in ("first", "second"))
    result = verify_folds(cosine_similarity(first, second), pairs["same"], pairs["fold"])
    result |= {"model": model, "data": data, "crop": crop, "mirror": mirror, "notes": notes}
    folder = Path(out) if out else Path("runs") / f"{model}-{data}-{crop}{'-mirror' if mirror else ''}"
    files.write_json(folder / "verification.json", result)
    for note in notes:
        say(note)
    at = np.mean([fold["threshold"] for fold in result["folds"]])
    say(
        f"{model} on {data}, {crop} crop{', mirror added' if mirror else ''}: accuracy {result['accuracy']:.4f} ± "
        f"{result['deviation']:.4f} over {len(result['folds'])} folds, {result['n']} pairs, mean threshold {at:.3f}, "
        f"AUC {result['auc']:.4f}"
    )
    for far, rate in result["tar"].items():
        low, high = rate["interval"]
        say(f"  TAR at FAR {far}: {rate['value']:.4f}, 95 % interval {low:.4f} to {high:.4f}")
    say(f"{folder / 'verification.json'}")
    return result


# --- what is there


def list_weights() -> None:
    """Print every pretrained file with its state, licence and preprocessing."""
    from tfface import weights

    for name, entry in weights.PRETRAINED.items():
        say(f"{name}: {weights.status(name)}, {weights.path(name)}")
        say(f"  {entry.about}\n  licence: {entry.licence}\n  input: {entry.preprocessing}\n  sha256: {entry.sha256}")


def doctor(data_dir=None) -> int:
    """Print versions, devices, prepared data sets and weights with their checks.

    Returns:
        Exit code: 0 everything that is needed works, 2 something is missing; each miss names its mend.
    """
    import platform
    from importlib.metadata import PackageNotFoundError, version

    from tfface import weights

    wrong = 0
    say(f"python {platform.python_version()}, {platform.platform()}")
    for package in ("tfface", "tensorflow", "keras", "tensorflow-model-optimization", "tensorflow-datasets", "jax"):
        try:
            say(f"{package} {version(package)}")
        except PackageNotFoundError:
            wrong += 1
            say(f"{package} is missing: pip install -r requirements.txt")
    for module, mend in (
        ("cv2", "apt-get install libgl1 (opencv-python needs libGL.so.1), or keep only one wheel of cv2 installed"),
        ("dlib", "pip install dlib-bin"),
    ):
        try:
            say(f"{module} {importlib.import_module(module).__version__}")
        except ImportError as error:
            wrong += 1
            say(f"{module} cannot be imported ({error}). Mend: {mend}")
    import keras
    import tensorflow as tf

    say(f"Keras backend: {keras.backend.backend()}")
    gpus = tf.config.list_physical_devices("GPU")
    details = [tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name) for gpu in gpus]
    say(f"GPU: {', '.join(details) or 'none that TensorFlow sees; training runs on the CPU'}")
    for name in weights.PRETRAINED:
        state = weights.status(name)
        wrong += state == "damaged"
        mend = "" if state == "ready" else f" (tfface weights fetch {name})"
        say(f"weights {name}: {state}{mend}")
    import tensorflow_datasets as tfds

    folder = Path(data_dir or tfds.core.constants.DATA_DIR)
    prepared = sorted(path.parent for path in folder.glob("*/**/dataset_info.json")) if folder.is_dir() else []
    say(f"prepared data sets in {folder}: {', '.join(str(p.relative_to(folder)) for p in prepared) or 'none'}")
    return 2 if wrong else 0
