"""Hold the gates' trial: draw from the sealed artefact and from its base, with the same noise.

The base is the source as it was loaded, drawn with the spec's sampler, steps and plain constant
guidance, so that evidence speaks about the whole spec.
"""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.artefact import open_artefact
from ...runtime.prompts import PromptEncoder, TextStates
from ...runtime.sampler import Sampler
from ...runtime.sessions import Placement, Size
from ...specs.manifest import Evidence, Manifest
from ...specs.sampling import SamplingTable
from ...specs.schema import Source, Spec
from ..emit import Job
from ..gates import Images, Trial
from ..ir import Pipeline
from ..plan import Plan
from ..seal import records
from ..text.text_map import TextMap
from . import manifest as manifests

# One batch size for every trial: a result must not depend on how many images were asked for.
BATCH = 8


def hold_trial(plan: Plan, folder: Path, cache: Path, report: Any) -> list[Evidence]:
    """Run every gate of the spec on the artefact in `folder`, and write the raw results there."""
    advance = report.task("draw images for the gates", plan.images())
    rows: dict[str, list[dict[str, Any]]] = {}
    with drawer(folder) as edited, base_drawer(plan, cache) as base:
        trial = Trial(
            edited,
            # The artefact's graphs may be fixed to a size that is not the model's own.
            replace(base, size=edited.sampler.own_size),
            plan.erased,
            rows.__setitem__,
            advance,
            folder,
            plan.source,
            plan.pipeline.graph_edits,
            plan.balanced,
        )
        found = [evidence for gate in plan.spec.gates for evidence in gate.decide(trial)]
    # Not before all have decided: a gate that opens the artefact would find files that nobody sealed.
    _write_rows(rows, folder)
    return found


@dataclass(frozen=True)
class Drawer:
    """Draws whole batches from an opened artefact, one a core at a time: a `Draw`.

    `size` is that of the images in pixels, where it is not the artefact's own. Sessions are single-threaded
    and batches of one size, so an image does not depend on the machine.
    """

    sampler: Sampler
    pool: ThreadPoolExecutor
    size: Size | None = None

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        parts = [slice(start, start + BATCH) for start in range(0, len(prompts), BATCH)]
        return np.concatenate(list(self.pool.map(lambda part: self._draw(prompts[part], seeds[part]), parts)))

    def _draw(self, prompts: Sequence[str], seeds: Sequence[int]) -> Images:
        return self.sampler.draw(prompts, seeds, size=self.size)

    def through(self, text_map: TextMap) -> "Drawer":
        """Return a drawer that maps the text states first.

        That is what a closed-form edit of the text path does to weights, W (A c) = (W A) c, without
        writing one: an edit that is looked for in rounds is drawn from one set of files.
        """
        return replace(self, sampler=replace(self.sampler, prompts=Mapped(self.sampler.prompts, text_map)))


class Mapped(PromptEncoder):
    """A prompt encoder whose text states are mapped."""

    def __init__(self, encoder: PromptEncoder, text_map: TextMap) -> None:
        super().__init__(encoder.encoders)
        self._whole = encoder
        self._maps = {kind: np.asarray(part.read(), np.float64).T for kind, part in text_map.parts.items()}

    def encode(self, prompts: Sequence[str]) -> TextStates:
        states = self._whole.encode(prompts)
        sequence = (states.sequence @ self._maps["sequence"]).astype(np.float32)
        if states.pooled is None or "pooled" not in self._maps:
            return TextStates(sequence, states.pooled)
        return TextStates(sequence, (states.pooled @ self._maps["pooled"]).astype(np.float32))


@contextmanager
def drawer(folder: Path, constant_guidance: float | None = None) -> Iterator[Drawer]:
    """Give what draws from an artefact, verified once.

    `constant_guidance` puts one weight in place of the artefact's table, baked or not, to compare with.
    """
    sampler = Sampler.open(open_artefact(folder), Placement(threads=1))
    if constant_guidance is not None:
        sampler = replace(sampler, table=with_constant_guidance(sampler.table, constant_guidance))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield Drawer(sampler, pool)


def with_constant_guidance(table: SamplingTable, weight: float) -> SamplingTable:
    """Return a table that guides every step with the same weight."""
    steps = [step.model_copy(update={"guidance_weight": weight}) for step in table.steps]
    return table.model_copy(update={"steps": steps})


@contextmanager
def base_drawer(plan: Plan, cache: Path) -> Iterator[Drawer]:
    """Give what draws from the source of a plan, without any edit."""
    with pipeline_drawer(plan.source, cache) as draw:
        yield draw


@contextmanager
def pipeline_drawer(pipeline: Pipeline, cache: Path) -> Iterator[Drawer]:
    """Give what draws from a pipeline, edits included, emitted into a folder that is gone afterwards.

    Captured graphs come from `cache`. Disk: the pipeline in float32.
    """
    with tempfile.TemporaryDirectory(prefix="retouch-trial-") as name:
        write_trial(pipeline, Path(name), cache)
        with drawer(Path(name)) as draw:
            yield draw


def write_trial(pipeline: Pipeline, folder: Path, cache: Path) -> Manifest:
    """Emit a pipeline into an existing empty folder as an artefact that the runtime opens."""
    from ..emit.onnx import Onnx

    Onnx(parity=False).emit(pipeline, folder, Job(pipeline, (), lambda *_: None, cache))
    (folder / "spec").mkdir()
    for name in ("edit.yaml", "edit.lock"):
        (folder / "spec" / name).write_bytes(b"")
    spec = Spec(schema=1, name="trial", version="0", source=Source("trial"), edits=(), emit=(), gates=())
    manifest = manifests.assemble(spec, pipeline, (), (), (), (), (), records(folder))
    manifests.write(manifest, folder)
    return manifest


def _write_rows(recorded: Mapping[str, Sequence[Mapping[str, Any]]], folder: Path) -> None:
    """Write what gates recorded, a file each; without any there is no folder, which would not verify."""
    for name, rows in recorded.items():
        (folder / "evidence").mkdir(exist_ok=True)
        lines = "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        (folder / "evidence" / f"{name}.jsonl").write_text(lines)
