"""The linear maps that closed-form edits of the text path are: joint least squares, null space, adversary.

UCE's published solution for one key or value matrix W is

    W' = (lam W + sum v c^T + sum W p p^T) (lam I + sum c c^T + sum p p^T)^-1,   v = W g

with erased text states c, their guides g and preserved states p. W is a common factor, so W' = W A for
every layer, with one [D, D] matrix A of text states alone. With the difference A - I in front,

    A = I + (sum w (g - c) c^T) (lam I + sum w c c^T + sum w p p^T)^-1

which is exactly I where guides equal concepts. SPEED's solution leaves a set of states exactly where it
is; which ones depends on W, so each layer has a map of its own. RECE looks for the states that still
reach an erased concept's outputs; they need no layer but sum W^T W. All of it is float64.

Source: Gandikota et al., Unified Concept Editing in Diffusion Models, 2308.14761, eq. (7); Li et al.,
SPEED, 2503.07392; Gong et al., Reliable and Efficient Concept Erasure (RECE), 2407.12383.
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiler.text.low_rank import Change, Floats, is_narrow

# Rows are summed so many at a time: one product a prompt would read the [D, D] sums again and again.
ROWS = 1024
# Below this share of the largest, an eigenvalue of a constraint is rounding.
ROUNDING = 1e-10


@dataclass
class Moments:
    """The sums over text states that the linear solution is made of; prompts come and go one at a time."""

    width: int
    rows: int = 0
    squares: float = 0.0
    second: Floats = field(init=False)
    _waiting: list[Floats] = field(default_factory=list, init=False)
    _moved: list[tuple[Floats, Floats]] = field(default_factory=list, init=False)
    _folded: Floats | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.second = np.zeros((self.width, self.width))

    def move(self, states: Floats, guides: Floats, weight: float) -> None:
        """Ask that each row of `states` [N, D] becomes the same row of `guides`."""
        self.keep(states, weight)
        root = np.sqrt(weight)
        self._moved.append((root * states, root * (guides - states)))
        if not is_narrow(self._count, self.width) and self._count >= ROWS:
            self._fold()

    def keep(self, states: Floats, weight: float) -> None:
        """Ask that each row of `states` [N, D] stays."""
        self._waiting.append(np.sqrt(weight) * states)
        self.rows += len(states)
        self.squares += float(np.sum(states * states))
        if sum(map(len, self._waiting)) >= ROWS:
            self._sum()

    def copy(self) -> "Moments":
        """Return the same sums, to go on with apart."""
        self._sum()
        twin = Moments(self.width, self.rows, self.squares)
        twin.second, twin._moved, twin._folded = self.second.copy(), list(self._moved), self._folded
        return twin

    @property
    def mean_square(self) -> float:
        """Mean squared norm of the text states seen, the scale of a ridge."""
        return self.squares / max(self.rows, 1)

    def solve(self, ridge: float) -> Change:
        """Return A - I; `ridge` is lam.

        Raises:
            numpy.linalg.LinAlgError: the system is singular, which a positive ridge prevents.
        """
        self._sum()
        system = self.second + ridge * np.eye(self.width)
        if self._folded is None and self._moved and is_narrow(self._count, self.width):
            states, gaps = (np.concatenate(part) for part in zip(*self._moved, strict=True))
            return Change(gaps.T, np.linalg.solve(system, states.T).T)
        return Change(np.linalg.solve(system, self._fold().T).T)

    @property
    def _count(self) -> int:
        return sum(len(states) for states, _ in self._moved)

    def _sum(self) -> None:
        if self._waiting:
            rows = np.concatenate(self._waiting)
            self.second = self.second + rows.T @ rows
            self._waiting.clear()

    def _fold(self) -> Floats:
        """Multiply the moved rows out: from here on the solution is a whole matrix."""
        folded = np.zeros((self.width, self.width)) if self._folded is None else self._folded
        if self._moved:
            states, gaps = (np.concatenate(part) for part in zip(*self._moved, strict=True))
            folded = folded + gaps.T @ states
            self._moved.clear()
        self._folded = folded
        return folded


@dataclass(frozen=True)
class NullSpace:
    """What a layer's null-space solution is made of, the same for all layers.

    `states` and `gaps` [r, D] give T = states^T states = mean c c^T and gaps^T states = mean (g - c) c^T.
    `retained` [m, D] stay exactly where the filter keeps them, `fixed` [k, D] whatever it does.
    """

    states: Floats
    gaps: Floats
    retained: Floats
    fixed: Floats
    threshold: float
    ridge: float
    filtered: bool = True

    @classmethod
    def of(
        cls,
        concepts: Floats,
        guides: Floats,
        weights: Floats,
        retained: Floats,
        fixed: Floats,
        threshold: float,
        ridge: float,
        filtered: bool = True,
    ) -> "NullSpace":
        """Return what belongs to rows [N, D] that are moved to `guides`.

        Args:
            weights: [N], one a row, which sum to 1; all equal in the publication.
            threshold: eigenvalues of mean r r^T from here on span what is retained.
            ridge: rho, the weight of ||Delta||^2.
            filtered: retain only those that a free solution would move more than the average.
        """
        roots = np.sqrt(weights)[:, None]
        states, gaps = roots * concepts, roots * (guides - concepts)
        if len(states) > states.shape[1]:
            basis, states = np.linalg.qr(states)
            gaps = basis.T @ gaps
        return cls(states, gaps, retained, fixed, threshold, ridge, filtered)

    def solve(self, weight: NDArray[Any]) -> Change:
        """Return A - I of the layer W [out, D] = `weight`."""
        return self._solved(self.retained[self.influenced(weight)]) if self.filtered else self._unfiltered

    @cached_property
    def _unfiltered(self) -> Change:
        """A - I of every layer, where all retain the same."""
        return self._solved(self.retained)

    def _solved(self, retained: Floats) -> Change:
        occupied = _principal(retained, self.threshold)
        states = self.states - (self.states @ occupied) @ occupied.T
        fixed = self.fixed - (self.fixed @ occupied) @ occupied.T
        # S C P = C P M and K2^T P M, with M = (C^T C P + rho I)^-1 by Woodbury's identity.
        inner = states @ self.states.T + self.ridge * np.eye(len(states))
        down = np.linalg.solve(inner, states)
        held = (fixed - (fixed @ self.states.T) @ down) / self.ridge
        gram = held @ self.fixed.T
        excess = np.linalg.pinv((gram + gram.T) / 2, rcond=ROUNDING, hermitian=True) @ held
        return Change.of(self.gaps.T, down - (down @ self.fixed.T) @ excess)

    def influenced(self, weight: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which retained states the layer's free solution moves more than the average, [m]."""
        if not len(self.retained):
            return np.ones(0, bool)
        # (B - T) (I + T)^-1 = gaps^T (I + C C^T)^-1 C
        inner = np.eye(len(self.states)) + self.states @ self.states.T
        parts = np.linalg.solve(inner, self.states @ self.retained.T)
        norms = np.linalg.norm((weight.astype(np.float64) @ self.gaps.T) @ parts, axis=0)
        return np.asarray(norms > norms.mean())


def _principal(rows: Floats, threshold: float) -> Floats:
    """Return eigenvectors [D, k] of mean r r^T whose eigenvalues are at least `threshold`."""
    if not len(rows):
        return np.zeros((rows.shape[1], 0))
    scaled = rows / np.sqrt(len(rows))
    if len(rows) >= rows.shape[1]:
        values, vectors = np.linalg.eigh(scaled.T @ scaled)
        return vectors[:, values >= threshold]
    values, vectors = np.linalg.eigh(scaled @ scaled.T)
    chosen = values >= max(threshold, ROUNDING * values[-1])
    return scaled.T @ (vectors[:, chosen] / np.sqrt(values[chosen]))


def independent(rows: Floats, share: float = 1e-6) -> Floats:
    """Return orthonormal rows that span `rows` [N, D] but for `share` of their largest direction."""
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    return directions[values > share * values[0]]


@dataclass(frozen=True)
class Products:
    """What one matrix adds to `Grams`: W^T W, W^T E, E^T E and ||W||^2."""

    found: NDArray[Any]
    cross: NDArray[Any]
    change: NDArray[Any]
    square: float


@dataclass
class Grams:
    """Sums over all rewritten matrices, enough to say how far any text state moved in their outputs.

    With W as found, V as written and E = V - W, ||V a - W b||^2 summed over the matrices is
    (a - b)^T WW (a - b) + 2 (a - b)^T WE a + a^T EE a: three [D, D] sums, whatever the number of prompts,
    and nothing cancels where V is close to W.

    With a `basis` [k, D] of orthonormal rows all sums are [k, k] and say the same of text states in its span,
    which are then given by their `coordinates`.
    """

    width: int
    basis: Floats | None = None
    found: Floats = field(init=False)
    cross: Floats = field(init=False)
    change: Floats = field(init=False)
    square: float = field(default=0.0, init=False)  # ||W||^2 over all matrices as found
    _cast: NDArray[Any] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        size = self.width if self.basis is None else len(self.basis)
        self.found, self.cross, self.change = (np.zeros((size, size)) for _ in range(3))

    @classmethod
    def of(cls, found: Floats, change: Change) -> "Grams":
        """Return the sums for one map, V = W A, from sum W^T W alone."""
        grams = cls(len(found))
        grams.found, grams.cross, grams.square = found, found @ change.dense, float(np.trace(found))
        grams.change = change.dense.T @ grams.cross
        return grams

    def of_matrix(self, found: NDArray[Any], written: NDArray[Any]) -> "Products":
        """Return what one matrix [out, D], as found and as written, adds; products are taken in its type."""
        square = float(np.einsum("ij,ij->i", found, found).sum(dtype=np.float64))
        change = written - found
        if self.basis is not None:
            basis = self._columns(found.dtype)
            found, change = found @ basis, change @ basis
        return Products(found.T @ found, found.T @ change, change.T @ change, square)

    def _columns(self, dtype: np.dtype) -> NDArray[Any]:
        """Return the basis as columns [D, k]: as many bytes as a matrix has, so they are cast once."""
        assert self.basis is not None
        if self._cast is None or self._cast.dtype != dtype:
            self._cast = np.ascontiguousarray(self.basis.T, dtype)
        return self._cast

    def add(self, products: "Products") -> None:
        """Add one matrix."""
        self.found += products.found
        self.cross += products.cross
        self.change += products.change
        self.square += products.square

    def coordinates(self, states: Floats) -> Floats:
        """Return what stands for text states [N, D]: [N, k], or the states where there is no basis."""
        return states if self.basis is None else states @ self.basis.T

    def squares(self, written: Floats, found: Floats) -> Floats:
        """Return ||V a - W b||^2 over all matrices for each row a of `written`, b of `found`; [N]."""
        gap = written - found
        square = _quadratic(written, self.change, written)
        # Of what is kept there is no gap, and two products of three are spared.
        if gap.any():
            square += _quadratic(gap, self.found, gap) + 2 * _quadratic(gap, self.cross, written)
        # Rounding can leave a tiny negative sum where the two are equal.
        return np.maximum(square, 0.0)

    def squares_before(self, rows: Floats) -> Floats:
        """Return ||W a||^2 over all matrices as found for each row a of `rows`; [N]."""
        return np.maximum(_quadratic(rows, self.found, rows), 0.0)

    def through(self, found: Floats, written: Floats) -> "Grams":
        """Return the sums for W F and V A: `found` F stood before the matrices, `written` A does now."""
        step = written - found
        grams = Grams(self.width)
        grams.found = found.T @ self.found @ found
        grams.square = float(np.trace(grams.found))
        grams.cross = found.T @ (self.found @ step + self.cross @ written)
        mixed = step.T @ self.cross @ written
        grams.change = step.T @ self.found @ step + mixed + mixed.T + written.T @ self.change @ written
        return grams

    @property
    def written(self) -> Floats:
        """sum V^T V."""
        return self.found + self.cross + self.cross.T + self.change

    def adversary(self, ridge: float) -> Floats:
        """Return Q [D, D]: Q c comes closest to the outputs of c before the edit, at a small norm.

        min over c' of sum ||V c' - W c||^2 + reg ||c'||^2; `ridge` is reg as a fraction of the mean
        eigenvalue of sum W^T W. With a basis c' is looked for in its span.
        """
        regular = ridge * self.square / self.width * np.eye(len(self.found))
        return np.linalg.solve(self.written + regular, self.found + self.cross.T)


def _quadratic(left: Floats, middle: Floats, right: Floats) -> Floats:
    """Return l^T M r for each row l of `left`, r of `right`."""
    return np.sum((left @ middle) * right, axis=1)
