"""Taking an attribute out of text states: two linear maps, with some states held fixed.

Rows are states of the same prompts with different values of the attribute. Both maps are the smallest
change that their criterion allows:

    ridge      min ||A - I||^2 + s mean ||A d||^2 over differences d of two values;  without fixed states
               A = (I + s M)^-1 with M = mean d d^T
    fair_pca   no linear classifier tells the values' groups apart: with group indicators Z, centered, and
               states X, A = U U^T is the projection onto the null space of Z^T X, or onto the directions
               of largest variance within it

Fixed states e keep A e = e. For the ridge that is a constraint: with N the projection onto what is
orthogonal to them, A = I - s K (I + s M')^-1 N, K = mean d (N d)^T, M' = mean (N d)(N d)^T. The
projection is made within N, and what the fixed states span stays. All of it is float64.

Source: Chuang et al., Debiasing Vision-Language Models via Biased Prompts, 2302.00070, eq. (6); Kleindessner
et al., Efficient Fair PCA for Fair Representation Learning, 2302.13319, algorithm 1.
"""

import numpy as np

from ..compiler.text.low_rank import Floats

# Below this share of the largest, a singular value is rounding or the difference of two padding rows.
RANK = 1e-6


def ridge_map(differences: Floats, fixed: Floats, strength: float) -> Floats:
    """Return A [D, D] for differences [n, D] and fixed states [k, D]; `strength` is s."""
    width = differences.shape[1]
    free = outside(fixed, width)
    inside = differences @ free
    cross = strength * differences.T @ inside / len(differences)
    system = np.eye(width) + strength * inside.T @ inside / len(differences)
    return np.eye(width) - np.linalg.solve(system, cross.T).T @ free


def fair_pca_map(states: Floats, groups: Floats, fixed: Floats, keep: int | None = None) -> Floats:
    """Return A [D, D] for states [n, D], group indicators [n, g] and fixed states [k, D].

    `keep` is the number of directions of largest variance that stay, None for all that may.
    """
    free = outside(fixed, states.shape[1])
    inside = states @ free
    centered = groups - groups.mean(axis=0)
    told = span(centered.T @ inside)
    if keep is None:
        return np.eye(states.shape[1]) - told @ told.T
    hidden = inside - (inside @ told) @ told.T
    _, _, directions = np.linalg.svd(hidden, full_matrices=False)
    chosen = directions[:keep].T
    return (np.eye(states.shape[1]) - free) + chosen @ chosen.T


def outside(fixed: Floats, width: int) -> Floats:
    """Return the projection [D, D] onto what is orthogonal to the rows of `fixed` [k, D]."""
    basis = span(fixed) if len(fixed) else np.zeros((width, 0))
    return np.eye(width) - basis @ basis.T


def span(rows: Floats) -> Floats:
    """Return an orthonormal basis [D, r] of what rows [n, D] span."""
    _, values, directions = np.linalg.svd(rows, full_matrices=False)
    rank = int((values > RANK * values[0]).sum()) if values.size and values[0] > 0 else 0
    return directions[:rank].T
