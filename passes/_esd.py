"""Erasing by training: low-rank changes of weights that make a concept's prompts say something else.

The objective is ESD's: on samples x_t that the model being trained draws for a concept c,

    eps_trained(x_t, c)  ->  eps(x_t, guide) - strength (eps(x_t, c) - eps(x_t, empty))

where eps without a mark is the model as it was, and the guide is the empty prompt or the one that the spec
names. A drift penalty keeps what other prompts mean. Between rounds, textual inversion looks for a word
that still draws the concept, and the next round erases that word too, as STEREO does.

All randomness comes from the seed and the number of the step, so training that was stopped goes on as if
it had not been. This file imports torch.

Source: Gandikota et al., Erasing Concepts from Diffusion Models, 2303.07345, eq. (6); Srivatsan et al.,
STEREO, 2408.16807, section 3.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..compiler.torch_models.drawing import Drawn, draw, short_table, unit_noise
from ..compiler.torch_models.gradients import Deltas, Gradients, States, Words
from ..compiler.torch_models.inversion import Search, invert
from ._course import BATCHES, INVERSION_BATCH, INVERSION_STEPS, REFRESH, SHOWN, TRAJECTORY, Course

DRIFT = 1.0  # weight of the drift of text states beside the error of predictions on prompts that stay
KEPT_AT_ONCE = 16  # preserved prompts looked at in a step, where they have to be encoded anew
SAVE_EVERY = 20.0  # seconds
INVERSION = Search(steps=INVERSION_STEPS, rate=0.03, batch=INVERSION_BATCH)


@dataclass
class State:
    """What training has come to; all that the next step depends on."""

    down: dict[str, Tensor]
    up: dict[str, Tensor]
    start: Deltas = field(default_factory=dict)  # what training begins at, and leaves alone
    # (concept, an embedding [N, D] an encoder) of each word that an inversion found
    found: list[tuple[int, tuple[Tensor, ...]]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    done: int = 0

    @property
    def deltas(self) -> Deltas:
        """Everything that is added to weights: where training began, and what was learned."""
        learned = {name: (self.down[name], self.up[name]) for name in self.down}
        return {**self.start, **{name: _beside(self.start.get(name), own) for name, own in learned.items()}}


@dataclass(frozen=True)
class Sample:
    """Samples to train on, from one drawing: a prompt for each, and what it is to say at each step."""

    words: list[Words]
    drawn: Drawn
    wanted: Tensor  # [steps, B, C, H, W]


@dataclass(frozen=True)
class Pool:
    """Samples of concepts, which are to say something else, and of prompts that stay."""

    erased: list[Sample]
    kept: list[Sample]


def train(
    model: Gradients,
    course: Course,
    checkpoint: Path,
    start: Deltas | None = None,
    advance: Callable[[int], None] = lambda _: None,
) -> State:
    """Carry out a course, or what is left of it, and return its end; the checkpoint is kept."""
    state, kept, saved = _fresh(course, start or {}), Kept(model, course), time.monotonic()
    optimizer = torch.optim.Adam([*state.down.values(), *state.up.values()], lr=course.rate)
    _resume(checkpoint, state, optimizer)
    advance(state.done)
    pool: Pool | None = None
    while state.done < course.total:
        if state.done % course.steps == 0 and state.done:
            _search(model, course, state)
        if pool is None or state.done % REFRESH == 0:
            # Saved only where samples are drawn anew, so that a stop changes nothing.
            if state.done and time.monotonic() - saved > SAVE_EVERY:
                _save(checkpoint, state, optimizer)
                saved = time.monotonic()
            pool = _draw_pool(model, course, state)
        optimizer.zero_grad()
        loss = _step(model, course, state, kept, pool)
        for group in optimizer.param_groups:
            group["lr"] = course.rate * _rate(state.done, course)
        optimizer.step()
        state.losses.append(loss)
        state.done += 1
        advance(1)
    _save(checkpoint, state, optimizer)
    return state


def _beside(start: tuple[Tensor, Tensor] | None, own: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the factors of a sum of two changes."""
    if start is None:
        return own
    return torch.cat([start[0], own[0]]), torch.cat([start[1], own[1]], dim=1)


def losses(checkpoint: Path, course: Course) -> list[float]:
    """Return the loss of each step of a finished course. Raises FileNotFoundError where there is none."""
    seen = load_file(checkpoint)["losses"].tolist()
    if len(seen) < course.total:
        raise FileNotFoundError(checkpoint)
    return seen


def _rate(done: int, course: Course) -> float:
    """Hold the rate, then let it fall to zero over the last half of the last round."""
    left = (course.total - done) / max(1.0, 0.5 * course.steps)
    return min(1.0, left)


def _fresh(course: Course, start: Deltas) -> State:
    """Begin with no change: `up` is zero. Source: Hu et al., LoRA, 2106.09685, section 4.1."""
    dice = torch.Generator().manual_seed(course.seed)
    down, up = {}, {}
    for name in sorted(course.targets):
        outputs, inputs = course.targets[name]
        down[name] = (torch.randn(course.rank, inputs, generator=dice) / inputs**0.5).requires_grad_()
        up[name] = torch.zeros(outputs, course.rank).requires_grad_()
    return State(down, up, start)


def _dice(course: Course, *place: int) -> torch.Generator:
    (number,) = np.random.SeedSequence([course.seed, *place]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(number) % 2**63)


# ---------------------------------------------------------------------------------------------------
# Samples: drawn by the model as it is now, judged by the model as it was


def _draw_pool(model: Gradients, course: Course, state: State) -> "Pool":
    """Draw batches for the concepts in turn, and for prompts that stay, with what to predict on the way."""
    dice = _dice(course, 1, state.done)
    first = state.done // REFRESH * BATCHES * course.batch
    turns = [range(first + i * course.batch, first + (i + 1) * course.batch) for i in range(BATCHES)]
    return Pool(
        [_draw_batch(model, course, state, part, dice) for part in turns],
        [_draw_kept(model, course, dice) for _ in turns[::2]],
    )


@torch.no_grad()
def _draw_kept(model: Gradients, course: Course, dice: torch.Generator) -> Sample:
    """Draw prompts that stay, by the model as it was: what it predicted is what is wanted."""
    chosen = torch.randint(len(course.kept), (course.batch,), generator=dice).tolist()
    words = [model.words(course.kept[i]) for i in chosen]
    states, empty = model.encode(words), model.encode([model.words("")])
    noise = torch.randn(course.batch, *_latent_shape(model), generator=dice)
    drawn = draw(model, states, empty, short_table(model.pipeline.sampling, TRAJECTORY), noise)
    return Sample(words, drawn, predictions(model, drawn, states))


def predictions(model: Gradients, drawn: Drawn, states: States) -> Tensor:
    """Return what the model says to the samples of a drawing, [steps, B, C, H, W]."""
    return torch.stack(
        [
            model.predict(sample, timestep.expand(len(sample)), states)
            for sample, timestep in zip(drawn.samples, drawn.timesteps, strict=True)
        ]
    )


def _draw_batch(
    model: Gradients, course: Course, state: State, turns: range, dice: torch.Generator
) -> Sample:
    chosen = [turn % len(course.concepts) for turn in turns]
    words, asked = zip(*(_prompt_of(model, course, state, each, dice) for each in chosen), strict=True)
    with torch.no_grad():
        now, empty = model.encode(words, state.deltas), model.encode([model.words("")], state.deltas)
        noise = torch.randn(course.batch, *_latent_shape(model), generator=dice)
        table = short_table(model.pipeline.sampling, TRAJECTORY)
        drawn = draw(model, now, empty, table, noise, state.deltas)
        guides = model.encode([model.words(guide) for guide in asked])
        return Sample(list(words), drawn, wanted(model, course, drawn, model.encode(words), guides))


def wanted(model: Gradients, course: Course, drawn: Drawn, concept: States, guides: States) -> Tensor:
    """Return ESD's target on samples of a drawing [steps, B, C, H, W], by the model as it was."""
    of_guide = predictions(model, drawn, guides)
    if course.strength == 0:
        return of_guide
    empty = model.encode([model.words("")]).repeat(drawn.samples.shape[1])
    apart = predictions(model, drawn, concept) - predictions(model, drawn, empty)
    return of_guide - course.strength * apart


def _prompt_of(
    model: Gradients, course: Course, state: State, concept: int, dice: torch.Generator
) -> tuple[Words, str]:
    """Choose a prompt of a concept, or as often a word that an inversion found; and say what guides it."""
    found = [learned for owner, learned in state.found if owner == concept]
    prompts = course.concepts[concept]
    pick = int(torch.randint(2 * len(prompts) if found else len(prompts), (1,), generator=dice))
    if pick < len(prompts):
        return model.words(prompts[pick]), course.guides[concept][pick]
    return model.with_prefix("", found[pick % len(found)]), course.guides[concept][0]


def _latent_shape(model: Gradients) -> tuple[int, int, int]:
    latent = model.pipeline.sampling.latent
    return latent.channels, latent.height, latent.width


# ---------------------------------------------------------------------------------------------------
# A step, and what it must leave alone


def _step(model: Gradients, course: Course, state: State, kept: "Kept", pool: Pool) -> float:
    """Leave the gradient of one step's loss on the factors and return the loss.

    Its parts are differentiated one after another, so that one batch at a time is held.
    """
    dice = _dice(course, 2, state.done)
    total = _backward(_error(model, course, state, pool.erased, dice))
    if course.keep_weight:
        stays = _error(model, course, state, pool.kept, dice)
        total += _backward(course.keep_weight * stays)
        total += _backward(course.keep_weight * DRIFT * kept.drift(state.deltas, dice))
    return total


def _backward(loss: Tensor) -> float:
    loss.backward()
    return float(loss.detach())


def _error(
    model: Gradients, course: Course, state: State, pool: list[Sample], dice: torch.Generator
) -> Tensor:
    """Return the mean squared error on a batch of a pool's samples, whichever drawings they are of."""
    levels = torch.randint(len(pool[0].wanted), (course.batch,), generator=dice).tolist()
    places = torch.randperm(len(pool) * course.batch, generator=dice)[: course.batch].tolist()
    chosen = [(pool[place // course.batch], place % course.batch) for place in places]
    samples, timesteps, asked = (
        torch.stack(parts)
        for parts in zip(
            *(
                (sample.drawn.samples[level, row], sample.drawn.timesteps[level], sample.wanted[level, row])
                for level, (sample, row) in zip(levels, chosen, strict=True)
            ),
            strict=True,
        )
    )
    states = model.encode([sample.words[row] for sample, row in chosen], state.deltas)
    return (model.predict(samples, timesteps, states, state.deltas) - asked).square().mean()


class Kept:
    """How far preserved prompts have moved in what the denoiser reads, as a share of their own size squared.

    Where keys and values change, the sum over all preserved prompts is one [D, D] matrix, whatever their
    number; where the encoder changes, a few prompts are encoded anew at each step.
    """

    def __init__(self, model: Gradients, course: Course) -> None:
        self._model = model
        self._words = [model.words(prompt) for prompt in course.kept]
        with torch.no_grad():
            parts = [model.encode(self._words[i : i + 64]) for i in range(0, len(self._words), 64)]
        self._states = States.cat(parts)
        rows = self._states.sequence.flatten(0, 1)
        self._second = rows.T @ rows / len(rows)
        self._encoded = any(
            name.startswith(share.component + ".") for name in course.targets for share in model.shares
        )
        self._sizes = {} if self._encoded else {name: self._size(name) for name in course.targets}

    def drift(self, deltas: Deltas, dice: torch.Generator) -> Tensor:
        """Return the mean squared drift; its gradient reaches the deltas."""
        return self._of_states(deltas, dice) if self._encoded else self._of_maps(deltas)

    def _of_maps(self, deltas: Deltas) -> Tensor:
        """||up down p||^2 over ||W p||^2, by the second moment of p."""
        shares = [
            torch.sum((up.T @ up) * (down @ self._second @ down.T)) / self._sizes[name]
            for name, (down, up) in deltas.items()
            if name in self._sizes
        ]
        return torch.stack(shares).mean()

    def _of_states(self, deltas: Deltas, dice: torch.Generator) -> Tensor:
        chosen = torch.randperm(len(self._words), generator=dice)[:KEPT_AT_ONCE]
        now = self._model.encode([self._words[i] for i in chosen.tolist()], deltas).sequence
        was = self._states.sequence[chosen]
        return (now - was).square().mean() / was.square().mean()

    def _size(self, name: str) -> Tensor:
        weight = torch.from_numpy(np.asarray(self._model.pipeline.tensors[name].read(), np.float32))
        return torch.sum((weight @ self._second) * weight)


# ---------------------------------------------------------------------------------------------------
# Between rounds: what still draws the concept?


def _search(model: Gradients, course: Course, state: State) -> None:
    """Find a word for each concept that the model, as trained so far, still draws it by."""
    frozen = {name: (down.detach(), up.detach()) for name, (down, up) in state.deltas.items()}
    turn = state.done // course.steps
    if len(state.found) >= turn * len(course.concepts):
        return  # found before a stop
    for concept, prompts in enumerate(course.concepts):
        latents = _shown(model, prompts[0])
        search = Search(INVERSION.steps, INVERSION.rate, INVERSION.batch, seed=course.seed + turn)
        words = invert(model, latents, search, frozen)
        state.found.append((concept, words.learned))


def _shown(model: Gradients, prompt: str) -> Tensor:
    """Return latents of a concept, drawn by the model as it was."""
    with torch.no_grad():
        states, empty = (model.encode([model.words(text)]) for text in (prompt, ""))
    noise = unit_noise(model, range(SHOWN))
    return draw(
        model, states.repeat(SHOWN), empty, short_table(model.pipeline.sampling, TRAJECTORY), noise
    ).latents


# ---------------------------------------------------------------------------------------------------
# The checkpoint: a safetensors file, exchanged for the one before it in a single rename

MOMENTS = ("exp_avg", "exp_avg_sq")


def _save(file: Path, state: State, optimizer: torch.optim.Adam) -> None:
    tensors = {f"{kind}:{name}": value.detach() for kind, name, value in _parameters(state)}
    for kind, name, value in _parameters(state):
        for moment in MOMENTS:
            tensors[f"{kind}.{moment}:{name}"] = optimizer.state[value][moment]
    for number, (owner, learned) in enumerate(state.found):
        for share, values in enumerate(learned):
            tensors[f"found:{number}.{owner}.{share}"] = values
    tensors["losses"] = torch.tensor(state.losses, dtype=torch.float64)
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_suffix(f".{os.getpid()}.part")
    save_file({name: value.contiguous() for name, value in tensors.items()}, fresh)
    fresh.replace(file)


def _resume(file: Path, state: State, optimizer: torch.optim.Adam) -> None:
    """Go on from a checkpoint where there is a whole one."""
    try:
        kept = load_file(file)
        losses = kept["losses"].tolist()
        with torch.no_grad():
            for kind, name, value in _parameters(state):
                value.copy_(kept[f"{kind}:{name}"])
                moments: dict[str, Any] = {m: kept[f"{kind}.{m}:{name}"] for m in MOMENTS}
                optimizer.state[value] = {"step": torch.tensor(float(len(losses))), **moments}
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError):
        return
    found: dict[tuple[int, int], dict[int, Tensor]] = {}
    for key in sorted(kept):
        if key.startswith("found:"):
            number, owner, share = map(int, key.removeprefix("found:").split("."))
            found.setdefault((number, owner), {})[share] = kept[key]
    state.found = [
        (owner, tuple(parts[i] for i in sorted(parts))) for (_, owner), parts in sorted(found.items())
    ]
    state.losses, state.done = losses, len(losses)


def _parameters(state: State) -> list[tuple[str, str, Tensor]]:
    return [
        (kind, name, group[name])
        for kind, group in (("down", state.down), ("up", state.up))
        for name in group
    ]
