"""Canonical text of a pipeline, and the difference of two: what goldens hold and `retouch diff` shows.

    unet.mid_block.attn2.to_k.weight float32[3, 2] fc2c0e97b871

The last word is the start of the SHA-256 of the elements: little-endian, dense, row-major.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..specs.canonical import canonical
from .ir import Pipeline
from .tensors import Array, Tensor, widen

DIGITS = 12


@dataclass(frozen=True)
class Row:
    """One thing that differs between two pipelines.

    `kind` is component, tensor, sampling or graph; `before` and `after` are texts, empty where the
    thing is absent. `change` is ||after - before|| / ||before|| of a tensor, rounded to 4 digits.
    """

    kind: str
    name: str
    before: str
    after: str
    change: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the row as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        change = f"  |delta| {self.change}" if self.change else ""
        lines = [f"- {self.name} {self.before}" if self.before else "", f"+ {self.name} {self.after}{change}"]
        return "\n".join(line for line in lines if line and (self.after or line[0] == "-"))


def text_of(pipeline: Pipeline) -> str:
    """Return the canonical text of a pipeline; every tensor is read once, one at a time."""
    tensors = (f"{name} {describe(pipeline.tensors[name])}" for name in sorted(pipeline.tensors))
    plain = (f"{kind} {name} {text}" for (kind, name), text in _plain(pipeline).items())
    return "\n".join([*plain, *tensors]) + "\n"


def describe(tensor: Tensor) -> str:
    """Return a tensor as one line: type, shape and the start of the digest of its elements."""
    return f"{tensor.dtype.name}{list(tensor.shape)} {digest(tensor.read())}"


def digest(array: Array) -> str:
    """Return the start of the SHA-256 of an array's elements as a file holds them."""
    dense = np.ascontiguousarray(array)
    little = dense.astype(dense.dtype.newbyteorder("<"), copy=False)
    return hashlib.sha256(little.tobytes()).hexdigest()[:DIGITS]


def difference(a: Pipeline, b: Pipeline) -> tuple[Row, ...]:
    """Return what differs from `a` to `b`: components, sampling and graph first, then tensors by name.

    Tensors that are the same value are not read.
    """
    return (*_plain_rows(_plain(a), _plain(b)), *_tensor_rows(a, b))


def unified(rows: Iterable[Row]) -> str:
    """Return a difference as lines that start with `-` and `+`."""
    return "".join(f"{row}\n" for row in rows)


def norms(rows: Iterable[Row]) -> str:
    """Return a difference without digests, for goldens: float sums differ between builds of BLAS."""
    return "".join(f"{row.kind} {row.name} {_rounded(row)}\n" for row in rows)


def _rounded(row: Row) -> str:
    if not row.after:
        return "gone"
    if row.kind != "tensor":
        return row.after
    return f"|delta| {row.change}" if row.change else row.after.rpartition(" ")[0]


def _plain(pipeline: Pipeline) -> dict[tuple[str, str], str]:
    """Return everything but tensors, as (kind, name) -> text."""
    found = {
        ("component", name): f"{component.role} {component.class_name} {_short(dict(component.config))}"
        for name, component in sorted(pipeline.components.items())
    }
    found |= {
        ("graph", f"{i} {edit.component}"): f"{edit.name} {_text(dict(edit.parameters))}"
        for i, edit in enumerate(pipeline.graph_edits)
    }
    table = pipeline.sampling.table().model_dump(mode="json", by_alias=True)
    steps = table.pop("steps")
    found |= {("sampling", key): _text(value) for key, value in sorted(table.items())}
    found |= {("sampling", f"steps.{i}"): _step(step) for i, step in enumerate(steps)}
    return found


def _plain_rows(a: dict[tuple[str, str], str], b: dict[tuple[str, str], str]) -> Iterator[Row]:
    for kind, name in dict.fromkeys([*a, *b]):
        before, after = a.get((kind, name), ""), b.get((kind, name), "")
        if before != after:
            yield Row(kind, name, before, after)


def _tensor_rows(a: Pipeline, b: Pipeline) -> Iterator[Row]:
    for name in sorted({*a.tensors, *b.tensors}):
        one, other = a.tensors.get(name), b.tensors.get(name)
        if one is other or one == other:
            continue
        before, after = (describe(tensor) if tensor else "" for tensor in (one, other))
        if before != after:
            yield Row("tensor", name, before, after, _change(one, other))


def _change(one: Tensor | None, other: Tensor | None) -> str:
    if one is None or other is None or one.shape != other.shape or one.dtype.kind in "iub":
        return ""
    found, edited = (widen(tensor.read()).astype(np.float64) for tensor in (one, other))
    norm = float(np.linalg.norm(found))
    return f"{float(np.linalg.norm(edited - found)) / norm:.4g}" if norm else "inf"


def _step(step: dict[str, Any]) -> str:
    return " ".join(f"{key}={value:.6g}" for key, value in step.items())


def _short(value: Any) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()[:DIGITS]


def _text(value: Any) -> str:
    return canonical(value).decode()
