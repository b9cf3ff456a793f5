import importlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time

import pytest

from tfface import cli, commands


@pytest.mark.parametrize("words", [["demo"], ["app", "--detector", "dlib"], ["stream", "--source", "0"]])
def test_what_needs_tensorflow_says_so_at_once(words, monkeypatch, capsys):
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    assert cli.main(words) == 2
    assert capsys.readouterr().err == (
        f"tfface: {words[0]} needs Keras' TensorFlow backend, and KERAS_BACKEND is jax: unset it.\n"
    )


def test_a_training_that_diverges_is_said_in_one_line(monkeypatch, capsys):
    def reproduce(*_, **__):
        raise FloatingPointError("Epoch 0 ended with NaN")

    monkeypatch.setattr(commands, "reproduce", reproduce)
    assert cli.main(["reproduce", "race", "--tiny"]) == 2
    assert capsys.readouterr().err.startswith("tfface: Epoch 0 ended with NaN: the training diverged.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('{"floatx": "float16"}', "floatx to float16. Expected float32"),
        ('{"image_data_format": "channels_first"}', "image_data_format to channels_first. Expected channels_last"),
        ('{"floatx": "float32", "backend": "jax"}', ""),
        ("no json", ""),
        ("[]", "keras.json holds no settings of Keras"),
    ],
)
def test_settings_of_keras_that_change_every_network_are_said(settings, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(commands, "list_weights", lambda names: None)
    (tmp_path / "keras.json").write_text(settings)
    assert cli.main(["weights"]) == (2 if said else 0)
    (*_, line) = ["", *capsys.readouterr().err.splitlines()]
    assert said in line
    assert bool(said) == bool(line)


def test_help_imports_nothing_heavy():
    script = (
        "import sys\nfrom tfface import cli\n"
        "try: cli.main(['--help'])\nexcept SystemExit: pass\n"
        "heavy = {'tensorflow', 'keras', 'numpy', 'cv2', 'jax'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "VERB" in result.stdout


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help_with_an_example(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "--help"])
    assert stop.value.code == 0
    assert f"example: tfface {verb}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_example_parses(verb):
    example = cli.VERBS[verb][3].split()[1:]
    options = cli._parser().parse_args(example)
    assert options.run is cli.VERBS[verb][1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["build", "nothing"],
            "Unknown data set. Expected one of: bupt_balancedface, casia_webface, celeba_identities, fairface, ",
        ),
        (["build", "utkface", "--manual-dir", "/no/such/folder"], "--manual-dir must be a folder"),
        (["train", "nothing"], "Unknown recipe. Expected one of: arg, race, multitask, gender, occluded, compact."),
        (["train", "arg", "--set", "epoch=3"], "Did you mean epochs? Valid fields: age, "),
        (["train", "arg", "--variant", "nothing"], "Valid variants: bins"),
        (["train", "arg", "--data", "no_such_set"], "Build it first"),
        (["evaluate", "/no/such/run"], "No run is in /no/such/run"),
        (["weights", "fetch", "nothing"], "Unknown pretrained file"),
        (["predict", "/no/such/photo.jpg", "--model", "/no/such/run"], "No model /no/such/run"),
        (["weights", "list", "nothing"], "Unknown pretrained file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.startswith("tfface: ")
    assert "\n" not in error
    assert not list(tmp_path.iterdir())


def test_wrong_files_leave_no_data_set(tmp_path, capsys):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "holiday.jpg").write_bytes(b"x")
    words = ["build", "utkface", "--manual-dir", str(tmp_path / "files"), "--data-dir", str(tmp_path / "data")]
    assert cli.main(words) == 2
    assert "no photo of UTKFace" in capsys.readouterr().err
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))
    assert not list((tmp_path / "data").rglob("incomplete*"))


BUILDER = """
import tensorflow_datasets as tfds

class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "key": tfds.features.Text()}
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples({})}

    def _generate_examples(self, people):
        yield "a", {"image": people["nobody"], "key": "a"}
"""


@pytest.mark.parametrize(
    ("name", "before", "after", "said"),
    [
        ("generates", "", "", "line 15, in _generate_examples: KeyError: 'nobody'. The line: yield "),
        ("divides", '"train"', "train", "line 12, in _split_generators: NameError: name 'train' is not"),
        (
            "unread",
            '["nobody"]',
            "[)",
            "line 15: SyntaxError: closing parenthesis ')' does not match opening parenthesis '['. ",
        ),
    ],
)
def test_an_error_in_a_builder_of_one_s_own_is_said_by_its_place(
    name, before, after, said, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(sys, "path", list(sys.path))
    file = tmp_path / "sets" / name / f"{name}_dataset_builder.py"
    file.parent.mkdir(parents=True)
    file.write_text(BUILDER.replace(before, after) if before else BUILDER)
    words = ["build", name, "--builders", str(tmp_path / "sets"), "--data-dir", str(tmp_path / "data")]
    assert cli.main(words) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tfface:")]
    assert line.startswith(f"tfface: {file}, {said}")
    assert not list((tmp_path / "data").rglob("*.tfrecord*"))


def test_ctrl_c_is_said(monkeypatch, capsys):
    def stop(_):
        raise KeyboardInterrupt

    for verb, said in (("sweep", "stopped; run the same command again to go on."), ("doctor", "stopped.")):
        monkeypatch.setitem(cli.VERBS, verb, ("help", stop, lambda _: None, f"tfface {verb}"))
        assert cli.main([verb]) == 130
        assert capsys.readouterr().err == f"tfface: {said}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_verb_as_ctrl_c_does(number, code, monkeypatch, capsys):
    class Lost:
        def __del__(self):
            os.kill(os.getpid(), number)  # raised here it is ignored

    def lost(_):
        Lost()
        time.sleep(10)

    def turned(_):
        try:
            os.kill(os.getpid(), number)
        except KeyboardInterrupt as error:
            raise SystemError("as TensorFlow's C++ does") from error

    before = signal.signal(number, signal.default_int_handler), sys.unraisablehook  # whoever runs this may ignore it
    try:
        for verb in (lost, turned):
            monkeypatch.setitem(cli.VERBS, "doctor", ("help", verb, lambda _: None, "tfface doctor"))
            assert cli.main(["doctor"]) == code
            assert capsys.readouterr().err == "tfface: stopped.\n"
        assert signal.getsignal(number) is signal.default_int_handler
        assert sys.unraisablehook is before[1]
    finally:
        signal.signal(number, before[0])


@pytest.mark.parametrize("both", ["", "2>&1"])
def test_a_command_whose_output_nobody_reads_any_more_is_not_called_well_done(both):
    talk = """
import sys
from tfface import cli
cli.VERBS["train"] = "help", lambda _: [print("x" * 9999, flush=True) for _ in range(99)], lambda _: None, "train"
sys.exit(cli.main(["train"]))
"""
    script = f"'{sys.executable}' -c '{talk}' {both} | head -c 1; echo ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stdout == "x141\n"
    said = "tfface: nobody reads what it prints: stopped; run the same command again to go on.\n"
    assert result.stderr == ("" if both else said)


def test_the_doctor_names_what_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    assert cli.main(["doctor"]) == 2
    assert "tensorflow_datasets cannot be imported" in capsys.readouterr().out


@pytest.mark.parametrize("backend", ["torch", "abacus"])
def test_the_doctor_names_a_backend_that_cannot_be(backend):
    environment = {**os.environ, "KERAS_BACKEND": backend}
    words = [sys.executable, "-m", "tfface.cli", "doctor"]
    result = subprocess.run(words, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert result.stdout.splitlines()[-1].endswith(f"Mend: unset KERAS_BACKEND, which is {backend}")
    result = subprocess.run([*words[:-1], "evaluate", "runs/x"], capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith("tfface: ")


def test_a_package_that_cannot_be_imported_is_one_line(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tfface.serving.predict", None)
    with pytest.raises(ImportError):  # an error of ours
        cli.main(["predict", "photo.jpg"])
    words, _, *rest = cli.VERBS["predict"]
    monkeypatch.setitem(cli.VERBS, "predict", (words, lambda _: importlib.import_module("no_such_package"), *rest))
    assert cli.main(["predict", "photo.jpg"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("tfface: What predict needs cannot be imported: No module named 'no_such_package'.")
    assert said.count("\n") == 1


def test_no_folder_for_temporary_files_is_one_line(monkeypatch, capsys):
    words, _, *rest = cli.VERBS["doctor"]
    monkeypatch.setitem(cli.VERBS, "doctor", (words, lambda _: tempfile.gettempdir(), *rest))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    assert cli.main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith("tfface: no folder for temporary files can be written to")


def test_the_demo_takes_any_folder(monkeypatch, tmp_path, capsys):
    from tfface import demo

    given = []
    monkeypatch.setattr(demo.cli, "main", lambda words: given.append(words) or 0)
    monkeypatch.setattr(demo, "draw_photo", lambda path: None)
    assert demo.demo(tmp_path / "my demo") == 0
    assert str(tmp_path / "my demo" / "data") in given[1]
    assert f"--out '{tmp_path / 'my demo'}'" in capsys.readouterr().out
    monkeypatch.setattr(demo.cli, "main", lambda words: 130)  # stopped by Ctrl-C
    assert demo.demo(tmp_path / "my demo") == 130
    assert "the demo stopped at `tfface weights fetch facenet`" in capsys.readouterr().err


def test_prune_names_the_run_of_the_smaller_network(monkeypatch, capsys):
    monkeypatch.setattr("tfface.pruning.checkpoint.table", lambda _: "")
    told = []
    for run in ("runs/a/pruned/training", ""):
        result = {"file": "runs/a/pruned/pruned.keras", "run": run}
        monkeypatch.setattr("tfface.pruning.checkpoint.prune_checkpoint", lambda *_, result=result, **__: result)
        assert cli.main(["prune", "runs/a", "--ratio", "0.5"]) == 0
        told.append(capsys.readouterr().out.count("its run"))
    assert told == [1, 0]


BAR = """
import sys, time
from tfface import cli
def work(_):
    from tqdm import tqdm
    for _ in tqdm(range(20)): time.sleep(0.05)
    print("done", file=sys.stdout)
cli.VERBS["doctor"] = ("work", work, cli._data_options, "")
sys.exit(cli.main(["doctor"]))
"""


def test_progress_bars_leave_few_lines_in_a_file():
    result = subprocess.run([sys.executable, "-c", BAR], capture_output=True, check=True)
    assert b"20/20" in result.stderr
    assert result.stderr.count(b"\r") <= 3


@pytest.mark.parametrize("closed", ["2>&-", "<&- >&- 2>&-"])
def test_a_command_that_can_say_nothing_does_its_work(closed):
    script = f"{shlex.quote(sys.executable)} -c {shlex.quote(BAR)} {closed}"
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.returncode == 0
    assert result.stdout == ("" if ">&- 2" in closed else "done\n")


@pytest.mark.parametrize("fails", [False, True])
def test_tensorflow_loads_in_silence_unless_it_fails(fails, tmp_path):
    failure = "raise ImportError('no')" if fails else ""
    (tmp_path / "tensorflow.py").write_text(f"import os\nos.write(2, b'chatter')\n{failure}\n")
    load = f"""
import sys
from tfface import cli, commands
sys.path.insert(0, {str(tmp_path)!r})
sys.meta_path.insert(0, cli._QuietTensorFlow())
import tensorflow
sys.stderr.write("after")
"""
    result = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert result.returncode == fails
    assert ("chatter" in result.stderr, "ImportError: no" in result.stderr) == (fails, fails)
    assert result.stderr.endswith("after") != fails
