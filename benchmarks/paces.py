"""Does a build take as long as its plan says? Plans and builds specs of the demo, each of another work.

    python -m benchmarks.paces [--rates] [--only training]

Writes results/paces.json and the table in docs/targets.md. With `--rates` it also measures what planning
counts on: how fast torch runs the denoisers of the demo and of SD 1.5 on one thread, what a gradient takes,
and the memory of both (`compiler/cost.py` holds the numbers).
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from benchmarks._measured import measured, retouch
from benchmarks._results import kept_results, write_between, write_results

PAGE = Path(__file__).parents[1] / "docs" / "targets.md"
HEAD = "schema: 1\nname: paces\nversion: '1'\nsource: {model: demo}\n"
SAMPLING = "sampling: {sampler: dpmpp_2m, steps: 20, guidance_scale: 2.0}\n"
LOGO = "{name: the nike logo, towards: a heart}"
ERASING = f"edits: [erase_concepts: {{concepts: [{LOGO}]}}]\n"
TRAINING = f"edits: [erase_by_training: {{concepts: [{LOGO}], templates: ['{{}}'], steps: 120}}]\n"
SPECS = {
    "training: 240 steps, one inversion": f"{TRAINING}{SAMPLING}emit: [diffusers: {{}}]\n",
    "graphs compared with torch at 512x512": f"{ERASING}{SAMPLING}emit: [onnx: {{size: 512x512}}]\n",
    "engines, each twice": f"{ERASING}{SAMPLING}emit: [tensorrt_rtx: {{parity: false, twice: true}}]\n",
    "gate `erased`, 256 images": f"{ERASING}{SAMPLING}emit: [onnx: {{parity: false}}]\n"
    "gates: [erased: {at_most: '1'}]\n",
    "gate `probed`, 8 images a probe": f"{ERASING}{SAMPLING}emit: [onnx: {{parity: false}}]\n"
    "gates: [probed: {at_most: '1', images: 8, probes: [inversion]}]\n",
}
# A U-Net, images at once, and rows of a square latent.
ROWS = (("demo", 4, 16), ("demo", 16, 16), ("sd15", 1, 32), ("sd15", 4, 32), ("sd15", 1, 64))


@click.command()
@click.option("--rates", is_flag=True, help="Measure what planning counts on as well.")
@click.option("--only", default="", help="Build only what is called so; plan all of it anew.")
def main(rates: bool, only: str) -> None:
    """Measure, print and write."""
    found = kept_results("paces")
    chosen = {title: text for title, text in SPECS.items() if title.startswith(only)}
    with tempfile.TemporaryDirectory() as name:
        graphs = {"RETOUCH_CACHE": str(Path(name) / "cache")}
        _said(retouch("prebuild", "demo"), graphs)
        plans = {title: planned(text, Path(name), graphs) for title, text in SPECS.items()}
        runs = {title: built(text, Path(name), graphs) for title, text in chosen.items()}
    earlier = {title: build["taken"] for title, build in found.get("builds", {}).items()}
    taken = {**earlier, **runs}
    found["builds"] = {
        title: {"planned": plans[title], "taken": taken[title]} for title in plans if title in taken
    }
    if rates:
        found["rates"] = {" ".join(map(str, row)): pace(*row) for row in ROWS}
    write_results("paces", found)
    write_between(PAGE, "paces", "\n".join(lines(found["builds"])) + "\n")
    Console().print(table_of(found["builds"]))


def planned(text: str, work: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the plan of a spec says; graphs were captured before."""
    (work / "edit.yaml").write_text(HEAD + text)
    cost = json.loads(_said(retouch("plan", work / "edit.yaml", "--json"), environment))["plan"]["cost"]
    return {key: cost[key] for key in ("total_seconds", "memory_bytes")}


def built(text: str, work: Path, environment: Mapping[str, str]) -> dict[str, Any]:
    """Return what the build of a spec took."""
    (work / "edit.yaml").write_text(HEAD + text)
    return measured(
        retouch("build", work / "edit.yaml", "-o", work / "out", "--force"), environment
    ).as_json()


def pace(model: str, batch: int, cells: int) -> dict[str, float]:
    """Return a row of `_pace_child`."""
    command = [sys.executable, "-m", "benchmarks._pace_child", model, str(batch), str(cells)]
    return json.loads(_said(command, {}))


def lines(builds: dict[str, Any]) -> Iterable[str]:
    """Yield the table of the page."""
    yield "| a build with | planned, s | taken, s | of it CPU, s | planned, MB | peak, MB |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for cells in _cells(builds):
        yield f"| {' | '.join(cells)} |"
    others = max(build["taken"]["others"] for build in builds.values())
    busy = f"at most {others:g} of {os.cpu_count()} cores"
    yield f"\nOther programs kept {busy} busy meanwhile: CPU seconds are what to compare."


def table_of(builds: dict[str, Any]) -> Table:
    """Return the same for people to read."""
    table = Table("a build with", "planned, s", "taken, s", "CPU, s", "planned, MB", "peak, MB")
    for cells in _cells(builds):
        table.add_row(*cells)
    return table


def _cells(builds: dict[str, Any]) -> Iterable[tuple[str, ...]]:
    for title in sorted(builds, key=[*SPECS].index):
        found = builds[title]
        planned, taken = found["planned"], found["taken"]
        seconds = planned["total_seconds"], taken["seconds"], taken["cpu_seconds"]
        sizes = planned["memory_bytes"] / 1e6, taken["peak_bytes"] / 1e6
        shown = taken["outcome"] == "done"
        yield (title, *(f"{each:.0f}" if shown else taken["outcome"] for each in (*seconds, *sizes)))


def _said(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """Return what a command prints."""
    ran = subprocess.run(
        command, env={**os.environ, **environment}, check=True, stdout=subprocess.PIPE, text=True
    )
    return ran.stdout


if __name__ == "__main__":
    main()
