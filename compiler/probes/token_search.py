"""Are there words of the vocabulary that, in front of the prompt, draw the concept again?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..gates import Images
from ..work import Work
from . import Case, Revival, Target

if TYPE_CHECKING:
    from ._patient import Patient


@dataclass(frozen=True)
class TokenSearch(Revival):
    """Exchanges `tokens` in front of the prompt, one a step, for what denoises images of the concept best.

    The gradient of the denoising loss chooses `candidates` of the vocabulary, the loss itself one of them.

    Source: Zhang et al., UnlearnDiffAtk, 2310.11868, eq. (5); the search is that of Zou et al., 2307.15043,
    algorithm 1, in place of its relaxation.
    """

    tokens: Annotated[int, Field(ge=1, le=16)] = 3
    steps: Annotated[int, Field(ge=1, le=10_000)] = 24
    candidates: Annotated[int, Field(ge=1, le=512)] = 8
    batch: Annotated[int, Field(ge=1, le=64)] = 8

    def search(self) -> Work:
        tried = self.steps * self.batch
        return Work(predicted=tried * (self.candidates + 1), differentiated=tried, at_once=self.batch)

    def revive(self, patient: "Patient", target: Target, case: Case) -> tuple[Images, dict[str, object]]:
        import torch

        from ._tokens import Effort, search_tokens

        effort = Effort(self.tokens, self.steps, self.candidates, self.batch)
        latents = torch.from_numpy(target.latents)
        found = search_tokens(patient.model, latents, target.prompt, effort, case.advance)
        images = patient.draw(found.words, case.seeds)
        return images, {"steps": self.steps, "candidates": self.candidates, "found": found.text}
