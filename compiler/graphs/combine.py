"""Guidance as graphs: `combine.onnx` alone, and `guided.onnx`, which is the denoiser and it in one.

Both compute u + w (c - u) in float32, with u and c the unconditional and the conditional prediction.
`combine.onnx` takes w from the host, step by step, so that one denoiser session serves guided and
unguided steps. `guided.onnx` looks w up by the timestep and shares the denoiser's data file; each of
its tables is a copy of what sampling.json says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ...specs.sampling import SamplingTable
from .interfaces import BAKED, OWN
from .lower import external
from .skeleton import IR_VERSION, OPSET, Skeleton

TIMESTEPS, WEIGHTS = f"{OWN}guidance_timesteps", f"{OWN}guidance_weights"


@dataclass(frozen=True)
class Baked:
    """What a baked negative prompt puts in the place of half an input: where it lies in the data file.

    `shape` is [1, S, D] for text states, [1, D] for a pooled one.
    """

    input: str
    offset: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Size in bytes, in float32."""
        return 4 * prod(self.shape)


def combine_graph(channels: int) -> bytes:
    """Return combine.onnx: (unconditional, conditional, guidance_weight) -> guided; no weights."""
    image = ["batch", channels, "height", "width"]
    graph = helper.make_graph(
        _combine("unconditional", "conditional", "guidance_weight", "guided"),
        "combine",
        [_port("unconditional", image), _port("conditional", image), _port("guidance_weight", [1])],
        [_port("guided", image)],
    )
    return _serialize(_model(graph))


def guided_graph(denoiser: Skeleton, table: SamplingTable, baked: Sequence[Baked] = ()) -> bytes:
    """Return guided.onnx: (sample [B], timestep, encoder_hidden_states [2B]) -> out_sample [B].

    Inputs that SDXL has beside these are [2B] too. The unconditional half of each comes first. With a
    baked negative prompt the host gives the conditional half only, [B].
    """
    model = onnx.load_model_from_string(denoiser.graph)
    graph = model.graph
    both = f"{OWN}predictions"
    conditions = [port.name for port in graph.input if port.name not in ("sample", "timestep")]
    joined = ["sample", *conditions] if baked else ["sample"]
    renamed = {"out_sample": both, **{name: f"{OWN}both.{name}" for name in joined}}
    before = _both_halves({name: renamed[name] for name in joined}, baked)
    graph.initializer.extend(external(BAKED[one.input], "float32", one.shape, one.offset) for one in baked)
    inner = [_renamed(node, renamed) for node in graph.node]
    unconditional, conditional = f"{OWN}unconditional", f"{OWN}conditional"
    after = [
        *_looked_up_weight(),
        helper.make_node("Split", [both], [unconditional, conditional], axis=0, num_outputs=2),
        *_combine(unconditional, conditional, f"{OWN}weight", "out_sample"),
    ]
    del graph.node[:]
    graph.node.extend([*before, *inner, *after])
    graph.initializer.extend(
        [_table(TIMESTEPS, table, "timestep"), _table(WEIGHTS, table, "guidance_weight")]
    )
    if not baked:
        _declare_both_halves(graph, conditions)
    graph.name = "guided"
    return _serialize(model)


def _combine(unconditional: str, conditional: str, weight: str, result: str) -> list[NodeProto]:
    """u + w (c - u). Source: Ho and Salimans, 2207.12598, eq. (6), with w = 1 + their w."""
    difference, scaled = f"{OWN}difference", f"{OWN}scaled_difference"
    return [
        helper.make_node("Sub", [conditional, unconditional], [difference]),
        helper.make_node("Mul", [difference, weight], [scaled]),
        helper.make_node("Add", [unconditional, scaled], [result]),
    ]


def _looked_up_weight() -> list[NodeProto]:
    """The weight of the step whose timestep is the nearest: robust to a host that rounds timesteps."""
    signed, distance, step = (f"{OWN}{name}" for name in ("signed_distance", "distance", "step"))
    return [
        helper.make_node("Sub", [TIMESTEPS, "timestep"], [signed]),
        helper.make_node("Abs", [signed], [distance]),
        helper.make_node("ArgMin", [distance], [step], axis=0, keepdims=1),
        helper.make_node("Gather", [WEIGHTS, step], [f"{OWN}weight"], axis=0),
    ]


def _both_halves(joined: Mapping[str, str], baked: Sequence[Baked]) -> list[NodeProto]:
    """Each input (as key) for both halves (as value): twice the same, or behind its baked tensor."""
    batch = f"{OWN}batch"
    nodes = [helper.make_node("Shape", ["sample"], [batch], start=0, end=1)] if baked else []
    first = {name: name for name in joined}
    for one in baked:
        ones, shape, first[one.input] = (f"{OWN}{part}.{one.input}" for part in ("ones", "shape", "negative"))
        nodes += [
            helper.make_node("Constant", [], [ones], value_ints=[1] * (len(one.shape) - 1)),
            helper.make_node("Concat", [batch, ones], [shape], axis=0),
            helper.make_node("Expand", [BAKED[one.input], shape], [first[one.input]]),
        ]
    return nodes + [
        helper.make_node("Concat", [first[name], name], [both], axis=0) for name, both in joined.items()
    ]


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    """Return a node that reads and writes other names. The graphs here hold no subgraphs."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    return node


def _declare_both_halves(graph: onnx.GraphProto, names: Sequence[str]) -> None:
    """Say that conditions come in another batch than the samples: twice as many."""
    for value in graph.input:
        if value.name in names:
            value.type.tensor_type.shape.dim[0].dim_param = "2*batch"


def _table(name: str, table: SamplingTable, column: str) -> TensorProto:
    values: NDArray[np.float32] = np.array([getattr(step, column) for step in table.steps], np.float32)
    return numpy_helper.from_array(values, name)


def _port(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: onnx.GraphProto) -> ModelProto:
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, producer_name="retouch", ir_version=IR_VERSION, opset_imports=[opset])


def _serialize(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
