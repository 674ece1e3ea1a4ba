"""A change near the identity is the same map whether it is kept as factors or multiplied out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retouch.compiler.text.low_rank import Change, Edit, LazyMap

WIDTH = 20
RANKS = st.integers(1, 4)
SEEDS = st.integers(0, 2**32 - 1)


def _change(seed: int, rank: int) -> Change:
    random = np.random.default_rng(seed)
    return Change(random.normal(size=(WIDTH, rank)), 0.2 * random.normal(size=(rank, WIDTH)))


@given(SEEDS, RANKS, RANKS, st.booleans())
@settings(max_examples=30)
def test_factors_compose_as_matrices_do(seed: int, first_rank: int, rank: int, whole: bool) -> None:
    first, second = _change(seed, first_rank), _change(seed + 1, rank)
    first = Change(first.dense) if whole else first
    weight = np.random.default_rng(seed).normal(size=(7, WIDTH))
    both = second.after(first)
    assert np.abs(both.matrix - first.matrix @ second.matrix).max() < 1e-10
    assert np.abs(both.edit(weight) - second.edit(first.edit(weight))).max() < 1e-10


@given(SEEDS, st.integers(1, WIDTH))
@settings(max_examples=30)
def test_condition_and_size_are_those_of_the_matrix(seed: int, rank: int) -> None:
    change = _change(seed, rank)
    assert change.condition == pytest.approx(float(np.linalg.cond(change.matrix)), rel=1e-6)
    assert change.size == pytest.approx(float(np.linalg.norm(change.dense)) / WIDTH**0.5)
    assert Change(change.dense).size == pytest.approx(change.size)


def test_factors_are_kept_only_where_they_are_less_work() -> None:
    narrow, wide = _change(0, 4), _change(0, 6)
    assert narrow.down is not None and wide.down is not None
    assert Change.of(narrow.up, narrow.down).rank == 4
    multiplied = Change.of(wide.up, wide.down)
    assert multiplied.down is None
    assert np.abs(multiplied.dense - wide.dense).max() < 1e-12


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_edit_touches_only_its_columns_and_keeps_the_type(dtype: type) -> None:
    change = _change(0, 3)
    lazy = LazyMap(lambda: change, WIDTH)
    weight = np.random.default_rng(0).normal(size=(6, 30)).astype(dtype)
    written = Edit(lazy.for_layer, slice(5, 25))(weight)
    assert written.dtype == dtype
    edited = np.asarray(written, np.float64)
    assert (edited[:, :5] == weight[:, :5]).all()
    assert (edited[:, 25:] == weight[:, 25:]).all()
    expected = weight[:, 5:25] @ np.asarray(lazy.read(), np.float64)
    assert np.abs(edited[:, 5:25] - expected).max() < (1e-5 if dtype is np.float32 else 1e-12)


def test_a_map_is_solved_once() -> None:
    solved = []
    lazy = LazyMap(lambda: solved.append(1) or _change(0, 2), WIDTH)
    assert lazy.change is lazy.for_layer(np.zeros((1, WIDTH)))
    lazy.read()
    assert solved == [1]
