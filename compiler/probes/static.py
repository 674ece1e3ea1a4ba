"""How far from its own prompt must a text state lie to be read as the concept again?"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from ...runtime.statistics import decimal
from ...specs.errors import Fault, UndecidedError
from ...specs.manifest import Evidence
from ..tensors import Tensor, widen
from ..text.text_map import fuse_text_map
from . import Case, Probe

if TYPE_CHECKING:
    from ..ir import Pipeline

Floats = NDArray[np.float64]
DIRECTIONS = 16  # of the control


@dataclass(frozen=True)
class Static(Probe):
    """Solves for the text states that the edited keys and values read as the base's read the concept.

    min over c' of sum ||W' c' - W c||^2 + ridge ||c' - c''||^2, with c the concept's states as the base
    encodes them and c'' as the artefact does. The value is how far c' lies from c'', in units of the
    concept's own distance from the empty prompt: small means easily revived, large says nothing about
    attacks by images. The control is directions that mean nothing, as long as the concept's. No image is
    drawn. `ridge` is a fraction of the mean squared gain of the matrices.

    Source: Gong et al., Reliable and Efficient Concept Erasure, 2407.12383, eq. (6), its own problem.
    """

    ridge: Annotated[float, Field(gt=0, le=1)] = 1e-6

    def examine(self, case: Case) -> Evidence:
        if case.base is None:
            hint = "give --spec whose source is at hand, or choose other probes"
            raise UndecidedError(
                Fault("E_PROBE_BASE", "needs the model before the edit", "probes/static", hint)
            )
        maps = Maps.of(case.patient.model.pipeline, case.base)
        was, now = (
            _states(case.base, case.target.prompt),
            _states(case.patient.model.pipeline, case.target.prompt),
        )
        empty = _states(case.base, "")
        length = float(np.linalg.norm(was - empty))
        found = maps.restore(was, now, self.ridge)
        control = [float(np.linalg.norm(maps.restore(d, d, self.ridge) - d)) for d in _directions(empty, was)]
        return Evidence(
            kind="static",
            claim=f"probe.{self.name}",
            subject=case.target.name,
            value=decimal(float(np.linalg.norm(found - now)) / length),
            unit="distances from the empty prompt",
            count=len(maps.names),
            produced_by=f"probes/{self.name}",
            details={
                "control": decimal(float(np.median(control)) / length),
                "control_is": f"median of {DIRECTIONS} directions that mean nothing",
                "left": decimal(maps.residual(found, was) / max(maps.residual(now, was), 1e-300)),
            },
        )


@dataclass(frozen=True)
class Maps:
    """Sums over all matrices that read text states, edited V and base W: V^T V, V^T W, W^T W."""

    names: tuple[str, ...]
    edited: Floats
    cross: Floats
    base: Floats

    @classmethod
    def of(cls, edited: "Pipeline", base: "Pipeline") -> "Maps":
        """Stream the matrices of both pipelines, one pair at a time."""
        names, sums = [], [np.zeros(()), np.zeros(()), np.zeros(())]
        # A map in the graph is part of what the matrices do.
        for name, v, w in _pairs(fuse_text_map(edited, "probes/static"), base):
            names.append(name)
            sums = [total + part for total, part in zip(sums, (v.T @ v, v.T @ w, w.T @ w), strict=True)]
        return cls(tuple(names), *sums)

    def restore(self, wanted: Floats, start: Floats, ridge: float) -> Floats:
        """Return the states [N, D] nearest to `start` that V reads as W reads `wanted`."""
        gain = ridge * np.trace(self.edited) / len(self.edited) * np.eye(len(self.edited))
        right = wanted @ self.cross.T + start @ gain
        return np.linalg.solve(self.edited + gain, right.T).T

    def residual(self, states: Floats, wanted: Floats) -> float:
        """Return sum ||V states - W wanted||."""
        square = np.sum((states @ self.edited) * states) - 2 * np.sum((states @ self.cross) * wanted)
        return float(np.sqrt(max(square + np.sum((wanted @ self.base) * wanted), 0.0)))


def _pairs(edited: "Pipeline", base: "Pipeline") -> Iterator[tuple[str, Floats, Floats]]:
    (denoiser,) = (component.name for component in base.of_role("denoiser"))
    spelled = {
        base.family.module_name(denoiser, name): tensor
        for name, tensor in edited.tensors_of(denoiser).items()
    }
    for text_input in base.family.text_inputs:
        if text_input.reads == "sequence":
            for name, tensor in base.select("denoiser", text_input.pattern):
                own = base.family.module_name(denoiser, name.removeprefix(denoiser + "."))
                yield name, _float64(spelled[own]), _float64(tensor)


def _float64(tensor: Tensor) -> Floats:
    return widen(tensor.read()).astype(np.float64)


def _states(pipeline: "Pipeline", prompt: str) -> Floats:
    """Return a prompt's text states [S - 1, D]; the first is the start token's, the same in every prompt."""
    import torch

    from ..torch_models.gradients import Gradients

    with torch.no_grad():
        model = Gradients(pipeline, denoiser=False)
        return model.encode([model.words(prompt)]).sequence[0, 1:].numpy().astype(np.float64)


def _directions(empty: Floats, concept: Floats) -> Iterator[Floats]:
    """Yield states as far from the empty prompt as the concept's, in seeded directions."""
    lengths = np.linalg.norm(concept - empty, axis=1, keepdims=True)
    for number in range(DIRECTIONS):
        random = np.random.default_rng(number).standard_normal(empty.shape)
        yield empty + lengths * random / np.linalg.norm(random, axis=1, keepdims=True)
