"""Kill the commands at random moments, start them again, and compare what they leave with an undisturbed run.

    python scripts/fault_injection.py --rounds 50 --to /tmp/faults

In each round one command (build, train, prune, export, export --bundle in turn) is killed with SIGKILL once or twice,
each time after a random share of the CPU time that it takes undisturbed, then runs to its end. It must end well, and
what it leaves must equal the undisturbed result: examples and weights bit by bit, outputs of a SavedModel within 1e-5.
Files that a killed command left behind for good are counted. Linux only (/proc).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

LEFTOVERS = ("**/.*.part*", "**/.*.old", "**/.staging", "**/incomplete.*", "**/*.parts")
LONGEST = 3600  # seconds; a command that takes longer hangs


def commands(base: Path, out: Path) -> dict[str, list[str]]:
    """Stage -> words of its command, which reads what stands in `base` and writes to `out`."""
    data, run = str(base / "build"), str(base / "train")
    return {
        "build": ["build", "synthetic_faces/small", "--data-dir", str(out)],
        "train": ["train", "gender", "--tiny", "--data-dir", data, "--out", str(out)],
        "prune": ["prune", run, "--ratio", "0.5", "--finetune", "2", "--data-dir", data, "--out", str(out)],
        "export": ["export", run, "--out", str(out / "saved_model")],
        "bundle": ["export", run, "--bundle", str(out), "--name", "faces"],
    }


def main() -> int:
    """Run the rounds; the exit code is 1 if one of them ended otherwise than the undisturbed run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--stages", nargs="+", default=list(commands(Path(), Path())))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--to", type=Path, default=Path("faults"), help="folder of everything; kept between runs")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    base = options.to / "undisturbed"
    expected, costs = {}, {}
    for stage, words in commands(base, base).items():
        out = base / stage
        words = commands(base, out)[stage]
        cost = base / f"{stage}.seconds"
        if not cost.exists():
            shutil.rmtree(out, ignore_errors=True)
            code, seconds = run(words, base / f"{stage}.log")
            if code:
                sys.exit(f"undisturbed, tfface {' '.join(words)} ended with {code}: {base / stage}.log")
            cost.write_text(f"{seconds:.2f}")
        costs[stage] = float(cost.read_text())
        if stage in options.stages:
            expected[stage] = result(stage, out)
    print(f"undisturbed, CPU seconds: {costs}", flush=True)

    wrong = kills = 0
    for number in range(options.rounds):
        stage = options.stages[number % len(options.stages)]
        chance = random.Random(f"{options.seed} {number}")
        out = options.to / f"round-{number:03d}-{stage}"
        shutil.rmtree(out, ignore_errors=True)
        words, moments = commands(base, out)[stage], []
        log = out.with_suffix(".log")
        log.unlink(missing_ok=True)
        for _ in range(chance.choice((1, 1, 2))):
            moment = chance.uniform(0, costs[stage])
            code, seconds = run(words, log, moment)
            moments.append(f"{seconds:.1f}" if code == -signal.SIGKILL else f"not ({code})")
            kills += code == -signal.SIGKILL
        code, _ = run(words, log)
        differs = f"exit code {code}" if code else difference(expected[stage], result(stage, out))
        left = sorted({str(path.relative_to(out)) for pattern in LEFTOVERS for path in out.glob(pattern)})
        wrong += bool(differs)
        said = [f"round {number}", stage, f"killed at {', '.join(moments)} CPU s", differs or "same"]
        print(": ".join(said) + (f"; left behind: {', '.join(left)}" if left else ""), flush=True)
        if not differs:
            shutil.rmtree(out)
            log.unlink()
    print(f"{options.rounds} rounds, {kills} kills, {wrong} ended otherwise than undisturbed", flush=True)
    return 1 if wrong else 0


# --- commands


def _child(words: list[str], log: str) -> None:
    os.setsid()  # the kill takes its children with it
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    from tfface import cli

    sys.exit(cli.main(words))


def run(words: list[str], log: Path, moment: float | None = None) -> tuple[int, float]:
    """Run a command; kill it when it has used `moment` seconds of CPU time.

    Returns:
        Its exit code, -9 where it was killed, and the CPU seconds that it used.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    # Forked from a process that has imported everything: a round takes seconds, and few kills fall into imports.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["tfface.commands", "tfface.serving.bundle", "tfface.serving.export", "tfface.pruning.retrain"]
    )
    process = context.Process(target=_child, args=(words, str(log)))
    process.start()
    used, began = 0.0, time.monotonic()
    while process.is_alive():
        used = max(used, _cpu_seconds(process.pid))
        if (moment is not None and used >= moment) or time.monotonic() - began > LONGEST:
            with contextlib.suppress(ProcessLookupError):
                kill = os.killpg if os.getpgid(process.pid) == process.pid else os.kill
                kill(process.pid, signal.SIGKILL)
            break
        time.sleep(0.02)
    process.join()
    return process.exitcode, used


def _cpu_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- results


def result(stage: str, out: Path) -> dict:
    """What a command left, by name: digests, arrays and plain values that an undisturbed run leaves as well."""
    if stage == "build":
        return {str(path.relative_to(out)): records(path) for path in sorted(out.glob("**/*.tfrecord*"))}
    if stage == "train":
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        figures = [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
        best = json.loads((out / "done.json").read_text())["best_epoch"]
        return {"rows": figures, "best": best, **weights(out / "trained.keras")}
    if stage == "prune":
        said = json.loads((out / "pruned.json").read_text())
        rows = [row for row in said["rows"] if not row["name"].startswith(("batch of", "file"))]  # timed, and dated
        return {"groups": said["groups"], "rows": rows, **weights(out / "pruned.keras")}
    if stage == "export":
        return outputs(out / "saved_model")
    versions = sorted(path for path in (out / "faces").iterdir() if path.name.isdecimal())
    from tfface.serving import bundle

    for version in versions:  # one that is there is whole
        bundle.check_saved_model(version)
    configuration = (out / "models.config").read_text()
    labelled = f'key: "stable"\n      value: {versions[-1].name}\n' in configuration
    return {"the newest is stable": labelled, **outputs(versions[-1])}


def records(file: Path) -> str:
    """Digest of the examples of a file in their order. (Of an example's features protobuf promises no order.)"""
    import tensorflow as tf

    digest = hashlib.sha256()
    for record in tf.data.TFRecordDataset(str(file)).as_numpy_iterator():
        digest.update(tf.train.Example.FromString(record).SerializeToString(deterministic=True))
    return digest.hexdigest()


def weights(file: Path) -> dict:
    """Path -> digest of every array of weights in a .keras file, and of its configuration."""
    import h5py

    found = {}
    with zipfile.ZipFile(file) as archive:
        # Keras numbers what layers share by addresses in memory.
        config = re.sub(rb'"shared_object_id": \d+', b"", archive.read("config.json"))
        found["config"] = hashlib.sha256(config).hexdigest()
        with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as stored:
            stored.visititems(
                lambda name, item: (
                    found.update({name: hashlib.sha256(item[()].tobytes()).hexdigest()})
                    if isinstance(item, h5py.Dataset)
                    else None
                )
            )
    return found


def outputs(folder: Path) -> dict:
    """What a SavedModel answers for two faces, rounded to 1e-5."""
    import numpy as np
    import tensorflow as tf

    from tfface.faces.synthesize import face

    model = tf.saved_model.load(str(folder))
    crops = tf.constant(np.stack([face(seed).image for seed in (3_000_000, 3_000_001)]))
    answers = model.signatures["serving_default"](images=crops)
    return {k: v.numpy().round(5).tolist() for k, v in sorted(answers.items()) if v.dtype == tf.float32}


def difference(expected: dict, received: dict) -> str:
    """Names of what differs, empty if nothing does."""
    names = [name for name in {**expected, **received} if expected.get(name) != received.get(name)]
    return f"differs: {', '.join(names[:5])}{' ...' * (len(names) > 5)}" if names else ""


if __name__ == "__main__":
    sys.exit(main())
