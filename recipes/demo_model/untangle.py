"""How are concepts made separable in text space? Trains the CLIPModel on, with the gate's own measure as a
loss.

Contrastive training alone leaves token states in which concept, style and background interact, so that a
linear map cannot move ten concepts under every phrasing without dragging others along. Every step erases ten
random concepts with the gate's closed form and lowers what remains of them and what happens to others; the
contrastive loss goes on beside it.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from .scenes import Painter
from .text import RANGE, contrastive_loss, save_towers
from .tokenizer import token_ids
from .training import Dice, Plan, train
from .world import World

ERASED, WATCHED = 10, 24  # concepts a step
RIDGE, WEIGHT = 1e-5, 0.05  # near the gate's best on contrastive training alone
REFRESH = 20  # steps for which phrasings and the statistics of everything kept stay as they are


def untangle(
    model: CLIPModel,
    painter: Painter,
    tokenizer: CLIPTokenizer,
    plan: Plan,
    folder: Path,
    seed: int,
    stop_at: int | None = None,
) -> None:
    torch.manual_seed(seed)
    model.set_attn_implementation("eager")
    solve = Solve(model, painter.world, tokenizer)

    def loss_of_batch(dice: Dice) -> Tensor:
        scenes = painter.scenes(dice.numpy, plan.batch, RANGE, distinct=True)
        return contrastive_loss(model, tokenizer, scenes, dice) + solve.loss(dice.numpy)

    if train("untangle", model, loss_of_batch, plan, folder, seed, stop_at):
        save_towers(model, folder)


class Solve:
    """The gate's closed form, differentiable in the states of erased and watched concepts."""

    def __init__(self, model: CLIPModel, world: World, tokenizer: CLIPTokenizer) -> None:
        self.model, self.world, self.tokenizer = model, world, tokenizer
        self.age = 0
        self.templates: list[str] = []
        self.grams = torch.zeros(0)

    def loss(self, rng: np.random.Generator) -> Tensor:
        if self.age % REFRESH == 0:
            self.refresh(rng)
        self.age += 1
        chosen = rng.permutation(len(self.world.concepts))
        some = min(ERASED, len(chosen) // 3)  # fewer in a small world
        erased, watched = chosen[:some], chosen[some : some + WATCHED]
        states, starts, empty = self.states(np.concatenate([erased, watched]))
        count = len(erased) * len(self.templates)
        before = torch.cat([s[start:] for s, start in zip(states[:count], starts, strict=False)])
        after = torch.cat([empty[start:] for start in starts[:count]])
        kept = self.grams.sum(0) - self.grams[erased].sum(0)
        size = kept.trace() / (states.shape[1] * len(self.templates) * (len(chosen) - some)) * len(before)
        base = RIDGE * size / before.shape[1] * torch.eye(before.shape[1]).double() + WEIGHT * kept
        edit = torch.linalg.solve((before.T @ before + base).T, (after.T @ before + base).T)
        others = states[count:]
        residual = (before @ edit - after).norm() / (before - after).norm()
        drift = (others @ edit - others).norm() / others.norm()
        return (residual + drift / 3).float()  # the gate allows three times as much drift as residual

    def states(self, numbers: np.ndarray) -> tuple[Tensor, list[int], Tensor]:
        """States of every phrasing of these concepts, where their last subject token stands, and the empty
        prompt's."""
        prompts, starts = [], []
        for number in numbers:
            concept = self.world.concepts[number]
            subject = concept.prompt[: concept.prompt.index(concept.name) + len(concept.name)]
            prompts += [template.format(concept.prompt) for template in self.templates]
            starts += [len(self.tokenizer(subject).input_ids) - 2] * len(self.templates)
        ids = token_ids(self.tokenizer, [*prompts, ""])
        states = self.model.text_model(input_ids=ids).last_hidden_state.double()
        return states[:-1], starts, states[-1]

    @torch.no_grad()
    def refresh(self, rng: np.random.Generator) -> None:
        """New phrasings, and the second moments of every concept's states under them."""
        style, color = rng.choice(self.world.styles), rng.choice(list(self.world.colors))
        self.templates = ["{}", f"{{}} in {style} style", f"{{}} on a {color} background"]
        states, _, _ = self.states(np.arange(len(self.world.concepts)))
        flat = states.reshape(len(self.world.concepts), -1, states.shape[-1])
        self.grams = flat.transpose(1, 2) @ flat
