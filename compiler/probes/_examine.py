"""Examine an artefact: every probe on every erased concept, each with the control. Imports torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...runtime.judges import Judge
from ...specs.errors import Fault, InputError, UndecidedError
from ...specs.manifest import Evidence
from ..contract import Erasure
from ..gates import Images
from ..gates._judging import label_of
from ..ir import GraphEdit, Pipeline
from ..studio import Reporter
from ..threads import single_threaded
from ..torch_models.gradients import Gradients
from ..work import Work
from . import OF_EACH, OTHERS, SHOWN, Case, Probe, Target, work_of
from ._control import NAME, figures, likeness
from ._patient import Patient

# Judged seeds start at 0; what a probe looks at comes from others.
SHOWN_FROM = 1_000_000


@dataclass(frozen=True)
class Examination:
    """What to examine. `base` is the model before the edit; `given` holds images of concepts, by name."""

    folder: Path
    erasures: Sequence[Erasure]
    probes: Sequence[Probe]
    judge: Judge
    images: int
    base: Pipeline | None = None
    edits: tuple[GraphEdit, ...] = ()
    given: dict[str, Path] | None = None

    def work(self) -> dict[str, Work]:
        """Return what each probe asks for, over all concepts, and what is drawn to compare with."""
        return work_of(self.probes, len(self.erasures), self.images)

    def run(self, report: Reporter) -> list[Evidence]:
        """Carry out every probe.

        Raises:
            UndecidedError: there are no images of a concept and nothing that could draw them, the judge does
                not know it, or the artefact cannot be examined.
        """
        with single_threaded():
            patient = Patient(self.folder, self.edits)
            control = self._control(patient)
            advance = report.task("probe", len(self.erasures) * len(self.probes))
            found = []
            for erasure in self.erasures:
                case = Case(patient, self._target(patient, erasure), control, range(self.images), self.base)
                for probe in self.probes:
                    found.append(probe.examine(case))
                    advance(1)
            return found

    def _target(self, patient: Patient, erasure: Erasure) -> Target:
        label = label_of(erasure.name, self.judge)
        return Target(
            erasure.name,
            erasure.name,
            lambda: self._shown(patient, erasure),
            lambda images: self.judge.recognized(images, label),
        )

    def _shown(self, patient: Patient, erasure: Erasure) -> NDArray[np.float32]:
        """Return latents of a concept: of the images given, or drawn by the base."""
        folder = (self.given or {}).get(erasure.name)
        if folder is not None:
            return patient.encode(_read_images(folder, _size(patient)))
        if self.base is None:
            hint = "give --spec whose source is at hand, or --images with pictures of the concept"
            raise UndecidedError(Fault("E_PROBE_IMAGES", "nothing shows the concept", erasure.name, hint))
        model = Gradients(self.base)
        return patient.latents(model.words(erasure.name), range(SHOWN_FROM, SHOWN_FROM + SHOWN), model)

    def _control(self, patient: Patient) -> Target:
        latents = cache(lambda: patient.encode(figures(2 * SHOWN, *_size(patient))))

        @cache
        def like_control() -> Callable[[Images], NDArray[np.bool_]]:
            # As the decoder shows them: what is drawn well looks like that, not like the figure itself.
            return likeness(self.judge, patient.decode(latents()[SHOWN:]), self._others(patient))

        return Target(NAME, "", lambda: latents()[:SHOWN], lambda images: like_control()(images))

    def _others(self, patient: Patient) -> list[Images]:
        """Draw nothing in particular and a few other things, spread over the judge's labels."""
        labels = self.judge.labels
        chosen = [labels[i * len(labels) // OTHERS] for i in range(min(OTHERS, len(labels)))]
        prompts = ["", *(self.judge.prompt_of(label) for label in chosen)]
        seeds = range(SHOWN_FROM, SHOWN_FROM + OF_EACH)
        return [patient.draw(patient.model.words(prompt), seeds) for prompt in prompts]


def _size(patient: Patient) -> tuple[int, int]:
    latent = patient.table.latent
    return latent.height * latent.downscale, latent.width * latent.downscale


def _read_images(folder: Path, size: tuple[int, int]) -> Images:
    """Return the pictures of a folder, cut square from the middle and resized.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    files = sorted(
        file for file in folder.glob("*") if file.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp")
    )
    if not files:
        raise InputError(Fault("E_PROBE_IMAGES", "no pictures", str(folder), "expected .png, .jpg or .webp"))
    found = []
    for file in files[:SHOWN]:
        try:
            with Image.open(file) as image:
                found.append(np.asarray(_fit(image.convert("RGB"), size)))
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise InputError(Fault("E_PROBE_IMAGES", f"cannot be read: {error}", str(file))) from error
    return np.stack(found)


def _fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import ImageOps

    return ImageOps.fit(image, (size[1], size[0]), Image.Resampling.LANCZOS)
