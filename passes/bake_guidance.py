"""Bake classifier-free guidance into the artefact: one weight a step, and the negative prompt."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import cos, pi, sqrt
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ..compiler.contract import Pass, Stage
from ..compiler.graphs.interfaces import NEGATIVE, NEGATIVE_POOLED
from ..compiler.ir import GraphEdit, Pipeline
from ..compiler.sampling import Guidance
from ..compiler.tensors import Shared
from ..compiler.text.encode import encode_prompts, pooled_width, text_width, tokenizer_of
from ..specs.errors import Fault, SpecError, raise_all
from ..specs.manifest import Evidence
from ..specs.sampling import Step

Weight = Annotated[float, Field(ge=-1000, le=1000, allow_inf_nan=False)]
Sigma = Annotated[float, Field(ge=0, allow_inf_nan=False)]

# Weight at noise fraction p = timestep / training timesteps, 1 at pure noise, for a scale s.
# Means over p are s, but for the clamp. Source: Wang et al., 2404.13040, section 3.
RAMPS: Mapping[str, Callable[[float, float, float], float]] = {
    "constant": lambda s, p, clamp: s,
    "linear": lambda s, p, clamp: 2 * s * (1 - p),
    "cosine": lambda s, p, clamp: s * (1 + cos(pi * p)),
    "clamp_linear": lambda s, p, clamp: max(clamp, 2 * s * (1 - p)),
}


@dataclass(frozen=True)
class BakeGuidance(Pass):
    """Fix the guidance weight of every step, so that steps without guidance run the denoiser once.

    Exactly one of three ways to say the weights: a `scale`, shaped by `schedule`; `weights`, one a
    step; or `cfg_plus_plus`, lambda in (0, 1]. With `interval: [lo, hi]`, in units of sigma, only
    steps with lo < sigma <= hi are guided, the others have weight 1. A `negative: baked` prompt is
    encoded at build time and becomes part of the guided graph.

    Source: Ho & Salimans, 2207.12598, eq. (6); Kynkaanniemi et al., 2404.07724, eq. (5) (interval);
    Wang et al., 2404.13040 (ramps); Chung et al., 2406.08070 (CFG++, here as weights of plain CFG).
    Limits: the weights fit the sampler and the number of steps of this spec and no others. Without a
    negative prompt, models that were trained so (SDXL) read zeros in its place, baked or not.
    """

    stage = Stage.GUIDE

    scale: Weight | None = None
    schedule: Literal["constant", "linear", "cosine", "clamp_linear"] = "constant"
    clamp: Weight = 1.0
    weights: tuple[Weight, ...] | None = None
    cfg_plus_plus: Annotated[float, Field(gt=0, le=1)] | None = None
    interval: tuple[Sigma, Sigma] | None = None
    negative_prompt: Annotated[str, Field(max_length=2000)] = ""
    negative: Literal["live", "baked"] = "live"

    def run(self, pipeline: Pipeline) -> Pipeline:
        raise_all(SpecError, self._faults(pipeline))
        baked = self.negative == "baked"
        guidance = Guidance(
            weights=self._weights(pipeline),
            negative_prompt=self.negative_prompt,
            baked_weights=True,
            baked_negative=baked,
        )
        guided = pipeline.with_sampling(pipeline.sampling.with_guidance(guidance))
        return self._with_negative(guided) if baked else guided

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        weights = after.sampling.guidance.weights
        guided = sum(weight != 1 for weight in weights)
        constant = 2 * len(weights)
        return [
            self._statement("guidance.guided_steps", guided, "steps", len(weights)),
            self._statement(
                "guidance.evaluations", (len(weights) + guided) / constant, "of constant guidance", constant
            ),
            self._statement("guidance.mean_weight", float(np.mean(weights)), "", len(weights)),
            self._table_is_the_formulas(before, after),
        ]

    def _weights(self, pipeline: Pipeline) -> tuple[float, ...]:
        rows = pipeline.sampling.table().steps
        timesteps = len(pipeline.sampling.schedule.alphas_bar)
        return tuple(
            self._weight(i, row, timesteps) if self._guides(row) else 1.0 for i, row in enumerate(rows)
        )

    def _weight(self, i: int, row: Step, timesteps: int) -> float:
        if self.weights is not None:
            return self.weights[i]
        if self.cfg_plus_plus is not None:
            return self.cfg_plus_plus * row.sigma / (row.sigma - _next_sigma(row))
        return RAMPS[self.schedule](self.scale or 0.0, row.timestep / timesteps, self.clamp)

    def _guides(self, row: Step) -> bool:
        lowest, highest = self.interval or (-1.0, float("inf"))
        return lowest < row.sigma <= highest

    def _with_negative(self, pipeline: Pipeline) -> Pipeline:
        """Add the negative prompt's text states as tensors, and the graph edit that reads them."""
        (denoiser,) = pipeline.of_role("denoiser")
        tensors = {
            f"{denoiser.name}.{name}": Shared(
                partial(_negative, pipeline, self.negative_prompt, name), np.dtype(np.float32), shape
            )
            for name, shape in _shapes(pipeline).items()
        }
        edited = pipeline.with_tensors(tensors)
        return replace(edited, graph_edits=(*edited.graph_edits, GraphEdit(denoiser.name, "baked_negative")))

    def _faults(self, pipeline: Pipeline) -> Iterator[Fault]:
        ways = ("scale", "weights", "cfg_plus_plus")
        chosen = [name for name in ways if getattr(self, name) is not None]
        if len(chosen) != 1:
            message = f"give exactly one of {', '.join(ways)}; found {' and '.join(chosen) or 'none'}"
            yield Fault("E_GUIDANCE_WAY", message, self.name)
        if self.schedule != "constant" and self.scale is None:
            yield Fault(
                "E_GUIDANCE_WAY", "`schedule` shapes a `scale`, and there is none", f"{self.name}.schedule"
            )
        if self.weights is not None and len(self.weights) != pipeline.sampling.steps:
            message = f"{len(self.weights)} weights for {pipeline.sampling.steps} steps"
            yield Fault("E_GUIDANCE_WEIGHTS", message, f"{self.name}.weights")
        if self.cfg_plus_plus is not None and pipeline.sampling.sampler not in ("ddim", "euler"):
            message = f"CFG++ is no table of weights for `{pipeline.sampling.sampler}`"
            yield Fault("E_GUIDANCE_SAMPLER", message, f"{self.name}.cfg_plus_plus", "use ddim or euler")
        if self.interval is not None:
            yield from self._interval_faults(pipeline.sampling.sigmas())

    def _interval_faults(self, sigmas: tuple[float, ...]) -> Iterator[Fault]:
        lowest, highest = self.interval or (0.0, 0.0)
        if not any(lowest < sigma <= highest for sigma in sigmas):
            between = f"the steps' sigmas run from {sigmas[0]:.4g} down to {sigmas[-1]:.4g}"
            message = f"no step has {lowest} < sigma <= {highest}"
            yield Fault("E_GUIDANCE_INTERVAL", message, f"{self.name}.interval", between)

    def _statement(self, claim: str, value: float, unit: str, count: int) -> Evidence:
        return self.measured(claim, "sampling", value, count, unit=unit)

    def _table_is_the_formulas(self, before: Pipeline, after: Pipeline) -> Evidence:
        """The largest gap between sampling.json's weights and the formulas, over the steps."""
        table = [step.guidance_weight for step in after.sampling.table().steps]
        gap = max(abs(a - b) for a, b in zip(table, self._weights(before), strict=True))
        baked = after.sampling.table().guidance_baked
        return self._statement("guidance.table_error", gap, "", len(table)).model_copy(
            update={"comparator": "at_most", "limit": "0", "passed": gap == 0 and baked}
        )


def _next_sigma(row: Step) -> float:
    """Return the noise level after a step of a one-step sampler, from its row alone.

    A sample is c (x0 + sigma noise); c is alpha where the denoiser sees the sample as it is.
    """
    c = 1 / sqrt(1 + row.sigma**2) / row.input_scale
    noise = row.next_from_sample * c
    return noise * row.sigma / (noise + row.next_from_x0)


def _shapes(pipeline: Pipeline) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a baked negative prompt adds: text states, and a pooled one where read."""
    length, pooled = tokenizer_of(pipeline).length, pooled_width(pipeline)
    shapes: dict[str, tuple[int, ...]] = {NEGATIVE: (1, length, text_width(pipeline))}
    return {**shapes, NEGATIVE_POOLED: (1, pooled)} if pooled else shapes


def _negative(pipeline: Pipeline, prompt: str, name: str) -> NDArray[np.float32]:
    """Return what the unconditional half reads: the prompt's states, or zeros where the model wants these."""
    if pipeline.sampling.zero_negative:
        return np.zeros(_shapes(pipeline)[name], np.float32)
    encoded = encode_prompts(pipeline, [prompt])
    return encoded.states if name == NEGATIVE else encoded.pooled_row(prompt)
