"""The same bytes from any process: all targets of one spec, built under two unlike environments."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from building import spec_folder
from safetensors.numpy import save_file

from retouch.runtime.artefact import verify

SPEC = """
schema: 1
name: all-targets
version: 1.0.0
source: {model: model}
edits:
  - merge_adapters: {adapters: [{path: adapter.safetensors, weight: 0.7}]}
  - erase_concepts:
      solver: linear
      concepts: [{name: a cat, towards: a cloud}]
      preserve: [a dog, an apple]
      templates: ["{}", "the {}"]
      held_out: ["a {}"]
  - bake_guidance: {scale: 4.0, interval: [0.3, 5.0]}
sampling: {sampler: dpmpp_2m, steps: 4}
emit:
  - onnx: {profile: cpu}
  - onnx: {profile: cuda, precision: float16}
  - onnx: {profile: cpu, weights: int8}
  - diffusers: {}
  - single_file: {}
  - adapter: {}
  - comfy: {}
"""
# Engines are built where the package is; what CI runs it with is its own job.
ENGINE = "  - tensorrt_rtx: {compute_capabilities: ['8.6'], parity: false}\n"
COMMAND = (sys.executable, "-c", "from retouch.runtime.cli import main; raise SystemExit(main())")
RANK = 2


@pytest.fixture(scope="module")
def folder(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spec beside a model and an adapter for it."""
    engine = ENGINE if find_spec("tensorrt_rtx_bindings") else ""
    folder = spec_folder(tmp_path_factory.mktemp("spec"), tiny, SPEC + engine)
    write_adapter(
        folder / "adapter.safetensors", "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    )
    return folder


def write_adapter(file: Path, module: str, width: int = 16) -> None:
    """Write a LoRA of one square matrix, in PEFT's names."""
    random = np.random.default_rng(1)
    shapes = {"A": (RANK, width), "B": (width, RANK)}
    parts = {
        f"{module}.lora_{part}.weight": random.standard_normal(shapes[part], np.float32) for part in "AB"
    }
    save_file(parts, file)


def built(folder: Path, **environment: str) -> dict[str, bytes]:
    """Build the spec of a folder in a process that works there; return every file but attestations."""
    command = [*COMMAND, "build", "edit.yaml", "-o", "out"]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    files = sorted(file for file in (folder / "out").rglob("*") if file.is_file())
    return {
        str(file.relative_to(folder / "out")): file.read_bytes()
        for file in files
        if "attestations" not in file.parts
    }


def test_every_target_has_the_same_bytes_from_another_process(
    folder: Path, skeletons: Path, tmp_path: Path
) -> None:
    """Another hash seed, working folder, thread count, time zone, file times and a cold cache."""
    moved = tmp_path / "elsewhere" / ("deeper" * 10)
    shutil.copytree(folder, moved, copy_function=shutil.copyfile)
    here = built(folder, PYTHONHASHSEED="0", OMP_NUM_THREADS="1", RETOUCH_CACHE=str(skeletons))
    there = built(
        moved, PYTHONHASHSEED="7", OMP_NUM_THREADS="2", TZ="Asia/Tokyo", RETOUCH_CACHE=str(tmp_path / "cold")
    )
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
    targets = [target.emitter for target in verify(folder / "out").manifest.targets]
    assert targets[:7] == ["onnx", "onnx", "onnx", "diffusers", "single_file", "adapter", "comfy"]
