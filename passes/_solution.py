"""The maps of a debiasing edit as tensors: solved together, at the first use, once."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ..compiler.ir import Pipeline
from ..compiler.tensors import Array, Edited
from ..compiler.text.low_rank import Floats
from ._balance import Round, Subject


@dataclass(frozen=True)
class Solved:
    """The maps by kind of text state, [D, D] each, and the rounds that led to them."""

    maps: Mapping[str, Floats]
    history: Mapping[Subject, list[Round]]


@dataclass(frozen=True)
class Solution:
    """What the pass computes, at the first use, once: all of its maps come from the same rounds."""

    compute: Callable[[], Solved]
    _kept: list[Solved] = field(default_factory=list, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def solved(self) -> Solved:
        with self._lock:
            if not self._kept:
                self._kept.append(self.compute())
        return self._kept[0]


@dataclass(frozen=True)
class SolvedMap:
    """One map of a solution as a tensor, [D, D]."""

    solution: Solution
    kind: str
    width: int
    dtype: np.dtype = field(default=np.dtype(np.float64), init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width, self.width)

    def read(self) -> Array:
        return np.ascontiguousarray(self.solution.solved().maps[self.kind])


def solution_of(pipeline: Pipeline, by: str) -> Solved | None:
    """Return what a pass of this name solved for a pipeline, None where its last edit is another's."""
    for tensor in pipeline.tensors.values():
        if isinstance(tensor, Edited) and tensor.by == by:
            for source in tensor.sources:
                if isinstance(source, SolvedMap):
                    return source.solution.solved()
    return None
