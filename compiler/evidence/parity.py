"""Does an emitted graph compute what torch computes? Measured on the bytes as written.

torch runs the captured program on the pipeline's own tensors, one operation at a time, so that side
needs a few activations and one weight; onnxruntime runs the graph and maps its weights. Both use one
thread and the same seeded inputs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.sessions import Placement, load_session
from ...specs.manifest import Evidence
from ..graphs.capture import CELLS, wrap
from ..graphs.interfaces import BAKED, Interface
from ..graphs.skeleton import DATA, Form, Skeleton
from ..ir import Pipeline
from ..reproducer import keep_failure
from ..threads import single_threaded
from ..torch_models.reference import Peak, run_program
from .rounding import rounded_up

if TYPE_CHECKING:
    import onnxruntime
    import torch

Arrays = Mapping[str, NDArray[Any]]

# Largest relative difference, as a norm. float32: rounding alone stays two orders below. float16 has 11
# bits, and a network of a hundred layers adds their roundings up. What 8-bit weights lose is measured, and
# a gate says whether images suffer.
LIMITS: Mapping[tuple[str, str], str | None] = {
    ("float32", "plain"): "0.0001",
    ("float16", "plain"): "0.02",
    ("float32", "int8"): None,
    ("float16", "int8"): None,
}
LARGEST_HALF = "65504"
SEED = 20240613
BATCH = 2
SEQUENCE = 7
# Bytes of weights above which onnxruntime is kept from making copies of its own, at the price of speed.
MAPPED_ONLY = 1 << 30


@dataclass(frozen=True)
class Emission:
    """A graph as it lies in an artefact; `suffix` comes after `model` and `guided` in the files' names."""

    interface: Interface
    skeleton: Skeleton
    folder: Path
    suffix: str = ""

    def file(self, name: str) -> Path:
        """Return the path of a graph by its first name, such as `model`."""
        return self.folder / f"{name}{self.suffix}.onnx"


def measure_parity(
    pipeline: Pipeline,
    graphs: Iterable[Emission],
    author: str,
    label: str = "",
    failures: Path | None = None,
) -> list[Evidence]:
    """Return the evidence for each graph: its difference from torch, and what float16 could not hold.

    For a graph that differs too much, a file in the cache `failures` says how to see it again.

    A bfloat16 graph has none: onnxruntime cannot run one on a CPU. `label` goes before each subject.
    """
    found = []
    for graph in graphs:
        form = graph.skeleton.form
        if not is_compared(form):
            continue
        subject = f"{label}{graph.interface.folder}"
        with single_threaded():
            error, peak = _graph_error(pipeline, graph)
            found.append(_evidence(subject, error, form, author))
            if failures is not None and found[-1].passed is False:
                # The error as text: JSON has no infinity, which is what an overflow leaves.
                how = {"form": asdict(form), "key": graph.skeleton.key, "seed": SEED}
                happened = {**how, "error": repr(error)}
                keep_failure(failures, graph.interface, happened)
            if form.precision == "float16":
                found.append(_range_evidence(subject, peak, author))
            # A graph of a further size has none with guidance beside it.
            if graph.interface.component.role == "denoiser" and graph.file("guided").is_file():
                found.append(_evidence(f"{subject}/guided", _guided_error(pipeline, graph), form, author))
    return found


def weight_reader(pipeline: Pipeline, component: str) -> Callable[[str], NDArray[Any]]:
    """Return what reads a weight of a component by its name in the module."""
    spell = pipeline.family.module_name
    tensors = {spell(component, name): tensor for name, tensor in pipeline.tensors_of(component).items()}
    return lambda name: tensors[spell(component, name)].read()


def run_reference(pipeline: Pipeline, graph: Emission, inputs: Arrays) -> tuple[dict[str, Any], Peak]:
    """Run a graph's program in torch on the pipeline's tensors."""
    interface = graph.interface
    ordered = {port.name: inputs[port.name] for port in interface.inputs}
    outputs = [port.name for port in interface.outputs]
    read = weight_reader(pipeline, interface.component.name)
    return run_program(graph.skeleton.program, ordered, outputs, read)


def is_compared(form: Form) -> bool:
    """Whether graphs of a form can be run here at all."""
    return (form.precision, form.packing) in LIMITS


def example_shapes(interface: Interface, batch: int = BATCH, scale: int = 1) -> dict[str, list[int]]:
    """Return the shapes of `example_inputs`, by name."""
    cells = {name: size * interface.multiple * scale // 2 for name, size in CELLS.items()}
    sizes = {"batch": batch, "sequence": SEQUENCE, **cells}
    return {
        port.name: [size if isinstance(size, int) else sizes[size] for size in port.shape]
        for port in interface.inputs
    }


def compared_rows(interface: Interface, guided: bool = True) -> int:
    """Return how many rows of inputs torch computes, and as many the graph; `guided` is one with guidance."""
    return BATCH * (3 if guided and interface.component.role == "denoiser" else 1)


def example_inputs(interface: Interface, batch: int = BATCH, scale: int = 1) -> dict[str, NDArray[Any]]:
    """Return seeded inputs of a graph: small images, `scale` times the smallest that can be told apart."""
    generator = np.random.Generator(np.random.PCG64(SEED))
    shapes = example_shapes(interface, batch, scale)
    found: dict[str, NDArray[Any]] = {}
    for port in interface.inputs:
        shape = shapes[port.name]
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
    """Run an emitted graph on one thread; weights too large to hold twice stay mapped."""
    outputs = [port.name for port in interface.outputs]
    data = file.with_name(DATA)
    if data.is_file() and data.stat().st_size > MAPPED_ONLY:
        results: Any = _mapped_session(file).run(outputs, dict(inputs))
        return dict(zip(outputs, results, strict=True))
    session = load_session(
        file.read_bytes(), str(file), list(inputs), outputs, Placement(threads=1), str(file.parent)
    )
    return session(**inputs)


def _mapped_session(file: Path) -> "onnxruntime.InferenceSession":
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3  # errors
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.disable_prepacking", "1")
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def relative_error(measured: Arrays, expected: Arrays) -> float:
    """Return the largest ||a - b|| / ||b|| over the outputs, in float64."""
    errors = [
        np.linalg.norm(np.float64(measured[name]) - expected[name])
        / np.linalg.norm(np.float64(expected[name]))
        for name in sorted(expected)
    ]
    # A NaN is a failure, not a small number.
    return float("inf") if any(np.isnan(errors)) else float(max(errors))


def _graph_error(pipeline: Pipeline, graph: Emission) -> tuple[float, Peak]:
    inputs = example_inputs(graph.interface)
    expected, peak = run_reference(pipeline, graph, inputs)
    return relative_error(run_graph(graph.file("model"), graph.interface, inputs), expected), peak


def _guided_error(pipeline: Pipeline, graph: Emission) -> float:
    """Compare guided.onnx with the formula on torch's own predictions, at the middle step."""
    steps = pipeline.sampling.table().steps
    step = steps[len(steps) // 2]
    inputs = example_inputs(graph.interface, 2 * BATCH)
    inputs["sample"], inputs["timestep"] = inputs["sample"][:BATCH], np.asarray(step.timestep, np.float32)
    doubled = {**inputs, "sample": np.concatenate([inputs["sample"]] * 2)}
    negatives = written_negatives(pipeline, graph)
    for name in [name for name in inputs if negatives and name not in ("sample", "timestep")]:
        given = inputs[name][BATCH:]
        if name in negatives:
            # Attention takes any number of text states; both halves must have the same.
            given = np.resize(given, (BATCH, *negatives[name].shape[1:]))
        inputs[name] = given
        first = np.repeat(negatives[name], BATCH, axis=0) if name in negatives else given
        doubled[name] = np.concatenate([first, given])
    predicted, _ = run_reference(pipeline, graph, doubled)
    unconditional, conditional = np.split(predicted["out_sample"], 2)
    expected = unconditional + np.float32(step.guidance_weight) * (conditional - unconditional)
    return relative_error(run_graph(graph.file("guided"), graph.interface, inputs), {"out_sample": expected})


def written_negatives(pipeline: Pipeline, graph: Emission) -> dict[str, NDArray[np.float32]]:
    """Return the baked negative prompt's tensors as they lie in the data file, [1, ...], by input."""
    found, offset = {}, graph.skeleton.size
    for port, name in BAKED.items():
        tensor = pipeline.tensors.get(f"{graph.interface.component.name}.{name}")
        if tensor is not None:
            count = int(np.prod(tensor.shape))
            values = np.fromfile(graph.folder / DATA, np.float32, count, offset=offset)
            found[port] = values.reshape(tensor.shape)
            offset += values.nbytes
    return found


def _evidence(subject: str, error: float, form: Form, author: str) -> Evidence:
    limit = LIMITS[form.precision, form.packing]
    return Evidence(
        kind="parity",
        claim="parity",
        subject=subject,
        value=rounded_up(error),
        unit="relative error",
        comparator=None if limit is None else "at_most",
        limit=limit,
        passed=None if limit is None else error <= float(limit),
        produced_by=author,
    )


def _range_evidence(subject: str, peak: Peak, author: str) -> Evidence:
    """Say how large values grew in float32: above its largest number, float16 overflows."""
    return Evidence(
        kind="parity",
        claim="largest activation",
        subject=subject,
        value=rounded_up(peak.value),
        comparator="at_most",
        limit=LARGEST_HALF,
        passed=peak.value <= float(LARGEST_HALF),
        produced_by=author,
        details={"operation": peak.operation},
    )
