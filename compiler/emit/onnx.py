"""ONNX, one graph a component: the artefact's own layout, which other ONNX hosts open as it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...specs.canonical import canonical
from ...specs.errors import Fault, InputError, raise_all
from ...specs.manifest import ComponentRecord
from ..capture import skeleton_of
from ..graph_edits import INSIDE
from ..interfaces import BAKED, Interface, interfaces
from ..ir import GraphEdit, Pipeline
from ..layout import write_config, write_layout
from ..parity import measure_parity
from ..skeleton import DATA, Skeleton
from ..tensors import Tensor
from ..write import Entry, WritePass
from . import Emitted, Emitter, Job

# Graph edits that this emitter carries out, around the denoiser's own graph or inside it.
EDITS = frozenset({"baked_negative"}) | INSIDE


@dataclass(frozen=True)
class Onnx(Emitter):
    """Writes model.onnx and model.onnx_data for each component, the guidance graphs and sampling.json.

    `parity` runs every graph against its torch module and records the difference.
    """

    profile: Literal["cpu"] = "cpu"
    precision: Literal["float32"] = "float32"
    parity: bool = True

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        _check_edits(pipeline.graph_edits)
        writing = WritePass(pipeline, job)
        graphs = [
            (interface, skeleton_of(interface, pipeline.graph_edits, job.cache))
            for interface in interfaces(pipeline)
        ]
        records = [_write_graph(writing, interface, skeleton, folder) for interface, skeleton in graphs]
        writing.finish()
        write_layout(pipeline, folder)
        table = pipeline.sampling.table().model_dump(mode="json", by_alias=True)
        (folder / "sampling.json").write_bytes(canonical(table) + b"\n")
        evidence = measure_parity(pipeline, graphs, folder, self.name) if self.parity else ()
        return Emitted(tuple(records), tuple(evidence))


def _check_edits(edits: Iterable[GraphEdit]) -> None:
    """Refuse what would be left out in silence."""
    faults = [
        Fault(
            "E_GRAPH_EDIT", f"the emitter `onnx` does not know the graph edit `{edit.name}`", edit.component
        )
        for edit in edits
        if edit.name not in EDITS
    ]
    raise_all(InputError, faults)


def _write_graph(
    writing: WritePass, interface: Interface, skeleton: Skeleton, folder: Path
) -> ComponentRecord:
    """Write one graph's folder: the skeleton as it is, the data file, and the config."""
    place = folder / interface.folder
    place.mkdir()
    entries = bind(writing.pipeline, interface, skeleton)
    (place / "model.onnx").write_bytes(skeleton.graph)
    write_config(interface.component, place)
    if interface.component.role == "denoiser":
        entries += _write_guidance(writing.pipeline, interface, skeleton, place)
    return writing.write(interface.folder, place / DATA, folder, entries)


def bind(pipeline: Pipeline, interface: Interface, skeleton: Skeleton) -> list[Entry]:
    """Return the tensors that a skeleton refers to, in its order.

    Raises:
        InputError: tensors are missing or have another shape than the config says; all of them.
    """
    name = interface.component.name
    spelled = {pipeline.family.module_name(name, on_disk): on_disk for on_disk in pipeline.tensors_of(name)}
    faults, entries = [], []
    for weight in skeleton.weights:
        full = f"{name}.{spelled.get(weight.name, weight.name)}"
        tensor = pipeline.tensors.get(full)
        if tensor is None:
            faults.append(Fault("E_TENSOR_MISSING", "the config asks for a tensor that is not there", full))
        elif tensor.shape != weight.stored:
            message = f"shape {list(tensor.shape)}, the config asks for {list(weight.stored)}"
            faults.append(Fault("E_TENSOR_SHAPE", message, full))
        else:
            entries.append(Entry(full, tensor, np.dtype(weight.dtype), weight.transposed))
    raise_all(InputError, faults)
    return entries


def _write_guidance(pipeline: Pipeline, interface: Interface, skeleton: Skeleton, place: Path) -> list[Entry]:
    """Write combine.onnx and guided.onnx; return the tensors that only the latter needs."""
    from ..combine import Baked, combine_graph, guided_graph

    negatives = baked_negatives(pipeline, interface)
    baked: list[Baked] = []
    for name, tensor in negatives.items():
        offset = baked[-1].offset + baked[-1].size if baked else skeleton.size
        baked.append(Baked(name, offset, tensor.shape))
    table = pipeline.sampling.table()
    (place / "combine.onnx").write_bytes(combine_graph(int(interface.component.config["out_channels"])))
    (place / "guided.onnx").write_bytes(guided_graph(skeleton, table, baked))
    component = interface.component.name
    return [
        Entry(f"{component}.{BAKED[name]}", tensor, np.dtype(np.float32))
        for name, tensor in negatives.items()
    ]


def baked_negatives(pipeline: Pipeline, interface: Interface) -> dict[str, Tensor]:
    """Return what a baked negative prompt puts in the place of half an input, by input; empty where live.

    Raises:
        InputError: the edit is there, a tensor of it is not.
    """
    component = interface.component.name
    if not any(
        edit.name == "baked_negative" and edit.component == component for edit in pipeline.graph_edits
    ):
        return {}
    names = {port.name: f"{component}.{BAKED[port.name]}" for port in interface.inputs if port.name in BAKED}
    missing = [name for name in names.values() if name not in pipeline.tensors]
    message = "the baked negative prompt has no text states"
    raise_all(InputError, [Fault("E_TENSOR_MISSING", message, name) for name in missing])
    return {port: pipeline.tensors[name] for port, name in names.items()}
