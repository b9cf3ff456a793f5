"""The `tfface` command: one verb a stage. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import os
import shlex
import signal
import sys
import threading
from pathlib import Path

from tfface import __version__
from tfface.errors import UserError
from tfface.faces import ALIGNMENTS
from tfface.packages import require_tensorflow

GO_ON = ("build", "train", "reproduce", "sweep", "prune", "detect", "align")
"""Verbs that go on where they were stopped, when the same command is run again."""


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: words after `tfface`; those of the process if None.

    Returns:
        Exit code: 0 well, 1 some photo has no face, 2 bad input (one line on standard error); stopped by Ctrl-C 130, by
        SIGTERM 143, by the end of its terminal 129, by that of the reader of its output 141.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed: the next file would get its number, and what is said with it
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal has no letters for is no reason to stop
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    # TensorFlow's and absl's chatter, at the start and of graphs traced anew, is for their developers.
    quiet = os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3") == "3"
    if quiet:
        logging.getLogger("tensorflow").setLevel(logging.ERROR)
    if quiet and "tensorflow" not in sys.modules and not isinstance(sys.meta_path[0], _QuietTensorFlow):
        sys.meta_path.insert(0, _QuietTensorFlow())
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    if not sys.stderr.isatty():  # a file keeps every state of a progress bar
        os.environ.setdefault("TQDM_MININTERVAL", "30")
    stop = _Stop()
    stopped = "stopped; run the same command again to go on" if options.verb in GO_ON else "stopped"
    try:
        with stop:
            _check_keras_settings()
            return options.run(options) or 0
    except UserError as error:
        _tell(" ".join(str(error).split()))
        return 2
    except FloatingPointError as error:
        _tell(f"{error}: the training diverged. Lower the learning rate, in a new --out.")
        return 2
    except KeyboardInterrupt:
        _tell(f"{stopped}.")
        return 128 + stop.signal
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        _tell(f"nobody reads what it prints: {stopped}.")
        return 128 + signal.SIGPIPE
    except ImportError as error:
        if (error.name or "").split(".")[0] == "tfface":  # an error of ours
            raise
        _tell(f"What {options.verb} needs cannot be imported: {error}. `tfface doctor` says how to mend it.")
        return 2
    except Exception as error:
        import errno

        if "No usable temporary directory" in str(error):  # Python's; TensorFlow wants one as it loads
            _tell("no folder for temporary files can be written to; free some room, or name one in TMPDIR.")
            return 2
        if "Unable to import backend" in str(error):  # Keras'
            _tell(f"KERAS_BACKEND is {os.environ.get('KERAS_BACKEND')}. Expected tensorflow or jax: unset it.")
            return 2
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not full and os.strerror(errno.ENOSPC) not in str(error):  # TensorFlow has an error of its own for it
            raise
        _tell("the disk is full; free some room and run the same command again.")
        return 2


def _tell(text: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads that either
        print(f"tfface: {text}", file=sys.stderr)


def _check_keras_settings() -> None:
    """Refuse what keras.json may change of every network; read here, as Keras takes seconds to import."""
    file = Path(os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))) / "keras.json"
    try:
        settings = json.loads(file.read_text())
    except (OSError, ValueError):  # Keras goes without it, too
        return
    if not isinstance(settings, dict):
        raise UserError(
            f"{file} holds no settings of Keras. Expected names and values within {{ }}: mend or remove it."
        )
    for name, needed in (("floatx", "float32"), ("image_data_format", "channels_last")):
        if settings.get(name, needed) != needed:
            raise UserError(f"{file} sets {name} to {settings[name]}. Expected {needed}: change it there.")


class _Stop:
    """Within it Ctrl-C, SIGTERM and the terminal's end raise KeyboardInterrupt, so that nothing is left half-written.

    Python alone loses some: raised in what the collector of garbage calls, an exception is ignored, and out of
    TensorFlow's C++ it may come as an error of another kind.
    """

    def __init__(self):
        self.signal = signal.SIGINT

    def __enter__(self):
        self._before, self._asked, self._unraisable = {}, False, sys.unraisablehook
        if threading.current_thread() is threading.main_thread():  # no other may set them
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # nohup's, or a shell's of its background
                    self._before[number] = signal.signal(number, self._raise)
        sys.unraisablehook = self._raise_again
        return self

    def __exit__(self, kind, error, traceback):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        sys.unraisablehook = self._unraisable
        if self._asked and isinstance(error, Exception):
            raise KeyboardInterrupt from error

    def _raise(self, number, frame):
        self.signal, self._asked = number, True
        raise KeyboardInterrupt

    def _raise_again(self, unraisable):
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            return self._unraisable(unraisable)
        # Once more, as a signal: it also ends a wait in the system.
        threading.Timer(0.1, signal.pthread_kill, [threading.main_thread().ident, self.signal]).start()


class _QuietTensorFlow:
    """Keeps back what TensorFlow's libraries write to standard error while they load: no log level counts so early."""

    def find_spec(self, name, path=None, target=None):
        """Found on `sys.meta_path`: the module as Python finds it, with a loader that is quiet unless it fails."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec:
            spec.loader.exec_module = self._quiet(spec.loader.exec_module)
        return spec

    def _quiet(self, load):
        import tempfile

        def quietly(module):
            try:
                stderr = os.dup(2)
            except OSError:  # there is none
                return load(module)
            with tempfile.TemporaryFile() as said:
                os.dup2(said.fileno(), 2)
                try:
                    load(module)
                except Exception:
                    said.seek(0)
                    os.write(stderr, said.read())
                    raise
                finally:
                    os.dup2(stderr, 2)
                    os.close(stderr)

        return quietly


def _build(options):
    import absl.logging

    from tfface import commands, files

    # What TFDS and Beam warn of and nobody need mend: a config made as it was asked for, an absent client of a cloud;
    # and Beam's traceback of a full disk, which is said in a line at the end.
    for logger, words in (
        (absl.logging.get_absl_logger(), "Using custom data configuration"),
        (logging.getLogger(), "apitools not found"),
        (logging.getLogger("apache_beam.runners.common"), "No space left on device"),
    ):
        logger.addFilter(lambda record, words=words: words not in record.getMessage())
    chosen = {"size": options.size, "no_face": options.no_face, "detector": options.detector}
    chosen = {name: value for name, value in chosen.items() if value}
    if chosen and not options.align:
        raise UserError(f"{', '.join(chosen)} given without --align; name the alignment: {', '.join(ALIGNMENTS)}")
    commands.build(
        options.data,
        options.manual_dir,
        options.data_dir,
        options.builders or files.BUILDERS,
        options.beam,
        {"align": options.align, **chosen} if options.align else None,
        options.workers,
    )


def _recipe(options):
    from tfface import recipes

    recipe = recipes.load(options.recipe, options.variant, options.set, options.tiny)
    return recipe.changed(data=options.data) if options.data else recipe


def _folder(options, recipe):
    from tfface.commands import run_folder

    return (
        Path(options.out)
        if options.out
        else run_folder(recipe, options.variant, options.data or (recipe.data if options.tiny else ""))
    )


def _typed() -> str:
    """The command as it was typed, for the foot of a report."""
    return shlex.join(["tfface", *sys.argv[1:]])


def _train(options):
    from tfface.training.fit import fit

    if (options.jobs is None) != (options.job_index is None):
        raise UserError("--jobs and --job-index belong together: name all processes, and which of them this one is")
    if options.jobs:
        from tfface.training.distribute import join

        if options.devices != 1:
            raise UserError("--devices is for one machine: with --jobs every machine trains on all that it has")
        join(options.jobs, options.job_index)
    recipe = _recipe(options)
    run = fit(
        recipe,
        options.out or _folder(options, recipe) / f"seed-{recipe.seed}",
        options.data_dir,
        options.device,
        options.bfloat16,
        devices=options.devices,
    )
    if not options.job_index:
        print(f"trained: {run.folder}")


def _evaluate(options):
    from tfface import commands

    commands.evaluate(
        options.run_folder,
        options.split,
        options.data,
        options.data_dir,
        options.bfloat16,
        not options.without_near_copies,
    )


def _calibrate(options):
    from tfface.evaluation.calibrate import calibrate

    for head, temperature in calibrate(options.run_folder, options.data_dir, options.bfloat16).items():
        print(f"{head}: temperature {temperature:.3f}")
    print(f"measure it again: tfface evaluate {options.run_folder}")


def _soup(options):
    from tfface.commands import say
    from tfface.training.soup import soup

    run = soup(options.runs, options.out, options.data_dir, options.bfloat16, progress=say)
    print(f"{run.folder}: measure it by `tfface evaluate {run.folder}`")


def _report(options):
    from tfface import commands

    for kind, path in commands.report(options.run_folder, options.data_dir).items():
        print(f"{kind}: {path}")


def _compare(options):
    from tfface import commands

    for kind, path in commands.compare(options.runs, options.split, options.common, options.out, _typed()).items():
        print(f"{kind}: {path}")


def _robustness(options):
    from tfface import commands

    made = commands.robustness(
        options.model, options.split, options.data, options.data_dir, options.bfloat16, options.out, _typed()
    )
    for kind, path in made.items():
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
        options.devices,
        _typed(),
    )
    for kind, path in made.items():
        print(f"{kind}: {path}")
    if "saved_model" not in made:
        print("saved_model: written by TensorFlow alone; run `tfface export RUN` without KERAS_BACKEND")


def _predict(options):
    from tfface.serving.predict import predict_photos

    return predict_photos(options.photos, options.model, options.detector, options.out, options.to, options.embeddings)


def _stream(options):
    require_tensorflow("stream")  # whatever the detector: landmarks of the live view are MTCNN's
    from tfface.online.stream import stream

    return stream(
        options.source,
        model=options.model,
        detector=options.detector,
        show=options.show,
        save=options.save,
        jsonl=options.jsonl,
        every_frame=options.every_frame,
        loop=options.loop,
        seconds=options.seconds,
        workers=options.workers,
        bfloat16=options.bfloat16,
    )


def _app(options):
    require_tensorflow("app")
    from tfface.online.app import serve

    return serve(options.host, options.port, options.model, options.detector, options.bfloat16)


def _detect(options):
    from tfface.faces.prepare import detect_photos

    return detect_photos(options.photos, options.detector, options.min_face_size, options.out, options.to)


def _align(options):
    from tfface.faces.prepare import align_photos

    return align_photos(
        options.photos,
        options.align,
        size=options.size,
        faces=options.faces,
        no_face=options.no_face,
        detector=options.detector,
        min_face_size=options.min_face_size,
        suffix=f".{options.format}",
        to=options.to,
    )


def _prune(options):
    from tfface.pruning.checkpoint import prune_checkpoint, table

    result = prune_checkpoint(
        options.checkpoint,
        options.ratio,
        method=options.importance,
        scope=options.scope,
        multiple_of=options.multiple_of,
        exclude=options.exclude,
        untouched=options.untouched,
        schedule=options.schedule,
        finetune=options.finetune,
        data=options.data,
        data_dir=options.data_dir,
        input_shape=options.input_shape,
        out=options.out,
        reconstruct=options.reconstruct,
        faces=options.faces,
    )
    print(table(result))
    print(f"\npruned: {result['file']}")
    if result["run"]:
        print(f"its run (the best epoch, not the last), for evaluate, predict and export: {result['run']}")


def _export(options):
    if options.bundle is None:
        if not options.run_folder or options.name or options.rollback:
            raise UserError("expected `tfface export RUN`; --name and --rollback belong to --bundle DIR")
        from tfface import commands

        written = commands.export(
            options.run_folder,
            options.out,
            options.format,
            options.bfloat16,
            options.int8,
            options.data,
            options.data_dir,
        )
        print(f"exported: {written}")
        return
    from tfface.serving import bundle

    if options.format != "saved_model" or options.bfloat16 or options.int8 or options.data:
        raise UserError(
            "a bundle holds a plain SavedModel: --format, --bfloat16, --int8 and --data do not belong to --bundle"
        )
    if options.out or bool(options.run_folder) == options.rollback:
        raise UserError("expected `tfface export RUN --bundle DIR`, or `tfface export --bundle DIR --rollback`")
    if options.rollback:
        print(f"serving again: {bundle.roll_back(options.bundle, options.name)}")
    else:
        from tfface.serving.predictor import find_model

        print(f"published: {bundle.publish(find_model(options.run_folder), options.bundle, options.name)}")
        print(f"serve it: {bundle.docker_command(options.bundle)}")


def _client(options):
    from tfface.serving import client

    server = client.connect(options.url, options.name, options.version, options.label, options.timeout)
    return client.predict_photos(server, options.photos, options.detector, options.crops, options.embeddings)


def _weights(options):
    from tfface import commands, weights

    if options.action == "fetch":
        for name in options.names or weights.PRETRAINED:
            print(f"{name}: {weights.fetch(name)}")
    else:
        commands.list_weights(options.names)


def _verify(options):
    from tfface import commands

    commands.verify(
        options.model,
        options.data,
        options.data_dir,
        options.crop,
        options.mirror,
        options.bfloat16,
        options.threshold,
        subtract_mean=options.subtract_mean,
        split=options.split,
    )


def _lr_find(options):
    from tfface.training.lr_find import find_for_recipe

    recipe = _recipe(options)
    find_for_recipe(
        recipe,
        options.out or _folder(options, recipe) / "lr-find",
        options.data_dir,
        options.device,
        options.bfloat16,
        options.steps,
    )


def _sweep(options):
    from tfface.training.sweep import sweep

    recipe = _recipe(options)
    folder = options.out or _folder(options, recipe) / "sweep"
    sweep(recipe, folder, options.trials, options.data_dir, options.device, options.bfloat16)


def _doctor(options):
    from tfface import commands

    return commands.doctor(options.data_dir)


def _demo(options):
    require_tensorflow("demo")  # not after minutes, where it exports
    from tfface.demo import demo

    return demo(options.out)


def _seeds(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.isdecimal() for word in words):
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas, such as 0,1,2, received {text}")
    return [int(word) for word in words]


def _size(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected HEIGHTxWIDTH or one side, pixels, received {text}")
    return int(sides[0]), int(sides[-1])


def _shape(text: str) -> tuple[int, ...]:
    sides = text.split("x")
    if not all(side.isdecimal() for side in sides):
        raise argparse.ArgumentTypeError(f"expected sides and channels, such as 224x224x3, received {text}")
    return tuple(map(int, sides))


def _outputs(text: str) -> tuple[str, ...]:
    words = tuple(text.split(","))
    unknown = set(words) - {"picture", "json", "csv"}
    if unknown:
        raise argparse.ArgumentTypeError(f"expected picture, json or csv, received {', '.join(sorted(unknown))}")
    return words


def _detector_option(parser, default: str | None = None):
    parser.add_argument(
        "--detector",
        default=default,
        metavar="NAME",
        help="mtcnn, yolo, dlib, yolo:FILE.onnx or dlib:FILE.dat, or dlib:68-point for dlib's own, which excludes "
        f"commercial use (default: {default or 'that of the paper'})",
    )


def _data_options(parser):
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="where data sets are prepared (default: $TFDS_DATA_DIR, or ~/tensorflow_datasets)",
    )


def _compute_options(parser):
    parser.add_argument(
        "--bfloat16",
        action="store_true",
        help="compute the frozen layers in bfloat16: up to 2.5 times as fast on CPUs with AMX",
    )


def _recipe_options(parser, out: str):
    parser.add_argument(
        "recipe", help="name of a recipe: race, multitask, gender, arg, occluded (papers 1 to 5), compact"
    )
    parser.add_argument("--variant", default="", help="one of the recipe's variants; a wrong name lists them")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="change a field of the recipe; a wrong name lists them",
    )
    parser.add_argument("--data", default="", help="train on another prepared data set")
    parser.add_argument("--tiny", action="store_true", help="shrink the recipe to seconds, on synthetic faces")
    parser.add_argument("--out", metavar="DIR", help=out)
    parser.add_argument(
        "--device", choices=("auto", "cpu", "gpu"), default="auto", help="gpu is an error where there is none"
    )
    _data_options(parser)
    _compute_options(parser)


def _run_option(parser):
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, such as runs/arg/seed-0")


def _build_options(parser):
    parser.add_argument(
        "data", metavar="NAME", help="data set, NAME or NAME/CONFIG: those of datasets/, such as utkface"
    )
    parser.add_argument("--manual-dir", metavar="DIR", help="folder of the original files, for sets under licence")
    parser.add_argument("--builders", metavar="DIR", help="folder of TFDS builders (default: those of tfface)")
    parser.add_argument("--align", choices=ALIGNMENTS, help="cut the faces out anew, aligned")
    parser.add_argument(
        "--size", type=_size, metavar="112x96", help="height x width of the crops (default: the paper's)"
    )
    parser.add_argument(
        "--no-face", choices=("skip", "centre", "error"), help="what to do with a photo without a face (default: skip)"
    )
    _detector_option(parser)
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="how many align at once, 0 for one a core (default: 1)"
    )
    parser.add_argument(
        "--beam",
        "--beam_pipeline_options",
        metavar="KEY=VALUE,...",
        help="options of Apache Beam, such as those of a cluster's runner",
    )
    _data_options(parser)


def _devices_option(parser):
    parser.add_argument(
        "--devices", type=int, default=1, metavar="N", help="devices of this machine that share each batch (default: 1)"
    )


def _train_options(parser):
    _recipe_options(parser, "folder of the run (default: runs/RECIPE[-VARIANT]/seed-N)")
    _devices_option(parser)
    parser.add_argument(
        "--jobs",
        type=lambda text: text.split(","),
        metavar="HOST:PORT,...",
        help="all processes that train together, the first coordinates (docs/scaling.md; KERAS_BACKEND=jax)",
    )
    parser.add_argument("--job-index", type=int, metavar="K", help="which of --jobs this one is, from 0")


def _reproduce_options(parser):
    _recipe_options(parser, "folder in which seed-0, seed-1, ... are made (default: runs/RECIPE[-VARIANT])")
    _devices_option(parser)
    parser.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="seeds to train (default: 0)")


def _evaluate_options(parser):
    _run_option(parser)
    parser.add_argument("--split", default="test", help="split of the data set, or several: train+test (default: test)")
    parser.add_argument("--data", default="", help="another prepared data set with the same labels")
    parser.add_argument(
        "--without-near-copies",
        action="store_true",
        help="leave out images that are near copies (scaled, encoded anew, mirrored) of one in another split",
    )
    _data_options(parser)
    _compute_options(parser)


def _calibrate_options(parser):
    _run_option(parser)
    _data_options(parser)
    _compute_options(parser)


def _report_options(parser):
    parser.add_argument("run_folder", metavar="RUN", help="folder of a run, or of runs of several seeds: runs/arg")
    _data_options(parser)


def _predict_options(parser):
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, folders or globs")
    parser.add_argument(
        "--model", default="compact", help="folder of a run, or a model of the package: compact, arg, fairface"
    )
    _detector_option(parser, "mtcnn")
    parser.add_argument(
        "--out",
        type=_outputs,
        default=("picture",),
        metavar="picture,json,csv",
        help="what to write (default: picture)",
    )
    parser.add_argument("--embeddings", action="store_true", help="of --out json: also write embeddings")
    parser.add_argument(
        "--to", default="predictions", metavar="DIR", help="folder of the results (default: predictions)"
    )


def _live_options(parser):
    parser.add_argument(
        "--model", default="compact", help="folder of a run, or a model of the package: compact, arg, fairface"
    )
    _detector_option(parser, "yolo")
    parser.add_argument("--bfloat16", action="store_true", help="compute the model in bfloat16 where the CPU can")


def _stream_options(parser):
    parser.add_argument(
        "--source", required=True, help="a camera's number or device, a video file, or a URL (rtsp://...)"
    )
    parser.add_argument("--show", action="store_true", help="show the picture in a window (default without an output)")
    parser.add_argument("--save", metavar="FILE", help="video with the faces drawn in (.mp4, .mkv)")
    parser.add_argument("--jsonl", metavar="FILE", help="a line of JSON a frame; - for standard output")
    parser.add_argument(
        "--every-frame", action="store_true", help="of a file, drop no frame, however long it takes (default: be live)"
    )
    parser.add_argument("--loop", action="store_true", help="begin a file again at its end")
    parser.add_argument("--seconds", type=float, metavar="N", help="end after so long (default: Ctrl-C)")
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="threads that predict (default: 1)")
    _live_options(parser)


def _app_options(parser):
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="its port (default: 8000)")
    _live_options(parser)


def _detect_options(parser):
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, folders or globs")
    _detector_option(parser, "mtcnn")
    parser.add_argument(
        "--min-face-size",
        type=int,
        metavar="N",
        help="the smallest face, pixels; dlib finds none below 80 (default: the detector's)",
    )
    parser.add_argument(
        "--out",
        type=_outputs,
        default=("json",),
        metavar="json,picture",
        help="what to write; the JSON lines are always written, a stopped run goes on by them (default: json)",
    )
    parser.add_argument("--to", default="faces", metavar="DIR", help="folder of the results (default: faces)")


def _align_options(parser):
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, folders or globs")
    parser.add_argument("--align", choices=ALIGNMENTS, required=True, help="how to cut")
    parser.add_argument(
        "--size", type=_size, metavar="112x96", help="height x width of the crops (default: the paper's)"
    )
    parser.add_argument(
        "--faces", choices=("all", "largest"), default="all", help="every face, or one a photo (default: all)"
    )
    parser.add_argument(
        "--no-face",
        choices=("skip", "centre", "error"),
        default="skip",
        help="what to do with a photo without a face (default: skip)",
    )
    _detector_option(parser)
    parser.add_argument(
        "--min-face-size",
        type=int,
        default=40,
        metavar="N",
        help="the smallest face, pixels; dlib finds none below 80 (default: 40)",
    )
    parser.add_argument(
        "--format", choices=("jpg", "png"), default="jpg", help="of the crops (default: jpg, quality 95)"
    )
    parser.add_argument("--to", default="aligned", metavar="DIR", help="folder of the results (default: aligned)")


def _prune_options(parser):
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .keras file, the folder of a run, or facenet")
    parser.add_argument("--ratio", type=float, required=True, help="share of the channels that goes, in (0, 1)")
    parser.add_argument(
        "--importance",
        choices=("l1", "l2", "group", "batchnorm", "taylor", "random"),
        default="l1",
        help="what says which channels matter least; taylor: runs only (default: l1)",
    )
    parser.add_argument(
        "--scope",
        choices=("layer", "block", "global", "sensitivity"),
        default="layer",
        help="where channels are ranked together; sensitivity: in blocks, most is cut where it costs least (paper 5; "
        "runs only) (default: layer)",
    )
    parser.add_argument(
        "--multiple-of", type=int, default=8, metavar="N", help="round kept channels to it (default: 8)"
    )
    parser.add_argument(
        "--exclude", nargs="+", default=(), metavar="NAME", help="layers, or patterns, whose channels all stay"
    )
    parser.add_argument(
        "--untouched", nargs="+", default=(), metavar="NAME", help="layers, or patterns, that stay exactly as they are"
    )
    parser.add_argument(
        "--reconstruct",
        default="",
        metavar="DATA",
        help="fit what is left to the outputs of the whole network, on unlabelled training images of this data set",
    )
    parser.add_argument(
        "--faces", type=int, default=1024, metavar="N", help="images that --reconstruct looks at (default: 1024)"
    )
    parser.add_argument(
        "--finetune",
        type=int,
        default=0,
        metavar="EPOCHS",
        help="train so long after the cut, by the run's recipe (runs only; default: 0)",
    )
    parser.add_argument(
        "--schedule",
        choices=("constant", "polynomial"),
        default="",
        help="mask little by little over the first half of --finetune (default: cut first, then train)",
    )
    parser.add_argument("--data", default="", help="prepared data set for accuracy and training (runs only)")
    parser.add_argument("--input-shape", type=_shape, metavar="224x224x3", help="where the model leaves it open")
    parser.add_argument("--out", metavar="DIR", help="folder of the results (default: beside the checkpoint)")
    _data_options(parser)


def _export_options(parser):
    parser.add_argument(
        "run_folder",
        nargs="?",
        metavar="RUN",
        help="folder of a run, such as runs/arg/seed-0, or a model of the package: compact, arg, fairface",
    )
    parser.add_argument(
        "--out", metavar="PATH", help="where to (default: RUN/saved_model, RUN/model.onnx or RUN/model.tflite)"
    )
    parser.add_argument(
        "--format",
        choices=("saved_model", "onnx", "litert"),
        default="saved_model",
        help="what to write (default: saved_model)",
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="of a SavedModel: compute in bfloat16, probabilities within about 0.03"
    )
    parser.add_argument(
        "--int8", action="store_true", help="of LiteRT: int8, calibrated and measured on faces of the data set"
    )
    parser.add_argument("--data", default="", help="prepared data set for --int8 (default: the run's own)")
    _data_options(parser)
    parser.add_argument("--bundle", metavar="DIR", help="publish it as the next version in TensorFlow Serving's folder")
    parser.add_argument("--name", default="", help="what clients call the model (default: the recipe's name)")
    parser.add_argument("--rollback", action="store_true", help="take the newest version out of --bundle again")


def _compare_options(parser):
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="folders of runs, or of several seeds each, compared with the first; RUN:SPLIT names another split",
    )
    parser.add_argument("--split", default="test", help="what they were evaluated on (default: test)")
    parser.add_argument(
        "--common", action="store_true", help="on the images that all have, where alignments found different faces"
    )
    parser.add_argument(
        "--out", default="runs/compare", metavar="DIR", help="folder of the page (default: runs/compare)"
    )


def _soup_options(parser):
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of two or more finished runs of one network")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the run that is written")
    _data_options(parser)
    _compute_options(parser)


def _robustness_options(parser):
    parser.add_argument(
        "model", metavar="MODEL", help="folder of a run, or a model of the package: compact, arg, fairface"
    )
    parser.add_argument("--split", default="test", help="split, or a part of it: test[:1000] (default: test)")
    parser.add_argument("--data", default="", help="another prepared data set with the same labels")
    parser.add_argument("--out", metavar="DIR", help="folder of the page (default: runs/robustness-MODEL)")
    _data_options(parser)
    _compute_options(parser)


def _client_options(parser):
    parser.add_argument(
        "url", metavar="URL", help="http://HOST:8501 for REST, HOST:8500 for gRPC; over TLS https://, grpcs://"
    )
    parser.add_argument("photos", nargs="+", metavar="PHOTO", help="photos, folders or globs")
    parser.add_argument("--name", default="compact", help="the model (default: compact)")
    parser.add_argument("--version", type=int, metavar="N", help="its version (default: the newest)")
    parser.add_argument("--label", default="", help="its version by label: stable or previous")
    parser.add_argument("--crops", action="store_true", help="the photos are aligned crops: send them as they are")
    parser.add_argument("--embeddings", action="store_true", help="ask for embeddings too")
    _detector_option(parser, "mtcnn")
    parser.add_argument("--timeout", type=float, default=30.0, metavar="S", help="seconds for an answer (default: 30)")


def _weights_options(parser):
    parser.add_argument("action", nargs="?", choices=("list", "fetch"), default="list")
    parser.add_argument("names", nargs="*", help="which (default: all)")


def _verify_options(parser):
    parser.add_argument("model", metavar="MODEL", help="facenet, compact, the folder of a run, or a .keras file")
    parser.add_argument(
        "--data",
        default="lfw",
        help="lfw, occ_lfw, mask_lfw, lower_half (second image covered), a set with the configs pairs and images, or "
        "NAME/CONFIG with identities, of which pairs are drawn (default: lfw)",
    )
    parser.add_argument(
        "--split",
        default="",
        help="of NAME/CONFIG: whose images are paired, or several: train+validation (default: test, or validation)",
    )
    parser.add_argument(
        "--crop",
        choices=("detect", "centre", "margin", "five-point", "whole"),
        default="",
        help="detect: found by MTCNN, with a margin; centre: the middle 60 %%; margin, five-point: prepared so by "
        "tfface build --align; whole: images as they are (default: what the network was made for)",
    )
    parser.add_argument("--threshold", type=float, metavar="COSINE", help="give the accuracy at this threshold too")
    parser.add_argument("--mirror", action="store_true", help="add the embedding of the mirror image")
    parser.add_argument(
        "--subtract-mean",
        action="store_true",
        help="take the mean embedding of the nine other folds from all, as FaceNet's authors do",
    )
    _data_options(parser)
    _compute_options(parser)


def _lr_find_options(parser):
    _recipe_options(parser, "folder of the results (default: runs/RECIPE[-VARIANT]/lr-find)")
    parser.add_argument("--steps", type=int, default=100, help="steps of the range test (default: 100)")


def _sweep_options(parser):
    _recipe_options(parser, "folder of the sweep (default: runs/RECIPE[-VARIANT]/sweep)")
    parser.add_argument(
        "--trials", type=int, default=20, help="trials in all, those of earlier runs included (default: 20)"
    )


def _demo_options(parser):
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help="folder of everything the demo makes")


VERBS = {
    "build": ("prepare a data set", _build, _build_options, "tfface build utkface --manual-dir ~/Downloads"),
    "train": (
        "train a recipe, or go on with it",
        _train,
        _train_options,
        "tfface train arg --set schedule_scale=0.02",
    ),
    "evaluate": ("measure a trained run on a split", _evaluate, _evaluate_options, "tfface evaluate runs/arg/seed-0"),
    "calibrate": (
        "make the probabilities of a run say how often they are right",
        _calibrate,
        _calibrate_options,
        "tfface calibrate runs/arg/seed-0",
    ),
    "soup": (
        "average the weights of runs that began at the same ones",
        _soup,
        _soup_options,
        "tfface soup runs/arg-finetune/seed-0 runs/arg-distilled/seed-0 --out runs/arg-soup/seed-0",
    ),
    "report": ("write the report of a run", _report, _report_options, "tfface report runs/arg"),
    "compare": (
        "set runs on the same images beside each other, with intervals",
        _compare,
        _compare_options,
        "tfface compare runs/race-scratch runs/race-relu runs/race-no-cbam",
    ),
    "robustness": (
        "how a model's accuracy falls with blur, JPEG, darkness and covers",
        _robustness,
        _robustness_options,
        "tfface robustness compact --data utkface/margin --split test[:1000]",
    ),
    "reproduce": (
        "train, evaluate, report and export a recipe",
        _reproduce,
        _reproduce_options,
        "tfface reproduce arg --variant years --seeds 0,1,2",
    ),
    "lr-find": (
        "find the learning rate of a recipe by a range test",
        _lr_find,
        _lr_find_options,
        "tfface lr-find gender --steps 100",
    ),
    "sweep": (
        "search learning rates, loss weights and age encodings",
        _sweep,
        _sweep_options,
        "tfface sweep arg --trials 20",
    ),
    "detect": ("find the faces in photos", _detect, _detect_options, "tfface detect photos/ --out json,picture"),
    "align": (
        "cut the faces out of photos, aligned",
        _align,
        _align_options,
        "tfface align photos/ --align five-point --to aligned",
    ),
    "prune": (
        "take whole filters out of a network",
        _prune,
        _prune_options,
        "tfface prune runs/arg/seed-0 --ratio 0.3",
    ),
    "predict": (
        "age, gender and race of the faces in photos",
        _predict,
        _predict_options,
        "tfface predict holiday.jpg photos/ --out picture,json",
    ),
    "stream": (
        "faces in a video or from a camera, tracked, live",
        _stream,
        _stream_options,
        "tfface stream --source 0 --save faces.mp4 --jsonl faces.jsonl",
    ),
    "app": ("a web page for photos and the webcam, on this machine", _app, _app_options, "tfface app --port 8000"),
    "verify": ("accuracy on pairs of faces (LFW)", _verify, _verify_options, "tfface verify facenet --data lfw"),
    "export": (
        "write a run as a SavedModel, or publish it for TensorFlow Serving",
        _export,
        _export_options,
        "tfface export runs/arg/seed-0 --bundle serving",
    ),
    "client": (
        "ask TensorFlow Serving about the faces in photos",
        _client,
        _client_options,
        "tfface client http://localhost:8501 holiday.jpg",
    ),
    "weights": ("list or fetch pretrained files", _weights, _weights_options, "tfface weights fetch facenet"),
    "doctor": ("versions, devices, data sets, weights", _doctor, _data_options, "tfface doctor"),
    "demo": ("the main job on synthetic faces", _demo, _demo_options, "tfface demo"),
}
"""Verb -> (help, function, function that adds its options, an example that works)."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tfface",
        description="Train, verify, shrink and serve face-analysis models with Keras 3 and TensorFlow.",
        epilog="Weights and cached features are kept in $TFFACE_HOME (default: ~/.cache/tfface). Age, gender and race "
        "are perceived labels. Not for identification of people or decisions about them.",
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
        verb.set_defaults(run=run, verb=name)
    return parser


if __name__ == "__main__":
    sys.exit(main())
