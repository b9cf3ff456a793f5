"""The `tfface` command: one verb a stage. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import os
import sys

from tfface import __version__
from tfface.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `tfface`; those of the process if None.

    Returns:
        Exit code: 0 well, 2 bad input (one line on standard error), 130 stopped by Ctrl-C.
    """
    options = _parser().parse_args(arguments)
    # TensorFlow's and absl's start-up chatter is for their developers.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"tfface: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tfface: stopped; run the same command again to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of a pipe (head, less) has gone: nothing is wrong.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        import errno

        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        print("tfface: the disk is full; free some room and run the same command again.", file=sys.stderr)
        return 2


def _build(options):
    from tfface import commands

    commands.build(
        options.data, options.manual_dir, options.data_dir, options.builders or commands.BUILDERS, options.beam
    )


def _recipe(options):
    from tfface import recipes

    recipe = recipes.load(options.recipe, options.variant, options.set, options.tiny)
    return recipe.changed(data=options.data) if options.data else recipe


def _folder(options, recipe):
    from pathlib import Path

    from tfface.commands import run_folder

    return (
        Path(options.out)
        if options.out
        else run_folder(recipe, options.variant, options.data or (recipe.data if options.tiny else ""))
    )


def _train(options):
    from tfface.training.fit import fit

    recipe = _recipe(options)
    run = fit(
        recipe,
        options.out or _folder(options, recipe) / f"seed-{recipe.seed}",
        options.data_dir,
        options.device,
        options.bfloat16,
    )
    print(f"trained: {run.folder}")


def _evaluate(options):
    from tfface import commands

    commands.evaluate(options.run_folder, options.split, options.data, options.data_dir, options.bfloat16)


def _report(options):
    from tfface import commands

    for kind, path in commands.report(options.run_folder, options.data_dir).items():
        print(f"{kind}: {path}")


def _reproduce(options):
    from tfface import commands

    recipe = _recipe(options)
    made = commands.reproduce(
        recipe,
        options.seeds,
        _folder(options, recipe),
        options.variant,
        options.data_dir,
        options.device,
        options.bfloat16,
    )
    for kind, path in made.items():
        print(f"{kind}: {path}")


def _predict(options):
    from tfface.serving.predict import predict_photos

    return predict_photos(options.photos, options.model, options.detector, options.out, options.to)


def _export(options):
    from tfface import commands

    print(f"SavedModel: {commands.export(options.run_folder, options.out)}")


def _weights(options):
    from tfface import commands, weights

    if options.action == "fetch":
        for name in options.names or weights.PRETRAINED:
            print(f"{name}: {weights.fetch(name)}")
    else:
        commands.list_weights()


def _verify(options):
    from tfface import commands

    commands.verify(options.model, options.data, options.data_dir, options.crop, options.mirror, options.bfloat16)


def _sweep(options):
    from tfface.training.sweep import sweep

    recipe = _recipe(options)
    sweep(
        recipe, _folder(options, recipe) / "sweep", options.trials, options.data_dir, options.device, options.bfloat16
    )


def _doctor(options):
    from tfface import commands

    return commands.doctor(options.data_dir)


def _demo(options):
    from tfface.demo import demo

    demo(options.out)


def _seeds(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _outputs(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    unknown = set(words) - {"picture", "json", "csv"}
    if unknown:
        raise argparse.ArgumentTypeError(f"expected picture, json or csv, received {', '.join(sorted(unknown))}")
    return words


def _data_options(parser):
    parser.add_argument("--data-dir", metavar="DIR", help="where data sets are prepared (default: TFDS's own)")


def _compute_options(parser):
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="compute the frozen layers in bfloat16: up to 2.5 times as fast on CPUs with AMX",
    )


def _recipe_options(parser):
    parser.add_argument("recipe", help="name of a recipe: arg")
    parser.add_argument("--variant", default="", help="one of the recipe's variants")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field of the recipe"
    )
    parser.add_argument("--data", default="", help="train on another prepared data set")
    parser.add_argument("--tiny", action="store_true", help="shrink the recipe to seconds, on synthetic faces")
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: below runs/)")
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="gpu is an error where there is none"
    )
    _data_options(parser)
    _compute_options(parser)


def _run_option(parser):
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, such as runs/arg/seed-0")


def _build_options(parser):
    parser.add_argument(
        "data", metavar="NAME", help="data set, NAME or NAME/CONFIG: utkface, lfw_pairs, synthetic_faces"
    )
    parser.add_argument("--manual-dir", metavar="DIR", help="folder of the original files, for sets under licence")
    parser.add_argument(
        "--builders", metavar="DIR", help="folder of TFDS builders (default: datasets/ of the checkout)"
    )
    parser.add_argument("--beam", metavar="KEY=VALUE,...", help="options of Apache Beam, for builders that use it")
    _data_options(parser)


def _reproduce_options(parser):
    _recipe_options(parser)
    parser.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="seeds to train (default: 0)")


def _evaluate_options(parser):
    _run_option(parser)
    parser.add_argument("--split", default="test", help="split of the data set (default: test)")
    parser.add_argument("--data", default="", help="another prepared data set with the same labels")
    _data_options(parser)
    _compute_options(parser)


def _report_options(parser):
    _run_option(parser)
    _data_options(parser)


def _predict_options(parser):
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, folders or globs")
    parser.add_argument("--model", default="arg", help="folder of a run, or a shipped model (default: arg)")
    parser.add_argument("--detector", default="mtcnn", help="mtcnn, yolo, dlib or yolo:FILE.onnx (default: mtcnn)")
    parser.add_argument(
        "--out",
        type=_outputs,
        default=("picture",),
        metavar="picture,json,csv",
        help="what to write (default: picture)",
    )
    parser.add_argument("--to", default="predictions", metavar="DIR", help="folder of the results")


def _export_options(parser):
    _run_option(parser)
    parser.add_argument("--out", metavar="DIR", help="folder of the SavedModel (default: RUN/saved_model)")


def _weights_options(parser):
    parser.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    parser.add_argument("names", nargs="*", help="which to fetch (default: all)")


def _verify_options(parser):
    parser.add_argument("model", help="an embedding model: facenet")
    parser.add_argument("--data", default="lfw_pairs", help="prepared data set of pairs (default: lfw_pairs)")
    parser.add_argument(
        "--crop", choices=("centre", "mtcnn"), default="mtcnn", help="centre: the middle 150 pixels; mtcnn: found box"
    )
    parser.add_argument("--mirror", action="store_true", help="add the embedding of the mirror image")
    _data_options(parser)
    _compute_options(parser)


def _sweep_options(parser):
    _recipe_options(parser)
    parser.add_argument("--trials", type=int, default=20, help="trials in all, those of earlier runs included")


def _demo_options(parser):
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of everything the demo makes")


VERBS = {
    "build": ("prepare a data set", _build, _build_options, "tfface build utkface --manual-dir ~/Downloads"),
    "train": (
        "train a recipe, or go on with it",
        _train,
        _recipe_options,
        "tfface train arg --set schedule_scale=0.02",
    ),
    "evaluate": ("measure a trained run on a split", _evaluate, _evaluate_options, "tfface evaluate runs/arg/seed-0"),
    "report": ("write the report of a run", _report, _report_options, "tfface report runs/arg"),
    "reproduce": (
        "train, evaluate, report and export a recipe",
        _reproduce,
        _reproduce_options,
        "tfface reproduce arg --variant years --seeds 0,1,2",
    ),
    "sweep": (
        "search learning rates, loss weights and age encodings",
        _sweep,
        _sweep_options,
        "tfface sweep arg --trials 20",
    ),
    "predict": (
        "age, gender and race of the faces in photos",
        _predict,
        _predict_options,
        "tfface predict holiday.jpg photos/ --out picture,json",
    ),
    "verify": ("accuracy on pairs of faces (LFW)", _verify, _verify_options, "tfface verify facenet --data lfw_pairs"),
    "export": ("write a run as a SavedModel", _export, _export_options, "tfface export runs/arg/seed-0"),
    "weights": ("list or fetch pretrained files", _weights, _weights_options, "tfface weights fetch facenet"),
    "doctor": ("versions, devices, data sets, weights", _doctor, _data_options, "tfface doctor"),
    "demo": ("the main job on synthetic faces", _demo, _demo_options, "tfface demo"),
}
"""Verb -> (help, function, function that adds its options, an example that works)."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfface",
        description="Train, verify, shrink and serve face-analysis models with Keras 3 and TensorFlow.",
        epilog="Age, gender and race are perceived labels. Not for identification of people or decisions about them.",
    )
    parser.add_argument("--version", action="version", version=f"tfface {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    for name, (help_text, run, add_options, example) in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=help_text,
            description=f"{help_text[0].upper()}{help_text[1:]}.",
            epilog=f"example: {example}",
        )
        add_options(verb)
        verb.set_defaults(run=run)
    return parser


if __name__ == "__main__":
    sys.exit(main())
