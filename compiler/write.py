"""The one write pass: each tensor is read, computed, cast, shown to the observers, hashed, written, freed.

Observers judge claims on what is written, in the orientation of the file that it came from, so a
later cast cannot make a claim untrue. Tensors that somebody edited are computed side by side, a few
at a time; those that nobody touched go from file to file in pieces. A thread of its own writes both, in
order: what a file holds depends neither on the cores nor on the memory of a machine.
"""

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from io import RawIOBase
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..specs.canonical import merkle_root
from ..specs.errors import Fault, InputError, raise_all
from ..specs.manifest import ComponentRecord, Evidence
from .contract import Observer
from .emit import Job, Watch
from .evidence.rounding import rounded_up
from .graphs.packing import packed_bytes
from .ir import Pipeline
from .tensors import Array, Stored, Tensor, Tied, bytes_of, is_finite, row_blocks, transposed
from .threads import single_threaded

# Tensors that are computed at a time. More would only wait for the disk.
WORKERS = min(4, os.cpu_count() or 1)
# Bytes that may be computed ahead: a larger matrix goes alone, of small ones there may be a few dozen.
AHEAD = 24 << 20
BEHIND = 8 << 20  # bytes that may wait to be written
# Bytes after which the disk is told to begin: a build ends with less to flush.
FLUSHED = 256 << 20
PIECE = 1 << 20  # bytes of an untouched tensor that are in memory at a time


@dataclass(frozen=True)
class Entry:
    """One tensor to write: its name in the pipeline, the type it is written in, and its arrangement.

    `transposed` exchanges the axes of a matrix; `block` packs its rows into 8-bit numbers, see packing.py.
    """

    name: str
    tensor: Tensor
    dtype: np.dtype
    transposed: bool = False
    block: int = 0


# What a tensor told each observer that asked for it.
Told = list[tuple[Observer, Any]]


@dataclass(frozen=True)
class Computed:
    """One tensor as it goes to the file.

    `told` is what it tells the observers that ask for it. `loss` is how far packing moved the values,
    ||written - given|| / ||given||.
    """

    entry: Entry
    told: Told
    data: Array
    sha256: str
    changed: bool
    loss: float | None


@dataclass
class WritePass:
    """Writes the tensors of one target, and shows each that an observer asks for once."""

    pipeline: Pipeline
    job: Job
    author: str = ""
    _asking: dict[str, list[Watch]] = field(init=False)
    _shown: set[str] = field(default_factory=set)
    _losses: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # Observers work their names out when asked, and this is looked up for every tensor.
        self._asking = {}
        for watch in self.job.watches:
            for name in sorted(watch.observer.names):
                self._asking.setdefault(name, []).append(watch)

    def write(
        self, component: str, file: Path, root: Path, entries: Sequence[Entry], start: bytes = b""
    ) -> ComponentRecord:
        """Write tensors into a new file, after the bytes `start`, dense and in order.

        `component` is what the record calls them; the record's path is relative to `root`.
        """
        leaves, changed = [], []
        with file.open("xb", buffering=0) as stream, _Output(stream) as output:
            output.put(start)
            for step in self._steps(entries):
                if isinstance(step, Computed):
                    output.put(_bytes(step.data).data)
                    _add(step.told)
                    leaves.append((step.entry.name, step.sha256))
                    changed += [step.entry.name] if step.changed else []
                    self._keep_loss(component, step)
                    self._advance(component, step.entry)
                else:
                    leaves.append((step.name, output.copy(step)))
                    self._advance(component, step)
                del step  # before the next one is computed: both may be large
        self.job.ledger.remember(file, output.whole.hexdigest())
        return ComponentRecord(
            name=component,
            weights=file.relative_to(root).as_posix(),
            tensors=len(leaves),
            merkle_root=merkle_root(leaves),
            changed=sorted(changed),
        )

    def review(self, entries: Sequence[Entry]) -> None:
        """Show observers tensors that another target of the build has written alike."""
        for entry in entries:
            if self._is_asked(entry.name):
                _add(self._compute(entry, self._take(entry.name)).told)

    def finish(self) -> None:
        """Show what observers asked for and no graph holds, such as a buffer of a text encoder.

        Raises:
            InputError: an observer asks for a tensor that the pipeline does not have.
        """
        asked = sorted(self._asking)
        raise_all(
            InputError,
            [
                Fault("E_OBSERVED", "a pass wants to observe a tensor that is not written", name)
                for name in asked
                if name not in self.pipeline.tensors
            ],
        )
        for name in asked:
            if self._is_asked(name):
                _add(self._tell(self._take(name), name, self.pipeline.tensors[name].read()))

    def rounding(self, label: str = "") -> list[Evidence]:
        """Return how far 8-bit packing moved the worst tensor of each component."""
        return [
            _rounding_evidence(f"{label}{component}", losses, self.author)
            for component, losses in self._losses.items()
        ]

    def _steps(self, entries: Sequence[Entry]) -> Iterator[Computed | Entry]:
        """Yield what to write, in order; what is computed runs a bounded number of bytes ahead."""
        ahead: deque[tuple[int, Future[Computed] | Entry]] = deque()
        with single_threaded(), ThreadPoolExecutor(WORKERS) as pool:
            for entry in entries:
                untouched = self._is_untouched(entry)
                size = 0 if untouched else _size(entry)
                while ahead and (sum(taken for taken, _ in ahead) + size > AHEAD or len(ahead) > 64):
                    yield _done(ahead.popleft()[1])
                asking = self._take(entry.name)
                ahead.append((size, entry if untouched else pool.submit(self._compute, entry, asking)))
            while ahead:
                yield _done(ahead.popleft()[1])

    def _is_untouched(self, entry: Entry) -> bool:
        """Whether a tensor goes from file to file: it is the source's, and nobody looks at it."""
        plain = not entry.transposed and not entry.block and not self._is_asked(entry.name)
        same = self.job.source.tensors.get(entry.name) is entry.tensor
        return plain and same and _stored(entry.tensor) is not None

    def _is_asked(self, name: str) -> bool:
        return name in self._asking and name not in self._shown

    def _take(self, name: str) -> Sequence[Watch]:
        """Return who asks for a tensor, once."""
        if not self._is_asked(name):
            return ()
        self._shown.add(name)
        return self._asking[name]

    def _compute(self, entry: Entry, asking: Sequence[Watch]) -> Computed:
        given = entry.tensor.read()
        loss = None
        if entry.block:
            data, values = packed_bytes(given, entry.block, entry.dtype)
            loss = _distance(values, given)
        else:
            values = _cast(given, entry.dtype)
            _refuse_broken(entry.name, values)
            data = transposed(values) if entry.transposed else values
        digest = hashlib.sha256(_bytes(data).data).hexdigest()
        changed = self._changed(entry, values, data)
        return Computed(entry, self._tell(asking, entry.name, values), data, digest, changed, loss)

    def _changed(self, entry: Entry, values: Array, data: Array) -> bool:
        """Whether the tensor as written differs from the source's, written alike."""
        source = self.job.source.tensors.get(entry.name)
        if source is entry.tensor:
            return False
        if source is None or source.shape != entry.tensor.shape:
            return True
        if entry.block:
            before, _ = packed_bytes(source.read(), entry.block, entry.dtype)
            return not np.array_equal(before, data)
        before, after = source.read().reshape(-1), values.reshape(-1)
        # Most changes show in the first block: the rest need not be read again.
        return not all(
            np.array_equal(_bytes(_cast(before[piece], entry.dtype)), _bytes(after[piece]))
            for piece in row_blocks(after.shape)
        )

    def _tell(self, asking: Sequence[Watch], name: str, values: Array) -> Told:
        """Show observers a tensor in the source's layout; one that a pass added had no elements before."""
        told = []
        for watch in asking:
            before = watch.before.tensors.get(name)
            found = np.empty(0, values.dtype) if before is None else before.read()
            told.append((watch.observer, watch.observer.see(name, found, values)))
        return told

    def _keep_loss(self, component: str, computed: Computed) -> None:
        if computed.loss is not None:
            self._losses.setdefault(component, {})[computed.entry.name] = computed.loss

    def _advance(self, component: str, entry: Entry) -> None:
        self.job.advance(component, bytes_of(entry.tensor))


class _Output:
    """A file that is written once, and the digest of all of it: both in a thread behind the caller."""

    def __init__(self, stream: RawIOBase) -> None:
        self.whole = hashlib.sha256()
        self._stream = stream
        self._thread, self._disk = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._waiting: deque[tuple[int, Future[None]]] = deque()
        self._flushes: list[Future[None]] = []
        self._dirty = 0

    def __enter__(self) -> "_Output":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for thread in (self._thread, self._disk):
            thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self._wait(0)
            # The disk says once that it failed: nobody else would hear it.
            for flush in self._flushes:
                flush.result()

    def put(self, data: bytes | memoryview) -> None:
        """Let data be written, which nobody changes any more."""
        self._wait(max(0, BEHIND - len(data)))
        self._waiting.append((len(data), self._thread.submit(self._write, data)))

    def _wait(self, size: int) -> None:
        """Wait until no more bytes than these are to be written; raise what went wrong."""
        while sum(waiting for waiting, _ in self._waiting) > size:
            self._waiting.popleft()[1].result()

    def _write(self, data: bytes | memoryview) -> None:
        self.whole.update(data)
        rest = memoryview(data)
        while rest:
            rest = rest[self._stream.write(rest) :]
        self._dirty += len(data)
        if self._dirty >= FLUSHED:
            self._flushes.append(self._disk.submit(os.fsync, self._stream.fileno()))
            self._dirty = 0

    def copy(self, entry: Entry) -> str:
        """Write an untouched tensor piece by piece; return its own digest."""
        stored = _stored(entry.tensor)
        assert stored is not None
        own = hashlib.sha256()
        with stored.file.open("rb") as source:
            source.seek(stored.offset)
            left = stored.size
            while left:
                piece = source.read(min(PIECE, left))
                if not piece:
                    raise InputError(Fault("E_FILE", "ends before its tensors do", str(stored.file)))
                left -= len(piece)
                values = _cast(np.frombuffer(piece, stored.dtype), entry.dtype)
                _refuse_broken(entry.name, values)
                data = _bytes(values).data
                own.update(data)
                self.put(data)
        return own.hexdigest()


def _add(told: Told) -> None:
    for observer, found in told:
        observer.add(found)


def _refuse_broken(name: str, values: Array) -> None:
    """Refuse weights that would turn images into noise or black, before they ship."""
    if not is_finite(values):
        message = f"not finite as {values.dtype.name}: it holds NaN or infinity"
        raise InputError(
            Fault("E_NOT_FINITE", message, name, "is the source broken, or too large for the type?")
        )


def _stored(tensor: Tensor) -> Stored | None:
    """Return the range of a file that a tensor is, under whatever name."""
    while isinstance(tensor, Tied):
        tensor = tensor.source
    return tensor if isinstance(tensor, Stored) else None


def _done(step: Future[Computed] | Entry) -> Computed | Entry:
    return step.result() if isinstance(step, Future) else step


def _size(entry: Entry) -> int:
    """Return the bytes that a computed tensor takes: as read, and as written."""
    return bytes_of(entry.tensor) + prod(entry.tensor.shape) * entry.dtype.itemsize


def _distance(values: Array, given: Array) -> float:
    wide, wanted = values.astype(np.float64), given.astype(np.float64)
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(wide - wanted)) / norm if norm else 0.0


def _rounding_evidence(subject: str, losses: dict[str, float], author: str) -> Evidence:
    worst = max(sorted(losses), key=losses.__getitem__)
    return Evidence(
        kind="static",
        claim="8-bit weights",
        subject=subject,
        value=rounded_up(losses[worst]),
        unit="relative error",
        count=len(losses),
        produced_by=author,
        details={"worst": worst},
    )


def _cast(values: Array, dtype: np.dtype) -> Array:
    return np.ascontiguousarray(values.astype(dtype, copy=False)).reshape(values.shape)


def _bytes(values: Array) -> Array:
    """Return the elements as bytes, without a copy."""
    return values.reshape(-1).view(np.uint8)
