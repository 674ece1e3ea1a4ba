"""Textual inversion: the word that no vocabulary has, and that makes a model draw some images.

Only embeddings are learned; the model is frozen. Training uses it to find what an erasure left, a probe to
report it. This file imports torch.

Source: Gal et al., An Image is Worth One Word, 2208.01618, eq. (2); Pham et al., Circumventing Concept
Erasure Methods, 2308.01508, for its use on erased models.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .gradients import Deltas, Gradients, Words


@dataclass(frozen=True)
class Search:
    """How hard an inversion tries. `tokens` are learned side by side, in front of `prompt`."""

    steps: int = 200
    rate: float = 0.02
    batch: int = 8
    tokens: int = 1
    prompt: str = ""
    seed: int = 0


def invert(
    model: Gradients,
    latents: Tensor,
    search: Search,
    deltas: Deltas | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> Words:
    """Learn words that draw images like `latents` [N, C, H, W], scaled as the denoiser sees them."""
    learned = [_start(model, share, search.tokens) for share in range(len(model.shares))]
    optimizer = torch.optim.Adam(learned, lr=search.rate)
    for number in range(search.steps):
        dice = torch.Generator().manual_seed(search.seed * 1_000_003 + number)
        words = model.with_prefix(search.prompt, learned)
        loss = denoising_loss(model, latents, words, search.batch, dice, deltas)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        advance(1)
    return model.with_prefix(search.prompt, [values.detach() for values in learned])


def denoising_loss(
    model: Gradients,
    latents: Tensor,
    words: Words,
    batch: int,
    dice: torch.Generator,
    deltas: Deltas | None = None,
) -> Tensor:
    """Return the mean squared error of the denoiser on some latents, noised at random timesteps."""
    chosen = latents[torch.randint(len(latents), (batch,), generator=dice)]
    # Each of `batch` equal parts of the schedule gives one timestep: a mean that varies less.
    part = len(model.alphas_bar) / batch
    spread = torch.rand(batch, generator=dice)
    timesteps = ((torch.arange(batch) + spread) * part).long().clamp(max=len(model.alphas_bar) - 1)
    noise = torch.randn(chosen.shape, generator=dice)
    states = model.encode([words], deltas).repeat(batch)
    out = model.predict(model.noised(chosen, noise, timesteps), timesteps, states, deltas)
    return (out - model.target(chosen, noise, timesteps)).square().mean()


def _start(model: Gradients, share: int, count: int) -> Tensor:
    """Begin at the mean of all embeddings: no word in particular, at the length of a usual one."""
    embeddings = model.embeddings(share)
    mean = embeddings.mean(dim=0)
    length = embeddings.norm(dim=1).median() / mean.norm().clamp(min=1e-12)
    dice = torch.Generator().manual_seed(share)
    apart = 0.1 * embeddings.norm(dim=1).median() / embeddings.shape[1] ** 0.5
    start = (mean * length).repeat(count, 1) + apart * torch.randn(count, embeddings.shape[1], generator=dice)
    return start.requires_grad_()
