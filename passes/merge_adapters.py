"""Merge LoRA adapters into the weights: W + sum of m (alpha / r) B A, summed exactly and cast once."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

from ..compiler.contract import Observer, Pass, Stage
from ..compiler.ir import Pipeline
from ..compiler.tensors import Array, Edited, Tensor, widen
from ..runtime.statistics import decimal
from ..specs.errors import InputError, RetouchError
from ..specs.fields import InputFile
from ..specs.manifest import Decimal, Evidence
from ._adapters import Factors, read_adapter

Floats = NDArray[np.float64]
Weight = Annotated[float, Field(ge=-100, le=100, allow_inf_nan=False)]


@dataclass(frozen=True)
class Adapter:
    """One adapter file and how strongly it counts; `config` is PEFT's adapter_config.json."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    path: InputFile
    weight: Weight = 1.0
    text_encoder_weight: Weight | None = None
    config: InputFile | None = None

    @property
    def order(self) -> tuple[str, float, float]:
        """A place among others that does not depend on the order of the spec."""
        return str(self.path.path), self.weight, self.weight_on("text")

    def weight_on(self, role: str) -> float:
        """Return the strength on components of a role."""
        if role == "text" and self.text_encoder_weight is not None:
            return self.text_encoder_weight
        return self.weight


@dataclass(frozen=True)
class _Share:
    """One adapter's part in one tensor: strength * B A."""

    adapter: str
    strength: float
    factors: Factors

    def delta(self) -> Floats:
        down, up = widen(self.factors.down.read()), widen(self.factors.up.read())
        return _delta(down, up, self.strength)


@dataclass(frozen=True)
class MergeAdapters(Pass):
    """Add LoRA adapters to the weights of denoiser and text encoder, at strengths of any sign.

    Each weight becomes W + sum of m s B A over the adapters, with m the strength and s = alpha / r
    (alpha / sqrt(r) with rslora). Changes are summed in float64 and cast once, in an order that does
    not depend on the spec's. A strength of 0 leaves the very same tensors. Every adapter is read once
    while the pass runs, to find all of its faults before a build starts.

    Source: Hu et al., LoRA, 2106.09685, eq. (3); Kalajdzievski, rsLoRA, 2312.03732, eq. (4).
    Limits: plain LoRA of linear and convolutional layers, in PEFT's or diffusers' spelling.
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
                value=decimal(len(factors)),
                unit="modules",
                count=len(factors),
                produced_by=self.name,
                details={
                    name: sum(f.component == name for f in factors) for name in sorted(before.components)
                },
            )
            for adapter, factors in self._read(before)
        ]

    def _shares(self, pipeline: Pipeline) -> dict[str, tuple[_Share, ...]]:
        """Return who changes which tensor by how much; a strength of 0 is nobody."""
        shares: dict[str, tuple[_Share, ...]] = {}
        for adapter, factors in self._read(pipeline):
            for factor in factors:
                strength = adapter.weight_on(pipeline.components[factor.component].role) * factor.scale
                if strength:
                    share = _Share(adapter.path.text, strength, factor)
                    shares[factor.target] = (*shares.get(factor.target, ()), share)
        return dict(sorted(shares.items()))

    def _read(self, pipeline: Pipeline) -> list[tuple[Adapter, tuple[Factors, ...]]]:
        """Read all adapters in an order of their own; the faults of all of them come at once."""
        found, faults = [], []
        for adapter in sorted(self.adapters, key=lambda adapter: adapter.order):
            try:
                config = adapter.config.path if adapter.config else None
                found.append((adapter, read_adapter(adapter.path.path, config, pipeline)))
            except RetouchError as error:
                faults += error.faults
        if faults:
            raise InputError(*faults)
        return found


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

    def see(self, name: str, before: Array, written: Array) -> None:
        found = widen(before).astype(np.float64)
        deltas = [share.delta().reshape(found.shape) for share in self._shares[name]]
        for share, delta in zip(self._shares[name], deltas, strict=True):
            self._of_adapter[share.adapter] += _square(delta)
        total = np.sum(deltas, axis=0)
        self._weight += _square(found)
        self._delta += _square(total)
        if name not in self._rewritten:
            self._lost += _square(widen(written) - (found + total))
            self._wanted += _square(total)
            self._kept += 1

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
    strengths = [share.strength for share in shares]
    factors = [factor for share in shares for factor in (share.factors.down, share.factors.up)]

    def add(found: Array, *halves: Array) -> Floats:
        pairs = zip(halves[::2], halves[1::2], strengths, strict=True)
        deltas = [_delta(down, up, strength).reshape(found.shape) for down, up, strength in pairs]
        return found + np.sum(deltas, axis=0)

    return Edited((weight, *factors), add, weight.dtype, weight.shape, author)


def _delta(down: Array, up: Array, strength: float) -> Floats:
    """Return strength * B A as [out, in * kh * kw]: a convolution's kernel is a longer row."""
    rank = down.shape[0]
    return strength * (up.reshape(-1, rank).astype(np.float64) @ down.reshape(rank, -1).astype(np.float64))


def _square(array: Array) -> float:
    return float(np.sum(np.square(array, dtype=np.float64)))


def _ratio(square: float, of: float) -> float:
    return float(np.sqrt(square / of)) if of else 0.0
