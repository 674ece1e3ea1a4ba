"""A component's config -> its graph without weights (a skeleton), captured once and then cached.

The module is built and traced under fake tensors: no weight exists, so memory does not grow with the
model, and an edit of weights cannot reach the graph. A skeleton is final: `graph` is the `model.onnx`
that an artefact holds, and refers to the tensors of `model.onnx_data` in the order of `weights`.

The key of a skeleton is the digest of everything that its bytes depend on: structure, dtype, opset,
and versions. A warm cache imports no torch.
"""

import hashlib
import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..specs.canonical import canonical, digest_file, digest_of
from ..specs.errors import Fault, InputError
from .interfaces import Interface, Port
from .ir import GraphEdit
from .modules import NOT_STRUCTURE, build_module, fixed_buffers

if TYPE_CHECKING:
    import onnx_ir
    import torch

# The files that decide what a skeleton looks like: another version of them, another key.
CODE = ("capture.py", "graphs.py", "interfaces.py", "modules.py")
OPSET = 20  # the last one whose normalization onnxruntime runs on a CPU without taking it apart
DATA = "model.onnx_data"
LIBRARIES = ("diffusers", "onnx", "onnx-ir", "onnxscript", "torch", "transformers")
# Sizes to trace with: unlike each other and above one, so that none is taken for another or for fixed.
EXAMPLES: Mapping[str, int] = {"batch": 2, "sequence": 5}
CELLS: Mapping[str, int] = {"height": 4, "width": 6, "latent_height": 4, "latent_width": 6}
# diffusers' upsampling asks whether a batch has 64 images: the graph is the branch for fewer.
LARGEST_BATCH = 63


@dataclass(frozen=True)
class Binding:
    """One tensor of the data file: its name as the family spells it, and how it is written.

    `stored` is the shape in a diffusers file, `shape` the one as written, which has the same number
    of elements; `transposed` means that the two axes of the stored tensor are exchanged on the way.
    """

    name: str
    dtype: str
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool

    @property
    def size(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Skeleton:
    """A graph without weights, and the weights that it refers to, in the order of the data file."""

    key: str
    graph: bytes
    weights: tuple[Binding, ...]

    @property
    def size(self) -> int:
        """Size of the data file in bytes."""
        return sum(binding.size for binding in self.weights)


def skeleton_of(interface: Interface, edits: Sequence[GraphEdit], cache: Path) -> Skeleton:
    """Return a component's skeleton, from the cache where it is there and whole.

    Raises:
        InputError: the config describes no module that the libraries can build and trace.
    """
    structure = structure_of(interface, edits)
    key = digest_of(structure)
    return _load(cache / key, key) or _keep(_capture(interface, key), cache)


def structure_of(interface: Interface, edits: Sequence[GraphEdit]) -> dict[str, Any]:
    """Return everything that a skeleton's bytes depend on, as JSON."""
    component = interface.component
    return {
        "code": {name: digest_file(Path(__file__).with_name(name)) for name in CODE},
        "class": component.class_name,
        "config": {key: value for key, value in component.config.items() if key not in NOT_STRUCTURE},
        "part": interface.folder.removeprefix(component.name),
        "inputs": [asdict(port) for port in interface.inputs],
        "outputs": [asdict(port) for port in interface.outputs],
        "edits": [asdict(edit) for edit in edits if edit.component == component.name],
        "opset": OPSET,
        "versions": {name: version(name) for name in LIBRARIES},
    }


# ---------------------------------------------------------------------------------------------------
# Cache: one folder a key, complete or absent


def _load(folder: Path, key: str) -> Skeleton | None:
    """Return a cached skeleton, or None where there is none or it is not what was written."""
    try:
        graph = (folder / "model.onnx").read_bytes()
        record = json.loads((folder / "skeleton.json").read_bytes())
        if record["digest"] != _digest(graph, record["weights"]):
            return None
        weights = [
            Binding(**{**entry, "stored": tuple(entry["stored"]), "shape": tuple(entry["shape"])})
            for entry in record["weights"]
        ]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Skeleton(key, graph, tuple(weights))


def _keep(skeleton: Skeleton, cache: Path) -> Skeleton:
    """Put a skeleton into the cache; whoever else makes the same one at the same time may win."""
    cache.mkdir(parents=True, exist_ok=True)
    weights = [asdict(binding) for binding in skeleton.weights]
    record = {"digest": _digest(skeleton.graph, weights), "weights": weights}
    made = Path(tempfile.mkdtemp(prefix=".making-", dir=cache))
    (made / "model.onnx").write_bytes(skeleton.graph)
    (made / "skeleton.json").write_bytes(canonical(record) + b"\n")
    place = cache / skeleton.key
    try:
        if _load(place, skeleton.key) is None:
            shutil.rmtree(place, ignore_errors=True)
        made.rename(place)
    except OSError:
        # A whole entry is there by now: a folder that is not empty cannot be replaced.
        shutil.rmtree(made, ignore_errors=True)
    return skeleton


def _digest(graph: bytes, weights: Any) -> str:
    return digest_of({"graph": hashlib.sha256(graph).hexdigest(), "weights": weights})


# ---------------------------------------------------------------------------------------------------
# Capture: module under fake tensors -> torch.export -> ONNX -> small ONNX


def _capture(interface: Interface, key: str) -> Skeleton:
    import onnx_ir
    import torch

    from .graphs import simplify

    component = interface.component
    with _quiet():
        try:
            module, program = _trace(interface)
        except Exception as error:
            hint = "the config has to describe a module that this version of the library can build"
            fault = Fault(
                "E_CAPTURE", f"{component.class_name} cannot be traced: {error}", interface.folder, hint
            )
            raise InputError(fault) from error
        exported = torch.onnx.export(program, dynamo=True, optimize=False, opset_version=OPSET, verbose=False)
    if exported is None:
        raise InputError(Fault("E_CAPTURE", f"{component.class_name} gave no graph", interface.folder))
    model = exported.model
    _unbind(model, fixed_buffers(module))
    weights = tuple(
        Binding(weight.name, "float32", weight.stored, weight.shape, weight.transposed)
        for weight in simplify(model)
    )
    _declare(model, interface)
    _refer(model, weights)
    graph = onnx_ir.to_proto(model).SerializeToString(deterministic=True)
    return Skeleton(key, graph, weights)


def _trace(interface: Interface) -> tuple["torch.nn.Module", "torch.export.ExportedProgram"]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with fake, torch.no_grad():
        module = build_module(interface.component)
        examples = tuple(_example(port, interface.multiple) for port in interface.inputs)
        dimensions = _dimensions(interface)
        wrapper = wrap(module, interface)
        return module, torch.export.export(wrapper, examples, dynamic_shapes=dimensions, strict=False)


def wrap(module: "torch.nn.Module", interface: Interface) -> "torch.nn.Module":
    """Return a module that takes and gives just the ports of an interface, in their order."""
    import torch

    run = FORWARDS[interface.component.role + interface.folder.removeprefix(interface.component.name)]

    class Graph(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *inputs: Any) -> Any:
            return run(interface, self.inner, *inputs)

    return Graph()


def _text(interface: Interface, module: Any, input_ids: Any) -> Any:
    wanted = [port.name.partition(".") for port in interface.outputs]
    output = module(input_ids, output_hidden_states=any(number for _, _, number in wanted))
    return tuple(output[name][int(number)] if number else output[name] for name, _, number in wanted)


def _denoise(interface: Interface, module: Any, sample: Any, timestep: Any, states: Any, *added: Any) -> Any:
    names = [port.name for port in interface.inputs[3:]]
    conditions = dict(zip(names, added, strict=True))
    return module(sample, timestep, states, added_cond_kwargs=conditions, return_dict=False)[0]


def _decode(interface: Interface, module: Any, latent: Any) -> Any:
    del interface
    return module.decode(latent, return_dict=False)[0]


def _encode(interface: Interface, module: Any, sample: Any) -> Any:
    del interface
    latent = module.encoder(sample)
    return latent if module.quant_conv is None else module.quant_conv(latent)


FORWARDS: Mapping[str, Callable[..., Any]] = {
    "text": _text,
    "denoiser": _denoise,
    "vae_decoder": _decode,
    "vae_encoder": _encode,
}


def _example(port: Port, multiple: int) -> "torch.Tensor":
    import torch

    sizes = {**EXAMPLES, **{name: cells * multiple for name, cells in CELLS.items()}}
    shape = [size if isinstance(size, int) else sizes[size] for size in port.shape]
    return torch.zeros(shape, dtype=getattr(torch, port.dtype))


def _dimensions(interface: Interface) -> tuple[tuple[Any, ...], ...]:
    """Return the dynamic dimensions of each input, the same object for the same name."""
    import torch

    names = sorted({size for port in interface.inputs for size in port.shape if isinstance(size, str)})
    dims: dict[str, Any] = {name: torch.export.Dim(name) for name in names}
    dims["batch"] = torch.export.Dim("batch", max=LARGEST_BATCH)
    for name in CELLS:
        if name in dims and interface.multiple > 1:
            dims[name] = interface.multiple * torch.export.Dim(f"{name}_cells")
    shapes = [
        {axis: dims[size] for axis, size in enumerate(port.shape) if isinstance(size, str)}
        for port in interface.inputs
    ]
    return (tuple(shapes),)


def _unbind(model: "onnx_ir.Model", fixed: Mapping[str, np.ndarray]) -> None:
    """Make a weight of every parameter: a name of the module's own, and no elements."""
    import onnx_ir

    for name, value in list(model.graph.initializers.items()):
        if name.startswith("inner."):
            own = name.removeprefix("inner.")
            value.const_value = onnx_ir.tensor(fixed[own], name=own) if own in fixed else None
            value.name = own


def _declare(model: "onnx_ir.Model", interface: Interface) -> None:
    """Name inputs, outputs and their dimensions, and forget who made the graph and when."""
    import onnx_ir

    graph = model.graph
    for values, ports in ((graph.inputs, interface.inputs), (graph.outputs, interface.outputs)):
        for value, port in zip(values, ports, strict=True):
            value.name = port.name
            value.shape = onnx_ir.Shape(port.shape)
            value.dtype = onnx_ir.DataType.from_numpy(np.dtype(port.dtype))
    graph.name = interface.folder
    model.producer_name, model.producer_version = "retouch", None


def _refer(model: "onnx_ir.Model", weights: Sequence[Binding]) -> None:
    """Let every weight point at its range of the data file: dense, in order."""
    import onnx_ir

    offset = 0
    for binding in weights:
        value = model.graph.initializers[binding.name]
        dtype = onnx_ir.DataType.from_numpy(np.dtype(binding.dtype))
        shape = onnx_ir.Shape(binding.shape)
        value.const_value = onnx_ir.ExternalTensor(
            DATA, offset, binding.size, dtype, shape=shape, name=binding.name
        )
        offset += binding.size


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about optional libraries and its own internals from the user."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        exporter.setLevel(level)
