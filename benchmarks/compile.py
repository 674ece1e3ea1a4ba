"""What does it take to make ONNX of a model, and to make it again after an edit? We, and other exporters.

    python -m benchmarks.compile --models sd15,sd21,sdxl --work FOLDER \\
        --pieces builds,capture,float32,engines,torch,torch16,optimum=P,optimum16=P,olive=Q,draw=P

Random weights at the sizes of the published models, float16 on disk. Each row is one process on one thread,
its start included; it may take 16 GiB and 15 minutes. P and Q are the Pythons of environments with
optimum-onnx and with olive-ai, which cannot all share ours.

builds   the whole pipeline in float16: cold (nothing captured), warm (the same again), edited (ten concepts
         erased and one adapter merged; prompts are encoded once and kept), edited again; and a copy of the
         files that we wrote, flushed as a build does it: what no rebuild can be faster than
capture  the U-Net's graph alone, from configs, and what onnxruntime makes of it
float32  the whole pipeline cold in float32, and how far its U-Net is from torch
engines  a TensorRT-RTX engine for each component, cold and warm
draw     a picture by `retouch run` and one by optimum-onnx, from the same folder and noise
torch, torch16, optimum, optimum16, olive   other exporters, as their documentation has it; 16 is float16

A piece is left out where results/compile.json has it of the same machine and versions, unless `--again`.
Writes results/compile.json, results/compile.png, and the tables in README.md.
"""

import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image

from benchmarks._compile_plot import write_plot
from benchmarks._compile_table import write_page
from benchmarks._measured import LIMIT, Run, measured, retouch
from benchmarks._pixels import as_pixels, psnr
from benchmarks._results import RESULTS, kept_results, write_results
from retouch.compiler.environment import installed
from retouch.compiler.graphs.prebuild import SHORT
from retouch.runtime.noise import normal

EXPORT = Path(__file__).with_name("_export_child.py")
DRAW = Path(__file__).with_name("_optimum_child.py")
GRAPH = (sys.executable, "-m", "benchmarks._graph_child")
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
SPEC = """schema: 1
name: compile-benchmark
version: "1"
source: {{model: {model}}}
sampling: {{sampler: euler, steps: 2, guidance_scale: 5.0}}
emit:
  - {target}
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
HALF = "onnx: {profile: cuda, precision: float16, parity: false}"
FULL = "onnx: {parity: false}"
ENGINES = "tensorrt_rtx: {parity: false}"
SAID = 2000  # characters shown of what a process said before it failed
PROMPT, SIZE, LATENT = "a photo of a cat", "256x256", (4, 32, 32)
ONE_CORE = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """A model's folder, an empty folder for what is made of it, and the seconds that a process may take."""

    model: Path
    work: Path
    timeout: float

    @property
    def log(self) -> Path:
        return self.work / "log"

    def run(self, *command: str | Path, **environment: str) -> Run:
        """Run a command on one thread, with its temporary files in `work`."""
        variables = {**ONE_CORE, "TMPDIR": str(self.work), **environment}
        run = measured(command, variables, self.log, LIMIT, self.timeout)
        if run.outcome != "done":
            click.echo(self.log.read_text(errors="replace")[-SAID:], err=True)
        return run

    def build(self, name: str, target: str, edits: str = "") -> dict[str, Any]:
        """Build a spec into the folder `out`; return the row."""
        out, spec = self.work / "out", self.work / f"{name}.yaml"
        shutil.rmtree(out, ignore_errors=True)
        spec.write_text(SPEC.format(model=self.model, target=target) + edits)
        run = self.run(*retouch("build", spec, "-o", out), RETOUCH_CACHE=str(self.work / "cache"))
        return row_of(run, out)

    def facts(self, *command: str | Path) -> dict[str, Any]:
        """Run a child that says what it found; nothing where it failed."""
        self.log.unlink(missing_ok=True)
        run = self.run(*command)
        return _said(self.log.read_text(errors="replace")) if run.outcome == "done" else {}


@click.command()
@click.option("--models", default="sd15", help="Of sd15, sd21, sdxl, or the name of a folder in --work.")
@click.option("--pieces", default="builds,capture,float32,engines,torch", help="With commas between.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Where models and outputs go; models are kept.",
)
@click.option("--timeout", default=900.0, help="Seconds after which a process is stopped.")
@click.option("--again", is_flag=True, help="Measure what was measured already.")
def main(models: str, pieces: str, work: Path | None, timeout: float, again: bool) -> None:
    """Measure builds and exports of models of true size."""
    results = {"models": {}, **kept_results("compile")}
    if work:
        work.mkdir(parents=True, exist_ok=True)
    for model in models.split(","):
        entry = results["models"].setdefault(model, {"bytes": 0, "rows": {}})
        for piece in pieces.split(","):
            name, _, python = piece.partition("=")
            stamp = {"piece": name, "machine": machine(), "versions": versions(name, python)}
            if again or not any(stamp.items() <= row.items() for row in entry["rows"].values()):
                with tempfile.TemporaryDirectory(dir=work) as scratch:
                    bench = Bench(make_model(model, work or Path(scratch)), Path(scratch), timeout)
                    entry["bytes"] = size_of(bench.model)
                    rows = PIECES[name](bench, python)
                date = datetime.now(UTC).strftime("%Y-%m-%d")
                entry["rows"] |= {title: {**stamp, "date": date, **row} for title, row in rows.items()}
                write_results("compile", results)
    write_plot(results, RESULTS / "compile.png")
    write_page(results)


def machine() -> str:
    """Say what it runs on."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores ({platform.machine()}), {memory / 2**30:.0f} GiB"


def versions(piece: str, python: str) -> dict[str, str]:
    """Return the versions of what a piece measures."""
    if piece in PEERS or piece == "draw":
        exporter, _ = PEERS.get(piece, PEERS["optimum"])
        command = [python or sys.executable, EXPORT, exporter]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        return _said(said)["versions"]
    return {name: installed(name) for name in (*OURS, *([RTX] if piece == "engines" else []))}


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


# ---------------------------------------------------------------------------------------------------
# The pieces: what is run, and which rows that gives


def builds(bench: Bench, python: str) -> Rows:
    """Build cold, warm, edited with prompts to encode, and edited again; copy what the last one wrote."""
    del python
    concepts = ", ".join(f"{{name: {name}, towards: a cloud}}" for name in ERASED)
    edits = EDITS.format(adapter=bench.model.with_suffix(".adapter.safetensors"), concepts=concepts)
    rows = {
        "retouch, cold": bench.build("plain", HALF),
        "retouch, warm": bench.build("plain", HALF),
        "retouch, first edit": bench.build("edited", HALF, edits),
        "retouch, edit": bench.build("edited", HALF, edits),
    }
    copy = bench.work / "copy"
    rows["copy"] = row_of(bench.run(sys.executable, "-c", COPY, bench.work / "out", copy), copy)
    return rows


def capture(bench: Bench, python: str) -> Rows:
    """Capture the U-Net alone, and count the nodes of its forms."""
    del python
    cache, graph, other = bench.work / "cache", bench.work / "model.onnx", bench.work / "tensorrt.onnx"
    row = row_of(bench.run(*GRAPH, "capture", bench.model, "cpu", "float32", cache, graph), graph)
    bench.run(*GRAPH, "capture", bench.model, "tensorrt", "float16", cache, other)
    found = bench.facts(*GRAPH, "count", graph) | bench.facts(*GRAPH, "optimize", graph)
    return {"retouch, U-Net": row | {"unet": found, "unet_tensorrt": bench.facts(*GRAPH, "count", other)}}


def float32(bench: Bench, python: str) -> Rows:
    """Build cold in the precision that others export in, and compare the U-Net with torch."""
    del python
    row = bench.build("float32", FULL)
    return {"retouch, float32": row | bench.facts(*GRAPH, "compare", bench.model, bench.work / "out")}


def engines(bench: Bench, python: str) -> Rows:
    """Build an engine for each component, cold and then warm; the machine need not have a GPU."""
    del python
    cold, warm = bench.build("engines", ENGINES), bench.build("engines", ENGINES)
    return {"retouch, engines": cold, "retouch, engines again": warm}


def draw(bench: Bench, python: str) -> Rows:
    """Draw a picture with our runtime, and one with optimum-onnx: same folder, noise and schedule."""
    bench.build("float32", FULL)
    out, image, noise = bench.work / "out", bench.work / "image.png", bench.work / "noise.npy"
    ours = bench.run(*retouch("run", out, "-p", PROMPT, "--seed", "0", "--size", SIZE, "-o", image))
    np.save(noise, normal(0, LATENT)[None])
    request, drawn = bench.work / "request.json", bench.work / "drawn.npy"
    request.write_text(json.dumps({"prompts": [PROMPT], "steps": 2, "scale": 5.0}))
    theirs = bench.run(python, DRAW, out, noise, request, drawn)
    found: dict[str, Any] = {}
    if image.is_file() and drawn.is_file():
        pixels = np.asarray(Image.open(image))
        alike = psnr(pixels[None], as_pixels(np.load(drawn)))
        found = {"psnr": alike, "spread": round(float(pixels.std()), 1)}
    return {"draw, retouch": row_of(ours, image), "draw, optimum-onnx": row_of(theirs, drawn) | found}


def export(bench: Bench, python: str, exporter: str, precision: str) -> dict[str, Any]:
    """Run another exporter in its own environment; return the row, with what its U-Net's graph says."""
    out = bench.work / "peer" / "out"
    out.mkdir(parents=True)
    run = bench.run(python or sys.executable, EXPORT, exporter, precision, bench.model, out)
    row = row_of(run, out)
    graph = out / "unet" / "model.onnx"
    return row | {"unet": bench.facts(*GRAPH, "count", graph)} if run.outcome == "done" else row


def row_of(run: Run, place: Path) -> dict[str, Any]:
    return {**run.as_json(), "output_bytes": size_of(place)}


def size_of(place: Path) -> int:
    """Return the bytes of a file, or of all files in a folder; 0 where there is nothing."""
    files = [place] if place.is_file() else place.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _said(text: str) -> dict[str, Any]:
    """Return what a child said in its line of facts."""
    found = [line.removeprefix("FACTS ") for line in text.splitlines() if line.startswith("FACTS ")]
    return json.loads(found[-1]) if found else {}


OURS = ("retouch", "torch", "diffusers", "transformers", "onnx", "numpy")
RTX = "tensorrt-rtx-cu12-bindings"
# By piece: exporter and precision.
PEERS: Mapping[str, tuple[str, str]] = {
    "torch": ("torch", "float32"),
    "torch16": ("torch", "float16"),
    "optimum": ("optimum", "float32"),
    "optimum16": ("optimum", "float16"),
    "olive": ("olive", "float16"),
}


def _peer(name: str) -> Callable[[Bench, str], Rows]:
    return lambda bench, python: {name: export(bench, python, *PEERS[name])}


PIECES: Mapping[str, Callable[[Bench, str], Rows]] = {
    "builds": builds,
    "capture": capture,
    "float32": float32,
    "engines": engines,
    "draw": draw,
    **{name: _peer(name) for name in PEERS},
}


if __name__ == "__main__":
    main()
