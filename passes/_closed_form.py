"""The one linear map that a closed-form edit of the text path is.

UCE's published solution for one key or value matrix W is

    W' = (lam W + sum v c^T + sum W p p^T) (lam I + sum c c^T + sum p p^T)^-1,   v = W g

with erased text states c, their guides g and preserved states p. W is a common factor, so W' = W A for
every layer, with one [D, D] matrix A of text states alone. With the difference A - I in front,

    A = I + (sum w (g - c) c^T) (lam I + sum w c c^T + sum w p p^T)^-1

which is exactly I where guides equal concepts. All of it is float64.

Source: Gandikota et al., Unified Concept Editing in Diffusion Models, 2308.14761, eq. (7).
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass
class Moments:
    """The sums over text states that the solution is made of; prompts come and go one at a time."""

    width: int
    rows: int = 0
    squares: float = 0.0
    second: Floats = field(init=False)
    moved: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.second = np.zeros((self.width, self.width))
        self.moved = np.zeros((self.width, self.width))

    def move(self, states: Floats, guides: Floats, weight: float) -> None:
        """Ask that each row of `states` [N, D] becomes the same row of `guides`."""
        self.keep(states, weight)
        self.moved += weight * (guides - states).T @ states

    def keep(self, states: Floats, weight: float) -> None:
        """Ask that each row of `states` [N, D] stays."""
        self.second += weight * states.T @ states
        self.rows += len(states)
        self.squares += float(np.sum(states * states))

    @property
    def mean_square(self) -> float:
        """Mean squared norm of the text states seen, of which the ridge is a fraction."""
        return self.squares / max(self.rows, 1)

    def solve(self, ridge: float) -> Floats:
        """Return A [D, D]; `ridge` is lam as a fraction of the mean squared norm of the text states.

        Raises:
            numpy.linalg.LinAlgError: the ridge is too small to make the system definite.
        """
        system = self.second + ridge * self.mean_square * np.eye(self.width)
        factor = np.linalg.cholesky(system)
        half = np.linalg.solve(factor, self.moved.T)
        return np.eye(self.width) + np.linalg.solve(factor.T, half).T


@dataclass
class Grams:
    """Sums over all rewritten matrices, enough to say how far any text state moved in their outputs.

    With W as found and V as written, ||V a - W b||^2 summed over the matrices is
    a^T VV a - 2 a^T VW b + b^T WW b: three [D, D] sums, whatever the number of prompts.
    """

    width: int
    found: Floats = field(init=False)
    written: Floats = field(init=False)
    cross: Floats = field(init=False)

    def __post_init__(self) -> None:
        self.found, self.written, self.cross = (np.zeros((self.width, self.width)) for _ in range(3))

    def add(self, found: Floats, written: Floats) -> None:
        """Add one matrix [out, D], as found and as written."""
        self.found += found.T @ found
        self.written += written.T @ written
        self.cross += written.T @ found

    def distance(self, written: Floats, found: Floats) -> float:
        """Return ||V a - W b|| over all matrices and over the rows a of `written`, b of `found`, [N, D]."""
        square = (
            _quadratic(written, self.written, written)
            - 2 * _quadratic(written, self.cross, found)
            + _quadratic(found, self.found, found)
        )
        # Rounding can leave a tiny negative sum where the two are equal.
        return float(np.sqrt(max(square, 0.0)))

    def before(self, one: Floats, other: Floats | float = 0.0) -> float:
        """Return ||W (a - b)|| over all matrices as found, and over the rows, [N, D]."""
        gap = one - other
        return float(np.sqrt(max(_quadratic(gap, self.found, gap), 0.0)))


def _quadratic(left: Floats, middle: Floats, right: Floats) -> float:
    return float(np.sum((left @ middle) * right))
