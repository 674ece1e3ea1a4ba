"""Intervals and scores equal the published ones."""

import re
from math import exp

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from retouch.runtime.statistics import (
    decimal,
    mean_pairwise_distance,
    paired_difference,
    vendi_of_kernel,
    vendi_score,
    wilson,
)
from retouch.specs.manifest import Decimal


@pytest.mark.parametrize(
    ("successes", "count", "expected"),
    # Source: Newcombe 1998 (two-sided intervals for the single proportion), table I, method 3.
    [
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_published_limits(successes: int, count: int, expected: tuple[float, float]) -> None:
    assert wilson(successes, count) == pytest.approx(expected, abs=5e-5)


def test_wilson_of_nothing_is_everything() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 9)[0] == 0.0
    assert wilson(9, 9)[1] == 1.0


@pytest.mark.parametrize("counts", [(-1, 5), (6, 5)])
def test_impossible_counts_are_refused(counts: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(*counts)


def test_paired_difference_gives_the_published_limits() -> None:
    """Fagerland, Lydersen and Laake, Statistics in Medicine 33 (2014), 2850: airway hyper-responsiveness."""
    assert paired_difference(1, 1, 7, 12) == pytest.approx((-0.507, -0.026), abs=5e-4)


pairs = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@given(pairs)
def test_paired_difference_changes_sign_with_the_sides(counts: tuple[int, int, int, int]) -> None:
    a, b, c, d = counts
    below, above = paired_difference(a, b, c, d)
    assert below <= (b - c) / (a + b + c + d) <= above
    assert paired_difference(a, c, b, d) == pytest.approx((-above, -below))


def test_pairing_that_agrees_narrows_the_interval() -> None:
    agreeing, crossing = paired_difference(45, 5, 0, 50), paired_difference(20, 30, 25, 25)
    assert agreeing[1] - agreeing[0] < 0.6 * (crossing[1] - crossing[0])


def test_vendi_score_of_the_authors_example() -> None:
    """Samples 0 0 10 10 20 20 under exp(-|a - b|): the authors' README prints 2.9999, cut off."""
    samples = np.array([0, 0, 10, 10, 20, 20])
    assert vendi_of_kernel(np.exp(-np.abs(samples[:, None] - samples))) == pytest.approx(2.9999, abs=1e-4)


def test_vendi_score_counts_what_differs() -> None:
    assert vendi_score(np.ones((7, 3))) == pytest.approx(1)
    assert vendi_score(np.eye(5)) == pytest.approx(5)
    assert vendi_score(np.repeat(np.eye(4), 3, axis=0) * 9) == pytest.approx(4)
    # Shares 3/4 and 1/4: the exponential of their entropy.
    uneven = np.array([[1, 0], [1, 0], [1, 0], [0, 1]])
    assert vendi_score(uneven) == pytest.approx(exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


def test_mean_pairwise_distance_is_of_all_pairs() -> None:
    assert mean_pairwise_distance(np.array([[1, 0], [2, 0], [0, 3]])) == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="two or more"):
        mean_pairwise_distance(np.ones((1, 2)))
    with pytest.raises(ValueError, match="all-zero"):
        mean_pairwise_distance(np.zeros((2, 2)))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_evidence_takes_every_finite_number(value: float) -> None:
    text = decimal(value)
    TypeAdapter(Decimal).validate_python(text)
    assert float(text) == pytest.approx(value, rel=1e-5, abs=0.0)


@pytest.mark.parametrize(
    ("value", "text"), [(0.05, "0.05"), (-0.0, "0"), (128.0, "128"), (1 / 3, "0.333333"), (1e20, "1e20")]
)
def test_numbers_are_written_plainly(value: float, text: str) -> None:
    assert decimal(value) == text


def test_what_was_not_measured_is_not_written() -> None:
    with pytest.raises(ValueError, match=re.escape("nan is not a measurement")):
        decimal(float("nan"))
