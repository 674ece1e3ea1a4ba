"""Tensors as the compiler holds them: header known, elements read on demand and then forgotten.

A tensor is one of

    Stored    a range of bytes in a safetensors file
    View      a slice, transpose or reshape of another tensor
    Edited    a function of other tensors, with the pass that wrote it
    Tied      another name for the same tensor
    Shared    a result that several edits use, computed once

Nothing here is computed before `read()`. Only `Shared` keeps what it computed: it is small by
contract (a D x D matrix), everything else is as large as a weight.
"""

import mmap
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Protocol, runtime_checkable

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.generic]

# Elements computed at a time where rows are independent: in float64 they fit a core's cache.
BLOCK = 1 << 17
# Where a float16, its sign extended, lies in a float32.
SIGN_AND_NUMBER = np.uint32(0x8FFFE000).view(np.int32)
STRIP = 32  # rows that are transposed at a time: 64 bytes or more of each line written, a cache line

# Names of safetensors dtypes and the NumPy types that hold them.
DTYPES: Mapping[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
CODES: Mapping[np.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}


@runtime_checkable
class Tensor(Protocol):
    """What every tensor answers: its header at once, its elements when asked."""

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read(self) -> Array:
        """Return the elements as a C-contiguous array of `dtype` and `shape`."""
        ...


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file, little-endian and dense, as safetensors writes it."""

    file: Path
    offset: int
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size in bytes."""
        return bytes_of(self)

    def read(self) -> Array:
        if self.size == 0:
            return np.empty(self.shape, self.dtype)
        start = self.offset - self.offset % mmap.ALLOCATIONGRANULARITY
        with self.file.open("rb", buffering=0) as stream:
            # As np.memmap does, which takes longer than many a tensor here takes to be written.
            mapped = mmap.mmap(
                stream.fileno(), self.offset - start + self.size, access=mmap.ACCESS_READ, offset=start
            )
        return np.frombuffer(mapped, self.dtype, prod(self.shape), self.offset - start).reshape(self.shape)


@dataclass(frozen=True)
class View:
    """Another tensor's elements in another arrangement; `rule` must not compute, only rearrange."""

    source: Tensor
    rule: Callable[[Array], Array]
    shape: tuple[int, ...]

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    def read(self) -> Array:
        return np.ascontiguousarray(self.rule(self.source.read())).reshape(self.shape)


@dataclass(frozen=True)
class ByRows:
    """A rule whose rows need the same rows of the first source alone: computed and cast block by block.

    `prepare` receives the other sources and returns what turns a block of rows, and where it stands,
    into that block of the result.
    """

    prepare: Callable[..., Callable[[Array, slice], Array]]


@dataclass(frozen=True)
class Edited:
    """A tensor that a pass computes from `sources` when it is read.

    `rule` receives the sources as float32 (float64 where a source is) and returns an array of
    `shape`; the result is cast once, to `dtype`. `by` names the pass.
    """

    sources: tuple[Tensor, ...]
    rule: Callable[..., Array] | ByRows
    dtype: np.dtype
    shape: tuple[int, ...]
    by: str

    def read(self) -> Array:
        if isinstance(self.rule, ByRows):
            return self._by_rows(self.rule)
        result = np.asarray(self.rule(*(widen(source.read()) for source in self.sources)))
        if result.shape != self.shape:
            raise ValueError(f"{self.by} computed {result.shape}, expected {self.shape}")
        return np.ascontiguousarray(result.astype(self.dtype, copy=False))

    def _by_rows(self, rule: ByRows) -> Array:
        first, *others = self.sources
        found, result = first.read(), np.empty(self.shape, self.dtype)
        edit = rule.prepare(*(widen(source.read()) for source in others))
        for rows in row_blocks(self.shape):
            result[rows] = edit(widen(found[rows]), rows)
        return result


@dataclass(frozen=True)
class Tied:
    """The same tensor as `source`, under another name."""

    source: Tensor

    @property
    def dtype(self) -> np.dtype:
        return self.source.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.source.shape

    def read(self) -> Array:
        return self.source.read()


@dataclass(frozen=True)
class Shared:
    """A small result that several edits use: computed at the first `read()`, then kept."""

    compute: Callable[[], Array]
    dtype: np.dtype
    shape: tuple[int, ...]
    _kept: list[Array] = field(default_factory=list, init=False, repr=False, compare=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)

    def read(self) -> Array:
        with self._lock:
            if not self._kept:
                self._kept.append(np.ascontiguousarray(self.compute()))
        return self._kept[0]


def bytes_of(tensor: Tensor) -> int:
    """Return how many bytes a tensor's elements take in its own type, from its header."""
    return prod(tensor.shape) * tensor.dtype.itemsize


def widen(array: Array) -> Array:
    """Return floating-point elements in float32 or better, and anything else as it is."""
    if array.dtype in (np.float64, np.float32) or array.dtype.kind in "iub":
        return array
    if array.dtype == np.float16 and is_finite(array):
        return _from_half(array)
    return array.astype(np.float32)


def _from_half(array: Array) -> NDArray[np.float32]:
    """Return finite float16 elements as float32: bits in their places, then exponents put right, exactly.

    NumPy converts one element at a time, which takes seven times as long.
    """
    bits = array.view(np.int16).astype(np.int32)
    bits <<= 13
    bits &= SIGN_AND_NUMBER
    wide = bits.view(np.float32)
    wide *= np.float32(2.0**112)  # exponents count from 15 in one type and from 127 in the other
    return wide


def row_blocks(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yield the rows of a tensor in blocks of about `BLOCK` elements."""
    width = int(np.prod(shape[1:], dtype=np.int64))
    count = max(1, BLOCK // max(1, width))
    return (slice(start, start + count) for start in range(0, shape[0], count))


def transposed(matrix: Array) -> Array:
    """Return a matrix with its axes exchanged, C-contiguous."""
    result = np.empty(matrix.shape[::-1], matrix.dtype)
    # Strips whose lines all stay in a core's cache: read and written whole, several times as fast.
    for start in range(0, len(matrix), STRIP):
        result[:, start : start + STRIP] = matrix[start : start + STRIP].T
    return result


def is_finite(array: Array) -> bool:
    """Whether every element is a number: no NaN, no infinity."""
    if array.dtype.kind in "iub":
        return True
    if array.dtype.itemsize == 2:
        return _is_finite_16(array)
    flat = array.reshape(-1)
    return all(bool(np.isfinite(flat[piece]).all()) for piece in row_blocks(flat.shape))


def _is_finite_16(array: Array) -> bool:
    # Both 16-bit types order their bits as whole numbers, infinity and NaN last; NumPy has no fast path.
    # Read with a sign, positive ones come last; read without, negative ones do.
    positive, negative = np.array([np.inf, -np.inf], array.dtype)
    largest, last = array.view(np.int16).max(initial=0), array.view(np.uint16).max(initial=0)
    return bool(largest < positive.view(np.int16) and last < negative.view(np.uint16))


def authors(tensor: Tensor) -> tuple[str, ...]:
    """Return the passes that wrote a tensor, first one first."""
    match tensor:
        case Edited(sources=sources, by=by):
            earlier = [name for source in sources for name in authors(source)]
            return tuple(dict.fromkeys([*earlier, by]))
        case View(source=source) | Tied(source=source):
            return authors(source)
    return ()


def cast(tensor: Tensor, dtype: np.dtype, by: str) -> Tensor:
    """Return the tensor in another floating-point type; unchanged where it already has it."""
    if tensor.dtype == dtype or tensor.dtype.kind in "iub":
        return tensor
    return Edited((tensor,), lambda array: array, dtype, tensor.shape, by)
