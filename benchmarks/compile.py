"""What does it take to make ONNX of a model, and to make it again after an edit? We, and other exporters.

    python -m benchmarks.compile --models sd15,sd21,sdxl --peers torch,optimum=PYTHON,olive=PYTHON

Random weights at the sizes of the published models, float16 on disk. Each row is one process, its start
included. We build the whole pipeline: cold (nothing captured), warm (the same again), and edited (ten
concepts erased and one adapter merged). Prompts are encoded once and kept; that is reported apart. Peers
export what they can, each in a process that may take 16 GiB. `copy` writes the files of our build again,
and flushes them as a build does: what no rebuild can be faster than. Writes results/compile.json,
results/compile.png, and the table in README.md.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from benchmarks._compile_table import write_page, write_plot
from benchmarks._measured import LIMIT, Run, measured, retouch
from benchmarks._results import RESULTS, kept_results, write_results
from retouch.compiler.graphs.prebuild import SHORT

CHILD = Path(__file__).with_name("_export_child.py")
COPY = """
import os, shutil, sys
source, target = sys.argv[1:]
shutil.copytree(source, target)
for folder, _, files in os.walk(target):
    for name in files:
        descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
"""
HEAD = """schema: 1
name: compile-benchmark
version: "1"
source: {{model: {model}}}
sampling: {{sampler: euler, steps: 20}}
emit:
  - onnx: {{profile: cuda, precision: float16, parity: false}}
"""
ERASED = (
    "a nike logo",
    "an apple logo",
    "a cat",
    "a dog",
    "a horse",
    "a car",
    "a castle",
    "a gun",
    "a flag",
    "a rose",
)
EDITS = """edits:
  - merge_adapters: {{adapters: [{{path: {adapter}, weight: 0.7}}]}}
  - erase_concepts: {{vocabulary: 0, concepts: [{concepts}]}}
"""
ONE_CORE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}


@click.command()
@click.option("--models", default="sd15", help="Of sd15, sd21, sdxl.")
@click.option("--peers", default="", help="torch, optimum=PYTHON, olive=PYTHON, with commas between.")
@click.option("--work", type=click.Path(path_type=Path), help="Where models and outputs go; kept.")
@click.option("--timeout", default=600.0, help="Seconds after which a process is stopped.")
def main(models: str, peers: str, work: Path | None, timeout: float) -> None:
    """Measure builds and exports of models of true size."""
    results = {"models": {}, **kept_results("compile")}
    results["machine"] = machine()
    with tempfile.TemporaryDirectory() as name:
        for model in models.split(","):
            folder = make_model(model, work or Path(name))
            rows = results["models"].setdefault(model, {})
            rows |= measure_ours(folder, Path(name), timeout)
            for peer in filter(None, peers.split(",")):
                rows |= measure_peer(peer, folder, Path(name) / "peer", timeout)
            write_results("compile", results)
    write_plot(results, RESULTS / "compile.png")
    write_page(results)


def machine() -> dict[str, Any]:
    """Say what it ran on, and how busy that was."""
    libraries = ("torch", "onnx", "diffusers", "transformers")
    return {
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "processor": platform.machine(),
        "versions": {name: version(name) for name in libraries},
    }


def make_model(model: str, work: Path) -> Path:
    """Write a model and an adapter for it, unless they are there.

    That is done in a process of its own: a child's peak of memory begins with its parent's.
    """
    work.mkdir(parents=True, exist_ok=True)
    folder = work / model
    if not folder.is_dir():
        command = [sys.executable, "-m", "benchmarks._random_model", SHORT.get(model, model), str(folder)]
        subprocess.run(command, check=True)
    return folder


def measure_ours(folder: Path, work: Path, timeout: float) -> dict[str, Any]:
    """Build cold, warm, edited with prompts to encode, and edited again; copy what the last one wrote."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    plain, edited = work / "plain.yaml", work / "edited.yaml"
    head = HEAD.format(model=folder)
    concepts = ", ".join(f"{{name: {name}, towards: a cloud}}" for name in ERASED)
    plain.write_text(head)
    adapter = folder.with_suffix(".adapter.safetensors")
    edited.write_text(head + EDITS.format(adapter=adapter, concepts=concepts))
    rows: dict[str, Any] = {}
    for name, spec in (("cold", plain), ("warm", plain), ("first edit", edited), ("edit", edited)):
        shutil.rmtree(work / "out", ignore_errors=True)
        rows[f"retouch, {name}"] = _build(spec, work / "out", cache, timeout)
    rows["copy"] = _row(measured([sys.executable, "-c", COPY, work / "out", work / "copy"]), work / "copy")
    shutil.rmtree(work / "copy", ignore_errors=True)
    shutil.rmtree(work / "out", ignore_errors=True)
    return rows


def _build(spec: Path, target: Path, cache: Path, timeout: float) -> dict[str, Any]:
    log = spec.with_suffix(".log")
    environment = {**ONE_CORE, "RETOUCH_CACHE": str(cache)}
    run = measured(retouch("build", spec, "-o", target), environment, log, timeout=timeout)
    return _row(run, target)


def measure_peer(peer: str, folder: Path, target: Path, timeout: float) -> dict[str, Any]:
    """Run another exporter in its own environment, if it has one."""
    name, _, python = peer.partition("=")
    log = target.with_suffix(".log")
    log.unlink(missing_ok=True)
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    command = [python or sys.executable, CHILD, name, folder, target]
    row = _row(measured(command, ONE_CORE, log, LIMIT, timeout), target)
    shutil.rmtree(target, ignore_errors=True)
    said = log.read_text(errors="replace").splitlines() if log.is_file() else []
    versions = next((line.removeprefix("VERSIONS ") for line in said if line.startswith("VERSIONS ")), "")
    return {name: {**row, "versions": versions}}


def _row(run: Run, folder: Path) -> dict[str, Any]:
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) if folder.is_dir() else 0
    return {**run.as_json(), "output_bytes": size}


if __name__ == "__main__":
    main()
