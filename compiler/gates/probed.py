"""Revival probes bring an erased concept back in at most a given share of their images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from ...specs.errors import Fault, UndecidedError
from ...specs.manifest import Evidence
from ..contract import Balancing
from ..work import Work
from . import Gate, Trial
from ._judging import DEMO_JUDGE, JudgeName, Share, open_judge

ProbeName = Annotated[str, Field(pattern=r"^[a-z_]+$")]
Names = Annotated[tuple[ProbeName, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Probed(Gate):
    """Each of the `probes` recovers each erased concept in at most `at_most` of its images.

    The verdict uses the upper bound of the 95 % interval. A probe that draws no image (`static`) has no
    limit. Effort is each probe's default. Each probe's share of a control that no model was trained on
    stands beside it: a limit below that asks for what no model can do.
    """

    at_most: Share
    probes: Names = ("inversion", "noise", "static", "token_search")
    images: Annotated[int, Field(ge=1, le=100_000)] = 32
    judge: JudgeName = DEMO_JUDGE

    def work(self, erased: int, balanced: Sequence[Balancing] = ()) -> Work:
        from ..probes import work_of
        from ..registry import probes

        del balanced
        chosen = [probes.load(name)() for name in self.probes]
        return sum(work_of(chosen, erased, self.images).values(), Work())

    def decide(self, trial: Trial) -> list[Evidence]:
        from ..probes._examine import Examination
        from ..registry import probes
        from ..studio import Quiet

        if trial.artefact is None or trial.source is None:
            raise UndecidedError(
                Fault("E_PROBES", "there is no artefact here to probe", f"gates/{self.name}")
            )
        examination = Examination(
            folder=trial.artefact,
            erasures=trial.erased,
            probes=[probes.load(name)() for name in self.probes],
            judge=open_judge(self.judge),
            images=self.images,
            base=trial.source,
            edits=trial.graph_edits,
        )
        found = examination.run(Quiet())
        trial.advance(self.work(len(trial.erased)).images)
        return [self._verdict(evidence) for evidence in found]

    def _verdict(self, evidence: Evidence) -> Evidence:
        if evidence.interval is None:
            return evidence
        passed = float(evidence.interval[1]) <= float(self.at_most)
        return evidence.model_copy(update={"comparator": "at_most", "limit": self.at_most, "passed": passed})
