"""An artefact on disk, as a pipeline again: its initializers by name, its configs, its sampling.

What torch then computes with is what ships, byte for byte; `check_parity` says whether it also computes
what the shipped graphs compute.
"""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from ...runtime.artefact import Artefact
from ...specs.errors import Fault, InputError, UndecidedError
from ..families import Family
from ..graphs.interfaces import interfaces
from ..ir import Component, GraphEdit, Pipeline
from ..sampling import Conditioning, Guidance, Sampling, Schedule
from ..sources.folder import INDEX, family_named, read_components, read_json, read_settings
from ..tensors import Stored, Tensor, View

if TYPE_CHECKING:
    import onnx

# Largest relative difference between a graph and its module. Rounding of float16 is 5e-4 an element.
LIMITS: Mapping[str, float] = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}


def shipped_pipeline(artefact: Artefact, edits: tuple[GraphEdit, ...] = ()) -> Pipeline:
    """Return an artefact's text encoders and denoiser as a pipeline; `edits` are those of its graphs.

    Raises:
        InputError: it was not built for ONNX hosts, its configs are malformed or of another class than the
            family's, or a graph is none or refers to bytes that are not there.
    """
    artefact.read(INDEX)
    index = read_json(artefact.folder / INDEX)
    family = family_named(artefact.folder, index)
    components = read_components(artefact.folder, index, family, _places(artefact, family))
    for component in components.values():
        artefact.check_unchanged(component.folder.name)
    tensors: dict[str, Tensor] = {}
    for component in components.values():
        if component.role in ("denoiser", "text"):
            tensors |= _initializers(artefact, component.name)
    return Pipeline(
        family=family,
        components=MappingProxyType(components),
        tensors=MappingProxyType(tensors),
        sampling=_sampling(artefact, components),
        graph_edits=edits,
        settings=read_settings(index, family),
    )


def check_parity(pipeline: Pipeline, modules: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Return the relative error between each graph of an artefact and its torch module, by component.

    Raises:
        UndecidedError: they compute different things, so gradients of the module say nothing.
    """
    from ..evidence.parity import example_inputs, relative_error, run_graph, run_module

    found = {}
    for interface in interfaces(pipeline):
        name = interface.component.name
        if interface.component.role in ("denoiser", "text"):
            inputs = example_inputs(interface)
            measured = run_graph(folder / interface.folder / "model.onnx", interface, inputs)
            found[name] = relative_error(measured, run_module(modules[name], interface, inputs))
            limit = LIMITS[_precision(pipeline, name)]
            if not found[name] <= limit:
                message = (
                    f"graph and torch module differ by {found[name]:.1e}, at most {limit:.0e} is rounding"
                )
                hint = "the graph computes more than its config says; probe the float32 target of this build"
                raise UndecidedError(Fault("E_PROBE_PARITY", message, name, hint))
    return found


def _precision(pipeline: Pipeline, component: str) -> str:
    """Return the coarsest type that a component's weights are shipped in."""
    kinds = {str(tensor.dtype) for tensor in pipeline.tensors_of(component).values()}
    return next((kind for kind in ("bfloat16", "float16") if kind in kinds), "float32")


def _places(artefact: Artefact, family: Family) -> dict[str, Path]:
    """Return the folder of each component: graphs of the two halves of a VAE stand apart."""
    return {
        name: artefact.folder / (f"{name}_decoder" if role == "vae" else name)
        for name, role in family.roles.items()
    }


def _sampling(artefact: Artefact, components: Mapping[str, Component]) -> Sampling:
    """Return the artefact's sampling; what its table leaves out is in the scheduler's config."""
    table = artefact.table
    scheduler = next(component for component in components.values() if component.role == "scheduler")
    schedule = Schedule.from_config(scheduler.config, f"{scheduler.name}/scheduler_config.json")
    weights = tuple(step.guidance_weight for step in table.steps)
    return Sampling(
        schedule=schedule,
        latent=table.latent,
        sampler=table.sampler,
        steps=len(table.steps),
        guidance=Guidance(weights, table.negative.prompt, table.guidance_baked, table.negative.baked),
        conditioning=Conditioning(table.task, tuple(table.text), tuple(table.time_ids), table.negative.zeros),
    )


# ---------------------------------------------------------------------------------------------------
# Initializers: names and places are in the graph, elements in the file beside it


def _initializers(artefact: Artefact, component: str) -> dict[str, Tensor]:
    import onnx
    from google.protobuf.message import DecodeError

    file = f"{component}/model.onnx"
    try:
        graph = onnx.load_model_from_string(artefact.read(file)).graph
    except DecodeError as error:
        raise InputError(Fault("E_GRAPH", f"is no graph: {error}", str(artefact.folder / file))) from error
    artefact.check_unchanged(component)
    turned = _transposed(graph)
    found = {}
    for value in graph.initializer:
        if value.data_location == onnx.TensorProto.EXTERNAL:
            stored = _stored(value, artefact.folder / component)
            found[f"{component}.{value.name}"] = _as_in_torch(stored, value.name in turned)
    return found


def _as_in_torch(stored: Stored, turned: bool) -> Tensor:
    if turned and len(stored.shape) == 2:
        return View(stored, np.transpose, stored.shape[::-1])
    if len(stored.shape) == 3 and 1 in stored.shape:
        # A scale of channels, [C, 1, 1] where a graph multiplies with it.
        return View(stored, np.ravel, (int(np.prod(stored.shape)),))
    return stored


def _transposed(graph: "onnx.GraphProto") -> frozenset[str]:
    """Return the weights that a graph multiplies with from the right: torch keeps them as [out, in]."""
    return frozenset(node.input[1] for node in graph.node if node.op_type == "MatMul")


def _stored(value: "onnx.TensorProto", folder: Path) -> Stored:
    from onnx.helper import tensor_dtype_to_np_dtype

    place = {entry.key: entry.value for entry in value.external_data}
    name, offset = place.get("location", ""), int(place.get("offset", 0))
    file = folder / name
    stored = Stored(file, offset, tensor_dtype_to_np_dtype(value.data_type), tuple(value.dims))
    if Path(name).name != name or not file.is_file() or not 0 <= offset <= file.stat().st_size - stored.size:
        raise InputError(
            Fault("E_GRAPH", f"`{value.name}` lies outside `{name}`", str(folder / "model.onnx"))
        )
    return stored
