"""The search for tokens: gradients propose, the loss decides. This file imports torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..torch_models.gradients import Gradients, Words
from ..torch_models.inversion import denoising_loss


@dataclass(frozen=True)
class Effort:
    """How hard to search."""

    tokens: int
    steps: int
    candidates: int
    batch: int
    seed: int = 0


@dataclass(frozen=True)
class Found:
    """The prompt found, and the tokens in front of it as text."""

    words: Words
    text: str


def search_tokens(
    model: Gradients,
    latents: Tensor,
    prompt: str,
    effort: Effort,
    advance: Callable[[int], None] = lambda _: None,
) -> Found:
    """Choose tokens to put in front of a prompt so that it draws images like `latents` [N, C, H, W]."""
    allowed = _allowed(model)
    dice = torch.Generator().manual_seed(effort.seed)
    ids = allowed[torch.randint(len(allowed), (effort.tokens,), generator=dice)]
    for step in range(effort.steps):
        place = step % effort.tokens
        # All of a step's candidates meet the same noise; the next step's meet another.
        number = effort.seed * 1_000_003 + step
        scores = _scores(model, latents, prompt, ids, effort, number)[allowed, place]
        proposed = allowed[scores.topk(min(effort.candidates, len(allowed))).indices]
        tried = [ids, *(_with(ids, place, token) for token in proposed)]
        with torch.no_grad():
            losses = [float(_loss(model, latents, prompt, one, effort, number)) for one in tried]
        ids = tried[losses.index(min(losses))]
        advance(1)
    return Found(model.with_prefix(prompt, _embedded(model, ids)), model.spell(ids.tolist()))


def _scores(
    model: Gradients, latents: Tensor, prompt: str, ids: Tensor, effort: Effort, number: int
) -> Tensor:
    """Return how much each token [V] at each place [N] promises to lower the loss, to first order."""
    embedded = [values.detach().requires_grad_() for values in _embedded(model, ids)]
    words = model.with_prefix(prompt, embedded)
    loss = denoising_loss(model, latents, words, effort.batch, torch.Generator().manual_seed(number))
    gradients = torch.autograd.grad(loss, embedded)
    scores = [-(model.embeddings(i) @ gradient.T) for i, gradient in enumerate(gradients)]
    return torch.stack(scores).sum(dim=0)


def _loss(model: Gradients, latents: Tensor, prompt: str, ids: Tensor, effort: Effort, number: int) -> Tensor:
    words = model.with_prefix(prompt, _embedded(model, ids))
    return denoising_loss(model, latents, words, effort.batch, torch.Generator().manual_seed(number))


def _embedded(model: Gradients, ids: Tensor) -> list[Tensor]:
    """Return the tokens' embeddings, one [N, D] an encoder: CLIP's encoders share their vocabulary."""
    return [model.embeddings(share)[ids] for share in range(len(model.shares))]


def _with(ids: Tensor, place: int, token: Tensor) -> Tensor:
    changed = ids.clone()
    changed[place] = token
    return changed


def _allowed(model: Gradients) -> Tensor:
    """Return all tokens but the two that begin and end a prompt, and padding."""
    special = {int(i) for i in model.words("").ids[0]}
    return torch.tensor([i for i in range(len(model.embeddings(0))) if i not in special])
