"""A traced computation as plain data: what torch.export found, without torch and without weights.

Dimensions are numbers, or expressions of the interface's dimensions as text (`8*height_cells`). Two
dimensions are equal where their texts are.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...specs.canonical import canonical

Size = int | str
Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Ref:
    """The value that another operation computes, or an input, weight or buffer of this name."""

    name: str


@dataclass(frozen=True)
class Op:
    """One operation: `kind` is torch's own name for it, such as `aten.linear.default`.

    An argument is a Ref, a number, a text, None, or a list of these; a dimension that callers choose
    stands there as text. An operation with several results has several shapes.
    """

    name: str
    kind: str
    args: tuple[Any, ...]
    options: dict[str, Any]
    shapes: tuple[Shape, ...]
    dtype: str


@dataclass(frozen=True)
class Program:
    """A whole computation. `weights` are names and shapes in the module's order.

    `numbers` are buffers that no file holds: rows 0, 1, ... of the length given.
    """

    inputs: tuple[tuple[str, str, Shape], ...]
    weights: tuple[tuple[str, tuple[int, ...]], ...]
    numbers: tuple[tuple[str, int], ...]
    ops: tuple[Op, ...]
    outputs: tuple[str, ...]

    def dump(self) -> bytes:
        """Return the program as canonical JSON."""
        ops = [
            [op.name, op.kind, _plain(op.args), _plain(op.options), _plain(op.shapes), op.dtype]
            for op in self.ops
        ]
        heads = [_plain(part) for part in (self.inputs, self.weights, self.numbers, self.outputs)]
        return canonical([*heads, ops])

    @classmethod
    def load(cls, text: bytes) -> "Program":
        """Read a program back. Raises ValueError, KeyError or TypeError for anything else."""
        inputs, weights, numbers, outputs, ops = json.loads(text)
        return cls(
            inputs=tuple((name, dtype, tuple(shape)) for name, dtype, shape in inputs),
            weights=tuple((name, tuple(shape)) for name, shape in weights),
            numbers=tuple((name, length) for name, length in numbers),
            ops=tuple(_operation(*fields) for fields in ops),
            outputs=tuple(outputs),
        )


def refs(value: Any) -> Iterator[str]:
    """Return the names of all values that an argument refers to."""
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, list | tuple):
        for item in value:
            yield from refs(item)


def _operation(name: str, kind: str, args: Any, options: Any, shapes: Any, dtype: str) -> Op:
    parsed = {key: _parsed(value) for key, value in options.items()}
    return Op(name, kind, tuple(_parsed(args)), parsed, tuple(tuple(shape) for shape in shapes), dtype)


def _plain(value: Any) -> Any:
    """Return an argument as JSON: a reference is an object, and nothing else is one in a list."""
    if isinstance(value, Ref):
        return {"ref": value.name}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    # JSON has no infinity, and canonical JSON no integer above 2^53: both are texts here.
    return {"number": repr(value)} if isinstance(value, int | float) and abs(value) > 2**53 else value


def _parsed(value: Any) -> Any:
    if isinstance(value, dict):
        if "ref" in value:
            return Ref(value["ref"])
        number = value["number"]
        return float(number) if any(mark in number for mark in ".einf") else int(number)
    return [_parsed(item) for item in value] if isinstance(value, list) else value
