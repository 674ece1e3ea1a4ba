"""How is a stage trained? One loop for all: seeded, resumable to the step, with progress shown.

A checkpoint holds everything that the next step depends on: weights, optimizer, running average. Randomness needs none of it:
every step throws dice of its own, seeded by the step. A checkpoint replaces the one before it in a single rename, so
that a run may be killed at any moment.

Several workers (processes) may share a stage: each takes its part of every batch, and gradients are averaged. On two
cores that is twice as fast as two threads in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, nn

SAVE_EVERY = 120  # seconds
TELL_EVERY = 20  # seconds


@dataclass(frozen=True)
class Plan:
    """One stage's numbers, from ``plan.yaml``."""

    steps: int
    batch: int
    rate: float
    decay: float = 0.4  # the last share of the steps, in which the rate falls to zero
    average: float = 0.0  # of the weights; 0 keeps none
    weight_decay: float = 0.01
    warmup: int = 50


@dataclass
class Dice:
    """Where all randomness comes from."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def seeded(cls, *seeds: int) -> Dice:
        """Dice for, say, a seed, a step and a worker."""
        sequence = np.random.SeedSequence(seeds)
        (number,) = sequence.generate_state(1)
        return cls(np.random.default_rng(sequence), torch.Generator().manual_seed(int(number)))


def worker() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean over workers, in one exchange."""
    if not dist.is_initialized():
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch._utils._flatten_dense_tensors(gradients)
    dist.all_reduce(together)
    together /= dist.get_world_size()
    for gradient, mean in zip(gradients, torch._utils._unflatten_dense_tensors(together, gradients), strict=True):
        gradient.copy_(mean)


def train(
    stage: str,
    model: nn.Module,
    loss_of_batch: Callable[[Dice], Tensor],
    plan: Plan,
    folder: Path,
    seed: int,
    stop_at: int | None = None,
) -> bool:
    """Trains the parameters that ask for gradients; afterwards the model holds their average, if one is kept.
    True when the plan's last step has been done (for the first worker,
    which is to save the result)."""
    console = Console(stderr=True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay)
    average = deepcopy([p.data for p in parameters]) if plan.average else []
    checkpoint = folder / f"{stage}.checkpoint.pt"
    done, seconds, history = 0, 0.0, []
    commits: list[str] = []
    if checkpoint.exists():
        kept = torch.load(checkpoint, weights_only=False)
        for own, value in zip([*parameters, *model.buffers()], [*kept["parameters"], *kept["buffers"]], strict=True):
            own.data.copy_(value)
        optimizer.load_state_dict(kept["optimizer"])
        average = kept["average"]
        done, seconds, history = kept["step"], kept["seconds"], kept["history"]
        commits = kept["commits"]
    commits = [*dict.fromkeys([*commits, commit()])]  # every leg may run another one

    def save() -> None:
        if worker() > 0:
            return
        state = {
            "parameters": [p.data for p in parameters],
            "buffers": list(model.buffers()),
            "optimizer": optimizer.state_dict(),
            "average": average,
            "step": done,
            "seconds": seconds,
            "history": history,
            "commits": commits,
        }
        fresh = checkpoint.with_suffix(".fresh")
        torch.save(state, fresh)
        os.replace(fresh, checkpoint)

    folder.mkdir(parents=True, exist_ok=True)
    last = min(plan.steps, stop_at or plan.steps)
    began = saved = told = time.monotonic()
    started_at, recent = done, []
    model.train()
    while done < last:
        for group in optimizer.param_groups:
            group["lr"] = plan.rate * rate_at(done, plan)
        loss = loss_of_batch(Dice.seeded(seed, done, worker()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        done += 1
        recent.append(loss.item())
        if average:
            keep = min(plan.average, (1 + done) / (10 + done))
            torch._foreach_lerp_(average, [p.data for p in parameters], 1 - keep)
        now = time.monotonic()
        if now - told > TELL_EVERY or done == last:
            pace = (now - began) / (done - started_at)
            left = pace * (plan.steps - done) / 60
            history.append((done, float(np.mean(recent))))
            if worker() == 0:
                console.print(
                    f"{stage}: step {done:,} of {plan.steps:,}, loss {np.mean(recent):.4f}, {pace:.3f} s a step, "
                    f"{left:.0f} min to go",
                    highlight=sys.stderr.isatty(),
                )
            told, recent = now, []
        if now - saved > SAVE_EVERY:
            seconds += now - saved
            saved = now
            save()
    seconds += time.monotonic() - saved
    save()
    for parameter, value in zip(parameters, average, strict=False):
        parameter.data.copy_(value)
    model.eval()
    return done >= plan.steps and worker() == 0


def rate_at(step: int, plan: Plan) -> float:
    """Warm up, hold, then fall to zero. Holding makes the number of steps a decision for later."""
    rising = min(1.0, (step + 1) / plan.warmup)
    falling = min(1.0, (plan.steps - step) / max(1.0, plan.decay * plan.steps))
    return min(rising, falling)


def commit() -> str:
    """The last commit of the recipe, marked where files differ from it."""
    here = Path(__file__).parent
    try:
        last = git(here, "log", "-1", "--format=%H", "--", ".")
        return last + ("+changes" if git(here, "status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def git(folder: Path, *command: str) -> str:
    return subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
