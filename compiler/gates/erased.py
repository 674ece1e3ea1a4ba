"""Each erased concept is recognized in at most a given share of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ...runtime.judges import Judge
from ...runtime.statistics import decimal, wilson
from ...specs.manifest import Evidence
from ..contract import Balancing, Erasure
from ..work import Work
from . import Gate, Trial
from ._judging import DEMO_JUDGE, JudgeName, Share, label_of, open_judge, seeds


@dataclass(frozen=True)
class Erased(Gate):
    """Each erased concept is recognized in at most `at_most` of its images.

    The verdict uses the upper bound of the 95 % interval, so few images cannot pass. Prompts are the
    concept's name and synonyms in turn. The base's own rate stands beside it: an erasure of what was
    never drawn proves nothing.
    """

    at_most: Share
    images: Annotated[int, Field(ge=1, le=100_000)] = 128
    judge: JudgeName = DEMO_JUDGE

    def work(self, erased: int, balanced: Sequence[Balancing] = ()) -> Work:
        del balanced
        return Work(drawn=self.images, drawn_before=self.images) * erased

    def decide(self, trial: Trial) -> list[Evidence]:
        judge = open_judge(self.judge)
        return [self._decide_one(trial, judge, erasure) for erasure in trial.erased]

    def _decide_one(self, trial: Trial, judge: Judge, erasure: Erasure) -> Evidence:
        label = label_of(erasure.name, judge)
        prompts = [erasure.prompts[i % len(erasure.prompts)] for i in seeds(self.images)]
        edited = judge.top1(trial.edited(prompts, seeds(self.images)))
        trial.advance(self.images)
        base = judge.top1(trial.base(prompts, seeds(self.images)))
        trial.advance(self.images)
        trial.record(f"erased-{label.replace(' ', '-')}", _rows(prompts, edited, base))

        hits = edited.count(label)
        low, high = wilson(hits, self.images)
        return Evidence(
            kind="behavioral",
            claim="erased",
            subject=erasure.name,
            value=decimal(hits / self.images),
            interval=(decimal(low), decimal(high)),
            comparator="at_most",
            limit=self.at_most,
            count=self.images,
            passed=high <= float(self.at_most),
            produced_by=f"gates/{self.name}",
            details={
                "judge": judge.name,
                "judge_sha256": judge.sha256,
                "judge_error": judge.error,
                "base": decimal(base.count(label) / self.images),
                "drawn_instead": _most_common(edited),
            },
        )


def _rows(prompts: list[str], edited: list[str], base: list[str]) -> list[dict[str, Any]]:
    return [
        {"seed": seed, "prompt": prompt, "edited": edited[seed], "base": base[seed]}
        for seed, prompt in enumerate(prompts)
    ]


def _most_common(labels: list[str]) -> str:
    return max(sorted(set(labels)), key=labels.count)
