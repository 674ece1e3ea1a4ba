"""What would an adapter change in a model, block by block, and by how much? Reads factors and weights."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..ir import Pipeline
from ..tensors import widen
from .describing import block_name
from .reading import Change


@dataclass(frozen=True)
class Effect:
    """The change of one block at weight 1: ||delta|| and ||W|| over its modules that change."""

    block: str
    modules: int
    change: float
    weight: float

    @property
    def ratio(self) -> float | None:
        """||delta|| / ||W||, None where W is zero."""
        return self.change / self.weight if self.weight else None


def effects(changes: Iterable[Change], pipeline: Pipeline) -> tuple[Effect, ...]:
    """Return the effect of an adapter on every block that it changes, in the order of their names."""
    squares: dict[str, list[tuple[float, float]]] = {}
    for change in changes:
        block = f"{change.place.component}.{block_name(change.place.module)}"
        weight = widen(pipeline.tensors[change.place.target].read())
        squares.setdefault(block, []).append((_square(change.delta()), _square(weight)))
    return tuple(
        Effect(block, len(found), *(float(np.sqrt(sum(column))) for column in zip(*found, strict=True)))
        for block, found in sorted(squares.items())
    )


def _square(array: np.ndarray) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))
