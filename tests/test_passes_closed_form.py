"""The closed forms equal the published per-layer solutions, and do what they promise at their limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retouch.compiler.text.low_rank import Change
from retouch.passes._closed_form import Grams, Moments, NullSpace, independent
from retouch.passes._erase_evidence import span

WIDTH = 24
SEEDS = st.integers(0, 2**32 - 1)


def _rows(seed: int, *counts: int) -> list[np.ndarray]:
    random = np.random.default_rng(seed)
    return [random.normal(size=(count, WIDTH)) for count in counts]


def _mapped(rows: np.ndarray, change: Change) -> np.ndarray:
    return rows @ change.matrix.T


# ---------------------------------------------------------------------------------------------------
# The publications, a layer and a sum of outer products at a time


def _uce(weight, concepts, guides, kept, erase, preserve, lam):
    """UCE's solution for one layer: 2308.14761, eq. (7)."""
    left, right = lam * weight, lam * np.eye(weight.shape[1])
    for concept, guide in zip(concepts, guides, strict=True):
        left = left + erase * np.outer(weight @ guide, concept)
        right = right + erase * np.outer(concept, concept)
    for prompt in kept:
        left = left + preserve * np.outer(weight @ prompt, prompt)
        right = right + preserve * np.outer(prompt, prompt)
    return left @ np.linalg.inv(right)


def _rece(layers, concepts, guides, kept, erase, preserve, lam, reg, rounds):
    """RECE's rounds on UCE's layers: adversarial states over all layers, values of the layers as they are."""
    edited = [_uce(weight, concepts, guides, kept, erase, preserve, lam) for weight in layers]
    for _ in range(rounds):
        left = sum(new.T @ new for new in edited) + reg * np.eye(WIDTH)
        right = sum(new.T @ old for new, old in zip(edited, layers, strict=True))
        adversaries = concepts @ np.linalg.solve(left, right).T
        edited = [_uce(weight, adversaries, guides, kept, erase, preserve, lam) for weight in edited]
    return edited


def _speed(weight, concepts, guides, retained, fixed, threshold, rho, filtered):
    """SPEED's solution for one layer, with D x D matrices as its paper writes them: 2503.07392."""
    eye = np.eye(WIDTH)
    second = sum(np.outer(c, c) for c in concepts) / len(concepts)
    cross = sum(np.outer(g, c) for g, c in zip(guides, concepts, strict=True)) / len(concepts)
    probe = weight @ (cross - second) @ np.linalg.inv(eye + second)
    norms = np.linalg.norm(retained @ probe.T, axis=1)
    chosen = retained[norms > norms.mean()] if filtered else retained
    values, vectors = np.linalg.eigh(chosen.T @ chosen / len(chosen))
    free = vectors[:, values < threshold]
    onto = free @ free.T
    inverse = np.linalg.inv(second @ onto + rho * eye)
    hold = np.linalg.inv(fixed @ onto @ inverse @ fixed.T)
    bracket = eye - inverse @ fixed.T @ hold @ fixed @ onto
    return weight + weight @ (cross - second) @ onto @ bracket @ inverse


# ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out", [8, 24, 40])
@pytest.mark.parametrize("count", [3, 6, 40])
def test_each_layer_equals_the_published_formula(out: int, count: int) -> None:
    concepts, guides, kept, weight = _rows(out, count, count, 9, out)
    moments = Moments(WIDTH)
    moments.move(concepts, guides, 0.7)
    moments.keep(kept, 1.3)
    change = moments.solve(0.05)
    expected = _uce(weight, concepts, guides, kept, 0.7, 1.3, 0.05)
    assert (change.down is not None) == (count == 3)
    assert np.abs(change.edit(weight) - expected).max() < 1e-9


@pytest.mark.parametrize("count", [2, 30])
@pytest.mark.parametrize("rounds", [1, 3])
def test_adversarial_rounds_equal_the_published_ones(count: int, rounds: int) -> None:
    concepts, guides, kept, *layers = _rows(count, count, count, 9, 8, 24, 40)
    reg, width = 0.1, WIDTH
    moments, only_kept = Moments(width), Moments(width)
    moments.move(concepts, guides, 0.7)
    moments.keep(kept, 1.3)
    only_kept.keep(kept, 1.3)
    change = moments.solve(0.1)
    found = np.concatenate(layers).T @ np.concatenate(layers)
    for _ in range(rounds):
        adversaries = concepts @ Grams.of(found, change).adversary(reg * width / np.trace(found)).T
        again = only_kept.copy()
        again.move(adversaries, guides, 0.7)
        change = again.solve(0.1).after(change)
    expected = _rece(layers, concepts, guides, kept, 0.7, 1.3, 0.1, reg, rounds)
    for weight, wanted in zip(layers, expected, strict=True):
        assert np.abs(change.edit(weight) - wanted).max() < 1e-9


@pytest.mark.parametrize("count", [2, 5, 40])
@pytest.mark.parametrize("filtered", [True, False])
@pytest.mark.parametrize("retained", [9, 60])
def test_each_layer_equals_the_published_null_space(count: int, filtered: bool, retained: int) -> None:
    concepts, guides, kept, fixed, *layers = _rows(count, count, count, retained, 3, 8, 24, 40)
    kept[:, :12] *= 1e-3
    space = NullSpace.of(concepts, guides, np.full(count, 1 / count), kept, fixed, 0.1, 1.0, filtered)
    for weight in layers:
        expected = _speed(weight, concepts, guides, kept, fixed, 0.1, 1.0, filtered)
        assert np.abs(expected - weight).max() > 1e-3
        assert np.abs(space.solve(weight).edit(weight) - expected).max() < 1e-9


@given(SEEDS)
@settings(max_examples=20)
def test_a_null_space_leaves_what_is_retained_and_fixed_where_it_is(seed: int) -> None:
    concepts, guides, kept, fixed, weight = _rows(seed, 4, 4, 7, 3, 10)
    weights = np.full(4, 0.25)
    change = NullSpace.of(concepts, guides, weights, kept, fixed, 1e-9, 1.0, filtered=False).solve(weight)
    assert np.abs(_mapped(kept, change) - kept).max() < 1e-9
    assert np.abs(_mapped(fixed, change) - fixed).max() < 1e-9


@given(SEEDS)
@settings(max_examples=20)
def test_fixed_rows_that_are_retained_already_are_no_trouble(seed: int) -> None:
    concepts, guides, kept, weight = _rows(seed, 4, 4, 7, 10)
    fixed = independent(np.concatenate([kept[:2], kept[:2], concepts[:1]]))
    assert len(fixed) == 3
    weights = np.full(4, 0.25)
    change = NullSpace.of(concepts, guides, weights, kept, fixed, 1e-9, 1.0, filtered=False).solve(weight)
    assert np.abs(_mapped(fixed, change) - fixed).max() < 1e-7


@given(SEEDS)
@settings(max_examples=20)
def test_guides_that_equal_concepts_change_nothing(seed: int) -> None:
    concepts, kept, weight = _rows(seed, 5, 7, 8)
    moments = Moments(WIDTH)
    moments.move(concepts, concepts, 1.0)
    moments.keep(kept, 1.0)
    assert (moments.solve(1e-3).edit(weight) == weight).all()
    space = NullSpace.of(concepts, concepts, np.full(5, 0.2), kept, kept[:1], 1e-9, 1.0)
    assert (space.solve(weight).edit(weight) == weight).all()


@given(SEEDS)
@settings(max_examples=20)
def test_preserved_rows_stay_as_their_weight_grows(seed: int) -> None:
    concepts, guides, kept = _rows(seed, 5, 5, 7)
    moved = []
    for weight in (1.0, 1e2, 1e4, 1e6):
        moments = Moments(WIDTH)
        moments.move(concepts, guides, 1.0)
        moments.keep(kept, weight)
        moved.append(np.linalg.norm(_mapped(kept, moments.solve(1e-2)) - kept) / np.linalg.norm(kept))
    assert moved == sorted(moved, reverse=True)
    assert moved[-1] < 1e-4


@given(SEEDS)
@settings(max_examples=20)
def test_independent_rows_reach_their_guides_as_the_ridge_falls(seed: int) -> None:
    concepts, guides, kept = _rows(seed, 5, 5, 7)
    moments = Moments(WIDTH)
    moments.move(concepts, guides, 1.0)
    moments.keep(kept, 1.0)
    change = moments.solve(1e-10)
    assert np.abs(_mapped(concepts, change) - guides).max() < 1e-6
    assert np.abs(_mapped(kept, change) - kept).max() < 1e-6


def test_many_rows_give_the_sums_that_few_at_a_time_give() -> None:
    concepts, guides, kept = _rows(0, 3000, 3000, 2500)
    at_once, in_parts = Moments(WIDTH), Moments(WIDTH)
    at_once.move(concepts, guides, 0.5)
    at_once.keep(kept, 2.0)
    for start in range(0, 3000, 7):
        in_parts.move(concepts[start : start + 7], guides[start : start + 7], 0.5)
        in_parts.keep(kept[start : start + 7], 2.0)
    assert in_parts.rows == at_once.rows == 5500
    assert np.abs(in_parts.solve(0.1).dense - at_once.solve(0.1).dense).max() < 1e-12


@given(SEEDS)
@settings(max_examples=20)
def test_distances_from_sums_are_distances(seed: int) -> None:
    first, second, a, b = _rows(seed, 8, 12, 3, 3)
    change = np.eye(WIDTH) + 0.1 * _rows(seed + 1, WIDTH)[0]
    grams = Grams(WIDTH)
    for weight in (first, second):
        grams.add(grams.of_matrix(weight, weight @ change))
    direct = [np.linalg.norm(weight @ change @ a.T - weight @ b.T) for weight in (first, second)]
    plain = [np.linalg.norm(weight @ (a - b).T) for weight in (first, second)]
    assert grams.squares(a, b).sum() == pytest.approx(np.sum(np.square(direct)), rel=1e-9)
    assert grams.squares_before(a - b).sum() == pytest.approx(np.sum(np.square(plain)), rel=1e-9)


@given(SEEDS)
@settings(max_examples=20)
def test_a_map_before_the_matrices_counts_as_part_of_them(seed: int) -> None:
    weight, written, a, b, *maps = _rows(seed, 9, 9, 3, 3, WIDTH, WIDTH)
    found, mapped = (np.eye(WIDTH) + 0.1 * part for part in maps)
    plain, whole = Grams(WIDTH), Grams(WIDTH)
    plain.add(plain.of_matrix(weight, written))
    whole.add(whole.of_matrix(weight @ found, written @ mapped))
    assert plain.through(found, mapped).squares(a, b) == pytest.approx(whole.squares(a, b), rel=1e-9)


def test_small_distances_keep_their_digits_in_single_precision() -> None:
    (weight,) = _rows(3, 400)
    weight = weight.astype(np.float32)
    written = weight + np.float32(1e-4) * np.sign(weight)
    rows = _rows(4, 5)[0] + 30.0
    grams = Grams(WIDTH)
    grams.add(grams.of_matrix(weight, written))
    direct = np.linalg.norm((written.astype(float) - weight.astype(float)) @ rows.T)
    assert np.sqrt(grams.squares(rows, rows).sum()) == pytest.approx(direct, rel=1e-4)


@given(SEEDS)
@settings(max_examples=20)
def test_sums_in_a_basis_say_the_same_of_what_it_spans(seed: int) -> None:
    weight, written, a, b = _rows(seed, 9, 9, 2, 2)
    basis = span([a, b], WIDTH)
    assert basis is not None and basis @ basis.T == pytest.approx(np.eye(len(basis)), abs=1e-12)
    whole, narrow = Grams(WIDTH), Grams(WIDTH, basis)
    for grams in (whole, narrow):
        grams.add(grams.of_matrix(weight, written))
    one, other = narrow.coordinates(a), narrow.coordinates(b)
    assert narrow.squares(one, other) == pytest.approx(whole.squares(a, b), rel=1e-9)
    assert narrow.squares_before(one) == pytest.approx(whole.squares_before(a), rel=1e-9)


def test_what_comes_closest_in_a_basis_is_looked_for_there_alone() -> None:
    weight, written, states = _rows(5, 40, 40, 3)
    basis = span([states], WIDTH)
    assert basis is not None
    narrow = Grams(WIDTH, basis)
    narrow.add(narrow.of_matrix(weight, written))
    found = narrow.coordinates(states) @ narrow.adversary(1e-12).T @ basis
    direct, *_ = np.linalg.lstsq(written @ basis.T, weight @ states.T, rcond=None)
    assert found == pytest.approx(direct.T @ basis, rel=1e-6)


def test_rows_that_span_half_of_the_space_have_no_basis() -> None:
    (rows,) = _rows(6, WIDTH)
    assert span([rows[: WIDTH // 2]], WIDTH) is None
    assert span([rows[:2], rows[:2], rows[1:2]], WIDTH) is not None
