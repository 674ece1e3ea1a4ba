"""One measurement of `erase.py` in a process of its own; writes it to FOLDER/row.json.

python -m benchmarks._erase_child WHAT MODEL CONCEPTS FOLDER LIMIT

encoding    the text states of an erasure with its default settings, counted as well as timed; kept
published   UCE's loop over layers, on rows of these states; stops after LIMIT seconds
vectorized  the same with each sum as one product
same_rows   our solution of the same rows, in the same matrices
as_used     the whole pass with its default settings, and its evidence apart
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks._encoding_cost import arithmetic, by_encoder, noted
from benchmarks._measured import UNIT

# What stays besides, by name, in every method.
PRESERVED = 100
# Concepts are the first nouns of the list, what is preserved comes behind the longest row of them.
MOST = 1000
READS_TEXT = ".attn2.to_"
LAM = 0.5  # of UCE's code

Floats = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Case:
    """A published model's name, a number of concepts, where their files are, and seconds for a loop."""

    model: str
    count: int
    folder: Path
    limit: float

    @property
    def matrices(self) -> Path:
        """The file with the model's matrices, which every number of concepts shares."""
        return self.folder.parent / "matrices.safetensors"


@dataclass
class Timer:
    """Seconds by the clock and of the processor, summed over what runs inside it."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    _started: list[tuple[float, float]] = field(default_factory=list)

    def __enter__(self) -> "Timer":
        self._started.append((time.monotonic(), time.process_time()))
        return self

    def __exit__(self, *_: object) -> None:
        clock, cpu = self._started.pop()
        self.seconds += time.monotonic() - clock
        self.cpu_seconds += time.process_time() - cpu

    @property
    def passed(self) -> float:
        """Seconds of the processor since it was entered."""
        return time.process_time() - self._started[-1][1]

    def row(self, **more: Any) -> dict[str, Any]:
        """Return what was measured, with the most memory that the process held until now."""
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
        return {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "peak_bytes": peak, **more}


@dataclass(frozen=True)
class Rows:
    """Rows of a task [N, D]: concepts, their guides, and what is preserved."""

    concepts: Floats
    guides: Floats
    preserved: Floats

    @classmethod
    def read(cls, folder: Path) -> "Rows":
        with np.load(folder / "rows.npz") as arrays:
            return cls(arrays["concepts"], arrays["guides"], arrays["preserved"])

    def solution(self, weight: Floats) -> Floats:
        """Return W' of one layer in float64: the equation, with each sum as one product."""
        states, wanted = (np.concatenate([rows, self.preserved]) for rows in (self.concepts, self.guides))
        left = LAM * weight + (weight @ wanted.T) @ states
        return np.linalg.solve(LAM * np.eye(len(states.T)) + states.T @ states, left.T).T


def error(found: Floats, weight: Floats, rows: Rows) -> float:
    """Return ||W' - solution|| / ||solution - W||, for one layer."""
    weight = weight.astype(np.float64)
    wanted = rows.solution(weight)
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted - weight))


# ---------------------------------------------------------------------------------------------------
# What is measured


def encoding(case: Case) -> dict[str, Any]:
    """Encode every prompt of an erasure; keep the rows that all methods share."""
    from benchmarks._text_path import text_path
    from retouch.compiler.text import encode
    from retouch.passes._erasing import erasing_of
    from retouch.passes._text_states import Mention

    pipeline, edit = text_path(case.model, case.matrices), edit_of(case.count)
    runs: list[tuple[Any, ...]] = []
    encode.run_text_encoder = noted(encode.run_text_encoder, runs)
    with Timer() as timer:
        states = erasing_of(edit, pipeline).states
    row = timer.row(encoders=[arithmetic(some) for some in by_encoder(runs)])
    plain = [(Mention("{}", one.name), edit.guides[one.name]) for one in edit.concepts]
    moved = [states.moved("sequence", mention, guide) for mention, guide in plain]
    kept = [states.kept("sequence", Mention("{}", text))[0] for text in edit.preserve]
    concepts, guides = (np.stack([pair[side][0] for pair in moved]) for side in (0, 1))
    np.savez(case.folder / "rows.npz", concepts=concepts, guides=guides, preserved=np.stack(kept))
    return row


def published(case: Case) -> dict[str, Any]:
    """Run the published loop, or as much of it as fits the limit."""
    from benchmarks._published_erasure import one_state_at_a_time

    return layer_by_layer(one_state_at_a_time, case)


def vectorized(case: Case) -> dict[str, Any]:
    """Run the loop over layers with each sum as one product."""
    from benchmarks._published_erasure import one_product_a_sum

    return layer_by_layer(one_product_a_sum, case)


def layer_by_layer(method: Callable[..., Any], case: Case) -> dict[str, Any]:
    """Time a loop over layers: read, solve, write, in float32; values are written as they were read."""
    import torch
    from safetensors.torch import load_file, save_file

    from benchmarks._published_erasure import Task

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    rows, edited = Rows.read(case.folder), {}
    with Timer() as timer:
        found = {name: one for name, one in load_file(case.matrices).items() if READS_TEXT in name}
        weights = {name: one.float() for name, one in found.items()}
        states, wanted = (
            torch.from_numpy(np.concatenate([some, rows.preserved])).float()
            for some in (rows.concepts, rows.guides)
        )
        task = Task(states, wanted)
        values = task.values(list(weights.values()))
        for (name, weight), some in zip(weights.items(), values, strict=True):
            if timer.passed > case.limit:
                break
            edited[name] = method(weight, task, some)
        halves = {name: one.to(found[name].dtype) for name, one in edited.items()}
        save_file(halves, case.folder / "edited.safetensors")
    row = timer.row(layers=len(edited), of=len(weights))
    first = next(iter(edited))
    return row | {"error": error(edited[first].numpy(), weights[first].numpy(), rows)}


def same_rows(case: Case) -> dict[str, Any]:
    """Solve once for all layers, then read, edit and write each."""
    from benchmarks._text_path import text_path
    from retouch.compiler.ir import changed_tensors
    from retouch.compiler.text.low_rank import LazyMap
    from retouch.compiler.text.text_map import TextMap, with_text_map
    from retouch.passes._closed_form import Moments

    pipeline, rows = text_path(case.model, case.matrices, encoders=False), Rows.read(case.folder)

    def solve() -> Any:
        moments = Moments(rows.concepts.shape[1])
        moments.move(rows.concepts, rows.guides, 1.0)
        moments.keep(rows.preserved, 1.0)
        return moments.solve(LAM)

    with Timer() as timer:
        solved = LazyMap(solve, rows.concepts.shape[1])
        after = with_text_map(pipeline, TextMap(solved), "fused", "benchmark")
        names = changed_tensors(pipeline, after)
        with (case.folder / "edited.safetensors").open("wb") as target:
            for name in names:
                target.write(after.tensors[name].read().data)
    row = timer.row(layers=len(names), of=len(names))
    weight = pipeline.tensors[names[0]].read().astype(np.float32)
    return row | {"error": error(solved.change.edit(weight), weight, rows)}


def as_used(case: Case) -> dict[str, Any]:
    """Run the pass on states that are kept: find neighbors, solve, write; then what its evidence takes."""
    from benchmarks._text_path import text_path
    from retouch.compiler.ir import changed_tensors
    from retouch.compiler.text import encode
    from retouch.passes._erasing import erasing_of

    pipeline, edit = text_path(case.model, case.matrices), edit_of(case.count)
    encode.run_text_encoder = refuse
    timer, judging = Timer(), Timer()
    with timer:
        after = edit.run(pipeline)
        names = changed_tensors(pipeline, after)
    with judging:
        observers = list(edit.observers(pipeline, after))
    with (case.folder / "edited.safetensors").open("wb") as target:
        for name in names:
            with timer:
                written = after.tensors[name].read()
                target.write(written.data)
            with judging:
                for observer in observers:
                    if name in observer.names:
                        observer.add(observer.see(name, pipeline.tensors[name].read(), written))
    with judging:
        claims = [claim for observer in observers for claim in observer.evidence()]
        claims += edit.statements(pipeline, after)
    moved = sum(len(one.rows) for one in erasing_of(edit, pipeline).moved("sequence"))
    kept = sum(len(rows) for rows, _ in erasing_of(edit, pipeline).kept("sequence"))
    evidence = {"evidence_seconds": judging.seconds, "evidence_cpu_seconds": judging.cpu_seconds}
    return timer.row(layers=len(names), rows=moved + kept, claims=len(claims), **evidence)


# ---------------------------------------------------------------------------------------------------
# What they are made of


def edit_of(count: int) -> Any:
    """Return an erasure of so many nouns with its default settings, and some others preserved by name."""
    from retouch.passes._nouns import load_nouns, with_article
    from retouch.passes.erase_concepts import Concept, EraseConcepts

    nouns = load_nouns()
    named = [with_article(word) for word in nouns.words]
    # What others are led towards stays.
    guides = {nouns.super_category(word) for word in nouns.words}
    free = [text for text in named if text not in guides][: MOST + PRESERVED]
    return EraseConcepts(tuple(map(Concept, free[:count])), tuple(free[MOST:]))


def refuse(*_: Any) -> None:
    """Stand in for the text encoder where everything should be kept already."""
    raise RuntimeError("a prompt was not kept: measure `encoding` first, with the same cache")


WHAT: dict[str, Callable[[Case], dict[str, Any]]] = {
    "encoding": encoding,
    "published": published,
    "vectorized": vectorized,
    "same_rows": same_rows,
    "as_used": as_used,
}


def main(arguments: Sequence[str]) -> None:
    """Measure what the command line asks for."""
    what, model, count, folder, limit = arguments
    case = Case(model, int(count), Path(folder), float(limit))
    (case.folder / "row.json").write_text(json.dumps(WHAT[what](case)))


if __name__ == "__main__":
    main(sys.argv[1:])
