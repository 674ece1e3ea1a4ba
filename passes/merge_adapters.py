"""Merge adapters into the weights: W + sum of m (alpha / r) B A, summed exactly and cast once."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from ..compiler.adapters.blocks import VECTORS, factors
from ..compiler.adapters.reading import Change, read_adapter
from ..compiler.contract import Observer, Pass, Stage
from ..compiler.ir import Itself, Pipeline
from ..compiler.tensors import Array, ByRows, Edited, Tensor, row_blocks, widen
from ..runtime.statistics import decimal
from ..specs.errors import Fault, InputError, RetouchError, quoted, raise_all
from ..specs.fields import AdapterFile
from ..specs.manifest import Decimal, Evidence

Floats = NDArray[np.float64]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


@dataclass(frozen=True)
class Adapter:
    """One adapter file and how strongly it counts, on everything, on text encoders and on each block.

    `text_encoder_weight` is one number, or one for each text encoder by name; `blocks` are factors by
    shell patterns of module names, or a vector as block-weight extensions write it. `config` is PEFT's
    adapter_config.json, `component` what a PEFT file was trained on where two models share their names.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    path: AdapterFile
    weight: Weight = 1.0
    text_encoder_weight: Weight | dict[str, Weight] | None = None
    blocks: Annotated[dict[str, Weight], Field(min_length=1)] | tuple[Weight, ...] | None = None
    config: AdapterFile | None = None
    component: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.blocks, tuple) and len(self.blocks) not in VECTORS:
            lengths = ", ".join(map(str, sorted(VECTORS)))
            raise ValueError(f"a vector of blocks has one of {lengths} numbers, not {len(self.blocks)}")

    @property
    def order(self) -> tuple[str, ...]:
        """A place among others that does not depend on the order of the spec."""
        own = (self.weight, self.text_encoder_weight, self.blocks, self.component)
        return str(self.path.path), *map(_sorted_text, own)

    def read(self, pipeline: Pipeline) -> "tuple[_Share, ...]":
        """Return the adapter's part in each tensor, those of strength 0 included.

        Raises:
            InputError: with every fault of the file's headers and of the weights.
        """
        config = self.config.path if self.config else None
        changes = read_adapter(self.path.path, config, pipeline, self.component)
        places = [change.place for change in changes]
        block = factors(self.blocks or {}, places, pipeline, self.path.text)
        weights = self._weights(pipeline)
        return tuple(
            _Share(self.path.text, weights[change.place.component] * block[change.place], change)
            for change in changes
        )

    def _weights(self, pipeline: Pipeline) -> dict[str, float]:
        """Return the weight on each component."""
        text = [component.name for component in pipeline.of_role("text")]
        given = self.text_encoder_weight
        by_name = given if isinstance(given, dict) else dict.fromkeys(text, given)
        unknown = sorted(set(by_name) - set(text))
        if unknown:
            hint = f"there are: {', '.join(text)}"
            message = f"`text_encoder_weight`: the model has no text encoder {quoted(unknown[0])}"
            raise InputError(Fault("E_ADAPTER_WEIGHT", message, self.path.text, hint))
        own = {name: weight for name, weight in by_name.items() if weight is not None}
        return {name: own.get(name, self.weight) for name in pipeline.components}


@dataclass(frozen=True)
class _Share:
    """One adapter's part in one tensor: `times` the change that its file means."""

    adapter: str
    times: float
    change: Change

    def delta(self, parts: Sequence[Array]) -> Callable[[slice], Floats]:
        """Return what gives rows of the part that the adapter has, from its widened tensors."""
        change = self.change
        return change.form.delta_rows(change.place.shape, parts, self.times * change.strength.scale)


@dataclass(frozen=True)
class MergeAdapters(Pass):
    """Add LoRA adapters to the weights of denoiser and text encoders, at strengths of any sign.

    Each weight becomes W + sum of m s B A over the adapters, with m the strength and s = alpha / r
    (alpha / sqrt(r) with rslora). m is the adapter's weight, or that of the text encoder, times the
    factor of the block. Changes are summed in float64 and cast once, in an order that does not depend
    on the spec's. A strength of 0 leaves the very same tensors. All faults that headers tell come
    before a build starts; a factor that is not finite stops it where it is read.

    Source: Hu et al., LoRA, 2106.09685, eq. (3); Kalajdzievski, rsLoRA, 2312.03732, eq. (4).
    Limits: LoRA of linear and convolutional layers, with or without a Tucker core, LoHa and LoKr, as
    kohya, LyCORIS, PEFT and diffusers spell them. DoRA, OFT and the rest are refused by name.
    """

    stage = Stage.MERGE

    adapters: Annotated[tuple[Adapter, ...], Field(min_length=1)]
    cast_loss_at_most: Decimal = "0.5"

    def run(self, pipeline: Pipeline) -> Pipeline:
        changed = {
            name: _merged(pipeline.tensors[name], shares, self.name)
            for name, shares in self._shares(pipeline).items()
        }
        return pipeline.with_tensors(changed) if changed else pipeline

    def observers(self, before: Pipeline, after: Pipeline) -> Iterable[Observer]:
        del after
        shares = self._shares(before)
        return [_Deltas(self, before, shares)] if shares else []

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        del after
        return [
            Evidence(
                kind="static",
                claim="merge.modules",
                subject=adapter.path.text,
                value=decimal(len(shares)),
                unit="modules",
                count=len(shares),
                produced_by=self.name,
                details={
                    name: sum(share.change.place.component == name for share in shares)
                    for name in sorted(before.components)
                },
            )
            for adapter, shares in self._read(before)
        ]

    def _read(self, pipeline: Pipeline) -> tuple[tuple[Adapter, tuple[_Share, ...]], ...]:
        """Return what each adapter changes; it does not hang on what a pipeline is drawn with."""
        return _read(Itself(self), Itself(pipeline, pipeline.tensors))

    def _shares(self, pipeline: Pipeline) -> dict[str, tuple[_Share, ...]]:
        """Return who changes which tensor; a strength of 0 is nobody."""
        found: dict[str, tuple[_Share, ...]] = {}
        for _, shares in self._read(pipeline):
            for share in shares:
                if share.times:
                    target = share.change.place.target
                    found[target] = (*found.get(target, ()), share)
        return dict(sorted(found.items()))


@lru_cache(maxsize=2)
def _read(
    edit: Itself[MergeAdapters], pipeline: Itself[Pipeline]
) -> tuple[tuple[Adapter, tuple[_Share, ...]], ...]:
    """Read all adapters in an order of their own; the faults of all of them come at once."""
    found, faults = [], []
    for adapter in sorted(edit.value.adapters, key=lambda adapter: adapter.order):
        try:
            found.append((adapter, adapter.read(pipeline.value)))
        except RetouchError as error:
            faults += error.faults
    raise_all(InputError, faults)
    return tuple(found)


@dataclass
class _Told:
    """Squared norms of one tensor: each adapter's change, the weight, all changes, what casting lost."""

    of_adapter: dict[str, float]
    kept: bool
    weight: float = 0.0
    delta: float = 0.0
    lost: float = 0.0


class _Deltas:
    """Measures what the adapters changed, and how much of it a narrow type lost.

    `merge.cast_loss` = ||written - (W + delta)|| / ||delta||. It leaves out the matrices that read
    text, since passes of later stages rewrite them.
    """

    def __init__(self, edit: MergeAdapters, before: Pipeline, shares: dict[str, tuple[_Share, ...]]) -> None:
        self._edit, self._shares = edit, shares
        patterns = [text_input.pattern for text_input in before.family.text_inputs]
        self._rewritten = {name for p in patterns for name in before.select("denoiser", p).names}
        self._weight, self._delta, self._lost, self._wanted, self._kept = 0.0, 0.0, 0.0, 0.0, 0
        self._of_adapter = {share.adapter: 0.0 for name in shares for share in shares[name]}

    @property
    def names(self) -> frozenset[str]:
        return frozenset(self._shares)

    def see(self, name: str, before: Array, written: Array) -> "_Told":
        shares = self._shares[name]
        deltas = [share.delta([widen(part.read()) for part in share.change.parts]) for share in shares]
        kept = name not in self._rewritten
        told = _Told(dict.fromkeys((share.adapter for share in shares), 0.0), kept)
        for rows in row_blocks(before.shape):
            each = [delta(rows) for delta in deltas]
            for share, delta in zip(shares, each, strict=True):
                told.of_adapter[share.adapter] += _square(delta)
            total, found = reduce(np.add, each), widen(before[rows]).astype(np.float64)
            told.weight += _square(found)
            told.delta += _square(total)
            if kept:
                found += total
                found -= widen(written[rows]).astype(np.float64, copy=False)
                told.lost += _square(found)
        return told

    def add(self, told: "_Told") -> None:
        for adapter, square in told.of_adapter.items():
            self._of_adapter[adapter] += square
        self._weight += told.weight
        self._delta += told.delta
        self._kept += told.kept
        if told.kept:
            self._lost += told.lost
            self._wanted += told.delta

    def evidence(self) -> list[Evidence]:
        norms = [(text, _ratio(square, self._weight)) for text, square in self._of_adapter.items()]
        each = [self._claim("merge.delta_norm", text, value, len(self._shares)) for text, value in norms]
        overall = _ratio(self._delta, self._weight)
        found = [*each, self._claim("merge.delta_norm", "all adapters", overall, len(self._shares))]
        if self._wanted:
            found.append(self._cast_loss(_ratio(self._lost, self._wanted)))
        return found

    def _cast_loss(self, value: float) -> Evidence:
        limit = self._edit.cast_loss_at_most
        claim = self._claim("merge.cast_loss", "all adapters", value, self._kept)
        verdict = {"comparator": "at_most", "limit": limit, "passed": value <= float(limit)}
        return claim.model_copy(update=verdict)

    def _claim(self, claim: str, subject: str, value: float, count: int) -> Evidence:
        return Evidence(
            kind="static",
            claim=claim,
            subject=subject,
            value=decimal(value),
            count=count,
            produced_by=self._edit.name,
        )


def _merged(weight: Tensor, shares: tuple[_Share, ...], author: str) -> Edited:
    parts = [part for share in shares for part in share.change.parts]

    def prepare(*read: Array) -> Callable[[Any, slice], Floats]:
        rest = iter(read)
        deltas = [share.delta(list(islice(rest, len(share.change.parts)))) for share in shares]
        return lambda found, rows: found + reduce(np.add, [delta(rows) for delta in deltas])

    return Edited((weight, *parts), ByRows(prepare), weight.dtype, weight.shape, author)


def _sorted_text(value: Any) -> str:
    return repr(sorted(value.items()) if isinstance(value, Mapping) else value)


def _square(array: Floats) -> float:
    flat = array.reshape(-1)
    return float(flat @ flat)


def _ratio(square: float, of: float) -> float:
    return float(np.sqrt(square / of)) if of else 0.0
