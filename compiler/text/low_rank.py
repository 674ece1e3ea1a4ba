"""A linear map near the identity, I + up down, kept as two narrow factors where that is less work."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tensors import Array

# float64; NumPy types what linear algebra returns no closer.
Floats = NDArray[np.floating[Any]]

# W + (W up) down takes 4 D r operations a row, W A takes 2 D^2. At r = D / 2 they tie; two narrow products
# run slower than a wide one, so factors pay up to half of that.
NARROW = 4


@dataclass(frozen=True)
class Change:
    """A - I of a map A [D, D]: `up` [D, r] times `down` [r, D], or `up` [D, D] alone."""

    up: Floats
    down: Floats | None = None

    @classmethod
    def of(cls, up: Floats, down: Floats) -> "Change":
        """Return `up` times `down`, multiplied out where factors are no less work."""
        return cls(up, down) if is_narrow(up.shape[1], len(up)) else cls(up @ down)

    @property
    def width(self) -> int:
        """D."""
        return len(self.up)

    @property
    def rank(self) -> int:
        """The number of factors; D where there are none."""
        return self.up.shape[1]

    @property
    def dense(self) -> Floats:
        """A - I, [D, D]."""
        return self.up if self.down is None else self.up @ self.down

    @property
    def matrix(self) -> Floats:
        """A, [D, D]."""
        return np.eye(self.width) + self.dense

    def after(self, first: "Change") -> "Change":
        """Return the change of the map that applies `self` and then `first`: (I + first) (I + self) - I.

        In weights that is first's edit followed by ours: (W A1) A2.
        """
        if first.down is None or self.down is None:
            return Change(first.dense + self.dense + first.dense @ self.dense)
        ours = self.up + first.up @ (first.down @ self.up)
        return Change.of(np.hstack([first.up, ours]), np.vstack([first.down, self.down]))

    def edit(self, weight: NDArray[Any]) -> NDArray[Any]:
        """Return W A for W [out, D], in the type of `weight`: the change is summed in it, not A."""
        up = self.up.astype(weight.dtype, copy=False)
        moved = weight @ up
        if self.down is not None:
            moved = moved @ self.down.astype(weight.dtype, copy=False)
        moved += weight
        return moved

    def singular_values(self) -> Floats:
        """Return the singular values of A that may differ from 1, largest first.

        Outside the span of up and down's rows A is the identity, so 2 r values say all.
        """
        if self.down is None or 2 * self.rank >= self.width:
            return np.linalg.svd(self.matrix, compute_uv=False)
        basis, _ = np.linalg.qr(np.hstack([self.up, self.down.T]))
        inner = np.eye(basis.shape[1]) + (basis.T @ self.up) @ (self.down @ basis)
        return np.linalg.svd(inner, compute_uv=False)

    @property
    def condition(self) -> float:
        """Condition number of A."""
        values = self.singular_values()
        rest = (1.0,) if len(values) < self.width else ()
        return float(max([*values, *rest]) / min([*values, *rest]))

    @property
    def size(self) -> float:
        """||A - I|| / sqrt(D)."""
        if self.down is None:
            return float(np.linalg.norm(self.up) / np.sqrt(self.width))
        square = np.sum((self.up.T @ self.up) * (self.down @ self.down.T))
        return float(np.sqrt(max(square, 0.0) / self.width))


def is_narrow(rank: int, width: int) -> bool:
    """Say whether factors of this rank are less work than the whole matrix."""
    return rank * NARROW < width


@dataclass(frozen=True)
class LazyMap:
    """The tensor A [D, D] of a `Change` that is computed at the first use, and then kept."""

    compute: Callable[[], Change]
    width: int
    dtype: np.dtype = field(default=np.dtype(np.float64), init=False)
    _kept: list[Change] = field(default_factory=list, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.width, self.width)

    @property
    def change(self) -> Change:
        """A - I, solved once."""
        with self._lock:
            if not self._kept:
                self._kept.append(self.compute())
        return self._kept[0]

    def for_layer(self, weight: NDArray[Any]) -> Change:
        """Return A - I, the same for every layer."""
        del weight
        return self.change

    def read(self) -> Array:
        return self.change.matrix


@dataclass(frozen=True)
class Edit:
    """The rule W -> W A of a tensor, in the columns that read text."""

    change_of: Callable[[NDArray[Any]], Change]
    columns: slice

    def __call__(self, weight: Array) -> Array:
        if self.columns.indices(weight.shape[1]) == (0, weight.shape[1], 1):
            return self.change_of(weight).edit(weight)
        found: NDArray[Any] = np.array(weight)
        found[:, self.columns] = self.change_of(found[:, self.columns]).edit(found[:, self.columns])
        return found
