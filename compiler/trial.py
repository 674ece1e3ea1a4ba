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
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime.artefact import open_artefact
from ..runtime.sampler import Sampler
from ..runtime.sessions import Placement
from ..specs.errors import Fault, SpecError
from ..specs.manifest import Evidence, Manifest
from ..specs.sampling import SamplingTable
from . import manifest as manifests
from .emit import Job
from .gates import Draw, Images, Trial
from .plan import Plan
from .seal import records

# One batch size for every trial: a result must not depend on how many images were asked for.
BATCH = 8


def hold_trial(plan: Plan, folder: Path, cache: Path, report: Any) -> list[Evidence]:
    """Run every gate of the spec on the artefact in `folder`, and write the raw results there.

    Raises:
        SpecError: the spec has gates but emits nothing that can be drawn from.
    """
    if not (folder / "sampling.json").is_file():
        hint = "add `- onnx: {}` under `emit`, or remove the gates"
        raise SpecError(
            Fault("E_GATES", "gates draw images, and no emitted target can draw here", "gates", hint)
        )
    advance = report.task("draw images for the gates", plan.images())
    with drawer(folder) as edited, base_drawer(plan, cache) as base:
        trial = Trial(edited, base, plan.erased, _recorder(folder), advance)
        return [evidence for gate in plan.spec.gates for evidence in gate.decide(trial)]


@contextmanager
def drawer(folder: Path, constant_guidance: float | None = None) -> Iterator[Draw]:
    """Give a function that draws from an artefact, verified once: whole batches, one a core at a time.

    Sessions are single-threaded and batches of one size, so an image does not depend on the machine.
    `constant_guidance` puts one weight in place of the artefact's table, baked or not, to compare with.
    """
    sampler = Sampler.open(open_artefact(folder), Placement(threads=1))
    if constant_guidance is not None:
        sampler = replace(sampler, table=with_constant_guidance(sampler.table, constant_guidance))
    with ThreadPoolExecutor(os.cpu_count()) as pool:

        def draw(prompts: Sequence[str], seeds: Sequence[int]) -> Images:
            parts = [slice(start, start + BATCH) for start in range(0, len(prompts), BATCH)]
            return np.concatenate(
                list(pool.map(lambda part: sampler.draw(prompts[part], seeds[part]), parts))
            )

        yield draw


def with_constant_guidance(table: SamplingTable, weight: float) -> SamplingTable:
    """Return a table that guides every step with the same weight."""
    steps = [step.model_copy(update={"guidance_weight": weight}) for step in table.steps]
    return table.model_copy(update={"steps": steps})


@contextmanager
def base_drawer(plan: Plan, cache: Path) -> Iterator[Draw]:
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
        # Made with its first file: an artefact with an empty folder would not verify.
        (folder / "evidence").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        (folder / "evidence" / f"{name}.jsonl").write_text(lines)

    return record
