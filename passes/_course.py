"""A training in numbers: how often samples are drawn, how hard words are looked for, and what that asks for.

Apart from `_esd.py`, which imports torch: planning counts a training without it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from ..compiler.work import Work

if TYPE_CHECKING:
    from .erase_by_training import EraseByTraining

REFRESH = 60  # steps between two drawings of the samples that are trained on
BATCHES = 4  # that are drawn then, and half as many of prompts that stay
TRAJECTORY = 8  # steps of a drawing: each gives samples at one noise level
DRAWING = 2 * TRAJECTORY  # evaluations of one, which is guided
SHOWN = 8  # drawings of a concept by the unedited model, for the inversion to look at
INVERSION_STEPS, INVERSION_BATCH = 60, 4
SEEN = 4  # drawings of a concept that the outcome is measured on


@dataclass(frozen=True)
class Course:
    """What to train, in numbers. `targets` are tensors by the pipeline's names, `[out, in]` each."""

    # Each concept's prompts, and the guide of each, in the same template; empty where the spec names none.
    concepts: tuple[tuple[str, ...], ...]
    guides: tuple[tuple[str, ...], ...]
    kept: tuple[str, ...]
    targets: Mapping[str, tuple[int, ...]]
    rank: int
    steps: int
    rounds: int
    rate: float
    strength: float
    keep_weight: float
    batch: int
    seed: int

    @property
    def total(self) -> int:
        """Steps of all rounds."""
        return self.steps * (self.rounds + 1)


def work_of(edit: "EraseByTraining", targets: int) -> Work:
    """Return what a training asks for, and its outcome on so many written targets."""
    steps, concepts = edit.steps * (edit.rounds + 1), len(edit.concepts)
    inverted = edit.rounds * concepts
    predicted = (
        ceil(steps / REFRESH) * _pooled(edit)
        + inverted * SHOWN * DRAWING
        + targets * concepts * SEEN * (DRAWING + _wanted(edit) + 2 * TRAJECTORY)  # before and after
    )
    learned = steps * edit.batch * (2 if edit.keep_weight else 1)
    searched = inverted * INVERSION_STEPS * INVERSION_BATCH
    at_once = max(edit.batch, INVERSION_BATCH if inverted else 0)
    return Work(predicted=predicted, differentiated=learned + searched, at_once=at_once)


def _pooled(edit: "EraseByTraining") -> int:
    """Return the evaluations that samples take, and what is to be predicted on them, until the next ones."""
    erased = BATCHES * (DRAWING + _wanted(edit))
    kept = ceil(BATCHES / 2) * (DRAWING + TRAJECTORY)
    return edit.batch * (erased + kept)


def _wanted(edit: "EraseByTraining") -> int:
    """Return the evaluations of what a concept's sample is to say; ESD's direction takes two prompts more."""
    return TRAJECTORY * (3 if edit.strength else 1)
