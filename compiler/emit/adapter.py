"""The edit alone, as a low-rank adapter file: for tools that apply one to the model it was made for."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...runtime.statistics import decimal
from ...specs.errors import Fault, InputError, raise_all
from ...specs.manifest import ComponentRecord, Decimal, Evidence
from ..adapters.spellings import KOHYA, Place, dotted, places_of
from ..graphs.interfaces import OWN
from ..headers import header_bytes
from ..ir import Pipeline
from ..tensors import Array, Edited, Shared, Tensor
from ..text.low_rank import Floats
from ..text.text_map import fuse_text_map
from ..write import Entry, WritePass
from . import Emitted, Emitter, Job

FOLDER = "adapter"
# The name that diffusers' load_lora_weights looks for in a folder, and one for everybody else.
FILES: Mapping[str, str] = {"peft": "pytorch_lora_weights.safetensors", "kohya": "kohya.safetensors"}
# Columns of a random sketch; a change whose rank is above the last one is decomposed whole.
SKETCHES = (32, 128, 512)
SEED = 20240613


@dataclass(frozen=True)
class Adapter(Emitter):
    """Writes `adapter/`: what the edits changed, W' - W = up down, in the layouts of PEFT and kohya.

    Ranks are the smallest that keep `tolerance`, relative to the change of each matrix in Frobenius'
    norm; the manifest says what the files as written reach. W' is taken before it is rounded to the
    source's type. An edit that was to be a matrix in the graph is a change of weights here. Guidance is
    no part of an adapter. A change that is not of low rank is refused.
    """

    layouts: tuple[Literal["peft", "kohya"], ...] = ("peft", "kohya")
    precision: Literal["float32", "float16"] = "float32"
    tolerance: Decimal = "0.00001"

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        edited = fuse_text_map(pipeline, self.name)
        factors = self._factors(edited, job.source)
        (folder / FOLDER).mkdir()
        writing = WritePass(_applied(edited, job.source, factors), job)
        records = [
            self._write(writing, layout, folder, factors, edited) for layout in dict.fromkeys(self.layouts)
        ]
        writing.finish()
        return Emitted(tuple(records), tuple(self._evidence(factors)))

    def _factors(self, pipeline: Pipeline, source: Pipeline) -> dict[Place, "Factors"]:
        """Return the factors of every matrix that changed. Memory: all of them, and one matrix.

        Raises:
            InputError: an edit changed what no adapter holds, changed nothing, or has too high a rank.
        """
        places = {place.target: place for place in places_of(source)}
        changed = [
            name
            for name in sorted(pipeline.tensors)
            if pipeline.tensors[name] is not source.tensors.get(name) and f".{OWN}" not in name
        ]
        raise_all(InputError, [_no_place(name) for name in changed if name not in places])
        found = {
            places[name]: factor(places[name], source.tensors[name], pipeline.tensors[name], self)
            for name in changed
        }
        kept = {place: factors for place, factors in found.items() if factors.rank}
        raise_all(InputError, list(_rank_faults(kept)))
        if not kept:
            raise InputError(Fault("E_ADAPTER", "the edits change no weight", self.name))
        return kept

    def _write(
        self,
        writing: WritePass,
        layout: str,
        folder: Path,
        factors: Mapping[Place, "Factors"],
        pipeline: Pipeline,
    ) -> ComponentRecord:
        rows = sorted(
            (key, tensor)
            for place, found in factors.items()
            for key, tensor in KEYS[layout](place, found, pipeline)
        )
        entries = [Entry(key, _constant(values), values.dtype) for key, values in rows]
        entries.sort(key=lambda entry: -entry.dtype.itemsize)
        head = header_bytes([(e.name, e.dtype, e.tensor.shape) for e in entries], {"format": "pt"})
        return writing.write(f"{FOLDER}/{layout}", folder / FOLDER / FILES[layout], folder, entries, head)

    def _evidence(self, factors: Mapping[Place, "Factors"]) -> Iterator[Evidence]:
        ranks = {str(place): found.rank for place, found in sorted(factors.items())}
        worst = max(factors, key=lambda place: factors[place].error)
        error = factors[worst].error
        yield Evidence(
            kind="static",
            claim="adapter.error",
            subject=f"{len(factors)} matrices",
            value=decimal(error, 2),
            unit="||W + up down - W'|| / ||W' - W||, the largest",
            comparator="at_most",
            limit=self.tolerance,
            passed=error <= float(self.tolerance),
            count=len(factors),
            produced_by=self.name,
            details={"worst": str(worst), "rank": ranks},
        )


@dataclass(frozen=True)
class Factors:
    """A change W' - W = up [out, r] times down [r, in] as written, and its relative error."""

    up: NDArray[Any]
    down: NDArray[Any]
    error: float
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        return self.up.shape[1]

    @property
    def product(self) -> Floats:
        return (self.up.astype(np.float64) @ self.down.astype(np.float64)).reshape(self.shape)


def factor(place: Place, before: Tensor, after: Tensor, emitter: Adapter) -> Factors:
    """Return the factors of one matrix's change; a convolution is a matrix of its filters."""
    wide = np.asarray(unrounded(after).read(), np.float64), np.asarray(before.read(), np.float64)
    delta = (wide[0] - wide[1]).reshape(place.shape[0], -1)
    size = float(np.linalg.norm(delta))
    left, values, right = decompose(delta, float(emitter.tolerance) / 4)
    tails = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]
    rank = int((tails > float(emitter.tolerance) / 2 * size).sum())
    # Each factor gets half of the singular values: neither is out of float16's range.
    root, dtype = np.sqrt(values[:rank]), np.dtype(emitter.precision)
    up, down = (left[:, :rank] * root).astype(dtype), (root[:, None] * right[:rank]).astype(dtype)
    rest = delta - up.astype(np.float64) @ down.astype(np.float64)
    return Factors(up, down, float(np.linalg.norm(rest)) / size if size else 0.0, place.shape)


def decompose(delta: Floats, tolerance: float) -> tuple[Floats, Floats, Floats]:
    """Return the singular vectors and values that a matrix has but for a relative `tolerance`.

    A seeded sketch finds the range of a matrix of low rank in few products; what it leaves is measured,
    not assumed. Source: Halko et al., 0909.4061, algorithm 4.4 with one power iteration.
    """
    random = np.random.default_rng(SEED)
    for columns in SKETCHES:
        if 2 * columns >= min(delta.shape):
            break
        basis, _ = np.linalg.qr(delta @ random.standard_normal((delta.shape[1], columns)))
        basis, _ = np.linalg.qr(delta @ (delta.T @ basis))
        inner = basis.T @ delta
        if np.linalg.norm(delta - basis @ inner) <= tolerance * np.linalg.norm(delta):
            left, values, right = np.linalg.svd(inner, full_matrices=False)
            return basis @ left, values, right
    return np.linalg.svd(delta, full_matrices=False)


def unrounded(tensor: Tensor) -> Tensor:
    """Return an edited tensor in float64, with no rounding to the source's type on the way."""
    if isinstance(tensor, Edited):
        sources = tuple(unrounded(source) for source in tensor.sources)
        return replace(tensor, sources=sources, dtype=np.dtype(np.float64))
    if tensor.dtype.kind in "iub":
        return tensor
    return Edited((tensor,), lambda values: values, np.dtype(np.float64), tensor.shape, "adapter")


def _peft_keys(place: Place, found: Factors, pipeline: Pipeline) -> Iterator[tuple[str, NDArray[Any]]]:
    module = f"{place.component}.{dotted(place, pipeline)[-1]}"
    up, down = _shaped(found)
    yield f"{module}.lora_A.weight", down
    yield f"{module}.lora_B.weight", up


def _kohya_keys(place: Place, found: Factors, pipeline: Pipeline) -> Iterator[tuple[str, NDArray[Any]]]:
    """Kohya writes LDM names for SDXL's denoiser only, and says which of two text encoders it means."""
    several = len(pipeline.of_role("text")) > 1
    prefix = KOHYA[place.component][-1 if several else 0]
    inner = place.ldm if several and place.ldm else dotted(place, pipeline)[-1]
    module = f"{prefix}_{inner.replace('.', '_')}"
    up, down = _shaped(found)
    yield f"{module}.lora_down.weight", down
    yield f"{module}.lora_up.weight", up
    yield f"{module}.alpha", np.asarray(found.rank, up.dtype)


KEYS = {"peft": _peft_keys, "kohya": _kohya_keys}


def _shaped(found: Factors) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return (up, down) as a layer holds them: a convolution's down is its filter, up is 1 x 1."""
    if len(found.shape) == 2:
        return found.up, found.down
    return found.up[:, :, None, None], found.down.reshape(found.rank, *found.shape[1:])


def _applied(pipeline: Pipeline, source: Pipeline, factors: Mapping[Place, Factors]) -> Pipeline:
    """Return the pipeline that a tool gets who applies the adapter: what observers judge."""
    applied: dict[str, Tensor] = {}
    for place, found in factors.items():
        before = source.tensors[place.target]
        applied[place.target] = Edited((before,), _Plus(found), np.dtype(np.float32), before.shape, "adapter")
    return pipeline.with_tensors(applied)


@dataclass(frozen=True)
class _Plus:
    """W -> W + up down."""

    factors: Factors

    def __call__(self, weight: NDArray[Any]) -> Array:
        return weight + self.factors.product


def _constant(values: NDArray[Any]) -> Tensor:
    return Shared(lambda: values, values.dtype, values.shape)


def _no_place(name: str) -> Fault:
    hint = "adapters hold changes of linear maps and convolutions; emit `diffusers` instead"
    return Fault("E_ADAPTER", "was changed, and no adapter can hold that", name, hint)


def _rank_faults(factors: Mapping[Place, Factors]) -> Iterator[Fault]:
    for place, found in sorted(factors.items()):
        most = min(found.up.shape[0], found.down.shape[1]) // 2
        if found.rank > most:
            message = f"the change has rank {found.rank}; factors of more than {most} are larger than it"
            hint = "map fewer tokens, allow a larger `tolerance`, or emit `diffusers`"
            yield Fault("E_ADAPTER_RANK", message, str(place), hint)
