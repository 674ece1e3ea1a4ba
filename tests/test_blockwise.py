"""Tensors computed block by block are what they are when computed whole, whatever the size of a block."""

import ml_dtypes
import numpy as np
import pytest

from retouch.compiler import tensors
from retouch.compiler.adapters.kinds import FORMS, Form
from retouch.compiler.ir import changed_tensors
from retouch.compiler.tensors import STRIP, transposed, widen

from .passes import make, open_tiny

SHAPES = {
    "LoRA": ((3, 6), (8, 3)),
    "LoRA with a Tucker core": ((3, 6), (3, 3, 2, 2), (8, 3)),
    "LoHa": ((8, 3), (3, 24), (8, 3), (3, 24)),
    "LoKr": ((2, 3), (4, 2, 2, 2)),
}


def forms() -> list[Form]:
    """Return one form of each kind."""
    return [next(form for form in FORMS if form.name == name) for name in SHAPES]


@pytest.mark.parametrize("form", forms(), ids=lambda form: form.name)
def test_rows_of_a_change_are_those_of_all_of_it(form: Form) -> None:
    random = np.random.default_rng(0)
    parts = [random.standard_normal(shape).astype(np.float32) for shape in SHAPES[form.name]]
    shape = (8, 6) if form.name == "LoRA" else (8, 6, 2, 2)
    whole, rows = form.delta(shape, parts, 0.7), form.delta_rows(shape, parts, 0.7)
    for chosen in (slice(0, 8), slice(0, 1), slice(3, 5), slice(6, 99)):
        np.testing.assert_allclose(rows(chosen), whole[chosen], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("block", [1, 100, 1 << 30])
def test_merged_bytes_and_claims_do_not_depend_on_the_block(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = _merged()
    monkeypatch.setattr(tensors, "BLOCK", block)
    assert _merged() == expected


def _merged() -> tuple[dict[str, bytes], list[str]]:
    before = open_tiny()
    edit = make("merge_adapters", {"adapters": [{"path": "style.safetensors", "weight": 0.3}]})
    after = edit.run(before)
    (observer,) = edit.observers(before, after)
    written = {name: after.tensors[name].read() for name in changed_tensors(before, after)}
    for name, array in written.items():
        observer.add(observer.see(name, before.tensors[name].read(), array.astype(np.float16)))
    return {name: array.tobytes() for name, array in written.items()}, [e.value for e in observer.evidence()]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_broken_number_is_found_in_whichever_block_it_stands(
    dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "BLOCK", 5)
    values = np.ones((4, 6), dtype)
    assert tensors.is_finite(values)
    for place in range(values.size):
        broken = values.copy()
        broken.flat[place] = np.nan
        assert not tensors.is_finite(broken)


def test_half_precision_is_widened_exactly() -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)]
    for values in (every, finite, finite[:4096].reshape(64, 64).T, finite[:0], finite[0]):
        np.testing.assert_array_equal(widen(np.asarray(values)), np.asarray(values).astype(np.float32))
    assert (widen(finite).view(np.uint32) == finite.astype(np.float32).view(np.uint32)).all()


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (STRIP + 1, 5), (2 * STRIP, 7)])
def test_a_matrix_is_transposed_by_strips(shape: tuple[int, int]) -> None:
    matrix = np.random.default_rng(0).standard_normal(shape)
    result = transposed(matrix)
    np.testing.assert_array_equal(result, matrix.T)
    assert result.flags.c_contiguous


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_16_bit_number_is_told_from_what_is_none(dtype: type) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    finite = np.isfinite(every.astype(np.float32))
    assert [tensors.is_finite(number) for number in every.reshape(-1, 1)] == finite.tolist()
