"""The console script: verbs load alone, faults have exit codes, and --json is one object."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from PIL import Image
from runtime_artefact import Recipe, make_artefact, seal, some_steps

from retouch.runtime import cli, devices, sampler
from retouch.runtime.cli import main
from retouch.runtime.commands import run
from retouch.runtime.console import print_faults, printable, reporter
from retouch.specs.errors import Fault, IntegrityError
from retouch.specs.manifest import Evidence

HEAVY = ("torch", "diffusers", "transformers", "onnx", "retouch.compiler", "retouch.passes")


def claim(passed: bool | None) -> Evidence:
    return Evidence(
        kind="static",
        claim="erased",
        subject="the \x1b[31mlogo\u202e",
        value="0.12",
        comparator=None if passed is None else "at_most",
        limit=None if passed is None else "0.05",
        interval=("0.1", "0.14"),
        passed=passed,
        produced_by="a test",
    )


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("made") / "artefact")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "artefact"))


def add_verb(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder of verbs with one, `try-it`, whose body is given."""
    package = folder / "verbs_of_a_test"
    package.mkdir()
    head = "import click\n@click.command()\n@click.option('--json', is_flag=True)\n"
    text = f"{head}def command(json):\n    {body}\n"
    (package / "try_it.py").write_text(f'"""retouch try-it: fail in a way."""\n{text}')
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "verbs_of_a_test", raising=False)
    monkeypatch.delitem(sys.modules, "verbs_of_a_test.try_it", raising=False)
    monkeypatch.setattr(cli, "HOMES", ((package, "verbs_of_a_test"),))


def test_run_and_verify_load_nothing_of_the_build(original: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from retouch.runtime.cli import main
assert main(["run", {str(original)!r}, "-p", "a cat", "-n", "2", "-o", {str(tmp_path / "x.png")!r}]) == 0
assert main(["verify", {str(original)!r}, "--json"]) == 0
assert main(["--help"]) == 0
loaded = [name for name in sys.modules if name in {HEAVY!r} or name.startswith("retouch.compiler")]
assert not loaded, loaded
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["x-000.png", "x-001.png"]


def test_verify_says_what_it_found(original: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(original)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{original}: intact, not signed\n")
    assert "    - That the images show anything.\n" in text
    assert main(["verify", str(original), "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert (value["ok"], value["statement"], value["name"]) == (True, "intact, not signed", "fake")
    assert value["files"] == len([f for f in original.rglob("*") if f.is_file()]) - 1


def test_a_changed_artefact_exits_with_3_and_names_the_files(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "unet/model.onnx_data").write_bytes(b"other")
    (folder / "new").write_bytes(b"")
    assert main(["verify", str(folder)]) == 3
    output = capsys.readouterr()
    assert output.out == ""
    assert [line.split(":")[1].strip() for line in output.err.splitlines()] == ["new", "unet/model.onnx_data"]
    assert main(["run", str(folder), "-p", "x", "-o", str(folder / "x.png"), "--json"]) == 3
    value = json.loads(capsys.readouterr().out)
    assert value["ok"] is False
    assert [fault["where"] for fault in value["faults"]] == ["new", "unet/model.onnx_data"]
    assert set(value["faults"][0]) == {"code", "message", "where", "hint"}


def test_failed_evidence_exits_with_1_unless_integrity_is_all_that_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    statements = (claim(True), claim(False), claim(None))
    folder = make_artefact(tmp_path / "artefact", Recipe(steps=some_steps(), statements=statements))
    assert main(["verify", str(folder)]) == 1
    output = capsys.readouterr()
    assert "3 claims: 1 meet their limit, 1 fail, 1 have no limit" in output.out
    assert "0.12 [0.1, 0.14], expected at most 0.05: failed" in output.err
    assert "\x1b" not in output.out + output.err
    assert "\u202e" not in output.out + output.err
    assert main(["verify", str(folder), "--integrity-only"]) == 0
    capsys.readouterr()
    assert main(["verify", str(folder), "--json"]) == 1
    value = json.loads(capsys.readouterr().out)
    assert (value["ok"], value["evidence"]["failed"]) == (False, 1)
    assert [fault["code"] for fault in value["faults"]] == ["E_EVIDENCE"]
    assert main(["run", str(folder), "-p", "a cat", "-o", str(tmp_path / "x.png")]) == 0
    assert "its evidence failed" in capsys.readouterr().err


def test_run_writes_one_image_to_the_file_itself(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "one.png"
    assert main(["run", str(original), "-p", "a cat", "--seed", "41", "-o", str(file), "--threads", "1"]) == 0
    capsys.readouterr()
    record = json.loads(Image.open(file).info["retouch"])
    assert (record["prompt"], record["seed"], record["artefact"]) == ("a cat", 41, "fake")
    several = ["run", str(original), "-p", "a dog", "-p", "a cat", "--seed", "40", "-n", "2", "--json"]
    assert main([*several, "-o", str(tmp_path / "s.png"), "--threads", "1"]) == 0
    listed = json.loads(capsys.readouterr().out)["images"]
    assert [(image["prompt"], image["seed"]) for image in listed] == [
        ("a dog", 40),
        ("a dog", 41),
        ("a cat", 40),
        ("a cat", 41),
    ]
    assert Image.open(tmp_path / "s-003.png").tobytes() == Image.open(file).tobytes()


def test_run_draws_at_a_size(original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = ["run", str(original), "-p", "a cat", "-o", str(tmp_path / "x.png"), "--threads", "1"]
    assert main([*drawing, "--size", "12x16"]) == 0
    assert Image.open(tmp_path / "x.png").size == (16, 12)
    assert main([*drawing, "--size", "13x16"]) == 2
    assert "13 x 16 pixels, expected multiples of 2" in capsys.readouterr().err


def test_a_target_that_is_not_there_is_told(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawing = ["run", str(original), "-p", "a cat", "-o", str(tmp_path / "x.png")]
    assert main([*drawing, "--target", "half"]) == 2
    assert "no target `half`; there is: none in folders of their own" in capsys.readouterr().err
    monkeypatch.setattr("retouch.runtime.commands.run.check_device", lambda name: None)
    assert main([*drawing, "--device", "rtx"]) == 2
    assert "add `- tensorrt_rtx: {}` under `emit`" in capsys.readouterr().err


def test_a_target_is_drawn_from_its_own_table(folder: Path, tmp_path: Path) -> None:
    (folder / "half").mkdir()
    for entry in [entry for entry in folder.iterdir() if entry.name not in ("half", "manifest.json")]:
        entry.rename(folder / "half" / entry.name)
    seal(folder)
    file = tmp_path / "x.png"
    options = ["--target", "half", "--threads", "1"]
    assert main(["run", str(folder), "-p", "a cat", "-o", str(file), *options]) == 0
    assert json.loads(Image.open(file).info["retouch"])["sampler"] == "ddim, 3 steps"


def test_a_device_that_is_not_here_exits_with_4_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "has_driver", lambda: False)
    assert main(["run", "nowhere", "-p", "x", "-o", str(tmp_path / "x.png"), "--device", "rtx"]) == 4
    assert "there is no NVIDIA driver here" in capsys.readouterr().err


def test_run_warns_about_words_that_do_not_fit(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompt = " ".join(["a"] * 14)
    assert main(["run", str(original), "-p", prompt, "-o", str(tmp_path / "x.png")]) == 0
    assert "the last 4 tokens do not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["vrify"], 2, "no verb `vrify`, did you mean `verify`?"),
        (["verify"], 2, "Missing argument 'FOLDER'"),
        (["verify", "nowhere"], 2, "nowhere: not a folder"),
        (["run", "x", "-p", "x", "-o", "x.jpg"], 2, "x.jpg: does not end in .png"),
        (["run", "x", "-p", "x", "-o", "nowhere/x.png"], 2, "its folder does not exist"),
        (["run", "x", "-p", "x", "-o", "x.png", "--seed", "-1"], 2, "Invalid value for '--seed'"),
        (["run", "x", "-p", "x", "-o", "x.png", "--size", "8"], 2, "`8`, expected HEIGHTxWIDTH in pixels"),
        (
            ["run", "x", "-p", "x", "-o", "x.png", "--precision", "bfloat16"],
            2,
            "the device `cpu` computes in",
        ),
    ],
)
def test_wrong_usage_exits_with_2(
    arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    output = capsys.readouterr()
    assert output.err.startswith("error: ")
    assert message in output.err
    assert main([*arguments, "--json"]) == code
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert message.endswith(fault["message"]) or message in fault["message"]


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 70, "a bug in retouch"),
        ("import torch_is_not_here", 70, "a bug in retouch"),
        ("raise ModuleNotFoundError('no', name='torch.nn')", 4, "needs `torch.nn`, which is not installed"),
        ("open('/nowhere/at/all')", 4, "/nowhere/at/all: No such file or directory"),
        ("raise click.FileError('x')", 2, "Could not open file"),
        ("return None", 0, ""),
        ("click.get_current_context().exit(1)", 1, ""),
    ],
)
def test_every_way_to_fail_has_its_exit_code(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    code: int,
    message: str,
) -> None:
    add_verb(tmp_path, body, monkeypatch)
    assert main(["try-it"]) == code
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_the_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # as if it were not installed
    add_verb(tmp_path, "import onnxscript", monkeypatch)
    assert main(["try-it", "--json"]) == 4
    (fault,) = json.loads(capsys.readouterr().out)["faults"]
    assert fault["hint"] == "pip install 'retouch[build]'"


def test_a_traceback_is_shown_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_verb(tmp_path, "1 / 0", monkeypatch)
    monkeypatch.setenv("RETOUCH_TRACEBACK", "1")
    assert main(["try-it"]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_verbs_are_listed_by_what_their_files_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_verb(tmp_path, "raise SystemError('loaded')", monkeypatch)
    assert main(["--help"]) == 0
    assert "try-it  fail in a way." in capsys.readouterr().out
    assert "verbs_of_a_test.try_it" not in sys.modules


def test_every_verb_has_a_summary_and_takes_json() -> None:
    for verb, (file, package) in cli._files().items():
        assert cli._summary(file), verb
        assert package
        command = cli.retouch.get_command(click.Context(cli.retouch), verb)
        assert command is not None
        assert "as_json" in [parameter.name for parameter in command.params], verb
        options = [each for each in command.params if isinstance(each, click.Option)]
        assert all(option.help for option in options), verb


@pytest.mark.parametrize("shell", ["bash", "fish", "zsh"])
def test_completion_prints_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_RETOUCH_COMPLETE" in capsys.readouterr().out


def test_a_shell_is_told_verbs_and_options() -> None:
    code = "from retouch.runtime.cli import main; raise SystemExit(main())"
    asked = {"retouch ver": "verify", "retouch run --dev": "--device", "retouch run --device op": "openvino"}
    for words, wanted in asked.items():
        place = {"COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        environment = {**os.environ, **place, "_RETOUCH_COMPLETE": "bash_complete"}
        told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert told.stdout == f"plain,{wanted}\n"


def test_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert cli.version("retouch") in capsys.readouterr().out


@pytest.mark.parametrize("text", ["\x1b]0;title\x07", "\u202eevil", "\u200b", "\x9b31m", "\ud800", "\r"])
def test_what_steers_a_terminal_is_replaced(text: str) -> None:
    assert not set(printable(text)) & set("\x1b\x07\u202e\u200b\x9b\ud800\r")


def test_faults_of_an_attackers_names_print_plainly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a\x1b[2Jb").write_bytes(b"")
    assert main(["verify", str(folder)]) == 3
    assert capsys.readouterr().err == "error: a\ufffd[2Jb: not listed in the manifest\n"


def test_progress_is_silent_where_nobody_watches(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for forced in ("0", "1"):
        monkeypatch.setenv("CI", "true")
        monkeypatch.setenv("FORCE_COLOR", forced)
        with reporter() as report:
            report.task("draw", 3)(3)
    with reporter(quiet=True) as report:
        report.task("draw", 3)(3)
    output = capsys.readouterr()
    assert output.out + output.err == ""


def test_what_helps_against_several_faults_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_faults(
        [Fault("E_A", "a", hint="x"), Fault("E_B", "b", hint="x"), Fault("E_C", "c", hint="y")], False
    )
    assert capsys.readouterr().err == "error: a\nerror: b\nhint: x\nerror: c\nhint: y\n"


def test_without_a_verb_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("Usage: retouch ")


def test_a_closed_stdout_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--version"]) == 0


def test_an_image_that_cannot_be_written_is_told_before_it_is_drawn(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "open_artefact", lambda folder: pytest.fail("the artefact was read"))
    (tmp_path / "x.png").mkdir()
    assert main(["run", str(original), "-p", "x", "-o", str(tmp_path / "x.png")]) == 2
    assert "x.png: is a folder" in capsys.readouterr().err
    monkeypatch.setattr(run.os, "access", lambda folder, mode: mode != os.W_OK)
    assert main(["run", str(original), "-p", "x", "-o", str(tmp_path / "y.png")]) == 2
    assert "y.png: its folder cannot be written" in capsys.readouterr().err


def test_a_full_disk_leaves_no_half_image(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Path, content: bytes) -> None:
        file.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    assert main(["run", str(original), "-p", "x", "-o", str(tmp_path / "x.png")]) == 4
    assert capsys.readouterr().err == f"error: {tmp_path / 'x.png'}: No space left on device\n"
    assert not [*tmp_path.iterdir()]


def test_a_size_beyond_all_memory_is_refused_before_a_graph_is_loaded(
    original: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "open_session", lambda *_, **__: pytest.fail("a graph was loaded"))
    drawing = ["run", str(original), "-p", "x", "-o", str(tmp_path / "x.png")]
    assert main([*drawing, "--size", "99998x99998"]) == 4
    assert "of memory are needed" in capsys.readouterr().err


def test_several_faults_are_several_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faults = (Fault("E_A", "first", "a"), Fault("E_B", "second", "b", "mend it"))

    def fail(*_: object, **__: object) -> None:
        raise IntegrityError(*faults)

    add_verb(tmp_path, "pass", monkeypatch)
    monkeypatch.setattr(cli.retouch, "get_command", fail)
    assert main(["try-it"]) == 3
    assert capsys.readouterr().err == "error: a: first\nerror: b: second\nhint: mend it\n"
