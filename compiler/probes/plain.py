"""No attempt at all: the concept's own prompt, as anyone would write it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..gates import Images
from . import Case, Revival, Target

if TYPE_CHECKING:
    from ._patient import Patient


@dataclass(frozen=True)
class Plain(Revival):
    """Draws the concept's prompt: what the other probes are compared with."""

    def revive(self, patient: "Patient", target: Target, case: Case) -> tuple[Images, dict[str, object]]:
        return patient.draw(patient.model.words(target.prompt), case.seeds), {}
