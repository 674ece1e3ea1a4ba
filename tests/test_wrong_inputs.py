"""A user's mistakes: each has its exit code and says what, where and what next; nothing is left behind."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from building import spec_folder
from safetensors.numpy import load_file, save_file

from retouch.runtime.cli import main
from retouch.specs.fields import DEMO

ADAPTER = DEMO / "adapters" / "twemoji_style_kohya.safetensors"
XL_KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
HEAD = "schema: 1\nname: x\nversion: 1.0.0\n"
DEMO_MODEL, ONNX = "source: {model: demo}\n", "emit:\n  - onnx: {parity: false}\n"
GOOD = HEAD + DEMO_MODEL + ONNX


def spec(edit: str = "", model: str = "demo", emit: str = ONNX, rest: str = "") -> str:
    edits = f"edits:\n  - {edit}\n" if edit else ""
    return f"{HEAD}source: {{model: {model}}}\n{edits}{rest}{emit}"


def merging(file: str, more: str = "") -> str:
    return spec(f"merge_adapters: {{adapters: [{{path: {file}{more}}}]}}")


def erasing(name: str, more: str = "") -> str:
    return spec(f"erase_concepts: {{concepts: [{{name: {name}}}]{more}}}")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files and folders that are not what they should be."""
    folder = tmp_path_factory.mktemp("inputs")
    content = ADAPTER.read_bytes()
    (folder / "cut.safetensors").write_bytes(content[: len(content) // 2])
    (folder / "text.safetensors").write_text("this is no tensor, nor are there any\n")
    shutil.copy(ADAPTER, folder / "good.safetensors")
    save_file({**load_file(ADAPTER), "extra.thing": np.zeros(3)}, folder / "unused.safetensors")
    halves = {"lora_down": np.zeros((4, 640)), "lora_up": np.zeros((640, 4))}
    save_file({f"{XL_KEY}.{half}.weight": part for half, part in halves.items()}, folder / "xl.safetensors")
    (folder / "model.ckpt").write_bytes(pickle.dumps({"a": 1}))
    (folder / "empty").mkdir()
    (folder / "taken").mkdir()
    (folder / "taken" / "mine.txt").write_text("mine")
    return folder


@pytest.mark.parametrize(
    ("text", "code", "told"),
    [
        ("schema: 1\n  name: [x\n", "E_YAML_SYNTAX", "edit.yaml:2"),
        (spec(rest="edit: []\n"), "E_UNKNOWN_KEY", "did you mean `edits`?"),
        (spec("erase_concept: {}"), "E_UNKNOWN_NAME", "did you mean `erase_concepts`?"),
        (erasing("a cat", ", solvr: linear"), "E_UNKNOWN_KEY", "did you mean `solver`?"),
        (spec("bake_guidance: {scale: big}"), "E_TYPE", 'found `"big"`, expected a number'),
        (spec(rest="sampling: {steps: -3}\n"), "E_VALUE", "greater than or equal to 1"),
        (spec(rest="sampling: {sampler: ddmi}\n"), "E_VALUE", "did you mean `ddim`?"),
        (spec(emit="emit:\n  - onx: {}\n"), "E_UNKNOWN_NAME", "did you mean `onnx`?"),
        (spec(emit="emit:\n  - onnx: {size: 99999x64}\n"), "E_SIZE", "expected multiples of 16"),
        (spec(model="models/none"), "E_SOURCE", "no file or folder"),
        (spec(model="model.ckpt"), "E_PICKLE", "convert it to safetensors"),
        (spec(model="empty"), "E_FILE", "the folder of a model in diffusers' layout holds one"),
        (spec(model="text.safetensors"), "E_SAFETENSORS", "not safetensors"),
        (merging("no.safetensors"), "E_FILE", "paths are relative to the spec's folder"),
        (merging("cut.safetensors"), "E_SAFETENSORS", "is the file complete?"),
        (merging("xl.safetensors"), "E_ADAPTER_UNMATCHED", "was it trained for another one?"),
        (merging("unused.safetensors"), "E_ADAPTER_UNMATCHED", "extra.thing"),
        (merging("good.safetensors", ", blocks: {'nothing.*': 1}"), "E_ADAPTER_BLOCKS", "such as `unet."),
        (erasing("very " * 90 + "cat"), "E_ERASE_TOKENS", "shorten the concept"),
        (erasing("a cat", ", captions: prompts.txt"), "E_FILE", "prompts.txt"),
    ],
)
@pytest.mark.parametrize("verb", ["plan", "build"])
def test_a_wrong_spec_is_refused_by_plan_and_build_alike(
    inputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    text: str,
    code: str,
    told: str,
    verb: str,
) -> None:
    file, out = inputs / "edit.yaml", tmp_path / "out"
    file.write_text(text)
    there = sorted(inputs.rglob("*"))
    assert main([verb, str(file), *(["-o", str(out)] if verb == "build" else []), "--json"]) == 2
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert code in {fault["code"] for fault in faults}
    assert told in " ".join(f"{fault['where']}: {fault['message']} {fault['hint']}" for fault in faults)
    assert all(fault["where"] for fault in faults)
    assert (sorted(inputs.rglob("*")), [*tmp_path.iterdir()]) == (there, [])


LONG = "very " * 90 + "cat"  # of the 500 characters that a concept may have


@pytest.mark.parametrize(
    "text",
    [
        erasing(LONG),
        erasing(LONG, f", preserve: [{LONG}]"),
        erasing("a cat", f", templates: [{LONG}]"),
        spec(f"erase_by_training: {{concepts: [{{name: {LONG}}}, {{name: {LONG}}}]}}"),
        spec(f"debias_concepts: {{concepts: [{LONG}, {LONG}], attributes: {{a: {{b: {LONG}, c: d}}}}}}"),
        spec(f"bake_guidance: {{{LONG.replace(' ', '_')}: 1}}"),
        spec(f"bake_guidance: {{scale: {LONG}}}"),
        spec(f"{LONG.replace(' ', '_')}: {{}}"),
        spec(rest=f"sampling: {{sampler: {LONG}}}\n"),
        merging("good.safetensors", f", blocks: {{'{LONG}': 1}}"),
    ],
)
def test_long_texts_are_not_quoted_whole(inputs: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    (inputs / "edit.yaml").write_text(text)
    assert main(["plan", str(inputs / "edit.yaml"), "--json"]) == 2
    faults = json.loads(capsys.readouterr().out)["faults"]
    assert faults
    assert max(len(fault["message"]) for fault in faults) < 250
    assert any("..." in fault["message"] for fault in faults)


@pytest.mark.parametrize(
    ("output", "options", "told"),
    [
        ("taken", [], "choose another output, or give --force"),
        ("taken", ["--force"], "not replaced, not even with --force"),
        ("good.safetensors", ["--force"], "is not a folder"),
        ("new", ["--locked"], "`retouch build` without `--locked` writes one"),
    ],
)
def test_what_stands_at_the_output_stays(
    inputs: Path, capsys: pytest.CaptureFixture[str], output: str, options: list[str], told: str
) -> None:
    (inputs / "edit.yaml").write_text(GOOD)
    there = sorted(inputs.rglob("*"))
    assert main(["build", str(inputs / "edit.yaml"), "-o", str(inputs / output), *options]) == 2
    assert told in capsys.readouterr().err
    assert sorted(inputs.rglob("*")) == there


LOCK = "schema: 1\nretouch: 0.1.0\nspec: {digest}\ninputs: []\n"


@pytest.mark.parametrize(
    ("lock", "told"),
    [
        ("schema: 99\n", "is no lock of this version"),
        ("garbage: [", "is no YAML"),
        (LOCK.format(digest="0" * 64), "the spec has changed"),
        (LOCK.format(digest="0" * 64).replace("0.1.0", "0.0.1"), "locked with retouch 0.0.1"),
    ],
)
def test_an_old_lock_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], lock: str, told: str
) -> None:
    folder = spec_folder(tmp_path, tiny, spec(model="model"))
    (folder / "edit.lock").write_text(lock)
    assert main(["build", str(folder / "edit.yaml"), "-o", str(folder / "out"), "--locked"]) == 2
    assert told in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["edit.lock", "edit.yaml", "model"]


def test_a_full_disk_ends_a_build_with_4_and_leaves_nothing(
    tiny: Path,
    skeletons: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = spec_folder(tmp_path, tiny, spec(model="model", emit="emit:\n  - diffusers: {}\n"))
    monkeypatch.setattr("retouch.compiler.write._Output.put", fail)
    monkeypatch.setenv("RETOUCH_CACHE", str(skeletons))
    assert main(["build", str(folder / "edit.yaml"), "-o", str(folder / "deep/out")]) == 4
    assert capsys.readouterr().err == f"error: {folder / 'deep/out'}: No space left on device\n"
    assert sorted(path.name for path in folder.iterdir()) == ["edit.yaml", "model"]


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_build_that_is_canceled_leaves_nothing(
    tiny: Path, tmp_path: Path, how: signal.Signals, code: int
) -> None:
    folder = spec_folder(tmp_path, tiny, spec(model="model", emit="emit:\n  - diffusers: {}\n"))
    stop = "import retouch.compiler.write as w, time; w._Output.put = lambda *_: time.sleep(60)"
    program = f"{stop}; from retouch.runtime.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", program, "build", "edit.yaml", "-o", "out"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        wait(lambda: any(path.name.startswith(".out.") and any(path.rglob("*")) for path in folder.iterdir()))
        process.send_signal(how)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said.strip()) == (code, "")
    assert sorted(path.name for path in folder.iterdir()) == ["edit.yaml", "model"]


def wait(ready: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.05)
