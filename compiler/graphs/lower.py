"""A traced program -> the ONNX graph of one form, directly in its final shape: no clean-up afterwards.

Each operation has one rule, which sees its arguments and the shapes that tracing found, and emits the
fewest nodes that the form's host runs well. No rule looks at a weight's elements, so an edit of
weights cannot change a graph. Equal nodes are emitted once, what nobody reads is left out, and both
take linear time; nothing depends on hash seeds.

Constants are only computed where arithmetic is exact (integers, and the operations that IEEE 754
rounds correctly), so the bytes do not depend on the CPU either.

    shapes       reshapes keep (0) and infer (-1) dimensions, and ask for a size only where both fail
    attention    one node over [B, S, H*D] or [B, H, S, D], as the host has it
    types        a float becomes the form's type at the first weight that it meets; until then it
                 stays float32, which timesteps need
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod, sqrt
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from ...specs.errors import Fault, InputError
from .interfaces import Interface, Port
from .program import Op, Program, Ref, Shape, Size
from .skeleton import BLOCK, DATA, DTYPES, IR_VERSION, PROFILES, Binding, Form, Profile, is_float

Array = NDArray[Any]

CONTRIB = "com.microsoft"
CONTRIB_OPSET = 1
# A constant may have this many elements; masks and tables stay as the nodes that make them.
LARGEST = 1024
TYPES: Mapping[str, int] = {
    "bool": TensorProto.BOOL,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
    "float32": TensorProto.FLOAT,
    "uint8": TensorProto.UINT8,
}
END = int(np.iinfo(np.int64).max)
# What stands for a weight in 8 bits: its numbers, and the scales of its blocks.
PACKED, SCALES = ".packed", ".scales"


@dataclass(frozen=True)
class Value:
    """A tensor of the graph. `array` are its elements where they are known, up to broadcasting."""

    name: str
    shape: Shape
    dtype: str
    array: Array | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Node:
    """An emitted node; `inputs` and `outputs` are names, an absent input is the empty one."""

    op: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[tuple[str, Any], ...]


def lower(program: Program, interface: Interface, form: Form) -> tuple[bytes, tuple[Binding, ...]]:
    """Return model.onnx of a program in a form, and the weights that it refers to, in order.

    Raises:
        InputError: the program holds an operation that no rule knows; all of them.
    """
    graph = Graph(program, form)
    _refuse_unknown(program, interface)
    for port, (name, dtype, shape) in zip(interface.inputs, program.inputs, strict=True):
        graph.values[name] = graph.seen(Value(port.name, shape, dtype))
    for op in program.ops:
        results = RULES[op.kind](graph, op)
        for i, result in enumerate(results if isinstance(results, list) else [results]):
            graph.values[f"{op.name}:{i}" if isinstance(results, list) else op.name] = result
    outputs = [
        graph.cast(graph.values[name], port.dtype)
        for port, name in zip(interface.outputs, program.outputs, strict=True)
    ]
    return graph.finish(interface, outputs)


def _refuse_unknown(program: Program, interface: Interface) -> None:
    unknown = sorted({op.kind for op in program.ops} - RULES.keys())
    if unknown:
        hint = "this module computes something that no supported family does"
        raise InputError(
            *(
                Fault("E_CAPTURE", f"no ONNX form is known for `{kind}`", interface.folder, hint)
                for kind in unknown
            )
        )


@dataclass
class Graph:
    """The graph that is being written: each node once, weights and constants as they are asked for."""

    program: Program
    form: Form
    values: dict[str, Value] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    _made: dict[tuple[Any, ...], tuple[Value, ...]] = field(default_factory=dict)
    _producers: dict[str, Node] = field(default_factory=dict)
    _operands: dict[str, tuple[Value, ...]] = field(default_factory=dict)
    _constants: dict[tuple[Any, ...], tuple[str, Array]] = field(default_factory=dict)
    _sizes: dict[str, tuple[Value, int]] = field(default_factory=dict)
    _used: dict[str, Binding] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.profile: Profile = PROFILES[self.form.profile]
        self._weights = dict(self.program.weights)
        self._numbers = dict(self.program.numbers)

    def program_shape(self, ref: Ref) -> tuple[int, ...]:
        """Return a weight's shape in the module."""
        return self._weights[ref.name]

    # -- values ------------------------------------------------------------------------------------

    def value(self, ref: Any) -> Value:
        """Return the value of an argument that a rule takes as a tensor; a number becomes a constant."""
        if isinstance(ref, Ref):
            if ref.name in self._numbers:
                return self.constant(np.arange(self._numbers[ref.name], dtype=np.int64)[None])
            return self.values[ref.name]
        return self.constant(np.asarray(ref))

    def constant(self, array: Array) -> Value:
        """Return a constant. A large one has no name yet: whoever reads it must know how to make it."""
        shape, dtype = array.shape, array.dtype.name
        if array.size > LARGEST:
            return Value("", shape, dtype, array)
        key = (dtype, shape, array.tobytes())
        name, _ = self._constants.setdefault(key, (f"constant.{len(self._constants)}", array))
        return Value(name, shape, dtype, array)

    def weight(self, ref: Ref, transposed: bool = False, shape: Shape | None = None, block: int = 0) -> Value:
        """Return a weight in the form in which it is used; it is written in the first form asked for."""
        stored = self._weights[ref.name]
        wanted = shape or (stored[::-1] if transposed else stored)
        dtype = self.form.precision
        known = self._used.setdefault(
            ref.name,
            Binding(ref.name, dtype, stored, tuple(int(size) for size in wanted), transposed, block),
        )
        if known.block != block:
            raise InputError(Fault("E_CAPTURE", "one weight is used in two forms", ref.name))
        held = Value(ref.name, known.shape, dtype)
        if known.transposed != transposed:
            held = self.emit("Transpose", [held], known.shape[::-1], perm=[1, 0])
        return held if held.shape == wanted else self.reshape(held, wanted)

    def seen(self, value: Value) -> Value:
        """Remember where a dimension that callers choose can be asked for."""
        for axis, size in enumerate(value.shape):
            if isinstance(size, str):
                self._sizes.setdefault(size, (value, axis))
        return value

    def producer(self, value: Value, op: str) -> tuple[Node, tuple[Value, ...]] | None:
        """Return the node of that kind which makes a value, and its operands."""
        node = self._producers.get(value.name)
        return None if node is None or node.op != op else (node, self._operands[value.name])

    # -- nodes -------------------------------------------------------------------------------------

    def emit(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shape: Shape,
        dtype: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Value:
        """Emit a node with one output, or return that of an equal node."""
        first = next(value for value in inputs if value is not None)
        return self.emit_many(op, inputs, [shape], dtype or first.dtype, domain, **attributes)[0]

    def emit_many(
        self,
        op: str,
        inputs: Sequence[Value | None],
        shapes: Sequence[Shape],
        dtype: str,
        domain: str = "",
        **attributes: Any,
    ) -> list[Value]:
        """Emit a node, or return the outputs of an equal one."""
        names = tuple("" if value is None else self._readable(value).name for value in inputs)
        listed = tuple((key, _frozen(value)) for key, value in sorted(attributes.items()))
        key = (op, domain, names, listed, len(shapes))
        if key not in self._made:
            number = len(self.nodes)
            outputs = tuple(
                Value(f"{op}.{number}" if len(shapes) == 1 else f"{op}.{number}.{i}", shape, dtype)
                for i, shape in enumerate(shapes)
            )
            node = Node(op, domain, names, tuple(value.name for value in outputs), listed)
            self.nodes.append(node)
            for value in outputs:
                self._producers[value.name] = node
                self._operands[value.name] = tuple(value for value in inputs if value is not None)
                self.seen(value)
            self._made[key] = outputs
        return list(self._made[key])

    def _readable(self, value: Value) -> Value:
        if not value.name:
            message = f"a constant of {list(value.shape)} elements, larger than {LARGEST}"
            raise InputError(Fault("E_CAPTURE", message))
        return value

    def cast(self, value: Value, dtype: str) -> Value:
        """Return the value in another type; a constant is converted here, exactly where it is whole."""
        if value.dtype == dtype:
            return value
        if value.array is not None and value.name:
            return self.constant(value.array.astype(DTYPES[dtype]))
        return self.emit("Cast", [value], value.shape, dtype, to=TYPES[dtype])

    def computed(self, value: Value) -> Value:
        """Return a floating-point value in the form's type: it meets a weight."""
        return self.cast(value, self.form.precision) if is_float(value.dtype) else value

    # -- shapes ------------------------------------------------------------------------------------

    def reshape(self, value: Value, shape: Shape) -> Value:
        """Return the elements in another shape, in the fewest nodes."""
        made = self.producer(value, "Reshape")
        if made is not None:
            value = made[1][0]
        if value.shape == shape:
            return value
        if value.array is not None and value.array.shape == value.shape and not _chosen(shape):
            return self.constant(value.array.reshape([int(size) for size in shape]))
        return self.emit("Reshape", [value, self._target(value.shape, shape)], shape)

    def _target(self, source: Shape, shape: Shape) -> Value:
        """Return a Reshape's target: 0 keeps a dimension, one -1 is inferred, the others are asked for."""
        parts: list[Size] = [
            0 if isinstance(size, str) and axis < len(source) and source[axis] == size else size
            for axis, size in enumerate(shape)
        ]
        inferred = [axis for axis, size in enumerate(parts) if isinstance(size, str)]
        if inferred:
            parts[inferred[-1]] = -1
        return self.sizes(parts)

    def sizes(self, parts: Sequence[Size]) -> Value:
        """Return dimensions as a vector: a constant where all are numbers."""
        if not any(isinstance(part, str) for part in parts):
            return self.constant(np.array(parts, np.int64))
        pieces, run = [], []
        for part in parts:
            if isinstance(part, str):
                pieces += [self.constant(np.array(run, np.int64))] if run else []
                pieces.append(self.size(part))
                run = []
            else:
                run.append(part)
        pieces += [self.constant(np.array(run, np.int64))] if run else []
        return pieces[0] if len(pieces) == 1 else self.emit("Concat", pieces, (len(parts),), axis=0)

    def size(self, expression: str) -> Value:
        """Return a dimension that callers choose, as a vector of one element.

        Raises:
            InputError: no tensor has it yet.
        """
        if expression not in self._sizes:
            raise InputError(
                Fault("E_CAPTURE", f"no tensor has the dimension {expression} before it is used")
            )
        value, axis = self._sizes[expression]
        return self.emit("Shape", [value], (1,), "int64", start=axis, end=axis + 1)

    def transpose(self, value: Value, axes: Sequence[int]) -> Value:
        """Return the value with its axes in another order; two transposes become one or none."""
        made = self.producer(value, "Transpose")
        if made is not None:
            node, (value,) = made
            earlier = dict(node.attributes)["perm"]
            axes = [earlier[axis] for axis in axes]
        if list(axes) == list(range(len(value.shape))):
            return value
        return self.emit("Transpose", [value], tuple(value.shape[axis] for axis in axes), perm=list(axes))

    # -- the finished model ------------------------------------------------------------------------

    def finish(self, interface: Interface, outputs: Sequence[Value]) -> tuple[bytes, tuple[Binding, ...]]:
        """Return the serialized model of what the outputs need, and its weights."""
        ports = [port.name for port in interface.outputs]
        inputs = {port.name for port in interface.inputs}
        renamed = {value.name: port for value, port in zip(outputs, ports, strict=True)}
        if len(renamed) < len(ports) or inputs & renamed.keys():
            raise InputError(Fault("E_CAPTURE", "an output is an input, or another output", interface.folder))
        nodes = self._needed(renamed)
        read = {name for node in nodes for name in node.inputs}
        bindings = tuple(
            self._used[name] for name, _ in self.program.weights if name in read or f"{name}{PACKED}" in read
        )
        constants = [
            numpy_helper.from_array(array, name) for name, array in self._constants.values() if name in read
        ]
        graph = helper.make_graph(
            [_node_proto(node, renamed) for node in nodes],
            interface.folder,
            [_port_proto(port) for port in interface.inputs],
            [_port_proto(port) for port in interface.outputs],
            [*_weight_protos(bindings), *constants],
        )
        model = helper.make_model(
            graph, producer_name="retouch", ir_version=IR_VERSION, opset_imports=self._opsets(nodes)
        )
        return model.SerializeToString(deterministic=True), bindings

    def _needed(self, outputs: Iterable[str]) -> list[Node]:
        """Return the nodes that the outputs depend on, in order."""
        wanted, kept = set(outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted.update(node.inputs)
        return kept[::-1]

    def _opsets(self, nodes: Sequence[Node]) -> list[onnx.OperatorSetIdProto]:
        opsets = [helper.make_opsetid("", self.profile.opset)]
        if any(node.domain for node in nodes):
            opsets.append(helper.make_opsetid(CONTRIB, CONTRIB_OPSET))
        return opsets


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _node_proto(node: Node, renamed: Mapping[str, str]) -> NodeProto:
    inputs, outputs = ([renamed.get(name, name) for name in names] for names in (node.inputs, node.outputs))
    return helper.make_node(
        node.op, inputs, outputs, name=node.outputs[0], domain=node.domain, **dict(node.attributes)
    )


def _port_proto(port: Port) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(port.name, TYPES[port.dtype], port.shape)


def _weight_protos(bindings: Iterable[Binding]) -> list[TensorProto]:
    """Let every weight point at its range of the data file: dense, in order."""
    found, offset = [], 0
    for binding in bindings:
        found += _packed_protos(binding, offset) if binding.block else [_plain_proto(binding, offset)]
        offset += binding.size
    return found


def _plain_proto(binding: Binding, offset: int) -> TensorProto:
    return external(binding.name, binding.dtype, binding.shape, offset)


def _packed_protos(binding: Binding, offset: int) -> list[TensorProto]:
    rows, columns = binding.stored
    blocks = columns // binding.block
    return [
        external(f"{binding.name}{PACKED}", "uint8", (rows, blocks, binding.block), offset),
        external(f"{binding.name}{SCALES}", binding.dtype, (rows * blocks,), offset + rows * columns),
    ]


def external(name: str, dtype: str, shape: Sequence[int], offset: int) -> TensorProto:
    """Refer to a range of the data file."""
    tensor = TensorProto(name=name, data_type=TYPES[dtype], dims=shape)
    tensor.data_location = TensorProto.EXTERNAL
    length = prod(shape) * DTYPES[dtype].itemsize
    for key, value in (("location", DATA), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


# ---------------------------------------------------------------------------------------------------
# Rules: operation -> value, or values where torch gives several

Rule = Callable[[Graph, Op], "Value | list[Value]"]


def _same(graph: Graph, op: Op) -> Value:
    """What changes nothing at inference: dropout, copies, another memory layout."""
    return graph.value(op.args[0])


def _to(graph: Graph, op: Op) -> Value:
    """A change of type. One between floating-point types is the form's business, not the program's."""
    value = graph.value(op.args[0])
    return value if is_float(op.dtype) and is_float(value.dtype) else graph.cast(value, op.dtype)


def _reshape(graph: Graph, op: Op) -> Value:
    return graph.reshape(graph.value(op.args[0]), op.shapes[0])


def _transpose(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    axes = list(range(len(value.shape)))
    one, other = (axis % len(axes) for axis in op.args[1:3]) if len(op.args) > 1 else (0, 1)
    axes[one], axes[other] = axes[other], axes[one]
    return graph.transpose(value, axes)


def _permute(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    return graph.transpose(value, [axis % len(value.shape) for axis in op.args[1]])


def _expand(graph: Graph, op: Op) -> Value:
    """Repeat along axes of length one; the elements stay known up to that."""
    value, shape = graph.value(op.args[0]), op.shapes[0]
    if value.shape == shape:
        return value
    if not value.name:
        return Value("", shape, value.dtype, value.array)
    made = graph.emit("Expand", [value, graph.sizes(shape)], shape)
    return Value(made.name, shape, made.dtype, value.array)


def _slice(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    axis, start, end, step = (*op.args[1:], *(0, None, END, 1)[len(op.args) - 1 :])
    if value.shape == op.shapes[0]:
        return value
    bounds = [np.array([END if bound is None else bound], np.int64) for bound in (start or 0, end)]
    last = [np.array([axis], np.int64), np.array([step], np.int64)]
    return graph.emit("Slice", [value, *map(graph.constant, [*bounds, *last])], op.shapes[0])


def _select(graph: Graph, op: Op) -> Value:
    value, axis, index = graph.value(op.args[0]), op.args[1], op.args[2]
    place = graph.constant(np.asarray(index, np.int64))
    return graph.emit("Gather", [value, place], op.shapes[0], axis=axis % len(value.shape))


def _concat(graph: Graph, op: Op) -> Value:
    values = [graph.value(ref) for ref in op.args[0]]
    axis = (op.args[1] if len(op.args) > 1 else 0) % len(op.shapes[0])
    if len({value.dtype for value in values}) > 1:
        values = [graph.computed(value) for value in values]
    return values[0] if len(values) == 1 else graph.emit("Concat", values, op.shapes[0], axis=axis)


def _chunk(graph: Graph, op: Op) -> list[Value]:
    """Equal parts along an axis."""
    value, axis = graph.value(op.args[0]), (op.args[2] if len(op.args) > 2 else 0) % len(op.shapes[0])
    return graph.emit_many("Split", [value], op.shapes, value.dtype, axis=axis, num_outputs=len(op.shapes))


def _item(graph: Graph, op: Op) -> Value:
    return graph.values[f"{op.args[0].name}:{op.args[1]}"]


def _arange(graph: Graph, op: Op) -> Value:
    """A row of whole numbers. One as long as a dimension that callers choose only serves as an index."""
    bounds = op.args if len(op.args) > 1 else (0, *op.args)
    if _chosen(op.shapes[0]):
        return Value("", op.shapes[0], op.dtype)
    return graph.constant(np.arange(*bounds, dtype=np.dtype(op.dtype)))


def _pad(graph: Graph, op: Op) -> Value:
    value, widths = graph.value(op.args[0]), op.args[1]
    before, after = widths[0::2][::-1], widths[1::2][::-1]
    axes = range(len(value.shape) - len(before), len(value.shape))
    fill = graph.constant(np.zeros((), DTYPES[value.dtype]))
    vectors = [graph.constant(np.array(part, np.int64)) for part in ([*before, *after], list(axes))]
    if _option(op, 2, "mode", "constant") != "constant" or _option(op, 3, "value", 0.0):
        raise InputError(Fault("E_CAPTURE", "padding with anything but zeros", op.name))
    return graph.emit("Pad", [value, vectors[0], fill, vectors[1]], op.shapes[0])


def _upsample(graph: Graph, op: Op) -> Value:
    """Nearest neighbor, to a size or by a factor."""
    value = graph.value(op.args[0])
    how = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    if op.args[1] is not None:
        return graph.emit("Resize", [value, None, None, graph.sizes(op.shapes[0])], op.shapes[0], **how)
    factors = graph.constant(np.array([1, 1, *op.args[2]], np.float32))
    return graph.emit("Resize", [value, None, factors], op.shapes[0], **how)


# -- arithmetic


def _binary(onnx_op: str, exact: Callable[[Array, Array], Array], neutral: float | None = None) -> Rule:
    """An operation on two values, the second of which may be a number."""

    def rule(graph: Graph, op: Op) -> Value:
        if op.options.get("alpha", 1) != 1 or op.options.get("rounding_mode"):
            raise InputError(Fault("E_CAPTURE", f"{op.kind} with options {op.options}", op.name))
        first = graph.value(op.args[0])
        if not isinstance(op.args[1], Ref) and op.args[1] == neutral:
            return first
        second = _operand(graph, op.args[1], first)
        if first.dtype != second.dtype:
            first, second = graph.computed(first), graph.computed(second)
        arrays = [value.array for value in (first, second)]
        if arrays[0] is not None and arrays[1] is not None and not _chosen(op.shapes[0]):
            return graph.constant(np.asarray(exact(arrays[0], arrays[1])))
        dtype = op.dtype if op.dtype == "bool" else first.dtype
        return graph.emit(onnx_op, [first, second], op.shapes[0], dtype)

    return rule


def _operand(graph: Graph, argument: Any, like: Value) -> Value:
    """Return a second operand: a number takes the first one's type."""
    return (
        graph.value(argument)
        if isinstance(argument, Ref)
        else graph.constant(np.asarray(argument, DTYPES[like.dtype]))
    )


def _unary(onnx_op: str, **attributes: Any) -> Rule:
    def rule(graph: Graph, op: Op) -> Value:
        return graph.emit(onnx_op, [graph.value(op.args[0])], op.shapes[0], **attributes)

    return rule


def _silu(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    return graph.emit("Mul", [value, graph.emit("Sigmoid", [value], value.shape)], value.shape)


def _gelu(graph: Graph, op: Op) -> Value:
    approximate = op.options.get("approximate", "none")
    return graph.emit("Gelu", [graph.value(op.args[0])], op.shapes[0], approximate=approximate)


def _argmax(graph: Graph, op: Op) -> Value:
    value = graph.value(op.args[0])
    axis, keep = _option(op, 1, "dim", None), _option(op, 2, "keepdim", False)
    axis = axis % len(value.shape)
    return graph.emit("ArgMax", [value], op.shapes[0], "int64", axis=axis, keepdims=int(keep))


# -- layers


def _linear(graph: Graph, op: Op) -> Value:
    """x W^T + b. The transpose is part of how the weight is written; a matrix times one is a Gemm."""
    value, shape = graph.computed(graph.value(op.args[0])), op.shapes[0]
    ref, bias = op.args[1], _bias(graph, op)
    rows, columns = graph.program_shape(ref)
    if graph.form.packing == "int8" and columns % BLOCK == 0:
        product = _packed_product(graph, value, ref, (rows, columns), shape)
    elif len(value.shape) == 2:
        operands = [value, graph.weight(ref), *([bias] if bias else [])]
        return graph.emit("Gemm", operands, shape, transB=1)
    else:
        product = graph.emit("MatMul", [value, graph.weight(ref, transposed=True)], shape)
    return graph.emit("Add", [product, bias], shape) if bias else product


def _bias(graph: Graph, op: Op) -> Value | None:
    ref = _option(op, 2, "bias", None)
    return None if ref is None else graph.weight(ref)


def _packed_product(graph: Graph, value: Value, ref: Ref, size: tuple[int, int], shape: Shape) -> Value:
    """x W^T with W in 8 bits, `BLOCK` columns a scale, zero at 128."""
    graph.weight(ref, block=BLOCK)
    rows, columns = size
    packed = Value(f"{ref.name}{PACKED}", (rows, columns // BLOCK, BLOCK), "uint8")
    scales = Value(f"{ref.name}{SCALES}", (rows * columns // BLOCK,), graph.form.precision)
    operands = [value, packed, scales]
    return graph.emit(
        "MatMulNBits", operands, shape, domain=CONTRIB, K=columns, N=rows, bits=8, block_size=BLOCK
    )


def _convolve(graph: Graph, op: Op) -> Value:
    value = graph.computed(graph.value(op.args[0]))
    kernel, bias = graph.weight(op.args[1]), _bias(graph, op)
    stride, padding, dilation = (*op.args[3:6], *([1, 1], [0, 0], [1, 1])[len(op.args[3:6]) :])[:3]
    groups = op.args[6] if len(op.args) > 6 else 1
    return graph.emit(
        "Conv",
        [value, kernel, *([bias] if bias else [])],
        op.shapes[0],
        kernel_shape=list(kernel.shape[2:]),
        strides=stride,
        pads=[*padding, *padding],
        dilations=dilation,
        group=groups,
    )


def _embedding(graph: Graph, op: Op) -> Value:
    table, ids = graph.weight(op.args[0]), graph.value(op.args[1])
    return graph.emit("Gather", [table, ids], op.shapes[0], axis=0)


def _index(graph: Graph, op: Op) -> Value:
    """One row of each image's rows: `x[arange(B), i]`."""
    value = graph.value(op.args[0])
    rows, places = (graph.value(ref) for ref in op.args[1])
    if rows.name or rows.shape != value.shape[:1]:
        raise InputError(Fault("E_CAPTURE", "indexing by anything but one place an image", op.name))
    columns = graph.reshape(places, (*places.shape, 1))
    return graph.emit("GatherND", [value, columns], op.shapes[0], batch_dims=1)


def _layer_norm(graph: Graph, op: Op) -> Value:
    value = graph.computed(graph.value(op.args[0]))
    scale, bias = (graph.weight(ref) for ref in op.args[2:4])
    axis = -len(op.args[1])
    epsilon = _option(op, 4, "eps", 1e-5)
    return graph.emit("LayerNormalization", [value, scale, bias], op.shapes[0], axis=axis, epsilon=epsilon)


def _group_norm(graph: Graph, op: Op) -> Value:
    """One node, or InstanceNormalization over groups, whose shape keeps the last axis where it is."""
    value, shape = graph.computed(graph.value(op.args[0])), op.shapes[0]
    groups, epsilon, (channels, *rest) = op.args[1], op.args[4], (int(shape[1]), *shape[2:])
    if graph.profile.fused_norm:
        operands = [value, graph.weight(op.args[2]), graph.weight(op.args[3])]
        return graph.emit("GroupNormalization", operands, shape, epsilon=epsilon, num_groups=groups)
    kept = [0] if len(rest) > 1 else []
    grouped, back = ([0, count, -1, *kept] for count in (groups, channels))
    inner = (shape[0], groups, f"{channels // groups}*({rest[0]})", *rest[1:])
    ones, zeros = (np.full(groups, fill, DTYPES[value.dtype]) for fill in (1, 0))
    split = graph.emit("Reshape", [value, graph.constant(np.array(grouped, np.int64))], inner)
    operands = [split, graph.constant(ones), graph.constant(zeros)]
    normal = graph.emit("InstanceNormalization", operands, inner, epsilon=epsilon)
    whole = graph.emit("Reshape", [normal, graph.constant(np.array(back, np.int64))], shape)
    column = (channels, *[1] * len(rest))
    scaled = graph.emit("Mul", [whole, graph.weight(op.args[2], shape=column)], shape)
    return graph.emit("Add", [scaled, graph.weight(op.args[3], shape=column)], shape)


def _attention(graph: Graph, op: Op) -> Value:
    """softmax(q k^T / sqrt(D)) v, for q [B, H, S, D] and k, v [B, H, L, D]."""
    query, key, value = (graph.computed(graph.value(ref)) for ref in op.args[:3])
    causal = _is_causal(graph, op)
    scale = op.options.get("scale") or 1 / sqrt(int(query.shape[3]))
    heads = int(query.shape[1])
    if graph.profile.attention == "Attention":
        return graph.emit("Attention", [query, key, value], op.shapes[0], scale=scale, is_causal=int(causal))
    rows = [_rows(graph, operand) for operand in (query, key, value)]
    merged = graph.emit(
        "MultiHeadAttention",
        rows,
        rows[0].shape,
        domain=CONTRIB,
        num_heads=heads,
        scale=scale,
        unidirectional=int(causal),
    )
    batch, _, length, width = op.shapes[0]
    return graph.transpose(graph.reshape(merged, (batch, length, heads, width)), [0, 2, 1, 3])


def _rows(graph: Graph, value: Value) -> Value:
    """Return [B, H, S, D] as [B, S, H*D]."""
    batch, heads, length, width = value.shape
    return graph.reshape(graph.transpose(value, [0, 2, 1, 3]), (batch, length, int(heads) * int(width)))


def _is_causal(graph: Graph, op: Op) -> bool:
    """Whether positions see just those before them and themselves.

    Raises:
        InputError: the mask is another one, or there is dropout.
    """
    mask = _option(op, 3, "attn_mask", None)
    if _option(op, 4, "dropout_p", 0.0):
        raise InputError(Fault("E_CAPTURE", "attention with dropout", op.name))
    if mask is None:
        return bool(_option(op, 5, "is_causal", False))
    known = graph.value(mask).array
    if (
        known is None
        or known.dtype != np.bool_
        or not np.array_equal(known.reshape(known.shape[-2:]), np.tri(*known.shape[-2:], dtype=np.bool_))
    ):
        raise InputError(Fault("E_CAPTURE", "attention with a mask that is not causal", op.name))
    return True


def _option(op: Op, place: int, name: str, default: Any) -> Any:
    """Return an argument that torch takes by place or by name."""
    return op.args[place] if len(op.args) > place else op.options.get(name, default)


def _chosen(shape: Shape) -> bool:
    """Whether callers choose a dimension."""
    return any(isinstance(size, str) for size in shape)


RULES: Mapping[str, Rule] = {
    **dict.fromkeys(
        (
            "aten.alias.default",
            "aten.clone.default",
            "aten.contiguous.default",
            "aten.detach.default",
            "aten.dropout.default",
        ),
        _same,
    ),
    **dict.fromkeys(
        ("aten._to_copy.default", "aten.to.device", "aten.to.dtype", "aten.to.dtype_layout"), _to
    ),
    **dict.fromkeys(
        (
            "aten._unsafe_view.default",
            "aten.flatten.using_ints",
            "aten.reshape.default",
            "aten.squeeze.dim",
            "aten.unflatten.int",
            "aten.unsqueeze.default",
            "aten.view.default",
        ),
        _reshape,
    ),
    "aten.add.Tensor": _binary("Add", np.add),
    "aten.arange.default": _arange,
    "aten.arange.start": _arange,
    "aten.argmax.default": _argmax,
    "aten.cat.default": _concat,
    "aten.concat.default": _concat,
    "aten.chunk.default": _chunk,
    "aten.conv2d.default": _convolve,
    "aten.cos.default": _unary("Cos"),
    "aten.div.Tensor": _binary("Div", np.divide, neutral=1),
    "aten.embedding.default": _embedding,
    "aten.eq.Scalar": _binary("Equal", np.equal),
    "aten.exp.default": _unary("Exp"),
    "aten.expand.default": _expand,
    "aten.gelu.default": _gelu,
    "aten.group_norm.default": _group_norm,
    "aten.index.Tensor": _index,
    "aten.layer_norm.default": _layer_norm,
    "aten.le.Tensor": _binary("LessOrEqual", np.less_equal),
    "aten.linear.default": _linear,
    "aten.mul.Tensor": _binary("Mul", np.multiply, neutral=1),
    "aten.pad.default": _pad,
    "aten.permute.default": _permute,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.select.int": _select,
    "aten.sigmoid.default": _unary("Sigmoid"),
    "aten.silu.default": _silu,
    "aten.sin.default": _unary("Sin"),
    "aten.slice.Tensor": _slice,
    "aten.sub.Tensor": _binary("Sub", np.subtract),
    "aten.t.default": _transpose,
    "aten.tanh.default": _unary("Tanh"),
    "aten.transpose.int": _transpose,
    "aten.upsample_nearest2d.vec": _upsample,
    "operator.getitem": _item,
}
