"""One safetensors file in the layout of LDM or SGM: for tools that take a checkpoint as one file."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal

import numpy as np

from ...specs.errors import Fault, InputError, raise_all
from ...specs.manifest import ComponentRecord
from ..graphs.interfaces import OWN
from ..headers import header_bytes
from ..ir import Component, Pipeline
from ..sources.names import Layout, Match, layout_of, layouts, matches
from ..tensors import Tensor
from ..text.text_map import fuse_text_map
from ..write import Entry, WritePass
from . import Emitted, Emitter, Job

FILE = Path("single_file", "model.safetensors")
Precision = Literal["source", "float32", "float16"]
# What a file's metadata call a prediction. Source: Stability-AI/ModelSpec, 1.0.1.
PREDICTIONS: Mapping[str, str] = {"epsilon": "epsilon", "v_prediction": "v"}


@dataclass(frozen=True)
class SingleFile(Emitter):
    """Writes `single_file/model.safetensors`: all models in one file, under the names of LDM or SGM.

    `precision: source` keeps each tensor's type, so that untouched ones are byte-equal to the source's.
    Baked guidance is no part of it, and an edit that was to be a matrix in the graph is fused.
    """

    precision: Precision = "source"

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        (folder / FILE).parent.mkdir()
        writing = WritePass(fuse_text_map(pipeline, self.name), job)
        record = write_single_file(writing, folder / FILE, folder, self.precision)
        writing.finish()
        return Emitted((record,))


@dataclass(frozen=True)
class Item:
    """One tensor of a single file, and the tensors of the pipeline that its bytes are, in order."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    entries: tuple[Entry, ...] = ()


def write_single_file(
    writing: WritePass, file: Path, root: Path, precision: Precision = "source"
) -> ComponentRecord:
    """Write a pipeline's models as one file; its record's path is relative to `root`.

    Raises:
        InputError: the model has a tensor that the layout has no name for, or lacks one.
    """
    pipeline = writing.pipeline
    items = sorted(single_file_items(pipeline, precision), key=lambda item: (-item.dtype.itemsize, item.name))
    items += _flags(pipeline)
    head = header_bytes([(item.name, item.dtype, item.shape) for item in items], _metadata(pipeline))
    entries = [entry for item in items for entry in item.entries]
    return writing.write("single_file", file, root, entries, start=head)


def single_file_items(pipeline: Pipeline, precision: Precision = "source") -> list[Item]:
    """Return every tensor of a pipeline's models as a single file holds it, component by component.

    Raises:
        InputError: with every tensor that is missing, or that the layout has no name for.
    """
    layout, faults, items = _layout(pipeline), [], []
    for name, part in sorted(layout.parts.items()):
        component = pipeline.components[name]
        known = _known(pipeline, component)
        for match in matches(part.table, component):
            ours = [known.pop(pipeline.family.module_name(name, one), None) for one in match.ours]
            found = [pair for pair in ours if pair is not None]
            if len(found) == len(match.ours):
                items.append(_item(part.prefixes[0], match, found, precision))
            elif not match.optional:
                faults.append(
                    Fault("E_TENSOR_MISSING", "the model lacks a tensor", f"{name}.{match.ours[0]}")
                )
        faults += [
            Fault("E_SINGLE_FILE", "the single-file layout has no name for it", full)
            for full, _ in known.values()
            if not any(fnmatchcase(full, pattern) for pattern in layouts().left_out)
        ]
    raise_all(InputError, faults)
    return items


def _layout(pipeline: Pipeline) -> Layout:
    encoder = pipeline.of_role("text")[0]
    # transformers' default, for configs that leave it out
    return layout_of(pipeline.family, encoder.config.get("hidden_act", "quick_gelu"))


def _known(pipeline: Pipeline, component: Component) -> dict[str, tuple[str, Tensor]]:
    """Return a component's tensors by the one spelling of their names, as (name in the pipeline, tensor)."""
    return {
        pipeline.family.module_name(component.name, name): (f"{component.name}.{name}", tensor)
        for name, tensor in pipeline.tensors_of(component.name).items()
        if not name.startswith(OWN)
    }


def _item(prefix: str, match: Match, found: list[tuple[str, Tensor]], precision: Precision) -> Item:
    """Return one tensor of the file. Several of ours lie in it row after row: dense, one after the other."""
    dtype = _dtype([tensor for _, tensor in found], precision)
    entries = tuple(Entry(name, tensor, dtype, match.form == "transposed") for name, tensor in found)
    return Item(prefix + match.theirs, dtype, _shape(match, [tensor for _, tensor in found]), entries)


def _shape(match: Match, tensors: list[Tensor]) -> tuple[int, ...]:
    shape = tensors[0].shape
    match match.form:
        case "pointwise" if len(shape) == 2:
            return (*shape, 1, 1)
        case "transposed":
            return shape[::-1]
        case "stacked":
            return (sum(tensor.shape[0] for tensor in tensors), *shape[1:])
    return shape


def _dtype(tensors: list[Tensor], precision: Precision) -> np.dtype:
    """Return the type that a tensor of the file has: the widest of ours, where several make it."""
    if precision == "source" or tensors[0].dtype.kind in "iub":
        return np.result_type(*(tensor.dtype for tensor in tensors))
    return np.dtype(precision)


def _flags(pipeline: Pipeline) -> Iterator[Item]:
    """Yield the tensors without elements that tell tools how the denoiser was trained."""
    (scheduler,) = pipeline.of_role("scheduler")
    empty = np.dtype(np.float32), (0,)
    if pipeline.sampling.schedule.prediction == "v_prediction":
        yield Item(layouts().flags["velocity"], *empty)
    if scheduler.config.get("rescale_betas_zero_snr"):
        yield Item(layouts().flags["zero_snr"], *empty)


def _metadata(pipeline: Pipeline) -> dict[str, str]:
    prediction = PREDICTIONS.get(pipeline.sampling.schedule.prediction)
    return {"format": "pt", **({"modelspec.prediction_type": prediction} if prediction else {})}
