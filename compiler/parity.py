"""Does an emitted graph compute what its torch module computes? Measured on the bytes as written.

The module is built from the config and reads its weights out of the data file, mapped, so a component
is in memory once, in onnxruntime. Both run on one thread, with the same seeded inputs.
"""

from collections.abc import Iterable, Mapping
from decimal import ROUND_CEILING, Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.sessions import Placement, load_session
from ..specs.manifest import Evidence
from .capture import CELLS, wrap
from .interfaces import BAKED, Interface
from .ir import GraphEdit, Pipeline
from .modules import build_module, fill_module
from .skeleton import DATA, Skeleton
from .threads import single_threaded

if TYPE_CHECKING:
    import torch

Arrays = Mapping[str, NDArray[Any]]

# Largest relative difference, as a norm: rounding alone stays two orders below.
LIMIT = "0.0001"
SEED = 20240613
BATCH = 2
SEQUENCE = 7


def measure_parity(
    pipeline: Pipeline, graphs: Iterable[tuple[Interface, Skeleton]], folder: Path, author: str
) -> list[Evidence]:
    """Return one piece of evidence for each graph of an artefact that lies in `folder`."""
    found = []
    for interface, skeleton in graphs:
        with single_threaded():
            module = load_module(interface, skeleton, folder, pipeline.graph_edits)
            inputs = example_inputs(interface)
            found.append(_evidence(interface.folder, _graph_error(module, interface, folder, inputs), author))
            if interface.component.role == "denoiser":
                error = _guided_error(pipeline, module, interface, skeleton, folder)
                found.append(_evidence(f"{interface.folder}/guided", error, author))
    return found


def load_module(
    interface: Interface, skeleton: Skeleton, folder: Path, edits: Iterable[GraphEdit] = ()
) -> "torch.nn.Module":
    """Return the torch module of a graph, its weights mapped from the data file that was written."""
    import torch

    with torch.device("meta"):
        module = build_module(interface.component, edits)
    data = np.memmap(folder / interface.folder / DATA, np.uint8, mode="c")
    weights, offset = {}, 0
    for binding in skeleton.weights:
        values = data[offset : offset + binding.size].view(binding.dtype)
        shape = binding.stored[::-1] if binding.transposed else binding.stored
        values = values.reshape(shape).T if binding.transposed else values.reshape(shape)
        weights[binding.name] = values
        offset += binding.size
    # A graph that is a part of its module (one half of a VAE) leaves the rest without elements.
    return fill_module(module, weights)


def example_inputs(interface: Interface, batch: int = BATCH, scale: int = 1) -> dict[str, NDArray[Any]]:
    """Return seeded inputs of a graph: small images, `scale` times the smallest that can be told apart."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    cells = {name: size * interface.multiple * scale // 2 for name, size in CELLS.items()}
    sizes = {"batch": batch, "sequence": SEQUENCE, **cells}
    found: dict[str, NDArray[Any]] = {}
    for port in interface.inputs:
        shape = [size if isinstance(size, int) else sizes[size] for size in port.shape]
        if port.dtype == "int64":
            tokens = generator.integers(0, int(interface.component.config["vocab_size"]), shape)
            # Rows end like prompts do: the pooled output is read at the end token.
            tokens[:, shape[1] // 2 :] = int(interface.component.config.get("eos_token_id", 0))
            found[port.name] = tokens
        elif not shape:
            found[port.name] = np.asarray(501, np.float32)
        else:
            found[port.name] = generator.standard_normal(shape, np.float32)
    return found


def run_module(module: "torch.nn.Module", interface: Interface, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Run a torch module on the inputs of a graph."""
    import torch

    with torch.inference_mode():
        values = [torch.from_numpy(np.asarray(inputs[port.name])) for port in interface.inputs]
        output = wrap(module, interface)(*values)
    outputs = output if isinstance(output, tuple) else (output,)
    return {port.name: value.numpy() for port, value in zip(interface.outputs, outputs, strict=True)}


def run_graph(file: Path, interface: Interface, inputs: Arrays) -> dict[str, NDArray[Any]]:
    """Run an emitted graph on one thread."""
    outputs = [port.name for port in interface.outputs]
    session = load_session(
        file.read_bytes(), str(file), list(inputs), outputs, Placement(threads=1), str(file.parent)
    )
    return session(**inputs)


def relative_error(measured: Arrays, expected: Arrays) -> float:
    """Return the largest ||a - b|| / ||b|| over the outputs, in float64."""
    errors = [
        np.linalg.norm(np.float64(measured[name]) - expected[name])
        / np.linalg.norm(np.float64(expected[name]))
        for name in sorted(expected)
    ]
    # A NaN is a failure, not a small number.
    return float("inf") if any(np.isnan(errors)) else float(max(errors))


def _graph_error(module: "torch.nn.Module", interface: Interface, folder: Path, inputs: Arrays) -> float:
    measured = run_graph(folder / interface.folder / "model.onnx", interface, inputs)
    return relative_error(measured, run_module(module, interface, inputs))


def _guided_error(
    pipeline: Pipeline, module: "torch.nn.Module", interface: Interface, skeleton: Skeleton, folder: Path
) -> float:
    """Compare guided.onnx with the formula on the module's own predictions, at the middle step."""
    steps = pipeline.sampling.table().steps
    step = steps[len(steps) // 2]
    file = folder / interface.folder / "guided.onnx"
    inputs = example_inputs(interface, 2 * BATCH)
    inputs["sample"], inputs["timestep"] = inputs["sample"][:BATCH], np.asarray(step.timestep, np.float32)
    doubled = {**inputs, "sample": np.concatenate([inputs["sample"]] * 2)}
    negatives = written_negatives(pipeline, interface, skeleton, folder)
    for name in [name for name in inputs if negatives and name not in ("sample", "timestep")]:
        given = inputs[name][BATCH:]
        if name in negatives:
            # Attention takes any number of text states; both halves must have the same.
            given = np.resize(given, (BATCH, *negatives[name].shape[1:]))
        inputs[name] = given
        first = np.repeat(negatives[name], BATCH, axis=0) if name in negatives else given
        doubled[name] = np.concatenate([first, given])
    unconditional, conditional = np.split(run_module(module, interface, doubled)["out_sample"], 2)
    expected = unconditional + np.float32(step.guidance_weight) * (conditional - unconditional)
    return relative_error(run_graph(file, interface, inputs), {"out_sample": expected})


def written_negatives(
    pipeline: Pipeline, interface: Interface, skeleton: Skeleton, folder: Path
) -> dict[str, NDArray[np.float32]]:
    """Return the baked negative prompt's tensors as they lie in the data file, [1, ...], by input."""
    found, offset = {}, skeleton.size
    for port, name in BAKED.items():
        tensor = pipeline.tensors.get(f"{interface.component.name}.{name}")
        if tensor is not None:
            count = int(np.prod(tensor.shape))
            file = folder / interface.folder / DATA
            found[port] = np.fromfile(file, np.float32, count, offset=offset).reshape(tensor.shape)
            offset += found[port].nbytes
    return found


def _evidence(subject: str, error: float, author: str) -> Evidence:
    return Evidence(
        kind="parity",
        claim="parity",
        subject=subject,
        value=rounded_up(error),
        unit="relative error",
        comparator="at_most",
        limit=LIMIT,
        passed=error <= float(LIMIT),
        produced_by=author,
    )


def rounded_up(value: float) -> str:
    """Return one significant digit, rounded up: `4.1e-7` -> `5e-7`. The last digits differ between CPUs."""
    if not np.isfinite(value):
        return "1e308"
    digit = Context(prec=1, rounding=ROUND_CEILING).create_decimal(repr(value))
    return f"{digit:e}".replace("+", "") if digit else "0"
