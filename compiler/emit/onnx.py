"""ONNX, one graph a component: the artefact's own layout, which other ONNX hosts open as it is."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from ...specs.canonical import canonical
from ...specs.errors import Fault, InputError, SpecError, raise_all
from ...specs.manifest import ComponentRecord, Evidence
from ..evidence.parity import Emission, compared_rows, example_shapes, is_compared, measure_parity
from ..graphs.capture import skeleton_of
from ..graphs.graph_edits import INSIDE
from ..graphs.interfaces import BAKED, Interface, Port, interfaces
from ..graphs.shapes import misshapen
from ..graphs.skeleton import DATA, DTYPES, Form, Packing, Precision, ProfileName, Skeleton
from ..ir import GraphEdit, Pipeline
from ..layout import write_config, write_layout
from ..multiplications import of_graph
from ..sources import MODEL_ROLES
from ..tensors import Tensor
from ..work import Work
from ..write import Entry, WritePass
from . import Emitted, Emitter, Job, Written

# Graph edits that this emitter carries out, around the denoiser's own graph or inside it.
EDITS = frozenset({"baked_negative"}) | INSIDE
Size = Annotated[str, Field(pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="HEIGHTxWIDTH, pixels")]
INDEX = "model_index.json"


@dataclass(frozen=True)
class Onnx(Emitter):
    """Writes model.onnx and model.onnx_data for each component, the guidance graphs and sampling.json.

    `profile` says for which host: onnxruntime on a CPU or on CUDA, or TensorRT. `precision` is that of
    the text encoders and the denoiser; autoencoders overflow in float16, so theirs is set apart. Inputs
    and outputs stay float32. `weights: int8` stores the matrices of linear layers in 8 bits.

    Height and width are the caller's, unless `size` fixes them; for each of `sizes` there is one more
    graph, `model.HEIGHTxWIDTH.onnx`, that reads the same weights.

    `parity` runs every graph against its torch operations and records the difference.
    """

    profile: ProfileName = "cpu"
    precision: Precision = "float32"
    vae_precision: Precision = "float32"
    weights: Packing = "plain"
    size: Size | None = None
    sizes: Annotated[tuple[Size, ...], Field(max_length=16)] = ()
    parity: bool = True
    drawn_from: ClassVar[bool] = True

    @property
    def captures(self) -> Collection[str]:
        return MODEL_ROLES

    def written_bytes(self, pipeline: Pipeline) -> int:
        return sum(self.bytes_of(pipeline, name) for name in pipeline.components)

    def bytes_of(self, pipeline: Pipeline, component: str) -> int:
        """Return about how many bytes of weights the graphs of a component have."""
        role = pipeline.components[component].role
        tensors = pipeline.tensors_of(component).values()
        return sum(prod(tensor.shape) * self._width(role, len(tensor.shape)) for tensor in tensors)

    def cells(self, pipeline: Pipeline) -> int | None:
        return None if self.size is None else prod(map(int, self.size.split("x"))) // _cell(pipeline) ** 2

    def work(self, pipeline: Pipeline) -> Work:
        """Torch and each graph compute as much, at every size that graphs are made for."""
        if not self.parity:
            return Work()
        graphs = [graph for graph in interfaces(pipeline) if is_compared(self.form(graph.component.role))]
        compared = [(self._declared(pipeline, graph), compared_rows(graph)) for graph in graphs]
        for size in self.sizes:
            others = [
                fixed(graph, size, _cell(pipeline)) for graph in graphs if graph.component.role != "text"
            ]
            compared += [(graph, compared_rows(graph, guided=False)) for graph in others]
        runs = [(of_graph(pipeline, graph, example_shapes(graph)), rows) for graph, rows in compared]
        return Work(
            multiplied=2 * sum(rows * run.multiplications for run, rows in runs),
            compared_values=max((rows * run.widest for run, rows in runs), default=0),
        )

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        self.check(pipeline)
        graphs = [(each, self._skeleton(pipeline, each, job.cache)) for each in interfaces(pipeline)]
        bound = bind_all(pipeline, graphs)
        place, suffix = self._place(folder, graphs, job)
        writing = WritePass(pipeline, job, self.name)
        records = [
            self._write_graph(writing, *graph, entries, place / graph[0].folder, suffix, folder)
            for graph, entries in zip(graphs, bound, strict=True)
        ]
        writing.finish()
        if not suffix:
            _write_rest(pipeline, place)
        label = "" if place == folder and not suffix else f"{self.label()}/"
        measured = self._compare(pipeline, graphs, place, suffix, label, job.cache) if self.parity else []
        return Emitted(tuple(records), (*writing.rounding(label), *measured))

    def _compare(
        self,
        pipeline: Pipeline,
        graphs: Sequence[tuple[Interface, Skeleton]],
        place: Path,
        suffix: str,
        label: str,
        cache: Path,
    ) -> list[Evidence]:
        """Return the parity of every graph that was written, those of further sizes under their sizes."""
        emitted = [
            Emission(self._declared(pipeline, interface), skeleton, place / interface.folder, suffix)
            for interface, skeleton in graphs
        ]
        found = measure_parity(pipeline, emitted, self.name, label, cache)
        for size in self.sizes:
            others = [
                Emission(
                    fixed(interface, size, _cell(pipeline)),
                    skeleton,
                    place / interface.folder,
                    f"{suffix}.{size}",
                )
                for interface, skeleton in graphs
                if interface.component.role != "text"
            ]
            found += measure_parity(pipeline, others, self.name, f"{label}{size}/", cache)
        return found

    # -- what is written ---------------------------------------------------------------------------

    def form(self, role: str) -> Form:
        """Return the form of the graphs of a role."""
        if role == "vae":
            return Form(self.profile, self.vae_precision)
        return Form(self.profile, self.precision, self.weights)

    def _width(self, role: str, axes: int) -> int:
        """Return the bytes of an element; matrices may be packed."""
        form = self.form(role)
        return 1 if form.packing == "int8" and axes == 2 else DTYPES[form.precision].itemsize

    def label(self) -> str:
        """Return what tells this target from another one of the same emitter."""
        packing = "" if self.weights == "plain" else f"-{self.weights}"
        return f"{self.profile}-{self.precision}{packing}"

    def _skeleton(self, pipeline: Pipeline, interface: Interface, cache: Path) -> Skeleton:
        form, declared = self.form(interface.component.role), self._declared(pipeline, interface)
        return skeleton_of(interface, pipeline.graph_edits, cache, form, declared)

    def _declared(self, pipeline: Pipeline, interface: Interface) -> Interface:
        """Return an interface as the graph declares it: of one size where `size` fixes it."""
        return interface if self.size is None else fixed(interface, self.size, _cell(pipeline))

    def _place(
        self, folder: Path, graphs: Sequence[tuple[Interface, Skeleton]], job: Job
    ) -> tuple[Path, str]:
        """Return where this target goes, and what its graphs' names end in.

        The first target of a build takes the folder. A further one with the same weights puts its
        graphs beside them; any other gets a folder of its own inside, with everything that hosts need.

        Raises:
            SpecError: another target of the spec is already there.
        """
        if not (folder / INDEX).exists():
            return folder, ""
        written = [job.ledger.files.get(folder / interface.folder / DATA) for interface, _ in graphs]
        alike = all(
            there is not None and there.layout == skeleton.layout
            for there, (_, skeleton) in zip(written, graphs, strict=True)
        )
        place, suffix = (folder, f".{self.profile}") if alike else (folder / self.label(), "")
        taken = any((place / interface.folder / f"model{suffix}.onnx").exists() for interface, _ in graphs)
        if taken or (alike and self.profile == "cpu"):
            message = f"two targets `{self.name}` of the spec are alike: {self.label()}"
            raise SpecError(Fault("E_TARGET_TWICE", message, "emit", "leave one of them out"))
        place.mkdir(exist_ok=True)
        return place, suffix

    def _write_graph(
        self,
        writing: WritePass,
        interface: Interface,
        skeleton: Skeleton,
        bound: Sequence[Entry],
        place: Path,
        suffix: str,
        root: Path,
    ) -> ComponentRecord:
        """Write one graph's folder: the skeleton as it is, the data file, and the config."""
        from ..graphs.lower import lower

        place.mkdir(exist_ok=bool(suffix))
        entries = list(bound)
        (place / f"model{suffix}.onnx").write_bytes(skeleton.graph)
        for size in self.sizes if interface.component.role != "text" else ():
            graph, _ = lower(skeleton.program, fixed(interface, size, _cell(writing.pipeline)), skeleton.form)
            (place / f"model{suffix}.{size}.onnx").write_bytes(graph)
        if interface.component.role == "denoiser":
            entries += _write_guidance(writing.pipeline, interface, skeleton, place, suffix)
        if suffix:
            writing.review(entries)
            return writing.job.ledger.files[place / DATA].record
        write_config(interface.component, place)
        record = writing.write(interface.folder, place / DATA, root, entries)
        writing.job.ledger.files[place / DATA] = Written(skeleton.layout, record)
        return record

    def check(self, pipeline: Pipeline) -> None:
        """Refuse what would be left out in silence, and what the host cannot read; all of it."""
        raise_all(InputError, _unknown_edits(pipeline.graph_edits))
        cell = _cell(pipeline)
        faults = []
        if self.weights == "int8" and self.profile == "tensorrt":
            hint = "TensorRT reads standard operators only: leave `weights` out, or choose another profile"
            faults.append(Fault("E_PROFILE", "8-bit weights are an operator of onnxruntime", "weights", hint))
        if self.vae_precision == "float16" and any(
            vae.config.get("force_upcast") for vae in pipeline.of_role("vae")
        ):
            # SDXL's: its activations leave the range of float16, and images come out black.
            message, hint = "this autoencoder's config says that it needs more", "leave `vae_precision` out"
            faults.append(Fault("E_PRECISION", message, "onnx.vae_precision", hint))
        for interface in interfaces(pipeline):
            sizes = [*([self.size] if self.size else []), *self.sizes]
            faults += [fault for size in sizes for fault in _uneven(interface, size, cell)]
        raise_all(SpecError, faults)


def _unknown_edits(edits: Iterable[GraphEdit]) -> list[Fault]:
    return [
        Fault(
            "E_GRAPH_EDIT", f"the emitter `onnx` does not know the graph edit `{edit.name}`", edit.component
        )
        for edit in edits
        if edit.name not in EDITS
    ]


# ---------------------------------------------------------------------------------------------------
# Sizes: pixels -> what each graph's dimensions are


def fixed(interface: Interface, size: str, cell: int) -> Interface:
    """Return an interface whose images are `HEIGHTxWIDTH` pixels; `cell` is a latent cell in pixels."""
    known = _dimensions(interface, size, cell)

    def fix(port: Port) -> Port:
        return replace(port, shape=tuple(known.get(str(size), size) for size in port.shape))

    inputs, outputs = (tuple(map(fix, ports)) for ports in (interface.inputs, interface.outputs))
    return replace(interface, inputs=inputs, outputs=outputs)


def _dimensions(interface: Interface, size: str, cell: int) -> Mapping[str, int]:
    """Return the numbers of an interface's dimensions: a denoiser counts latent cells, a VAE both."""
    height, width = map(int, size.split("x"))
    latent = {"latent_height": height // cell, "latent_width": width // cell}
    if interface.component.role == "denoiser":
        return {"height": height // cell, "width": width // cell}
    return {**latent, "height": height, "width": width}


def _uneven(interface: Interface, size: str, cell: int) -> list[Fault]:
    """Return what is wrong with a size: a denoiser takes multiples of what it halves."""
    multiple = cell * interface.multiple
    if interface.component.role != "denoiser" or all(int(part) % multiple == 0 for part in size.split("x")):
        return []
    return [Fault("E_SIZE", f"{size} pixels, expected multiples of {multiple}", "size")]


def _cell(pipeline: Pipeline) -> int:
    return pipeline.sampling.table().latent.downscale


# ---------------------------------------------------------------------------------------------------
# Weights and guidance


def _write_rest(pipeline: Pipeline, place: Path) -> None:
    """Write what the folder holds beside graphs."""
    write_layout(pipeline, place)
    table = pipeline.sampling.table().model_dump(mode="json", by_alias=True)
    (place / "sampling.json").write_bytes(canonical(table) + b"\n")


def bind_all(pipeline: Pipeline, graphs: Iterable[tuple[Interface, Skeleton]]) -> list[list[Entry]]:
    """Return the tensors that each graph refers to; a model that its configs do not describe stops here.

    Raises:
        InputError: tensors are missing or have another shape than the config says; all of all graphs.
    """
    entries, faults = [], []
    for interface, skeleton in graphs:
        try:
            entries.append(bind(pipeline, interface, skeleton))
        except InputError as error:
            faults += [fault for fault in error.faults if fault not in faults]
    raise_all(InputError, faults)
    return entries


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
            faults.append(misshapen(full, tensor.shape, weight.stored))
        else:
            entries.append(Entry(full, tensor, DTYPES[weight.dtype], weight.transposed, weight.block))
    raise_all(InputError, faults)
    return entries


def _write_guidance(
    pipeline: Pipeline, interface: Interface, skeleton: Skeleton, place: Path, suffix: str
) -> list[Entry]:
    """Write combine.onnx and guided.onnx; return the tensors that only the latter needs."""
    from ..graphs.combine import Baked, combine_graph, guided_graph

    negatives = baked_negatives(pipeline, interface)
    baked: list[Baked] = []
    for name, tensor in negatives.items():
        offset = baked[-1].offset + baked[-1].size if baked else skeleton.size
        baked.append(Baked(name, offset, tensor.shape))
    table = pipeline.sampling.table()
    (place / "combine.onnx").write_bytes(combine_graph(int(interface.component.config["out_channels"])))
    (place / f"guided{suffix}.onnx").write_bytes(guided_graph(skeleton, table, baked))
    component = interface.component.name
    return [
        Entry(f"{component}.{BAKED[name]}", tensor, DTYPES["float32"]) for name, tensor in negatives.items()
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
