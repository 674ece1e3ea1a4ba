"""What was not erased is still recognized, as often as in the base."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ...runtime.judges import Judge
from ...runtime.statistics import decimal, paired_difference
from ...specs.errors import Fault, UndecidedError
from ...specs.manifest import Evidence
from ..contract import Balancing
from ..work import Work
from . import Draw, Gate, Trial
from ._judging import DEMO_JUDGE, JudgeName, Share, bare, open_judge, seeds


@dataclass(frozen=True)
class Kept(Gate):
    """Recognition of concepts that were not erased falls by at most `within`.

    Base and edited draw the same prompts from the same noise. The verdict uses the lower bound of the
    95 % interval of the paired difference. Concepts are the judge's own labels that no erasure names,
    spread evenly over its list.
    """

    within: Share
    concepts: Annotated[int, Field(ge=1, le=10_000)] = 60
    images: Annotated[int, Field(ge=1, le=10_000, description="a concept")] = 16
    judge: JudgeName = DEMO_JUDGE

    def work(self, erased: int, balanced: Sequence[Balancing] = ()) -> Work:
        del erased, balanced
        return Work(drawn=self.images, drawn_before=self.images) * self.concepts

    def decide(self, trial: Trial) -> list[Evidence]:
        judge = open_judge(self.judge)
        chosen = self._choose(judge, trial)
        prompts = [judge.prompt_of(label) for label in chosen for _ in seeds(self.images)]
        wanted = [label for label in chosen for _ in seeds(self.images)]
        drawn_from = [seed for _ in chosen for seed in seeds(self.images)]
        edited = self._recognized(judge, trial, trial.edited, prompts, drawn_from, wanted)
        base = self._recognized(judge, trial, trial.base, prompts, drawn_from, wanted)
        rows = zip(prompts, drawn_from, edited, base, strict=True)
        trial.record("kept", [{"prompt": p, "seed": s, "edited": e, "base": b} for p, s, e, b in rows])
        return [self._verdict(judge, chosen, wanted, edited, base)]

    def _choose(self, judge: Judge, trial: Trial) -> list[str]:
        erased = {bare(prompt) for erasure in trial.erased for prompt in erasure.prompts}
        free = [label for label in judge.labels if label not in erased]
        if len(free) < self.concepts:
            hint = f"ask for at most {len(free)}, or name a judge with more labels"
            message = (
                f"{self.concepts} kept concepts wanted, the judge knows {len(free)} that were not erased"
            )
            raise UndecidedError(Fault("E_JUDGE_LABEL", message, judge.name, hint))
        return [free[index * len(free) // self.concepts] for index in range(self.concepts)]

    def _recognized(
        self,
        judge: Judge,
        trial: Trial,
        draw: Draw,
        prompts: list[str],
        drawn_from: list[int],
        wanted: list[str],
    ) -> list[bool]:
        found: list[bool] = []
        # One concept at a time keeps the images in memory few.
        for start in range(0, len(prompts), self.images):
            part = slice(start, start + self.images)
            labels = judge.top1(draw(prompts[part], drawn_from[part]))
            found += [label == want for label, want in zip(labels, wanted[part], strict=True)]
            trial.advance(self.images)
        return found

    def _verdict(
        self, judge: Judge, chosen: list[str], wanted: list[str], edited: list[bool], base: list[bool]
    ) -> Evidence:
        pairs = Counter(zip(edited, base, strict=True))
        cells = (pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False])
        low, high = paired_difference(*cells)
        difference = (sum(edited) - sum(base)) / len(edited)
        lost = {
            label: decimal(
                sum(b - e for w, e, b in zip(wanted, edited, base, strict=True) if w == label) / self.images
            )
            for label in chosen
        }
        worst = sorted(chosen, key=lambda label: (-float(lost[label]), label))[:5]
        return Evidence(
            kind="behavioral",
            claim="kept",
            subject=f"{len(chosen)} concepts",
            value=decimal(difference),
            interval=(decimal(low), decimal(high)),
            comparator="at_least",
            limit=f"-{self.within}",
            count=len(edited),
            passed=low >= -float(self.within),
            produced_by=f"gates/{self.name}",
            details={
                "judge": judge.name,
                "judge_sha256": judge.sha256,
                "judge_error": judge.error,
                "base": decimal(sum(base) / len(base)),
                "edited": decimal(sum(edited) / len(edited)),
                "most_lost": {label: lost[label] for label in worst},
            },
        )
