"""How fast, and how exact, is each device? onnxruntime on the CPU against OpenVINO in float32 and bfloat16.

    python -m benchmarks.devices --artefact PATH

PATH is an artefact with a target `onnx`. All make the same denoiser calls (guided, one image), in turns;
the best of several counts, because other programs can only make a call slower. The error is the largest
difference from onnxruntime, as a share of its largest value; images differ by so many of 255 levels on
average. Writes results/devices.json.
"""

import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks._results import write_results
from retouch.compiler.environment import environment
from retouch.runtime.artefact import Artefact, open_artefact
from retouch.runtime.noise import normal
from retouch.runtime.sampler import Sampler
from retouch.runtime.sessions import Placement, Precision

PLACES: tuple[tuple[str, Precision], ...] = (
    ("cpu", "float32"),
    ("openvino", "float32"),
    ("openvino", "bfloat16"),
)
PROMPT, SEED = "a dog", 1
CALLS = 20


@dataclass
class Row:
    """What was measured of one device."""

    device: str
    precision: str
    load_seconds: float
    call_seconds: float
    relative_error: float
    image_levels: float


@click.command()
@click.option("--artefact", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True)
def main(artefact: Path, threads: int) -> None:
    """Measure, print and write."""
    opened = open_artefact(artefact)
    rows = measure(opened, threads)
    found = {
        "artefact": {"name": opened.manifest.name, "digest": opened.manifest.digest},
        "threads": threads,
        "calls": CALLS,
        "cpu": environment()["cpu"],
        "versions": {name: version(name) for name in ("onnxruntime", "openvino")},
        "rows": [asdict(row) for row in rows],
    }
    write_results("devices", found)
    Console().print(table(rows))


def measure(artefact: Artefact, threads: int) -> list[Row]:
    """Return a row for each device and precision, the first the one that others are compared with."""
    samplers, loads = [], []
    for device, precision in PLACES:
        started = time.perf_counter()
        samplers.append(Sampler.open(artefact, Placement(device, threads, precision)))
        loads.append(time.perf_counter() - started)
    feeds = _feeds(samplers[0])
    outputs = [sampler.denoiser(**feeds)["out_sample"] for sampler in samplers]
    images = [sampler.draw([PROMPT], [SEED]).astype(float) for sampler in samplers]
    best = _best_calls(samplers, feeds)
    return [
        Row(
            *place,
            load_seconds=round(load, 2),
            call_seconds=round(seconds, 4),
            relative_error=float(f"{_error(outputs[0], output):.2g}"),
            image_levels=round(float(np.abs(image - images[0]).mean()), 3),
        )
        for place, load, seconds, output, image in zip(PLACES, loads, best, outputs, images, strict=True)
    ]


def table(rows: list[Row]) -> Table:
    """Return the rows for people to read."""
    shown = Table("device", "precision", "load, s", "call, s", "error", "image, levels")
    for row in rows:
        shown.add_row(*(str(value) for value in asdict(row).values()))
    return shown


def _feeds(sampler: Sampler) -> dict[str, NDArray[Any]]:
    """Return what a guided call of one image reads."""
    latent = sampler.table.latent
    noise = normal(SEED, (latent.channels, latent.height, latent.width))
    states = sampler.prompts.encode([sampler.table.negative.prompt, PROMPT])
    shapes = sampler.denoiser.inputs["timestep"].shape
    return {
        "sample": np.stack([noise, noise]),
        "timestep": np.full(tuple(size or 2 for size in shapes), sampler.table.steps[0].timestep),
        "encoder_hidden_states": states.sequence,
    }


def _best_calls(samplers: list[Sampler], feeds: dict[str, NDArray[Any]]) -> list[float]:
    """Return the shortest of CALLS calls of each, one of each in turn."""
    best = [float("inf")] * len(samplers)
    for _ in range(CALLS):
        for place, sampler in enumerate(samplers):
            started = time.perf_counter()
            sampler.denoiser(**feeds)
            best[place] = min(best[place], time.perf_counter() - started)
    return best


def _error(expected: NDArray[Any], found: NDArray[Any]) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
