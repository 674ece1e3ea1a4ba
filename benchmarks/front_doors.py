"""How long does it take to open a checkpoint, and how much memory? From a single file to a plan.

    python -m benchmarks.front_doors

Writes each published model as one fp16 file of true size (a real header, a hole for the data), then runs
`retouch plan` on a spec that erases a concept, several times; prints the median of seconds (by the clock
and of CPU) and the largest peak of memory, of the whole process with its start, and writes
results/front_doors.json.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks._hollow import hollow_pipeline, write_hollow
from benchmarks._measured import UNIT, retouch
from benchmarks._results import write_results
from retouch.compiler.headers import read_header

MODELS = ("stable-diffusion-v1-5", "stable-diffusion-2-1", "stable-diffusion-xl-base-1.0")
SPEC = """schema: 1
name: front-doors
version: "1"
source: {{model: {model}, prediction: {prediction}}}
edits:
  - erase_concepts: {{concepts: [{{name: the nike logo, towards: a cloud}}]}}
sampling: {{sampler: euler, steps: 20}}
emit:
  - onnx: {{}}
"""
# A process starts with its parent's memory as its peak, so one that is small stands between.
MEASURE = """
import json, os, subprocess, sys, time
started = time.perf_counter()
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
assert status == 0
print(json.dumps([time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss]))
"""


@click.command()
@click.option("--runs", default=5, help="Plans of each model.")
def main(runs: int) -> None:
    """Open checkpoints of true size."""
    table = Table("model", "file, GB", "tensors", "plan, s", "of it CPU, s", "peak, MB")
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name:
        for model in MODELS:
            results[model] = measure(model, Path(name), runs)
            table.add_row(model, *(str(value) for value in results[model].values()))
    Console().print(table)
    write_results("front_doors", results)


def measure(model: str, folder: Path, runs: int) -> dict[str, Any]:
    """Write a model and plan with it `runs` times, after once to warm the file system's cache."""
    pipeline = hollow_pipeline(model)
    file = write_hollow(pipeline, folder / f"{model}.safetensors")
    spec = folder / f"{model}.yaml"
    spec.write_text(SPEC.format(model=file.name, prediction=pipeline.sampling.schedule.prediction))
    timed = [plan(spec, folder / "cache") for _ in range(runs + 1)][1:]
    return {
        "file_gb": round(file.stat().st_size / 1e9, 2),
        "tensors": len(read_header(file).tensors),
        "seconds": round(median(wall for wall, _, _ in timed), 2),
        "cpu_seconds": round(median(cpu for _, cpu, _ in timed), 2),
        "peak_mb": round(max(peak for _, _, peak in timed) / 1e6),
    }


def plan(spec: Path, cache: Path) -> tuple[float, float, int]:
    """Run `retouch plan` and return (seconds, seconds of CPU, peak memory in bytes) of its process."""
    environment = {**os.environ, "RETOUCH_CACHE": str(cache)}
    command = [sys.executable, "-S", "-c", MEASURE, *retouch("plan", spec)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    seconds, cpu, peak = json.loads(done.stdout)
    return seconds, cpu, peak * UNIT


if __name__ == "__main__":
    main()
