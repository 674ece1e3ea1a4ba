"""Guidance as graphs: `combine.onnx` alone, and `guided.onnx`, which is the denoiser and it in one.

Both compute u + w (c - u) in float32, with u and c the unconditional and the conditional prediction.
`combine.onnx` takes w from the host, step by step, so that one denoiser session serves guided and
unguided steps. `guided.onnx` looks w up by the timestep and shares the denoiser's data file; each of
its tables is a copy of what sampling.json says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from ..specs.sampling import SamplingTable
from .capture import DATA, OPSET, Skeleton
from .interfaces import NEGATIVE, OWN

IR_VERSION = 10
TIMESTEPS, WEIGHTS = f"{OWN}guidance_timesteps", f"{OWN}guidance_weights"


@dataclass(frozen=True)
class Baked:
    """Text states of a baked negative prompt: where they lie in the data file, and their shape [1, S, D]."""

    offset: int
    shape: tuple[int, ...]


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


def guided_graph(denoiser: Skeleton, table: SamplingTable, baked: Baked | None) -> bytes:
    """Return guided.onnx: (sample [B], timestep, encoder_hidden_states [2B]) -> out_sample [B].

    The unconditional half of the text states comes first. With a baked negative prompt the host gives
    the conditional half only, [B].
    """
    model = onnx.load_model_from_string(denoiser.graph)
    graph = model.graph
    doubled, states, both = (f"{OWN}{name}" for name in ("samples", "hidden_states", "predictions"))
    renamed = {"sample": doubled, "out_sample": both}
    before = [helper.make_node("Concat", ["sample", "sample"], [doubled], axis=0)]
    if baked is not None:
        renamed["encoder_hidden_states"] = states
        before += _with_negative(states)
        graph.initializer.append(_external(NEGATIVE, baked))
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
    if baked is None:
        _declare_both_halves(graph)
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


def _with_negative(states: str) -> list[NodeProto]:
    """The baked text states, once for each image, before those that the host gives."""
    batch, repeated = f"{OWN}batch", f"{OWN}negative"
    ones = helper.make_node("Constant", [], [f"{OWN}ones"], value_ints=[1, 1])
    return [
        helper.make_node("Shape", ["sample"], [batch], start=0, end=1),
        ones,
        helper.make_node("Concat", [batch, f"{OWN}ones"], [f"{OWN}batch_shape"], axis=0),
        helper.make_node("Expand", [NEGATIVE, f"{OWN}batch_shape"], [repeated]),
        helper.make_node("Concat", [repeated, "encoder_hidden_states"], [states], axis=0),
    ]


def _renamed(node: NodeProto, names: dict[str, str]) -> NodeProto:
    """Return a node that reads and writes other names. The graphs here hold no subgraphs."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    return node


def _declare_both_halves(graph: onnx.GraphProto) -> None:
    """Say that text states come in another batch than the samples: twice as many."""
    (states,) = (value for value in graph.input if value.name == "encoder_hidden_states")
    states.type.tensor_type.shape.dim[0].dim_param = "2*batch"


def _table(name: str, table: SamplingTable, column: str) -> TensorProto:
    values: NDArray[np.float32] = np.array([getattr(step, column) for step in table.steps], np.float32)
    return numpy_helper.from_array(values, name)


def _external(name: str, baked: Baked) -> TensorProto:
    """Refer to a float32 tensor of the data file."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=baked.shape)
    tensor.data_location = TensorProto.EXTERNAL
    length = 4 * int(np.prod(baked.shape))
    for key, value in (("location", DATA), ("offset", str(baked.offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _port(name: str, shape: Sequence[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def _model(graph: onnx.GraphProto) -> ModelProto:
    opset = helper.make_opsetid("", OPSET)
    return helper.make_model(graph, producer_name="retouch", ir_version=IR_VERSION, opset_imports=[opset])


def _serialize(model: ModelProto) -> bytes:
    return model.SerializeToString(deterministic=True)
