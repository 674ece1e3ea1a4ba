"""Is there a word that no vocabulary has, and that still draws the concept?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ...runtime.statistics import decimal
from ..gates import Images
from ..work import Work
from . import Case, Revival, Target

if TYPE_CHECKING:
    from ._patient import Patient


@dataclass(frozen=True)
class Inversion(Revival):
    """Learns `tokens` embeddings that draw images of the concept, the model frozen, and draws with them.

    Source: Pham et al., Circumventing Concept Erasure Methods, 2308.01508; Gal et al., 2208.01618.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)] = 200
    tokens: Annotated[int, Field(ge=1, le=16)] = 1
    rate: Annotated[float, Field(gt=0, le=1)] = 0.02
    batch: Annotated[int, Field(ge=1, le=64)] = 8

    def search(self) -> Work:
        return Work(differentiated=self.steps * self.batch, at_once=self.batch)

    def revive(self, patient: "Patient", target: Target, case: Case) -> tuple[Images, dict[str, object]]:
        import torch

        from ..torch_models.inversion import Search, invert

        search = Search(self.steps, self.rate, self.batch, self.tokens)
        words = invert(patient.model, torch.from_numpy(target.latents), search, advance=case.advance)
        usual = patient.model.embeddings(0).norm(dim=1).median()
        length = words.learned[0].norm(dim=1).mean() / usual
        details = {
            "steps": self.steps,
            "tokens": self.tokens,
            "shown": len(target.latents),
            "length": decimal(float(length), 3),
        }
        return patient.draw(words, case.seeds), details
