"""Between the pass `erase_by_training` and torch: where a training is kept, what it gives, how it came out.

This file imports torch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compiler.digests import feed
from ..compiler.environment import environment
from ..compiler.evidence.manifest import parameters
from ..compiler.ir import Pipeline, changed_tensors
from ..compiler.studio import Studio
from ..compiler.tensors import Array, Shared, Tensor, widen
from ..compiler.threads import single_threaded
from ..compiler.torch_models import drawing, gradients, inversion
from ..compiler.torch_models.drawing import draw, short_table, unit_noise
from ..compiler.torch_models.gradients import Gradients
from ..specs.canonical import digest_file, digest_of
from ..specs.manifest import Evidence
from . import _course, _esd
from ._course import SEEN, Course

if TYPE_CHECKING:
    from .erase_by_training import EraseByTraining

# What the last bits of a training depend on beside the model and the spec.
CIRCUMSTANCES = ("cpu", "diffusers", "machine", "numpy", "torch", "transformers")
CODE = (_course, _esd, drawing, gradients, inversion)
LIMITS = ("residual_at_most", "drift_at_most")
# The outcome is measured on drawings that training did not see.
SEEN_FROM = 2_000_000


def trained(edit: "EraseByTraining", pipeline: Pipeline, checkpoint: Path) -> Array:
    """Train, or go on where training stopped, and return all factors as one vector: down, up by matrix."""
    studio = _studio(pipeline)
    course = edit.course(pipeline)
    advance = studio.report.task(f"train {edit.name}", course.total)
    with single_threaded():
        model = Gradients(replace(pipeline, sampling=studio.sampling))
        state = _esd.train(model, course, checkpoint, _start(edit, pipeline), advance)
    parts = [group[name].detach().numpy().ravel() for name in state.down for group in (state.down, state.up)]
    return np.concatenate(parts)


def _start(edit: "EraseByTraining", pipeline: Pipeline) -> gradients.Deltas:
    """Return the closed form's change as factors, where training begins at it."""
    if edit.begins_at == "unedited":
        return {}
    from ._warm_start import factors

    found = factors(edit, pipeline)
    return {name: (torch.from_numpy(down), torch.from_numpy(up)) for name, (down, up) in found.items()}


def _begun(edit: "EraseByTraining", pipeline: Pipeline) -> tuple[tuple[str, Tensor], ...]:
    """Return the matrices that training begins at, where they are not the model's own."""
    begun = edit.begun(pipeline)
    return tuple((name, begun.tensors[name]) for name in changed_tensors(pipeline, begun))


def checkpoint_of(edit: "EraseByTraining", pipeline: Pipeline) -> Path:
    """Return the file of a training in the build cache: its name is a digest of all that it depends on."""
    studio, found = _studio(pipeline), environment()
    roles = ("denoiser", "text")
    names = sorted(component.name for role in roles for component in pipeline.of_role(role))
    tensors = tuple((f"{c}.{name}", tensor) for c in names for name, tensor in pipeline.tensors_of(c).items())
    course = edit.course(pipeline)
    key = {
        "block": {name: value for name, value in parameters(edit).items() if name not in LIMITS},
        "kept": list(course.kept),
        "sampling": studio.sampling.table().model_dump(mode="json"),
        "tensors": _digest_once(tensors),
        "start": _digest(_begun(edit, pipeline)),
        "code": [digest_file(Path(str(module.__file__))) for module in CODE],
        "circumstances": {name: found[name] for name in CIRCUMSTANCES},
    }
    return studio.cache / "trainings" / f"{digest_of(key)}.safetensors"


def outcome(edit: "EraseByTraining", before: Pipeline, written: Mapping[str, Array]) -> list[Evidence]:
    """Return evidence about the matrices as they were written."""
    course = edit.course(before)
    with single_threaded():
        residuals = _residuals(course, before, _with(before, written))
        drifts = _drifts(edit, course, before, written)
    change = np.sqrt(
        sum(_square(_float64(written[name]) - _read(before, name)) for name in sorted(written))
        / sum(_square(_read(before, name)) for name in sorted(written))
    )
    high = float(np.quantile(drifts, 0.95))
    subject = f"{len(course.kept)} preserved prompts"
    measured = partial(edit.measured, digits=4)
    return [
        *(
            measured("train.residual", concept.name, value, SEEN, at_most=edit.residual_at_most)
            for concept, value in zip(edit.concepts, residuals, strict=True)
        ),
        measured("keep.drift_p95", subject, high, len(course.kept), at_most=edit.drift_at_most),
        measured("train.change", f"{len(written)} matrices", float(change), len(written)),
    ]


def _residuals(course: Course, before: Pipeline, after: Pipeline) -> list[float]:
    """Return ||eps' - wanted|| / ||eps - wanted|| for each concept, over its samples on the way."""
    model = Gradients(replace(before, sampling=_studio(before).sampling))
    looked = [_look(model, course, concept) for concept in range(len(course.concepts))]
    edited = Gradients(after)
    found = []
    with torch.no_grad():
        for words, drawn, wanted, was in looked:
            now = _esd.predictions(edited, drawn, edited.encode(words))
            found.append(float((now - wanted).norm() / (was - wanted).norm().clamp(min=1e-12)))
    return found


@torch.no_grad()
def _look(model: Gradients, course: Course, concept: int) -> Any:
    """Draw a concept with the model as it was; say what it predicted on the way and what was wanted."""
    prompts = course.concepts[concept]
    chosen = [i % len(prompts) for i in range(SEEN)]
    words = [model.words(prompts[i]) for i in chosen]
    states, empty = model.encode(words), model.encode([model.words("")])
    guides = model.encode([model.words(course.guides[concept][i]) for i in chosen])
    noise = unit_noise(model, range(SEEN_FROM, SEEN_FROM + SEEN))
    table = short_table(model.pipeline.sampling, _esd.TRAJECTORY)
    drawn = draw(model, states, empty, table, noise)
    wanted = _esd.wanted(model, course, drawn, states, guides)
    return words, drawn, wanted, _esd.predictions(model, drawn, states)


def _drifts(
    edit: "EraseByTraining", course: Course, before: Pipeline, written: Mapping[str, Array]
) -> list[float]:
    """Return how far each preserved prompt moved in what the denoiser reads, as a share of its own size."""
    states = _kept_states(before, course)
    if edit.where == "text_encoder":
        moved = _kept_states(_with(before, written), course) - states
        return (np.linalg.norm(moved, axis=(1, 2)) / np.linalg.norm(states, axis=(1, 2))).tolist()
    width = states.shape[-1]
    change, size = np.zeros((width, width)), np.zeros((width, width))
    for name in sorted(written):
        weight = _read(before, name)
        delta = _float64(written[name]) - weight
        change += delta.T @ delta
        size += weight.T @ weight
    return [
        float(np.sqrt(np.sum((p @ change) * p) / np.sum((p @ size) * p))) for p in states.astype(np.float64)
    ]


@torch.no_grad()
def _kept_states(pipeline: Pipeline, course: Course) -> NDArray[np.float32]:
    model = Gradients(pipeline, denoiser=False)
    words = [model.words(prompt) for prompt in course.kept]
    parts = [model.encode(words[start : start + 64]).sequence.numpy() for start in range(0, len(words), 64)]
    return np.concatenate(parts)


def _with(pipeline: Pipeline, written: Mapping[str, Array]) -> Pipeline:
    held: dict[str, Tensor] = {
        name: Shared(lambda array=array: array, array.dtype, array.shape) for name, array in written.items()
    }
    return pipeline.with_tensors(held)


def _studio(pipeline: Pipeline) -> Studio:
    return pipeline.studio or Studio(pipeline.sampling)


def _read(pipeline: Pipeline, name: str) -> NDArray[np.float64]:
    return _float64(pipeline.tensors[name].read())


def _float64(array: Array) -> NDArray[np.float64]:
    return widen(array).astype(np.float64)


def _square(array: NDArray[np.float64]) -> float:
    return float(np.sum(array * array))


@lru_cache(maxsize=4)
def _digest_once(tensors: tuple[tuple[str, Tensor], ...]) -> str:
    return _digest(tensors)


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    hasher = sha256()
    feed(hasher, tensors)
    return hasher.hexdigest()
