"""Hold the gates' trial: draw from the sealed artefact and from its base, with the same noise.

The base is the source as it was loaded, drawn with the spec's sampler, steps and plain constant
guidance, so that evidence speaks about the whole spec.
"""

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.artefact import open_artefact
from ..runtime.sampler import Sampler
from ..specs.errors import Fault, SpecError
from ..specs.manifest import Evidence, Manifest
from . import manifest as manifests
from .emit import Job
from .gates import Images, Trial
from .plan import Plan
from .seal import records

# One batch size for every trial: a result must not depend on how many images were asked for.
BATCH = 8


def hold_trial(plan: Plan, folder: Path, cache: Path, report: Any) -> list[Evidence]:
    """Run every gate of the spec on the artefact in `folder`, and write the raw results there.

    Raises:
        SpecError: the spec has gates but emits nothing that can be drawn from.
    """
    if not (folder / "unet" / "model.onnx").is_file():
        hint = "add `- onnx: {}` under `emit`, or remove the gates"
        raise SpecError(Fault("E_GATES", "gates draw images, and no emitted target can draw here", "gates", hint))
    (folder / "evidence").mkdir(exist_ok=True)
    advance = report.task("draw images for the gates", plan.images())
    with drawer(folder) as edited, base_drawer(plan, cache) as base:
        trial = Trial(edited, base, plan.erased, _recorder(folder), advance)
        return [evidence for gate in plan.spec.gates for evidence in gate.decide(trial)]


@contextmanager
def drawer(folder: Path) -> Iterator[Callable[[Sequence[str], Sequence[int]], Images]]:
    """Give a function that draws from an artefact: verified once, one single-threaded sampler a core."""
    artefact = open_artefact(folder)
    workers = max(1, os.cpu_count() or 1)
    samplers = [Sampler(artefact, threads=1, batch_size=BATCH) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
            # Whole batches go to the workers in turn, so the result depends on nothing but the order asked.
            starts = range(0, len(prompts), BATCH)
            shares = [list(starts[index::workers]) for index in range(workers)]

            def work(sampler: Sampler, share: list[int]) -> list[Images]:
                return [sampler.draw(prompts[i : i + BATCH], seeds[i : i + BATCH]) for i in share]

            drawn = list(pool.map(work, samplers, shares))
            ordered = {start: images for share, batch in zip(shares, drawn, strict=True) for start, images in zip(share, batch, strict=True)}
            return np.concatenate([ordered[start] for start in starts])

        yield draw


@contextmanager
def base_drawer(plan: Plan, cache: Path) -> Iterator[Callable[[Sequence[str], Sequence[int]], Images]]:
    """Give a function that draws from the source, emitted unedited into a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="retouch-base-") as name:
        folder = Path(name)
        write_base(plan, folder, cache)
        with drawer(folder) as draw:
            yield draw


def write_base(plan: Plan, folder: Path, cache: Path) -> Manifest:
    """Emit the source pipeline without any edit as an artefact that the runtime can open."""
    from .emit.onnx import Onnx

    emitter = Onnx(parity=False)
    emitter.emit(plan.source, folder, Job(plan.source, (), lambda *_: None, cache))
    (folder / "spec").mkdir()
    (folder / "spec" / "edit.yaml").write_bytes(plan.file.read_bytes())
    (folder / "spec" / "edit.lock").write_bytes(b"")
    manifest = manifests.assemble(plan.spec, plan.source, (), (), (), (), records(folder))
    manifests.write(manifest, folder)
    return manifest


def _recorder(folder: Path) -> Callable[[str, list[dict[str, Any]]], None]:
    def record(name: str, rows: list[dict[str, Any]]) -> None:
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        (folder / "evidence" / f"{name}.jsonl").write_text(lines)

    return record
