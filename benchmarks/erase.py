"""How long does erasing n concepts from the text path take, and how much memory, layer by layer or at once?

    python -m benchmarks.erase --models sd15,sdxl --concepts 1,10,100,1000 --work FOLDER

Matrices, text encoders and tokenizers have the sizes of Stable Diffusion 1.5 and SDXL, weights are random,
concepts are nouns. One encoding of the prompts serves all methods, and is measured apart: a row a concept,
a row a guide, and 100 preserved ones go to UCE's loop over layers as published, to that loop with each sum
as one product, and to our solution. Each reads the key and value matrices from a safetensors file and
writes them as they were read. Beside that stands the whole pass with its default settings.

Each measurement is a process of its own with one thread. Seconds are the processor's, without the start:
what a clock shows on an idle machine. Short ones are repeated, and the median counts. Loops over layers
stop after `--limit` seconds: what they did until then is said, not what the rest would take. What was
measured is kept in results/erase.json, so that the same command goes on where it stopped; `--for-seconds`
stops it. Writes the tables in README.md.
"""

import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from threadpoolctl import threadpool_info

from benchmarks._erase_table import METHODS, write_page
from benchmarks._measured import measured
from benchmarks._results import kept_results, write_results
from retouch.compiler.environment import installed
from retouch.compiler.graphs.prebuild import SHORT

# A measurement shorter than this, in seconds, is repeated.
BRIEF, TIMES = 10.0, 5
SETTINGS: Mapping[str, str] = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "passive",
    "RETOUCH_CACHE_SIZE": "4096",
    # Memory that is freed stays with the process. Else the published loop gets each of its outer products
    # from the system anew, and takes three times as long where the heap happens to end beside them.
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
}
LIBRARIES = ("numpy", "torch")


@dataclass(frozen=True)
class Bench:
    """Where files go, how long the published loop may take, and when to stop (of the monotonic clock)."""

    work: Path
    limit: float
    deadline: float

    def rows(self, model: str, count: int, rows: dict[str, Any], again: bool) -> None:
        """Measure what `rows` lacks of a model and a number of concepts, and keep each row at once."""
        results = kept_results("erase")
        results.setdefault(model, {})[str(count)] = rows
        for what in METHODS:
            if what in rows and not again:
                continue
            if time.monotonic() > self.deadline:
                raise SystemExit("stopped before the end; run the same command again to go on")
            rows[what] = self.row(what, model, count)
            write_results("erase", results)
            write_page(results)

    def row(self, what: str, model: str, count: int) -> dict[str, Any]:
        """Measure one thing in a process of its own, several times where it is brief."""
        self._prepare(model, count, encoded=what != "encoding")
        found = [self._once(what, model, count)]
        while found[0]["cpu_seconds"] < BRIEF and len(found) < TIMES and what != "encoding":
            found.append(self._once(what, model, count))
        medians = {
            key: statistics.median(row[key] for row in found)
            for key in ("seconds", "cpu_seconds", "evidence_seconds", "evidence_cpu_seconds")
            if key in found[0]
        }
        peak = max(row["peak_bytes"] for row in found)
        others = max(row["others"] for row in found)
        return {**found[0], **medians, "peak_bytes": peak, "others": others, "times": len(found), **facts()}

    def _prepare(self, model: str, count: int, encoded: bool) -> None:
        """Write a model's matrices, and the rows that all methods share, where they are missing."""
        folder = self._folder(model, count)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder.parent / "matrices.safetensors"
        if not file.is_file():
            self._run(folder, "benchmarks._text_path", SHORT[model], file)
        if encoded and not (folder / "rows.npz").is_file():
            self._once("encoding", model, count)

    def _once(self, what: str, model: str, count: int) -> dict[str, Any]:
        folder, limit = self._folder(model, count), str(self.limit)
        if what == "encoding":
            shutil.rmtree(folder / "cache", ignore_errors=True)
        others = self._run(folder, "benchmarks._erase_child", what, SHORT[model], str(count), folder, limit)
        (folder / "edited.safetensors").unlink(missing_ok=True)
        return {**json.loads((folder / "row.json").read_text()), "others": others}

    def _run(self, folder: Path, module: str, *arguments: str | Path) -> float:
        """Run a module of ours, and return how many cores other programs kept busy meanwhile."""
        log = folder / "log"
        log.unlink(missing_ok=True)
        environment = {**SETTINGS, "RETOUCH_CACHE": str(folder / "cache")}
        run = measured([sys.executable, "-m", module, *arguments], environment, log, timeout=3600.0)
        if run.outcome != "done":
            raise SystemExit(f"{module} {' '.join(map(str, arguments))}: {run.outcome}")
        return run.others

    def _folder(self, model: str, count: int) -> Path:
        return self.work / model / str(count)


def facts() -> dict[str, Any]:
    """Say when and on what something was measured."""
    libraries = [one for one in threadpool_info() if one["user_api"] == "blas"]
    blas = {f"{one['internal_api']} {one['version']} for {one['architecture']}" for one in libraries}
    return {
        "machine": f"{os.cpu_count()} cores ({platform.machine()})",
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {name: installed(name) for name in LIBRARIES},
        "blas": ", ".join(sorted(blas)),
    }


@click.command()
@click.option("--models", default="sd15,sdxl", show_default=True)
@click.option("--concepts", default="1,10,100,1000", show_default=True, help="At most 1000.")
@click.option("--limit", default=480.0, show_default=True, help="Seconds that a loop over layers may take.")
@click.option("--for-seconds", default=1e9, help="Start nothing after so long; the next run goes on.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Where matrices and text states are kept for the next run.",
)
@click.option("--again", is_flag=True, help="Measure what was measured already.")
def main(
    models: str, concepts: str, limit: float, for_seconds: float, work: Path | None, again: bool
) -> None:
    """Measure every method on every shape."""
    with ExitStack() as stack:
        place = work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        bench = Bench(place, limit, time.monotonic() + for_seconds)
        for model in models.split(","):
            for count in map(int, concepts.split(",")):
                known = kept_results("erase").get(model, {}).get(str(count), {})
                bench.rows(model, count, known, again)


if __name__ == "__main__":
    main()
