"""The one write pass: each tensor is read, computed, cast, shown to the observers, hashed, written, freed.

Observers judge claims on what is written, in the orientation of the file that it came from, so a
later cast cannot make a claim untrue. Tensors are computed side by side, a few at a time, and written
in order: what a file holds does not depend on how many cores there are.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..specs.canonical import merkle_root
from ..specs.errors import Fault, InputError, raise_all
from ..specs.manifest import ComponentRecord
from .emit import Job
from .ir import Pipeline
from .tensors import Array, Tensor
from .threads import single_threaded

# Tensors that are computed at a time. More would only wait for the disk.
WORKERS = min(4, os.cpu_count() or 1)


@dataclass(frozen=True)
class Entry:
    """One tensor to write: its name in the pipeline, the type it is written in, and its orientation."""

    name: str
    tensor: Tensor
    dtype: np.dtype
    transposed: bool = False


@dataclass(frozen=True)
class Computed:
    """One tensor as it goes to the file: `values` as stored in the source's layout, `data` as written."""

    entry: Entry
    values: Array
    data: Array
    sha256: str
    changed: bool


@dataclass
class WritePass:
    """Writes the tensors of one target, and shows each that an observer asks for once."""

    pipeline: Pipeline
    job: Job
    _shown: set[str] = field(default_factory=set)

    def write(
        self, component: str, file: Path, root: Path, entries: Sequence[Entry], start: bytes = b""
    ) -> ComponentRecord:
        """Write tensors into a new file, after the bytes `start`, dense and in order.

        `component` is what the record calls them; the record's path is relative to `root`.
        """
        leaves, changed = [], []
        with file.open("xb") as stream:
            stream.write(start)
            for computed in self._computed(entries):
                _put(stream, computed.data)
                self._show(computed.entry.name, computed.values)
                leaves.append((computed.entry.name, computed.sha256))
                changed += [computed.entry.name] if computed.changed else []
                self._advance(component, computed.entry)
        return ComponentRecord(
            name=component,
            weights=file.relative_to(root).as_posix(),
            tensors=len(leaves),
            merkle_root=merkle_root(leaves),
            changed=sorted(changed),
        )

    def finish(self) -> None:
        """Show what observers asked for and no graph holds, such as a buffer of a text encoder.

        Raises:
            InputError: an observer asks for a tensor that the pipeline does not have.
        """
        asked = sorted({name for watch in self.job.watches for name in watch.observer.names})
        raise_all(
            InputError,
            [
                Fault("E_OBSERVED", "a pass wants to observe a tensor that is not written", name)
                for name in asked
                if name not in self.pipeline.tensors
            ],
        )
        for name in asked:
            if name not in self._shown:
                self._show(name, self.pipeline.tensors[name].read())

    def _computed(self, entries: Sequence[Entry]) -> Iterator[Computed]:
        """Compute tensors in order, a bounded number ahead of the one that is written."""
        ahead: deque[Future[Computed]] = deque()
        with single_threaded(), ThreadPoolExecutor(WORKERS) as pool:
            for entry in entries:
                ahead.append(pool.submit(self._compute, entry))
                if len(ahead) > WORKERS:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _compute(self, entry: Entry) -> Computed:
        values = _cast(entry.tensor.read(), entry.dtype)
        data = np.ascontiguousarray(values.T) if entry.transposed else values
        return Computed(
            entry, values, data, hashlib.sha256(_bytes(data).data).hexdigest(), self._changed(entry, values)
        )

    def _changed(self, entry: Entry, values: Array) -> bool:
        """Whether the tensor as written differs from the source's, cast alike."""
        source = self.job.source.tensors.get(entry.name)
        if source is entry.tensor:
            return False
        if source is None or source.shape != entry.tensor.shape:
            return True
        return not np.array_equal(_bytes(_cast(source.read(), entry.dtype)), _bytes(values))

    def _show(self, name: str, values: Array) -> None:
        """Show a tensor to the observers that ask for it; one that a pass added had no elements before."""
        if name in self._shown:
            return
        self._shown.add(name)
        for watch in self.job.watches:
            if name in watch.observer.names:
                before = watch.before.tensors.get(name)
                found = np.empty(0, values.dtype) if before is None else before.read()
                watch.observer.see(name, found, values)

    def _advance(self, component: str, entry: Entry) -> None:
        self.job.advance(
            component, int(np.prod(entry.tensor.shape, dtype=np.int64)) * entry.tensor.dtype.itemsize
        )


def _cast(values: Array, dtype: np.dtype) -> Array:
    return np.ascontiguousarray(values.astype(dtype, copy=False)).reshape(values.shape)


def _bytes(values: Array) -> Array:
    """Return the elements as bytes, without a copy."""
    return values.reshape(-1).view(np.uint8)


def _put(stream: BinaryIO, values: Array) -> None:
    stream.write(_bytes(values).data)
