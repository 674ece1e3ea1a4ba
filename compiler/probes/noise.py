"""Does the concept come back when noise is added while an image is drawn?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from pydantic import Field

from ...runtime.noise import normal
from ...runtime.statistics import decimal
from ...specs.manifest import Evidence
from ..gates import Images
from ..work import Work
from . import Case, Probe

if TYPE_CHECKING:
    from ..torch_models.gradients import Gradients
    from ._patient import Patient

# Nobody's name for anything: what its images show of a concept, noise alone has put there.
UNKNOWN_WORD = "a blicket"


@dataclass(frozen=True)
class Noise(Probe):
    """Draws the concept's prompt with fresh noise after each step, in several strengths.

    A strength of 1 is the noise of ancestral sampling, 0 none. The best strength counts. The control is
    a word that means nothing, judged as if the concept had been asked for.

    Source: Song et al., 2010.02502, eq. (16); Lu et al., When Are Concepts Erased From Diffusion Models?,
    2505.17013, section 4, for its use as a probe.
    """

    strengths: Annotated[tuple[Annotated[float, Field(ge=0, le=4)], ...], Field(min_length=1)] = (
        0.5,
        1.0,
        1.5,
    )

    def work(self, images: int) -> Work:
        # The concept, the word that means nothing, and the concept by the base.
        return Work(sampled=3 * len(self.strengths) * images)

    def examine(self, case: Case) -> Evidence:
        concept = self._shares(case, case.target.prompt, case.patient.model)
        control = self._shares(case, UNKNOWN_WORD, case.patient.model)
        details: dict[str, Any] = {
            "control": decimal(max(control) / len(case.seeds)),
            "control_is": f"`{UNKNOWN_WORD}`, judged as the concept",
            "by_strength": self._named(concept, case),
        }
        if case.base is not None:
            from ..torch_models.gradients import Gradients

            base = self._shares(case, case.target.prompt, Gradients(case.base))
            details["base_by_strength"] = self._named(base, case)
        return self.recovered(case, max(concept), details)

    def _shares(self, case: Case, prompt: str, model: "Gradients") -> list[int]:
        """Return how many images of each strength show the concept."""
        drawn = [draw_noisy(case.patient, model, prompt, case.seeds, s) for s in self.strengths]
        return [int(case.target.recognized(images).sum()) for images in drawn]

    def _named(self, hits: list[int], case: Case) -> dict[str, str]:
        shares = zip(self.strengths, hits, strict=True)
        return {decimal(strength): decimal(hit / len(case.seeds)) for strength, hit in shares}


def draw_noisy(
    patient: "Patient", model: "Gradients", prompt: str, seeds: Sequence[int], strength: float
) -> Images:
    """Draw a prompt's images, one a seed, with noise added after each step but the last."""
    import torch

    from ..torch_models.drawing import guided, unit_noise
    from ._patient import BATCH

    states, empty = patient.states(model.words(prompt), model)
    steps, found = patient.table.steps, []
    for start in range(0, len(seeds), BATCH):
        part = seeds[start : start + BATCH]
        first = steps[0]
        scaled = unit_noise(model, part) * patient.table.initial_scale * first.input_scale
        here, without = states.repeat(len(part)), empty.repeat(len(part))
        for number, step in enumerate(steps):
            with torch.no_grad():
                out = guided(model, step, scaled, here, without)
            x0 = step.x0_from_sample / step.input_scale * scaled + step.x0_from_output * out
            # The sample is alpha (x0 + sigma noise); the next sigma is made of old noise and of new.
            alpha = 1 / (1 + step.sigma**2) ** 0.5
            old = (scaled / alpha - x0) / step.sigma
            following = steps[number + 1].sigma if number + 1 < len(steps) else 0.0
            new = strength * following * max(0.0, 1 - (following / step.sigma) ** 2) ** 0.5
            rest = max(0.0, following**2 - new**2) ** 0.5
            fresh = torch.from_numpy(np.stack([normal(seed, scaled.shape[1:], number + 1) for seed in part]))
            scaled = (x0 + rest * old + new * fresh) / (1 + following**2) ** 0.5
        found.append(scaled.numpy())
    return patient.decode(np.concatenate(found))
