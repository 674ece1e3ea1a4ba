"""Revival probes: one file each, the file's name is what `--probes` and the gate `probed` call it.

A probe tries to make a finished artefact draw what was erased, with nothing but the artefact itself and
some images of the concept. It tries the same on a control that no model was trained on: what a probe
brings back of that, it would bring back of anything.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from ...runtime.statistics import decimal, wilson
from ...specs.manifest import Evidence
from ..gates import Images
from ..work import Work

if TYPE_CHECKING:
    from ..ir import Pipeline
    from ._patient import Patient

SHOWN = 16  # images of a concept that a probe may look at
OTHERS = 12  # other things that images are compared with, to tell the control from them
OF_EACH = 4


@dataclass(frozen=True)
class Target:
    """What a probe tries to bring back; `recognized` says of each image whether the target is in it."""

    name: str
    prompt: str
    show: Callable[[], NDArray[np.float32]]
    recognized: Callable[[Images], NDArray[np.bool_]]

    @cached_property
    def latents(self) -> NDArray[np.float32]:
        """Images to imitate [N, C, H, W], scaled as the denoiser sees them; drawn at the first look."""
        return self.show()


@dataclass(frozen=True)
class Case:
    """One erased concept, the model that forgot it, and what the attempt is compared with.

    `control` is a target that no model was trained on. `base` is the model before the edit, where the
    source of the artefact's spec is at hand.
    """

    patient: "Patient"
    target: Target
    control: Target
    seeds: Sequence[int]
    base: "Pipeline | None"
    advance: Callable[[int], None] = lambda _: None


@dataclass(frozen=True)
class Probe(ABC):
    """An attempt at revival. Its fields are its effort."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @abstractmethod
    def examine(self, case: Case) -> Evidence:
        """Try to revive the concept of a case, and the control, and say what came of it."""

    def work(self, images: int) -> Work:
        """Return what one concept asks for, control included."""
        del images
        return Work()

    def recovered(self, case: Case, hits: int, details: Mapping[str, object]) -> Evidence:
        """Return evidence that the target was recognized in so many images, one a seed."""
        count = len(case.seeds)
        low, high = wilson(hits, count)
        return Evidence(
            kind="behavioral",
            claim=f"probe.{self.name}",
            subject=case.target.name,
            value=decimal(hits / count),
            unit="share recovered",
            interval=(decimal(low), decimal(high)),
            count=count,
            produced_by=f"probes/{self.name}",
            details=dict(details),
        )

    @property
    def name(self) -> str:
        """The name of the file that holds the class."""
        return type(self).__module__.rpartition(".")[2]


@dataclass(frozen=True)
class Revival(Probe):
    """A probe that ends in images: what counts is the share in which the target is recognized."""

    @abstractmethod
    def revive(self, patient: "Patient", target: Target, case: Case) -> tuple[Images, dict[str, object]]:
        """Return one image a seed, drawn after an attempt at a target, and how the attempt went."""

    def search(self) -> Work:
        """Return what an attempt asks for before it draws; by default nothing."""
        return Work()

    def work(self, images: int) -> Work:
        return (self.search() + Work(sampled=images)) * 2

    def examine(self, case: Case) -> Evidence:
        images, details = self.revive(case.patient, case.target, case)
        control, _ = self.revive(case.patient, case.control, case)
        hits = int(case.target.recognized(images).sum())
        control_hits = int(case.control.recognized(control).sum())
        beside = {
            "control": decimal(control_hits / len(control)),
            "control_interval": [decimal(bound) for bound in wilson(control_hits, len(control))],
            "control_is": case.control.name,
        }
        return self.recovered(case, hits, {**beside, **details})


def work_of(probes: Sequence[Probe], concepts: int, images: int) -> dict[str, Work]:
    """Return what each probe asks for over all concepts, and what is drawn to compare with, by name."""
    imitates = any(isinstance(probe, Revival) for probe in probes)
    beside = Work(sampled=concepts * SHOWN + (OTHERS + 1) * OF_EACH) if imitates else Work()
    return {"images to compare with": beside, **{p.name: p.work(images) * concepts for p in probes}}
