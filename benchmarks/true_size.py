"""Do models of true size go the whole way? Builds them with every kind of edit, verifies, and draws.

    python -m benchmarks.true_size [--models sd15,sd21,sdxl] [--size 256x256] [--work FOLDER]

Weights are random, so the picture is noise: what is shown is that each step works, what it takes, and that
the picture is one, finite and not of one color. Prints a table and writes results/true_size.json.
"""

import os
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks._measured import Run, measured, retouch
from benchmarks._results import kept_results, write_results
from benchmarks.compile import make_model

SPEC = """schema: 1
name: true-size
version: "1"
source: {{model: {model}}}
edits:
  - merge_adapters: {{adapters: [{{path: {adapter}, weight: 0.7}}]}}
  - erase_concepts: {{concepts: [{{name: a nike logo, towards: a cloud}}]}}
  - bake_guidance: {{scale: 5.0, interval: [0.5, 10.0], negative: baked}}
sampling: {{sampler: euler, steps: 3}}
emit:
  - onnx: {{precision: {precision}, parity: false}}
"""


@click.command()
@click.option("--models", default="sd15,sd21,sdxl", show_default=True)
@click.option("--size", default="256x256", show_default=True, help="HEIGHTxWIDTH of the picture.")
@click.option("--precision", default="float32", show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Where models go; kept.")
def main(models: str, size: str, precision: str, work: Path | None) -> None:
    """Build, verify and draw models of true size."""
    results = kept_results("true_size")
    for model in models.split(","):
        with tempfile.TemporaryDirectory(dir=work) as name:
            results[model] = whole_way(make_model(model, work or Path(name)), Path(name), size, precision)
        write_results("true_size", results)
    Console().print(table_of(results))


def whole_way(folder: Path, work: Path, size: str, precision: str) -> dict[str, Any]:
    """Return what each step took, and what is in the picture."""
    adapter = folder.with_suffix(".adapter.safetensors")
    (work / "edit.yaml").write_text(SPEC.format(model=folder, adapter=adapter, precision=precision))
    out, image = work / "out", work / "image.png"
    draw = ["run", out, "-p", "a cat", "--seed", "0", "--size", size, "-o", image]
    steps = {"plan": ["plan", work / "edit.yaml"], "build": ["build", work / "edit.yaml", "-o", out]}
    steps |= {"verify": ["verify", out], "draw": draw}
    rows: dict[str, Any] = {name: _step(command, work / "log").as_json() for name, command in steps.items()}
    pixels = np.asarray(Image.open(image), np.float64) if image.is_file() else np.zeros(1)
    written = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return {"steps": rows, "written_bytes": written, "size": size, "spread": round(float(pixels.std()), 1)}


def _step(command: list[Any], log: Path) -> Run:
    run = measured(retouch(*command), log=log, timeout=900)
    if run.outcome != "done":
        Console(stderr=True).print(log.read_text()[-2000:])
    return run


def table_of(results: dict[str, Any]) -> Table:
    table = Table(
        "model", "step", "outcome", "s", "of it CPU, s", "peak, MB", title=f"load {os.getloadavg()[0]:.1f}"
    )
    for model, result in results.items():
        for name, row in result["steps"].items():
            cells = (row["seconds"], row["cpu_seconds"], round(row["peak_bytes"] / 1e6))
            table.add_row(model, name, row["outcome"], *map(str, cells))
        spread = f"{result['written_bytes'] / 1e9:.1f} GB, {result['size']} pixels, spread {result['spread']}"
        table.add_row(model, "picture", spread, "", "", "")
    return table


if __name__ == "__main__":
    main()
