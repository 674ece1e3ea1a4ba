"""The whole way on the tiny pipeline: build, verify, draw, refuse, repeat."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from building import spec_folder
from safetensors.numpy import load_file, save_file

from retouch.compiler.build import Options, build
from retouch.compiler.gates import erased, kept
from retouch.compiler.plan import REGISTRIES, files_named, make_plan
from retouch.runtime.artefact import verify
from retouch.specs.errors import GateError, InputError, IntegrityError, SpecError
from retouch.specs.lock import make_lock
from retouch.specs.read import read_spec

RETOUCH = (sys.executable, "-c", "from retouch.runtime.cli import main; raise SystemExit(main())")
SPEC = """
schema: 1
name: tiny
version: 1.0.0
source: {model: model}
edits:
  - erase_concepts:
      solver: linear
      concepts: [{name: a cat, towards: a cloud}]
      preserve: [a dog, an apple]
      templates: ["{}", "the {}"]
      held_out: ["a {}"]
  - bake_guidance: {scale: 4.0, interval: [0.3, 5.0]}
sampling: {sampler: dpmpp_2m, steps: 4}
emit:
  - onnx: {}
  - diffusers: {}
"""


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec beside the model that it edits."""
    return spec_folder(tmp_path_factory.mktemp("spec"), tiny, SPEC)


@pytest.fixture(scope="module")
def artefact(folder: Path, skeletons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("built") / "artefact"
    build(make_plan(folder / "edit.yaml"), target, Options(cache=skeletons))
    return target


def test_manifest_describes_the_build(artefact: Path) -> None:
    manifest = verify(artefact).manifest
    assert [record.name for record in manifest.passes] == ["erase_concepts", "bake_guidance"]
    assert [target.emitter for target in manifest.targets] == ["onnx", "diffusers"]
    assert manifest.passed
    claims = {evidence.claim for target in manifest.targets for evidence in target.evidence}
    assert {"erase.residual", "keep.drift", "parity"} <= claims
    assert {record.role for record in manifest.inputs} == {"source"}
    for target in manifest.targets:
        (unet,) = [component for component in target.components if component.name == "unet"]
        assert unet.changed == manifest.passes[0].changed
        assert all(not c.changed for c in target.components if c.name != "unet")
    assert any("no gates" in line for line in manifest.not_claimed)


class CloudJudge:
    """Sees a cloud in everything."""

    name, sha256, error, labels = "clouds", "0" * 64, 0.25, ("cloud", "cat", "dog", "apple")

    sizes: ClassVar[set[tuple[int, ...]]] = set()

    def top1(self, images: np.ndarray) -> list[str]:
        self.sizes.add(images.shape[1:3])
        return ["cloud"] * len(images)

    def prompt_of(self, label: str) -> str:
        return f"a {label}"


def test_gates_draw_from_the_sealed_bytes(
    folder: Path, skeletons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (erased, kept):
        monkeypatch.setattr(module, "open_judge", lambda _: CloudJudge())
    gates = 'gates: [erased: {at_most: "0.5", images: 8}, kept: {within: "1", concepts: 3, images: 2}]'
    (folder / "gated.yaml").write_text(f"{SPEC.replace('onnx: {}', 'onnx: {size: 16x32}')}{gates}\n")
    build(make_plan(folder / "gated.yaml"), tmp_path / "out", Options(cache=skeletons))
    manifest = verify(tmp_path / "out").manifest
    assert [(evidence.claim, evidence.value, evidence.passed) for evidence in manifest.gates] == [
        ("erased", "0", True),
        ("kept", "0", True),
    ]
    assert CloudJudge.sizes == {(16, 32)}  # the base too, which by itself draws 16x16
    listed = {record.path for record in manifest.files}
    assert {"evidence/erased-cat.jsonl", "evidence/kept.jsonl"} <= listed
    assert {record.role for record in manifest.inputs} == {"judge", "source"}
    assert not any("no gates" in line for line in manifest.not_claimed)


def test_every_file_that_a_spec_names_has_a_role_in_the_lock(folder: Path) -> None:
    named = SPEC.replace("solver: linear", "captions: captions.txt").replace(
        "edits:\n", "edits:\n  - merge_adapters: {adapters: [{path: style.safetensors}]}\n"
    )
    spec = folder / "named.yaml"
    spec.write_text(f"{named}gates: [kept: {{within: '0.1', concepts: 3}}]\n")
    asked = files_named(read_spec(spec, REGISTRIES))
    assert [(role, name) for role, name, _ in asked] == [
        ("adapter", "style.safetensors"),
        ("captions", "captions.txt"),
        ("judge", "demo"),
        ("judge", "demo (labels)"),
    ]
    spec.write_text(SPEC.replace("solver: linear", "captions: captions.txt"))
    (folder / "captions.txt").write_text("a cat on a shoe\n")
    lock = make_lock(spec, files_named(make_plan(spec).spec))
    assert [(record.role, record.path) for record in lock.inputs] == [("captions", "captions.txt")]


def test_lock_lies_beside_the_spec_and_in_the_artefact(artefact: Path, folder: Path) -> None:
    assert (folder / "edit.lock").read_bytes() == (artefact / "spec" / "edit.lock").read_bytes()


def test_locked_refuses_drift(folder: Path, artefact: Path, skeletons: Path, tmp_path: Path) -> None:
    changed = tmp_path / "spec"
    shutil.copytree(folder, changed)
    build(make_plan(changed / "edit.yaml"), tmp_path / "same", Options(cache=skeletons, locked=True))
    config = changed / "model" / "unet" / "config.json"
    config.write_text(config.read_text() + "\n")
    with pytest.raises(SpecError, match=r"unet/config\.json"):
        build(make_plan(changed / "edit.yaml"), tmp_path / "drifted", Options(cache=skeletons, locked=True))
    assert not (tmp_path / "drifted").exists()


def test_failing_evidence_leaves_no_artefact(folder: Path, skeletons: Path, tmp_path: Path) -> None:
    (folder / "strict.yaml").write_text(SPEC.replace("preserve:", 'drift_at_most: "0"\n      preserve:'))
    with pytest.raises(GateError, match=r"drift .* the spec wants at most 0"):
        build(make_plan(folder / "strict.yaml"), tmp_path / "out", Options(cache=skeletons))
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(GateError):
        build(make_plan(folder / "strict.yaml"), tmp_path / "out", Options(cache=skeletons, keep_failed=True))
    assert [path.name for path in tmp_path.iterdir()] == ["out.failed"]


def retouch(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [*RETOUCH, *map(str, arguments)]
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)


@pytest.mark.parametrize("target", ["onnx", "diffusers", "single_file", "comfy", "adapter"])
def test_shapes_that_configs_do_not_describe_stop_every_target_alike(
    target: str, folder: Path, skeletons: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder, tmp_path / "spec")
    weights = tmp_path / "spec" / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors |= {name: np.ones((3, 5), np.float32) for name in ("conv_out.bias", "conv_in.weight")}
    save_file(tensors, weights)
    spec = tmp_path / "spec" / "edit.yaml"
    spec.write_text(SPEC[: SPEC.index("emit:")] + f"emit:\n  - {target}: {{}}\n")
    with pytest.raises(InputError) as caught:
        build(make_plan(spec), tmp_path / "out", Options(cache=skeletons))
    assert [(fault.code, fault.where) for fault in caught.value.faults] == [
        ("E_TENSOR_SHAPE", "unet.conv_in.weight"),
        ("E_TENSOR_SHAPE", "unet.conv_out.bias"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["spec"]


def test_a_build_killed_at_any_moment_leaves_nothing_under_the_name(
    folder: Path, skeletons: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable,
        "-m",
        "retouch.runtime.cli",
        "build",
        str(folder / "edit.yaml"),
        "-o",
        str(tmp_path / "out"),
    ]
    for seconds in (1.0, 3.0, 5.0):
        with subprocess.Popen(
            command, env={**os.environ, "RETOUCH_CACHE": str(skeletons)}, stderr=subprocess.DEVNULL
        ) as process:
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        if (tmp_path / "out").exists():
            verify(tmp_path / "out")
            shutil.rmtree(tmp_path / "out")


def test_one_flipped_bit_exits_with_3_and_names_the_file(artefact: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(artefact, copy)
    for file in sorted(file for file in copy.rglob("*") if file.is_file()):
        content = file.read_bytes()
        flipped = bytearray(content)
        flipped[len(content) // 2] ^= 1
        file.write_bytes(bytes(flipped))
        with pytest.raises(IntegrityError) as caught:
            verify(copy)
        assert str(file.relative_to(copy)) in str(caught.value), file
        file.write_bytes(content)
    assert verify(copy)


def test_commands_speak_json(folder: Path, artefact: Path, tmp_path: Path) -> None:
    planned = retouch("plan", folder / "edit.yaml", "--json")
    assert json.loads(planned.stdout)["plan"]["sampling"]["guided_steps"] < 4
    image = tmp_path / "image.png"
    drawn = retouch("run", artefact, "-p", "a dog", "--seed", "3", "-o", image, "--json")
    assert drawn.returncode == 0, drawn.stderr
    assert image.read_bytes().startswith(b"\x89PNG")
    missing = retouch("build", folder / "missing.yaml", "-o", tmp_path / "out", "--json")
    assert missing.returncode == 2
    assert json.loads(missing.stdout)["ok"] is False
    assert not (tmp_path / "out").exists()


def test_existing_output_is_refused_before_any_work(folder: Path, artefact: Path) -> None:
    refused = retouch("build", folder / "edit.yaml", "-o", artefact)
    assert refused.returncode == 2
    assert "--force" in refused.stderr
