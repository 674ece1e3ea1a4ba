"""Intervals and diversity: how sure a count is, and how varied a set of images is."""

from math import exp, isfinite, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]


def wilson(successes: int, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the Wilson score interval of a proportion, in 0..1; of nothing counted, all of it.

    Source: Wilson, JASA 22 (1927), 209; Newcombe, Statistics in Medicine 17 (1998), 857, method 3.
    """
    if not 0 <= successes <= count:
        raise ValueError(f"{successes} successes in {count}")
    if count == 0:
        return 0.0, 1.0
    z2 = _z(confidence) ** 2
    p, q = successes / count, 1 - successes / count
    middle = 2 * successes + z2
    spread = _z(confidence) * sqrt(z2 + 4 * count * p * q)
    below, above = (middle - spread) / (2 * (count + z2)), (middle + spread) / (2 * (count + z2))
    return (0.0 if successes == 0 else below), (1.0 if successes == count else above)


def paired_difference(
    both: int, only_first: int, only_second: int, neither: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Return the interval of p1 - p2 for two proportions counted on the same pairs, in -1..1.

    Source: Newcombe, Statistics in Medicine 17 (1998), 2635, method 10.
    """
    count = both + only_first + only_second + neither
    if count == 0:
        return -1.0, 1.0
    first, second = both + only_first, both + only_second
    p1, p2 = first / count, second / count
    (low1, high1), (low2, high2) = wilson(first, count, confidence), wilson(second, count, confidence)
    phi = _phi(both, only_first, only_second, neither)
    below = sqrt((p1 - low1) ** 2 - 2 * phi * (p1 - low1) * (high2 - p2) + (high2 - p2) ** 2)
    above = sqrt((p2 - low2) ** 2 - 2 * phi * (p2 - low2) * (high1 - p1) + (high1 - p1) ** 2)
    return p1 - p2 - below, p1 - p2 + above


def _phi(a: int, b: int, c: int, d: int) -> float:
    """Correlation of the pairs, with Newcombe's continuity correction where it is positive."""
    margins = (a + b) * (c + d) * (a + c) * (b + d)
    if margins == 0:
        return 0.0
    excess = a * d - b * c
    corrected = max(excess - (a + b + c + d) / 2, 0.0) if excess > 0 else excess
    return corrected / sqrt(margins)


def vendi_score(features: Floats) -> float:
    """Return the effective number of different images, 1 to N, of features [N, F] by cosine.

    Source: Friedman and Dieng, 2210.02410, definition 3.1.
    """
    unit = _unit_rows(features)
    return vendi_of_kernel(unit @ unit.T)


def vendi_of_kernel(kernel: Floats) -> float:
    """Return the Vendi score of a similarity matrix [N, N] whose diagonal is 1."""
    shares = np.linalg.eigvalsh(np.asarray(kernel, np.float64) / len(kernel))
    shares = shares[shares > 1e-12]
    return exp(float(-(shares * np.log(shares)).sum()))


def mean_pairwise_distance(features: Floats) -> float:
    """Return the mean cosine distance of all pairs of rows of features [N, F], in 0..2."""
    if len(features) < 2:
        raise ValueError(f"{len(features)} images, expected two or more")
    unit = _unit_rows(features)
    cosines = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return float(1 - cosines.mean())


def decimal(value: float, digits: int = 6) -> str:
    """Write a number as evidence holds it: a decimal string of so many significant digits.

    Raises:
        ValueError: the number is not finite; evidence cannot be.
    """
    if not isfinite(value):
        raise ValueError(f"{value} is not a measurement")
    rounded = float(f"{value:.{digits}g}")
    return repr(rounded).removesuffix(".0").replace("e+", "e") if rounded else "0"


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _unit_rows(features: Floats) -> NDArray[np.float64]:
    wide = np.asarray(features, np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (lengths > 0).all():
        raise ValueError("an image has all-zero features, so no direction")
    return wide / lengths
