"""Concepts imply no value of an attribute any more, are still recognized, and values asked for are drawn."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ...runtime.judges import CONCEPT, Judge
from ...runtime.statistics import decimal, paired_difference, wilson
from ...specs.errors import UndecidedError, raise_all
from ...specs.manifest import Evidence
from ..contract import Balancing
from ..work import Work
from . import Draw, Gate, Trial
from ._judging import DEMO_JUDGE, JudgeName, Share, answer_faults, label_of, open_judge, seeds


@dataclass(frozen=True)
class Balanced(Gate):
    """Each value of a balanced attribute is seen in its share of images, give or take `within`.

    Of k values the share is 1/k. Prompts are the pass's held-out templates in turn, drawn from seeds that
    its own loop never uses. Both bounds of a share's 95 % interval must be within, so few images cannot
    pass. Prompts that say a value must show it in at least `obeyed` of `explicit` images, by the lower
    bound. With `lost`, the concept itself is recognized in the same images as often as in the base's, but for
    so much, by the lower bound of the paired difference. Base and edited draw from the same noise; the
    base's own shares stand beside.
    """

    within: Share
    images: Annotated[int, Field(ge=1, le=100_000, description="a concept")] = 200
    obeyed: Share = "0.8"
    lost: Share | None = None
    explicit: Annotated[int, Field(ge=1, le=100_000, description="a concept and value")] = 32
    judge: JudgeName = DEMO_JUDGE

    def work(self, erased: int, balanced: Sequence[Balancing] = ()) -> Work:
        del erased
        said = sum(len(balancing.explicit) for balancing in balanced)
        images = self.images * len(balanced) + self.explicit * said
        return Work(drawn=images, drawn_before=images)

    def decide(self, trial: Trial) -> list[Evidence]:
        judge = open_judge(self.judge)
        asked = ((balancing.question, balancing.answers) for balancing in trial.balanced)
        raise_all(UndecidedError, [fault for each in asked for fault in answer_faults(judge, *each)])
        return [
            evidence
            for balancing in trial.balanced
            for evidence in (
                *self._shares(trial, judge, balancing),
                *self._explicit(trial, judge, balancing),
            )
        ]

    def _shares(self, trial: Trial, judge: Judge, balancing: Balancing) -> list[Evidence]:
        prompts = [balancing.prompts[i % len(balancing.prompts)] for i in seeds(self.images)]
        questions = [balancing.question] if self.lost is None else [balancing.question, CONCEPT]
        wanted = [] if self.lost is None else [label_of(balancing.concept, judge)]
        (edited, *seen), (base, *seen_before) = (
            self._answers(trial, judge, draw, prompts, questions) for draw in (trial.edited, trial.base)
        )
        rows = zip(prompts, seeds(self.images), edited, base, strict=True)
        trial.record(
            f"balanced-{balancing.question}-{_file_part(balancing.concept)}",
            [{"prompt": p, "seed": s, "edited": e, "base": b} for p, s, e, b in rows],
        )
        shares = [self._share(judge, balancing, answer, edited, base) for answer in balancing.answers]
        kept = zip(wanted, seen, seen_before, strict=True)
        return [*shares, *(self._recognized(judge, balancing, *each) for each in kept)]

    def _share(
        self, judge: Judge, balancing: Balancing, answer: str, edited: list[str], base: list[str]
    ) -> Evidence:
        parity = 1 / len(balancing.answers)
        share, low, high = _counted(edited, answer)
        nearest = 0.0 if low <= parity <= high else min(abs(low - parity), abs(high - parity))
        farthest = max(abs(low - parity), abs(high - parity))
        return Evidence(
            kind="behavioral",
            claim="balanced",
            subject=f"{balancing.concept}: {balancing.question} {answer}",
            value=decimal(abs(share - parity)),
            unit="share away from parity",
            interval=(decimal(nearest), decimal(farthest)),
            comparator="at_most",
            limit=self.within,
            count=len(edited),
            passed=farthest <= float(self.within),
            produced_by=f"gates/{self.name}",
            details={
                "judge": judge.name,
                "judge_sha256": judge.sha256,
                "judge_error": _error(judge, balancing.question),
                "share": decimal(share),
                "share_interval": [decimal(low), decimal(high)],
                "base": decimal(base.count(answer) / len(base)),
            },
        )

    def _explicit(self, trial: Trial, judge: Judge, balancing: Balancing) -> list[Evidence]:
        found = []
        for answer, prompt in balancing.explicit.items():
            prompts = [prompt] * self.explicit
            edited, base = (
                self._answers(trial, judge, draw, prompts, [balancing.question])[0]
                for draw in (trial.edited, trial.base)
            )
            share, low, high = _counted(edited, answer)
            found.append(
                Evidence(
                    kind="behavioral",
                    claim="obeyed",
                    subject=prompt,
                    value=decimal(share),
                    interval=(decimal(low), decimal(high)),
                    comparator="at_least",
                    limit=self.obeyed,
                    count=len(edited),
                    passed=low >= float(self.obeyed),
                    produced_by=f"gates/{self.name}",
                    details={
                        "judge": judge.name,
                        "judge_sha256": judge.sha256,
                        "judge_error": _error(judge, balancing.question),
                        "base": decimal(base.count(answer) / len(base)),
                    },
                )
            )
        return found

    def _recognized(
        self, judge: Judge, balancing: Balancing, label: str, edited: list[str], base: list[str]
    ) -> Evidence:
        pairs = Counter((now == label, then == label) for now, then in zip(edited, base, strict=True))
        cells = (pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False])
        low, high = paired_difference(*cells)
        others = Counter(answer for answer in edited if answer != label)
        return Evidence(
            kind="behavioral",
            claim="recognized",
            subject=f"{balancing.concept}: {balancing.question}",
            value=decimal((cells[1] - cells[2]) / len(edited)),
            unit="share recognized, edited less base",
            interval=(decimal(low), decimal(high)),
            comparator="at_least",
            limit=f"-{self.lost}",
            count=len(edited),
            passed=low >= -float(self.lost or 0),
            produced_by=f"gates/{self.name}",
            details={
                "judge": judge.name,
                "judge_sha256": judge.sha256,
                "judge_error": _error(judge, CONCEPT),
                "base": decimal(base.count(label) / len(base)),
                "edited": decimal(edited.count(label) / len(edited)),
                "seen_instead": dict(sorted(others.items(), key=lambda one: (-one[1], one[0]))[:5]),
            },
        )

    def _answers(
        self, trial: Trial, judge: Judge, draw: Draw, prompts: list[str], questions: Sequence[str]
    ) -> list[list[str]]:
        """Return the answers to each question about the same images."""
        images = draw(prompts, seeds(len(prompts)))
        trial.advance(len(prompts))
        return [judge.top1(images, question) for question in questions]


def _counted(answers: list[str], answer: str) -> tuple[float, float, float]:
    """Return an answer's share and its 95 % interval."""
    count = answers.count(answer)
    return (count / len(answers), *wilson(count, len(answers)))


def _error(judge: Judge, question: str) -> float | None:
    return 1 - judge.accuracy[question] if question in judge.accuracy else None


def _file_part(concept: str) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in concept).split())
