"""The text map equals the published per-layer solution, and does what it promises at its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retouch.passes._closed_form import Grams, Moments

WIDTH = 24
SEEDS = st.integers(0, 2**32 - 1)


def _rows(seed: int, *counts: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(count, WIDTH)) for count in counts]


def _published(weight, concepts, guides, kept, erase, preserve, lam):
    """UCE's solution for one layer, a sum of outer products at a time: 2308.14761, eq. (7)."""
    left, right = lam * weight, lam * np.eye(weight.shape[1])
    for concept, guide in zip(concepts, guides, strict=True):
        left = left + erase * np.outer(weight @ guide, concept)
        right = right + erase * np.outer(concept, concept)
    for prompt in kept:
        left = left + preserve * np.outer(weight @ prompt, prompt)
        right = right + preserve * np.outer(prompt, prompt)
    return left @ np.linalg.inv(right)


@pytest.mark.parametrize("out", [8, 24, 40])
def test_each_layer_equals_the_published_formula(out: int) -> None:
    concepts, guides, kept, weight = _rows(out, 6, 6, 9, out)
    moments = Moments(WIDTH)
    moments.move(concepts, guides, 0.7)
    moments.keep(kept, 1.3)
    lam = 0.05 * moments.mean_square
    expected = _published(weight, concepts, guides, kept, 0.7, 1.3, lam)
    assert np.abs(weight @ moments.solve(0.05) - expected).max() < 1e-9


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_guides_that_equal_concepts_change_nothing(seed: int) -> None:
    concepts, kept = _rows(seed, 5, 7)
    moments = Moments(WIDTH)
    moments.move(concepts, concepts, 1.0)
    moments.keep(kept, 1.0)
    assert (moments.solve(1e-3) == np.eye(WIDTH)).all()


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_preserved_rows_stay_as_their_weight_grows(seed: int) -> None:
    concepts, guides, kept = _rows(seed, 5, 5, 7)
    moved = []
    for weight in (1.0, 1e2, 1e4, 1e6):
        moments = Moments(WIDTH)
        moments.move(concepts, guides, 1.0)
        moments.keep(kept, weight)
        moved.append(np.linalg.norm(kept @ moments.solve(1e-3).T - kept) / np.linalg.norm(kept))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-4


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_independent_rows_reach_their_guides_as_the_ridge_falls(seed: int) -> None:
    concepts, guides, kept = _rows(seed, 5, 5, 7)
    moments = Moments(WIDTH)
    moments.move(concepts, guides, 1.0)
    moments.keep(kept, 1.0)
    text_map = moments.solve(1e-12)
    assert np.abs(concepts @ text_map.T - guides).max() < 1e-6
    assert np.abs(kept @ text_map.T - kept).max() < 1e-6


@given(SEEDS)
@settings(deadline=None, max_examples=20)
def test_distances_from_sums_are_distances(seed: int) -> None:
    first, second, a, b = _rows(seed, 8, 12, 3, 3)
    change = np.eye(WIDTH) + 0.1 * _rows(seed + 1, WIDTH)[0]
    grams = Grams(WIDTH)
    for weight in (first, second):
        grams.add(weight, weight @ change)
    direct = [np.linalg.norm(weight @ change @ a.T - weight @ b.T) for weight in (first, second)]
    plain = [np.linalg.norm(weight @ (a - b).T) for weight in (first, second)]
    assert grams.distance(a, b) == pytest.approx(np.linalg.norm(direct), rel=1e-9)
    assert grams.before(a, b) == pytest.approx(np.linalg.norm(plain), rel=1e-9)
