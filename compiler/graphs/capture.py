"""A component's config -> its program, captured once and then cached -> its graph in any form.

The module is built and traced under fake tensors: no weight exists, so memory does not grow with the
model, and an edit of weights cannot reach the graph. A program is plain data, so that every form of it
is written without torch. A skeleton is final: `graph` is the `model.onnx` that an artefact holds, and
refers to the tensors of `model.onnx_data` in the order of `weights`.

The key of a program is the digest of everything that it depends on: structure, code and versions. A
warm cache imports no torch.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...specs.canonical import digest_file, digest_of
from ...specs.errors import Fault, InputError
from ..environment import installed
from ..ir import GraphEdit
from ..reproducer import keep_failure
from ..store import Store
from ..torch_models.modules import NOT_STRUCTURE, build_module, fixed_buffers
from .graph_edits import INSIDE
from .interfaces import Interface, Port
from .program import Op, Program, Ref, Shape, refs
from .skeleton import Form, Skeleton

if TYPE_CHECKING:
    import torch

# The files that decide what a program looks like: another version of them, another key.
TRACING = ("capture.py", "graph_edits.py", "interfaces.py", "program.py", "../torch_models/modules.py")
# And those that decide how it is written down.
WRITING = (*TRACING, "lower.py", "skeleton.py")
TRACERS = ("diffusers", "torch", "transformers")
WRITERS = ("onnx",)
# Sizes to trace with: unlike each other and above one, so that none is taken for another or for fixed.
EXAMPLES: Mapping[str, int] = {"batch": 2, "sequence": 5}
CELLS: Mapping[str, int] = {"height": 4, "width": 6, "latent_height": 4, "latent_width": 6}
# diffusers' upsampling asks whether a batch has 64 images: the graph is the branch for fewer.
LARGEST_BATCH = 63
PLAIN = Form()


def skeleton_of(
    interface: Interface,
    edits: Sequence[GraphEdit],
    cache: Path,
    form: Form = PLAIN,
    declared: Interface | None = None,
) -> Skeleton:
    """Return a component's skeleton in a form; its program comes from the cache where it is there and whole.

    `declared` is the interface with fixed dimensions, where the graph is to say them.

    Raises:
        InputError: the config describes no module that the libraries can build and trace.
    """
    from .lower import lower

    ports = declared or interface
    program = program_of(interface, edits, cache)
    graph, weights = lower(program, ports, form)
    written = {
        "files": _digests(WRITING),
        "form": asdict(form),
        "inputs": [asdict(port) for port in ports.inputs],
        "versions": _versions(WRITERS),
    }
    return Skeleton(digest_of([structure_of(interface, edits), written]), graph, weights, form, program)


def program_of(interface: Interface, edits: Sequence[GraphEdit], cache: Path) -> Program:
    """Return a component's program, from the cache where it is there and whole."""
    store, key = Store(cache), program_key(interface, edits)
    kept = store.get(key)
    if kept is not None:
        return Program.load(kept)
    program = _capture(interface, edits, cache)
    store.put(key, program.dump())
    return program


def program_key(interface: Interface, edits: Sequence[GraphEdit]) -> str:
    """Return the key of a component's program in the cache."""
    return digest_of(structure_of(interface, edits))


def structure_of(interface: Interface, edits: Sequence[GraphEdit]) -> dict[str, Any]:
    """Return everything that a program depends on, as JSON."""
    component = interface.component
    return {
        "code": _digests(TRACING),
        "class": component.class_name,
        "config": {key: value for key, value in component.config.items() if key not in NOT_STRUCTURE},
        "part": interface.folder.removeprefix(component.name),
        "inputs": [asdict(port) for port in interface.inputs],
        "outputs": [asdict(port) for port in interface.outputs],
        # Edits around a denoiser, such as a baked negative prompt, leave its own graph as it is.
        "edits": [asdict(edit) for edit in edits if edit.component == component.name and edit.name in INSIDE],
        "versions": _versions(TRACERS),
    }


def _digests(files: Sequence[str]) -> dict[str, str]:
    return {name: digest_file(Path(__file__).parent / name) for name in files}


def _versions(libraries: Sequence[str]) -> dict[str, str]:
    return {name: installed(name) for name in libraries}


# ---------------------------------------------------------------------------------------------------
# Capture: module under fake tensors -> torch.export -> plain data


def _capture(interface: Interface, edits: Sequence[GraphEdit], cache: Path) -> Program:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module, program = _trace(interface, edits)
        except Exception as error:
            happened = {"edits": [asdict(edit) for edit in edits], "error": str(error)}
            kept = keep_failure(cache, interface, happened)
            hint = f"the config has to describe a module that this version can build; to report it: {kept}"
            name = interface.component.class_name
            fault = Fault("E_CAPTURE", f"{name} cannot be traced: {error}", interface.folder, hint)
            raise InputError(fault) from error
        return _plain_data(program, fixed_buffers(module))


def _trace(
    interface: Interface, edits: Sequence[GraphEdit]
) -> tuple["torch.nn.Module", "torch.export.ExportedProgram"]:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    fake = FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv())
    with fake, torch.no_grad():
        module = build_module(interface.component, edits)
        examples = tuple(_example(port, interface.multiple) for port in interface.inputs)
        dimensions = _dimensions(interface)
        wrapper = wrap(module, interface)
        return module, torch.export.export(wrapper, examples, dynamic_shapes=dimensions, strict=False)


def _plain_data(traced: "torch.export.ExportedProgram", numbers: Mapping[str, Any]) -> Program:
    """Return what was traced without torch: the operations that the outputs need, in order."""
    signature = traced.graph_signature
    held = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    owned = {node: name.removeprefix("inner.") for node, name in held.items()}
    by_name = {node.name: node for node in traced.graph.nodes}
    inputs = [by_name[str(name)] for name in signature.user_inputs]
    reader = _Reader(owned, _dimension_names(node.meta["val"] for node in inputs))
    ops = [reader.op(node) for node in traced.graph.nodes if node.op == "call_function" and _tensors(node)]
    outputs = tuple(str(name) for name in signature.user_outputs)
    return Program(
        inputs=tuple((node.name, *reader.header(node.meta["val"])) for node in inputs),
        weights=tuple(
            (name, tuple(by_name[node].meta["val"].shape))
            for node, name in owned.items()
            if name not in numbers
        ),
        numbers=tuple((name, row.shape[-1]) for name, row in sorted(numbers.items())),
        ops=_needed(ops, outputs),
        outputs=outputs,
    )


def _tensors(node: "torch.fx.Node") -> list["torch.Tensor"]:
    """Return the tensors that a node gives; none for arithmetic on dimensions and for checks."""
    import torch

    value = node.meta.get("val")
    found: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    return found if all(isinstance(item, torch.Tensor) for item in found) else []


def _dimension_names(inputs: Iterator["torch.Tensor"]) -> dict[Any, Any]:
    """Return our names of the dimensions that callers choose: torch's own depend on its version."""
    import sympy
    import torch

    names: dict[Any, Any] = {}
    for value in inputs:
        for size in value.shape:
            if isinstance(size, torch.SymInt):
                for symbol in sorted(size.node.expr.free_symbols, key=str):
                    names.setdefault(symbol, sympy.Symbol(f"n{len(names)}", integer=True, positive=True))
    return names


class _Reader:
    """Reads nodes of torch.fx as plain data."""

    def __init__(self, owned: Mapping[str, str], names: Mapping[Any, Any]) -> None:
        self._owned, self._names = owned, names
        self._texts: dict[Any, str] = {}

    def op(self, node: "torch.fx.Node") -> Op:
        tensors = _tensors(node)
        headers = [self.header(tensor) for tensor in tensors]
        options = {key: self._argument(value) for key, value in node.kwargs.items() if key not in UNSAID}
        arguments = tuple(self._argument(value) for value in node.args)
        shapes = tuple(shape for _, shape in headers)
        return Op(node.name, _kind(node.target), arguments, options, shapes, headers[0][0])

    def header(self, tensor: "torch.Tensor") -> tuple[str, Shape]:
        return str(tensor.dtype).removeprefix("torch."), tuple(self._size(size) for size in tensor.shape)

    def _argument(self, value: Any) -> Any:
        import torch

        if isinstance(value, torch.fx.Node):
            if _tensors(value):
                return Ref(self._owned.get(value.name, value.name))
            return self._size(value.meta["val"])
        if isinstance(value, list | tuple):
            return [self._argument(item) for item in value]
        if isinstance(value, torch.SymInt):
            return self._size(value)
        return value if isinstance(value, int | float | None) else str(value).removeprefix("torch.")

    def _size(self, size: Any) -> int | str:
        import torch

        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression not in self._texts:
            self._texts[expression] = str(expression.xreplace(self._names))
        text = self._texts[expression]
        return int(text) if text.isdecimal() else text


# Arguments that say where a tensor lies, not what it holds.
UNSAID = frozenset({"device", "layout", "memory_format", "pin_memory"})


def _kind(target: Any) -> str:
    """Return torch's name of an operation; Python's own are `operator.` ones."""
    return str(target) if hasattr(target, "overloadpacket") else f"operator.{target.__name__}"


def _needed(ops: Sequence[Op], outputs: Sequence[str]) -> tuple[Op, ...]:
    wanted, kept = set(outputs), []
    for op in reversed(ops):
        if op.name in wanted:
            kept.append(op)
            wanted.update(refs([op.args, list(op.options.values())]))
    return tuple(kept[::-1])


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
