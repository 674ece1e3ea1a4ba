"""Can concepts be moved apart in this text space? The check that comes before the denoiser is trained.

Ten concepts are erased by the closed-form solve that concept erasure uses,

    A = (lam I + sum g c' + w sum p p') (lam I + sum c c' + w sum p p')^-1,

where c are the token states of erased prompts, g the states they shall become (the empty prompt's, at the
same places) and p the states of everything kept. A text space passes if some ridge and weight leave a
residual of at most 5 % at a 95th-percentile drift of at most 15 %.

The residual is the root of sum |A c - g|^2 / sum |c - g|^2 over the mapped tokens of a concept, averaged over
concepts; the drift of a kept concept is the root of sum |A p - p|^2 / sum |p|^2 over all tokens of its
prompts.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from .tokenizer import token_ids
from .world import Concept, World

ERASED = [
    "nike logo",
    "apple logo",
    "mcdonalds logo",
    "pistol",
    "knife",
    "cigarette",
    "syringe",
    "latin cross",
    "pirate flag",
    "middle finger",
]
TEMPLATES = ["{}", "{} in noto style"]
RIDGES = [1e-6, 1e-5, 1e-4]  # of the mean squared norm of a state
WEIGHTS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]  # of the kept states
RESIDUAL, DRIFT = 0.05, 0.15


@dataclass(frozen=True)
class Verdict:
    ridge: float
    weight: float
    residual: float
    worst_residual: float
    drift: float  # 95th percentile over kept concepts
    centered_drift: float  # the same, relative to the states' deviation from their mean: stricter, not gated

    @property
    def passes(self) -> bool:
        return self.residual <= RESIDUAL and self.drift <= DRIFT


class States:
    """Token states of prompts, in double precision."""

    def __init__(self, encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
        self.encoder, self.tokenizer = encoder, tokenizer

    @torch.no_grad()
    def of(self, prompts: list[str]) -> np.ndarray:
        ids = token_ids(self.tokenizer, prompts)
        return self.encoder(input_ids=ids).last_hidden_state.double().numpy()

    def mapped(self, concept: Concept) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of a concept's prompts, from the last subject token on, and what they shall become."""
        empty = self.of([""])[0]
        before, after = [], []
        for prompt, states in zip(prompts := prompts_of(concept), self.of(prompts), strict=True):
            subject = prompt[: prompt.index(concept.name) + len(concept.name)]
            last = len(self.tokenizer(subject).input_ids) - 2  # the end token follows it
            before.append(states[last:])
            after.append(empty[last:])
        return np.concatenate(before), np.concatenate(after)


def prompts_of(concept: Concept) -> list[str]:
    return [template.format(concept.prompt) for template in TEMPLATES]


def check_text(world: World, encoder: CLIPTextModel, tokenizer: CLIPTokenizer, report: Path) -> Verdict:
    """The best verdict over all ridges and weights; every one of them goes into the report."""
    states = States(encoder, tokenizer)
    pairs = [states.mapped(world.concepts[world.index(label)]) for label in ERASED if label in world.labels]
    kept = [
        states.of(prompts_of(concept)).reshape(-1, encoder.config.hidden_size)
        for concept in world.concepts
        if concept.label not in ERASED
    ]
    verdicts = judge_solves(pairs, kept, states.of([""])[0])
    best = min(verdicts, key=lambda v: max(v.residual / RESIDUAL, v.drift / DRIFT))
    told = {"passes": best.passes, "best": asdict(best), "all": [asdict(v) for v in verdicts]}
    report.write_text(json.dumps(told, indent=1) + "\n")
    return best


def judge_solves(
    pairs: list[tuple[np.ndarray, np.ndarray]], kept: list[np.ndarray], empty: np.ndarray
) -> list[Verdict]:
    before = np.concatenate([c for c, _ in pairs])
    after = np.concatenate([g for _, g in pairs])
    everything = np.concatenate([*kept, empty])
    erased_gram, target_gram = before.T @ before, after.T @ before
    kept_gram = everything.T @ everything
    identity = np.eye(before.shape[1])
    mean = everything.mean(0)
    size = (everything**2).sum(1).mean() * len(before)
    verdicts = []
    for ridge in RIDGES:
        for weight in WEIGHTS:
            base = ridge * size / before.shape[1] * identity + weight * kept_gram
            edit = np.linalg.solve((erased_gram + base).T, (target_gram + base).T).T
            residuals = [norm(c @ edit.T - g) / norm(c - g) for c, g in pairs]
            moved = [norm(p @ edit.T - p) for p in kept]
            drifts = [m / norm(p) for m, p in zip(moved, kept, strict=True)]
            centered = [m / norm(p - mean) for m, p in zip(moved, kept, strict=True)]
            verdicts.append(
                Verdict(
                    ridge,
                    weight,
                    float(np.mean(residuals)),
                    float(max(residuals)),
                    float(np.percentile(drifts, 95)),
                    float(np.percentile(centered, 95)),
                )
            )
    return verdicts


def norm(values: np.ndarray) -> float:
    return float(np.linalg.norm(values))
