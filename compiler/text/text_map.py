"""The linear map of text states that a closed-form edit is, and the two ways to write it into a pipeline.

    fused       every matrix W that reads text becomes W A; the graph stays
    text_map    A stands in the denoiser's graph, before everything that reads text; weights stay

A later edit is solved for the model as the earlier ones left it, so W becomes (W A1) A2: in the graph
that is the one matrix A1 A2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...specs.errors import Fault, InputError, SpecError, raise_all
from ..families import TextInput
from ..graphs.interfaces import OWN
from ..ir import GraphEdit, Pipeline
from ..tensors import Array, Edited, Shared, Tensor
from .low_rank import Change, Edit, LazyMap

Output = Literal["fused", "text_map"]
LayerMap = Callable[[NDArray[Any]], Change]
EDIT = "text_map"
# The matrix that maps each kind of text state, [D, D], among the denoiser's tensors.
TENSORS: Mapping[str, str] = {"sequence": f"{OWN}text_map", "pooled": f"{OWN}pooled_map"}


@dataclass(frozen=True)
class TextMap:
    """A [D, D] for the sequence of text states c -> A c, and one for the pooled state where there is one."""

    sequence: Tensor
    pooled: Tensor | None = None

    @property
    def parts(self) -> dict[str, Tensor]:
        """The matrices by what they map, `sequence` and `pooled`."""
        return {"sequence": self.sequence, **({} if self.pooled is None else {"pooled": self.pooled})}


def with_text_map(pipeline: Pipeline, text_map: TextMap, output: Output, by: str) -> Pipeline:
    """Return the pipeline with its text states mapped; nothing is computed yet.

    Raises:
        InputError: a matrix that reads text has another width than the map.
        SpecError: weights are to be rewritten behind a map that stands in the graph already.
    """
    widths = {kind: part.shape[0] for kind, part in text_map.parts.items()}
    raise_all(InputError, list(_shape_faults(pipeline, widths)))
    if output == "text_map":
        return _in_graph(pipeline, text_map, by)
    _refuse_behind_a_map(pipeline, by)
    return _in_weights(pipeline, text_map, by)


def with_layer_maps(
    pipeline: Pipeline, maps: Mapping[Any, LayerMap], widths: Mapping[Any, int], by: str
) -> Pipeline:
    """Return the pipeline with every matrix W that reads text as W A, where A depends on W.

    Args:
        maps: by what they map, `sequence` and `pooled`: W [out, D] -> the change A - I.
        widths: D of each.

    Raises:
        InputError, SpecError: as `with_text_map` does.
    """
    raise_all(InputError, list(_shape_faults(pipeline, widths)))
    _refuse_behind_a_map(pipeline, by)
    changed: dict[str, Tensor] = {}
    for text_input in pipeline.family.text_inputs:
        for name, tensor in pipeline.select("denoiser", text_input.pattern):
            rule = Edit(maps[text_input.reads], columns_of(text_input, tensor))
            changed[name] = Edited((tensor,), rule, tensor.dtype, tensor.shape, by)
    return pipeline.with_tensors(changed)


def graph_map(pipeline: Pipeline) -> TextMap | None:
    """Return the map that stands in the denoiser's graph, None where there is none."""
    (denoiser,) = pipeline.of_role("denoiser")
    if not any(edit.name == EDIT and edit.component == denoiser.name for edit in pipeline.graph_edits):
        return None
    parts = {kind: pipeline.tensors.get(f"{denoiser.name}.{name}") for kind, name in TENSORS.items()}
    if parts["sequence"] is None:
        name = f"{denoiser.name}.{TENSORS['sequence']}"
        raise InputError(Fault("E_TENSOR_MISSING", "the text map has no matrix", name))
    return TextMap(parts["sequence"], parts["pooled"])


def fuse_text_map(pipeline: Pipeline, by: str) -> Pipeline:
    """Return the pipeline with the graph's map moved into the weights: for targets that have no graph.

    The matrix stays among the tensors as the identity, for observers: what is written is W A and then I.
    """
    found = graph_map(pipeline)
    if found is None:
        return pipeline
    (denoiser,) = pipeline.of_role("denoiser")
    edits = tuple(edit for edit in pipeline.graph_edits if edit.name != EDIT)
    fused = _in_weights(replace(pipeline, graph_edits=edits), found, by)
    return fused.with_tensors(
        {f"{denoiser.name}.{TENSORS[kind]}": _identity(part) for kind, part in found.parts.items()}
    )


def map_names(pipeline: Pipeline) -> dict[str, str]:
    """Return, for each kind of text state, the full name under which the graph's matrix is kept."""
    (denoiser,) = pipeline.of_role("denoiser")
    return {kind: f"{denoiser.name}.{name}" for kind, name in TENSORS.items()}


def columns_of(text_input: TextInput, tensor: Tensor) -> slice:
    """Return the columns of a matrix that read text."""
    return slice(*(text_input.columns or (0, tensor.shape[1])))


def _in_weights(pipeline: Pipeline, text_map: TextMap, by: str) -> Pipeline:
    changed: dict[str, Tensor] = {}
    for text_input in pipeline.family.text_inputs:
        part = text_map.parts.get(text_input.reads)
        if part is None:
            continue
        for name, tensor in pipeline.select("denoiser", text_input.pattern):
            columns = columns_of(text_input, tensor)
            if isinstance(part, LazyMap):
                changed[name] = Edited(
                    (tensor,), Edit(part.for_layer, columns), tensor.dtype, tensor.shape, by
                )
            else:
                changed[name] = Edited((tensor, part), _Times(columns), tensor.dtype, tensor.shape, by)
    return pipeline.with_tensors(changed)


def _in_graph(pipeline: Pipeline, text_map: TextMap, by: str) -> Pipeline:
    (denoiser,) = pipeline.of_role("denoiser")
    earlier = graph_map(pipeline)
    tensors: dict[str, Tensor] = {}
    for kind, part in text_map.parts.items():
        before = None if earlier is None else earlier.parts.get(kind)
        sources = (part,) if before is None else (before, part)
        tensors[f"{denoiser.name}.{TENSORS[kind]}"] = Edited(sources, _product, part.dtype, part.shape, by)
    mapped = pipeline.with_tensors(tensors)
    kept = tuple(edit for edit in pipeline.graph_edits if edit.name != EDIT)
    places = {kind: f"{denoiser.name}.{name}" for kind, name in TENSORS.items()}
    widths = {kind: mapped.tensors[at].shape[0] for kind, at in places.items() if at in mapped.tensors}
    edit = GraphEdit(denoiser.name, EDIT, widths)
    return replace(mapped, graph_edits=(*kept, edit))


@dataclass(frozen=True)
class _Times:
    """W -> W A in the columns that read text, in float64."""

    columns: slice

    def __call__(self, weight: NDArray[Any], text_map: NDArray[Any]) -> Array:
        result = weight.astype(np.float64)
        result[:, self.columns] = result[:, self.columns] @ text_map
        return result


def _product(*maps: NDArray[Any]) -> Array:
    """Return the maps' product in the order in which the edits were declared."""
    result = maps[0].astype(np.float64)
    for text_map in maps[1:]:
        result = result @ text_map
    return result


def _identity(part: Tensor) -> Tensor:
    return Shared(lambda: np.eye(part.shape[0], dtype=part.dtype), part.dtype, part.shape)


def _refuse_behind_a_map(pipeline: Pipeline, by: str) -> None:
    if graph_map(pipeline) is not None:
        message = f"`{by}` rewrites weights, and an edit before it mapped text states in the graph"
        hint = "give both edits `output: text_map`, or both `output: fused`"
        raise SpecError(Fault("E_TEXT_MAP_ORDER", message, f"{by}.output", hint))


def _shape_faults(pipeline: Pipeline, widths: Mapping[Any, int]) -> Iterator[Fault]:
    for text_input in pipeline.family.text_inputs:
        wanted = widths.get(text_input.reads)
        if wanted is None:
            continue
        for name, tensor in pipeline.select("denoiser", text_input.pattern):
            width = range(*columns_of(text_input, tensor).indices(tensor.shape[-1]))
            if len(tensor.shape) != 2 or len(width) != wanted:
                message = f"shape {list(tensor.shape)}, expected {wanted} columns that read text"
                yield Fault("E_SHAPE", message, name)
