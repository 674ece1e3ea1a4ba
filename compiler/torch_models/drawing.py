"""Drawing in torch: the loop of the runtime over a sampling table, with the samples on the way kept.

The runtime draws what is shipped. This loop is for training and probes, which need samples of a model that
is not written yet, in latents; a test holds the two loops equal. This file imports torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...specs.sampling import SamplingTable, Step
from ..sampling import Sampling, constant
from .gradients import Deltas, Gradients, States


@dataclass(frozen=True)
class Drawn:
    """Finished latents [B, C, H, W], and for each step the denoiser's samples and its timestep."""

    latents: Tensor
    samples: Tensor  # [steps, B, C, H, W], variance-preserving
    timesteps: Tensor  # [steps]


def short_table(sampling: Sampling, steps: int) -> SamplingTable:
    """Return a table of few steps with constant guidance: the strongest that the sampling itself uses."""
    scale = max(sampling.guidance.weights, default=1.0)
    return replace(sampling, steps=steps, guidance=constant(scale, steps)).table()


@torch.no_grad()
def draw(
    model: Gradients,
    states: States,
    empty: States,
    table: SamplingTable,
    noise: Tensor,
    deltas: Deltas | None = None,
) -> Drawn:
    """Draw latents from unit noise [B, C, H, W]; `empty` are the states [1, S, D] of the other half."""
    sample, before = table.initial_scale * noise, torch.zeros_like(noise)
    without = empty.repeat(len(noise))
    seen = []
    for step in table.steps:
        seen.append(step.input_scale * sample)
        out = guided(model, step, seen[-1], states, without, deltas)
        x0 = step.x0_from_sample * sample + step.x0_from_output * out
        past = step.next_from_previous_x0 * before
        sample, before = step.next_from_sample * sample + step.next_from_x0 * x0 + past, x0
    timesteps = torch.tensor([step.timestep for step in table.steps])
    return Drawn(sample, torch.stack(seen), timesteps)


def unit_noise(model: Gradients, seeds: Sequence[int]) -> Tensor:
    """Return the runtime's own noise of these seeds, [B, C, H, W]."""
    import numpy as np

    from ...runtime.noise import normal

    latent = model.pipeline.sampling.latent
    return torch.from_numpy(
        np.stack([normal(s, (latent.channels, latent.height, latent.width)) for s in seeds])
    )


def guided(
    model: Gradients,
    step: Step,
    sample: Tensor,
    states: States,
    without: States,
    deltas: Deltas | None = None,
) -> Tensor:
    """Return the guided prediction of one step for variance-preserving samples."""
    if not step.guided:
        return model.predict(sample, torch.full((len(sample),), step.timestep), states, deltas)
    twice = torch.full((2 * len(sample),), step.timestep)
    out = model.predict(torch.cat([sample, sample]), twice, States.cat([without, states]), deltas)
    unconditional, conditional = out.chunk(2)
    return unconditional + step.guidance_weight * (conditional - unconditional)
