"""The maps of a debiasing edit as tensors: solved together, at the first use, once."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ..compiler.ir import Pipeline
from ..compiler.once import Once
from ..compiler.tensors import Array, Edited
from ..compiler.text.low_rank import Floats
from ._balance import Round, Subject


@dataclass(frozen=True)
class Solved:
    """The maps by kind of text state, [D, D] each, and the rounds that led to them."""

    maps: Mapping[str, Floats]
    history: Mapping[Subject, list[Round]]


@dataclass(frozen=True)
class SolvedMap:
    """One map of a solution as a tensor, [D, D]."""

    solution: Once[Solved]
    kind: str
    width: int
    dtype: np.dtype = field(default=np.dtype(np.float64), init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width, self.width)

    def read(self) -> Array:
        return np.ascontiguousarray(self.solution().maps[self.kind])


def solution_of(pipeline: Pipeline, by: str) -> Solved | None:
    """Return what a pass of this name solved for a pipeline, None where its last edit is another's."""
    for tensor in pipeline.tensors.values():
        if isinstance(tensor, Edited) and tensor.by == by:
            for source in tensor.sources:
                if isinstance(source, SolvedMap):
                    return source.solution()
    return None
