"""What a graph without weights is, and the forms that one captured program can take.

A form says what the host is, how numbers are stored and how weights are packed. It never says what is
computed: all forms of a component come from the same program.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal

import numpy as np

from ..tensors import CODES
from .program import Program

DATA = "model.onnx_data"
IR_VERSION = 10
OPSET = 20  # of graphs without weights, which every host takes
Precision = Literal["float32", "float16", "bfloat16"]
Packing = Literal["plain", "int8"]
# Columns that share a scale in 8-bit weights: what onnxruntime's kernels are written for.
BLOCK = 32
# NumPy's types by the names that graphs and configs use.
DTYPES: Mapping[str, np.dtype] = {dtype.name: dtype for dtype in CODES}


@dataclass(frozen=True)
class Profile:
    """What a host takes: its opset, and which of its operators stand for whole layers.

    `attention` is an operator's name; `fused_norm` whether GroupNormalization is one node.
    """

    opset: int
    attention: Literal["MultiHeadAttention", "Attention"]
    fused_norm: bool


# Opset 20 is the last one whose normalization onnxruntime runs on a CPU without taking it apart into
# two dozen nodes; its attention kernel needs no matrix of scores. TensorRT parses opset 23's layers whole.
PROFILES: Mapping[str, Profile] = {
    "cpu": Profile(20, "MultiHeadAttention", fused_norm=False),
    "cuda": Profile(20, "MultiHeadAttention", fused_norm=False),
    "tensorrt": Profile(23, "Attention", fused_norm=True),
}
ProfileName = Literal["cpu", "cuda", "tensorrt"]


@dataclass(frozen=True)
class Form:
    """One way to write a program down. Inputs and outputs keep the types that the interface says."""

    profile: ProfileName = "cpu"
    precision: Precision = "float32"
    packing: Packing = "plain"


@dataclass(frozen=True)
class Binding:
    """One tensor of the data file: its name as the family spells it, and how it is written.

    `stored` is the shape in a diffusers file, `shape` the one as written, which has the same number
    of elements; `transposed` means that the two axes of the stored tensor are exchanged on the way.
    With a `block`, rows of the stored matrix are written as 8-bit numbers, and after all of them one
    scale of `dtype` for each `block` columns; see packing.py.
    """

    name: str
    dtype: str
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool
    block: int = 0

    @property
    def size(self) -> int:
        """Size in bytes."""
        count, width = prod(self.shape), DTYPES[self.dtype].itemsize
        return count + count // self.block * width if self.block else count * width

    @property
    def layout(self) -> tuple[object, ...]:
        """What the bytes depend on: graphs whose weights have equal layouts share one data file."""
        return self.name, self.dtype, self.transposed, self.block


@dataclass(frozen=True)
class Skeleton:
    """A graph without weights, and the weights that it refers to, in the order of the data file.

    `program` is what the graph computes: all forms of a component have the same.
    """

    key: str
    graph: bytes
    weights: tuple[Binding, ...]
    form: Form
    program: Program = field(repr=False)

    @property
    def size(self) -> int:
        """Size of the data file in bytes."""
        return sum(binding.size for binding in self.weights)

    @property
    def layout(self) -> tuple[tuple[object, ...], ...]:
        """Equal for graphs that read the same data file."""
        return tuple(binding.layout for binding in self.weights)


def is_float(dtype: str) -> bool:
    """Whether a NumPy name is that of a floating-point type."""
    return dtype in ("float16", "bfloat16", "float32", "float64")
