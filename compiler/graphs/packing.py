"""Weights in 8 bits: blocks of a row share a scale, zero stands at 128.

A matrix W [out, in] is written as all numbers, row by row, and then all scales: what onnxruntime's
MatMulNBits reads. Source: onnxruntime, docs/ContribOperators.md, com.microsoft.MatMulNBits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..tensors import Array, widen

ZERO, LARGEST = 128, 127


def pack(weight: Array, block: int, dtype: np.dtype) -> tuple[Array, Array]:
    """Return numbers [out, in / block, block] in uint8, and scales [out, in / block] in `dtype`."""
    blocks: Any = widen(weight).reshape(weight.shape[0], -1, block)
    # The scale is rounded first, so that numbers are those which suit the scale as it is stored.
    scales = (np.abs(blocks).max(axis=2) / np.float32(LARGEST)).astype(dtype)
    divisors = np.where(scales == 0, 1, scales).astype(np.float32)[:, :, None]
    numbers = np.clip(np.rint(blocks / divisors), -LARGEST, LARGEST) + ZERO
    return numbers.astype(np.uint8), scales


def unpack(numbers: Any, scales: Any) -> NDArray[np.float32]:
    """Return the matrix that packed numbers stand for, in float32."""
    values = (numbers.astype(np.float32) - ZERO) * scales.astype(np.float32)[:, :, None]
    return values.reshape(numbers.shape[0], -1)


def packed_bytes(weight: Array, block: int, dtype: np.dtype) -> tuple[Array, Array]:
    """Return the bytes of a packed matrix, and the matrix that they stand for."""
    numbers, scales = pack(weight, block, dtype)
    data = np.concatenate([numbers.reshape(-1), scales.reshape(-1).view(np.uint8)])
    return data, unpack(numbers, scales)


def unpacked(data: Array, shape: tuple[int, ...], block: int, dtype: np.dtype) -> Array:
    """Return the matrix [out, in] that the bytes of a data file stand for."""
    rows, columns = shape
    numbers = data[: rows * columns].reshape(rows, columns // block, block)
    scales = data[rows * columns :].view(dtype).reshape(rows, columns // block)
    return unpack(numbers, scales)
