"""Balancing by images: an integral controller for how far each concept is moved towards each value.

The state of a concept's last token moves by a weighted sum of its attribute's words, sum w = 0. A round
draws the concept with the weights so far and counts the values that a judge sees. A share answers to weights
much like a logistic curve, from which a round with counts n_v estimates the weights that would balance:

    w_v + step (log t_v - log s_v),   s_v = (n_v + 1/2) / (n + k/2)

with k values and wanted shares t = 1/k. The next weights are the mean of the estimates of all rounds, each
weighted by what its images tell, n (1 - sum s^2), and half as much for every round since. The weights
integrate the error in log-odds; a concept that was never seen otherwise moves on, one near balance settles.

What follows the token moves by a part of the weights, f e^(-3 l), where l sums over the rounds by what share
of images the concept was named less often than in the first, with nothing moved. What follows says what the
concept is, too, and how much of it may move differs: a teacher's gender is in it, a police officer is lost.

Source: UCE's loop, Gandikota et al., 2308.14761, section 4.3, whose ratios and target v + sum w_v a_v these
are; the logarithm, the step, the mean over rounds and what follows are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, exp
from statistics import NormalDist

import numpy as np

from ..compiler.gates._judging import bare
from ..compiler.text.low_rank import Floats
from ..runtime.judges import CONCEPT

# Seeds of the loop start here; gates draw from 0 on, so a verdict never sees what was tuned.
FIRST_SEED = 2**32
FORGOTTEN = 0.5  # what a round still tells one round later
# At a third of the images lost in a round, what follows a concept moves by a factor e less.
YIELDING = 3.0
IN_BAND = 2  # rounds in a row near balance until a concept is left alone


@dataclass(frozen=True)
class Subject:
    """One concept and one attribute of it: the judge's question, and the answers that name its values."""

    concept: str
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Move:
    """How far a subject is moved: a weight a value, and the part of it by which what follows moves."""

    weights: Floats
    following: float


@dataclass(frozen=True)
class Round:
    """What one round measured for a subject: the weights drawn with, and how often each value was seen.

    `recognized` is the share of its images in which the judge named the concept itself.
    """

    weights: tuple[float, ...]
    counts: tuple[int, ...]
    following: float = 1.0
    recognized: float = 1.0

    @property
    def images(self) -> int:
        return sum(self.counts)

    @property
    def shares(self) -> tuple[float, ...]:
        return tuple(count / max(self.images, 1) for count in self.counts)


@dataclass(frozen=True)
class Course:
    """How the loop runs: at most so many rounds, images a concept in each, and how near is balanced."""

    rounds: int
    images: int
    step: float
    half_width: float
    following: float = 1.0


# What a judge answered, by concept and question, one answer an image.
Answers = Mapping[tuple[str, str], Sequence[str]]
# Asks about concepts in a round with all subjects' moves, one image a seed.
Measure = Callable[[Sequence[str], Mapping[Subject, Move], range], Answers]


def images_for(half_width: float, confidence: float = 0.95) -> int:
    """Return how many images a share near one half needs for an interval of so much to either side."""
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    return ceil((z / (2 * half_width)) ** 2)


def balance(subjects: Sequence[Subject], course: Course, measure: Measure) -> dict[Subject, list[Round]]:
    """Run the loop and return each subject's rounds; what they ask for is `move_after`."""
    history: dict[Subject, list[Round]] = {subject: [] for subject in subjects}
    for number in range(course.rounds):
        unsettled = [subject for subject in subjects if not settled(history[subject], course.half_width)]
        if not unsettled:
            break
        moves = {subject: move_after(subject, history[subject], course) for subject in subjects}
        seeds = range(FIRST_SEED + number * course.images, FIRST_SEED + (number + 1) * course.images)
        seen = measure(tuple(dict.fromkeys(subject.concept for subject in unsettled)), moves, seeds)
        for subject in unsettled:
            history[subject].append(_round(subject, moves[subject], seen))
    return history


def move_after(subject: Subject, rounds: Sequence[Round], course: Course) -> Move:
    """Return the move that the rounds so far ask for."""
    return Move(weights_after(subject, rounds, course.step), following_after(rounds, course.following))


def following_after(rounds: Sequence[Round], following: float) -> float:
    """Return by what part of the weights what follows a concept moves: less, the less it is recognized."""
    lost = sum(rounds[0].recognized - one.recognized for one in rounds)
    return following * min(1.0, exp(-YIELDING * lost))


def weights_after(subject: Subject, rounds: Sequence[Round], step: float) -> Floats:
    """Return the weights that the rounds so far ask for, one a value, their sum zero."""
    if not rounds:
        return np.zeros(len(subject.answers))
    estimates, information = zip(*(_estimate(one, step) for one in rounds), strict=True)
    ages = np.arange(len(rounds))[::-1]
    told = np.asarray(information) * FORGOTTEN**ages
    return np.asarray(told @ np.asarray(estimates) / told.sum())


def settled(rounds: Sequence[Round], half_width: float) -> bool:
    """Whether the last rounds were all within the interval around balance."""
    last = rounds[-IN_BAND:]
    return len(last) == IN_BAND and all(deviation(one) <= half_width for one in last)


def deviation(one: Round) -> float:
    """Return the largest difference of a share from balance."""
    return max(abs(share - 1 / len(one.counts)) for share in one.shares)


def _estimate(one: Round, step: float) -> tuple[Floats, float]:
    """Return the weights that would balance, by one round alone, and what its images tell."""
    values = len(one.counts)
    shares = (np.asarray(one.counts) + 0.5) / (one.images + 0.5 * values)
    error = np.log(1 / values) - np.log(shares)
    return np.asarray(one.weights) + step * (error - error.mean()), one.images * float(1 - shares @ shares)


def _round(subject: Subject, move: Move, seen: Answers) -> Round:
    answers, named = seen[subject.concept, subject.question], seen.get((subject.concept, CONCEPT), ())
    counts = tuple(answers.count(answer) for answer in subject.answers)
    recognized = named.count(bare(subject.concept)) / max(len(named), 1)
    return Round(tuple(move.weights.tolist()), counts, move.following, recognized)
