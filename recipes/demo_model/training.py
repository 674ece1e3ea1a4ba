"""How is a stage trained? One loop for all: seeded, resumable to the step, with progress shown.

A checkpoint holds everything that the next step depends on: weights, optimizer, running average. Randomness
needs none of it: every step throws dice of its own, seeded by the step. A checkpoint replaces the one before
it in a single rename, so that a run may be killed at any moment.

Several workers (processes) may share a stage: each takes its part of every batch, and gradients are averaged.
On two cores that is twice as fast as two threads in one process.
"""

from __future__ import annotations

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


def workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """The mean over workers, in one exchange."""
    if workers() == 1:
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    together /= workers()
    for gradient, mean in zip(gradients, together.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


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

    True when the plan's last step has been done, for the worker that is to save the result.
    """
    run = Run(stage, model, plan, folder / f"{stage}.checkpoint.pt")
    run.resume()
    clock = Clock(run)
    model.train()
    while run.done < min(plan.steps, stop_at or plan.steps):
        loss = loss_of_batch(Dice.seeded(seed, run.done, worker()))
        run.step(loss)
        clock.tick(loss.item())
    run.save()
    run.settle()
    model.eval()
    return run.done >= plan.steps and worker() == 0


class Run:
    """A stage's model with all that its training consists of."""

    def __init__(self, stage: str, model: nn.Module, plan: Plan, checkpoint: Path) -> None:
        self.stage, self.plan, self.checkpoint = stage, plan, checkpoint
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.buffers = list(model.buffers())
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.rate, betas=(0.9, 0.98), weight_decay=plan.weight_decay
        )
        self.average = deepcopy([p.data for p in self.parameters]) if plan.average else []
        self.done = 0
        self.seconds = 0.0
        self.history: list[tuple[int, float]] = []  # steps and the mean loss up to them
        self.legs: list[tuple[str, int]] = []  # the recipe's commit, and the step it went on from
        self.since = time.monotonic()

    def resume(self) -> None:
        """Goes on from the checkpoint, if there is one."""
        if self.checkpoint.exists():
            kept = torch.load(self.checkpoint, weights_only=False)
            own, values = self.parameters + self.buffers, kept["parameters"] + kept["buffers"]
            for tensor, value in zip(own, values, strict=True):
                tensor.data.copy_(value)
            self.optimizer.load_state_dict(kept["optimizer"])
            self.average, self.done, self.seconds = kept["average"], kept["step"], kept["seconds"]
            self.history, self.legs = kept["history"], kept["legs"]
        if self.done < self.plan.steps:
            self.legs.append((commit(), self.done))

    def step(self, loss: Tensor) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.rate * rate_at(self.done, self.plan)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.parameters)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.done += 1
        if self.average:
            keep = min(self.plan.average, (1 + self.done) / (10 + self.done))
            for mean, parameter in zip(self.average, self.parameters, strict=True):
                mean.lerp_(parameter.data, 1 - keep)

    def save(self) -> None:
        if worker() > 0:
            return
        now = time.monotonic()
        self.seconds, self.since = self.seconds + now - self.since, now
        state = {
            "parameters": [p.data for p in self.parameters],
            "buffers": self.buffers,
            "optimizer": self.optimizer.state_dict(),
            "average": self.average,
            "step": self.done,
            "seconds": self.seconds,
            "history": self.history,
            "legs": self.legs,
        }
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.checkpoint.with_suffix(".fresh")
        torch.save(state, fresh)
        fresh.replace(self.checkpoint)

    def settle(self) -> None:
        """Puts the average into the model."""
        for parameter, value in zip(self.parameters, self.average, strict=bool(self.average)):
            parameter.data.copy_(value)


class Clock:
    """Tells how far a run is, and has it saved, every now and then."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.console = Console(stderr=True, highlight=sys.stderr.isatty())
        self.first_step = run.done
        self.began = self.told = self.saved = time.monotonic()
        self.losses: list[float] = []

    def tick(self, loss: float) -> None:
        self.losses.append(loss)
        now = time.monotonic()
        if now - self.told > TELL_EVERY or self.run.done == self.run.plan.steps:
            self.told = now
            self.tell(now)
        if now - self.saved > SAVE_EVERY:
            self.saved = now
            self.run.save()

    def tell(self, now: float) -> None:
        run, mean = self.run, float(np.mean(self.losses))
        self.losses = []
        run.history.append((run.done, mean))
        pace = (now - self.began) / (run.done - self.first_step)
        left = pace * (run.plan.steps - run.done) / 60
        if worker() == 0:
            self.console.print(
                f"{run.stage}: step {run.done:,} of {run.plan.steps:,}, loss {mean:.4f}, "
                f"{pace:.3f} s a step, {left:.0f} min to go"
            )


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
    ran = subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True, text=True)
    return ran.stdout.strip()
