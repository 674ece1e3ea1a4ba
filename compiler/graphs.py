"""Graph passes of our own: an exported graph -> a smaller one that computes the same.

No pass looks at a weight's elements, so an edit of weights cannot change a graph. Each rule sees a
node once, in topological order, and decides by the node and what feeds it: linear time, no search,
no dependence on hash seeds. Constants are only computed where arithmetic is exact (integers, and the
operations that IEEE 754 rounds correctly), so the bytes do not depend on the CPU either.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

Array = NDArray[Any]

# Operations whose result on constants is the same everywhere.
ARITHMETIC = ("Add", "Cast", "Div", "Mul", "Neg", "Sqrt", "Sub")
ARRANGEMENT = (
    "Concat",
    "Expand",
    "Gather",
    "Identity",
    "Range",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Unsqueeze",
)
EXACT = frozenset((*ARITHMETIC, *ARRANGEMENT))
# A folded constant may have this many elements; masks and tables stay as the nodes that make them.
LARGEST = 1024


@dataclass(frozen=True)
class Weight:
    """How a weight enters a graph: `stored` is its shape in the module, `shape` the one in the graph."""

    name: str
    stored: tuple[int, ...]
    shape: tuple[int, ...]
    transposed: bool


def simplify(model: ir.Model) -> list[Weight]:
    """Rewrite a model in place and return its weights, in the order in which the module holds them.

    Initializers without elements are weights. Afterwards no node only rearranges a weight.
    """
    Sequential(passes.ShapeInferencePass(strict_mode=False), passes.ClearMetadataAndDocStringPass())(model)
    graph = model.graph
    for node in list(graph):
        _rewrite(graph, node)
    passes.RemoveUnusedNodesPass()(model)
    weights = _take_in_weights(graph)
    Sequential(passes.CommonSubexpressionEliminationPass(), passes.RemoveUnusedNodesPass())(model)
    _pool_constants(graph)
    _forget_shapes(graph)
    used = {value.name for node in graph for value in node.inputs if value is not None}
    for name in [name for name in graph.initializers if name not in used]:
        del graph.initializers[name]
    return [weight for weight in weights if weight.name in graph.initializers]


# ---------------------------------------------------------------------------------------------------
# Rules: node -> the values that take the place of its outputs, or None where the rule does not apply.

Rule = Callable[[ir.Graph, ir.Node], "Sequence[ir.Value] | None"]


def _rewrite(graph: ir.Graph, node: ir.Node) -> None:
    """Apply the first rule that fits a node."""
    for rule in (_fold, *RULES.get(node.op_type, ())):
        found = rule(graph, node)
        if found is not None:
            ir.convenience.replace_all_uses_with(node.outputs, found, replace_graph_outputs=True)
            graph.remove(node, safe=True)
            return


def _fold(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """Compute a node whose inputs are all known."""
    if node.op_type not in EXACT or not node.inputs:
        return None
    arrays = [None if value is None else _array(value) for value in node.inputs]
    if any(value is not None and array is None for value, array in zip(node.inputs, arrays, strict=True)):
        return None
    feeds = {
        str(value.name): array for value, array in zip(node.inputs, arrays, strict=True) if value is not None
    }
    outputs: Any = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
    result = np.asarray(outputs[0])
    return None if result.size > LARGEST else [_constant(graph, node, result)]


def _known_size(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """Shape, or a part of one -> a constant, where the dimensions asked for are fixed."""
    if node.op_type == "Shape":
        sizes = _sizes(node)
    else:
        sizes = _part(node, _sizes(node.inputs[0].producer()) if node.inputs[0] is not None else None)
    flat = sizes if isinstance(sizes, list) else [sizes]
    if not all(isinstance(size, int) for size in flat):
        return None
    return [_constant(graph, node, np.array(sizes, dtype=np.int64))]


def _sizes(shape: ir.Node | None) -> list[Any] | None:
    """Return the dimensions that a Shape node gives, numbers where they are fixed."""
    if shape is None or shape.op_type != "Shape" or shape.inputs[0] is None or shape.inputs[0].shape is None:
        return None
    whole = [dim if isinstance(dim, int) else None for dim in shape.inputs[0].shape.dims]
    return whole[shape.attributes.get_int("start", 0) : shape.attributes.get_int("end", len(whole))]


def _part(node: ir.Node, sizes: list[Any] | None) -> Any:
    """Return what a Gather or Slice takes out of known sizes."""
    chosen = [_array(value) if value is not None else None for value in node.inputs[1:]]
    if sizes is None or not chosen or any(array is None for array in chosen):
        return None
    known = [array for array in chosen if array is not None]
    if node.op_type == "Gather":
        (places,) = known
        return [sizes[place] for place in places.tolist()] if places.ndim else sizes[int(places)]
    start, end, *axes_and_step = (array.item() for array in known)
    return sizes[start : end : axes_and_step[1] if len(axes_and_step) > 1 else 1]


def _same_type(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """Cast to the type that the value already has -> the value. CastLike of a constant -> a constant."""
    source = node.inputs[0]
    like = node.inputs[1] if node.op_type == "CastLike" else None
    wanted = like.dtype if like is not None else ir.DataType(node.attributes.get_int("to", 0))
    if source is None or wanted is None:
        return None
    if source.dtype == wanted:
        return [source]
    known = _array(source)
    return None if known is None else [_constant(graph, node, known.astype(wanted.numpy()))]


def _forward(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """Identity -> its input."""
    del graph
    return None if node.inputs[0] is None else [node.inputs[0]]


def _alone(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """Concat of one value -> the value."""
    del graph
    return [node.inputs[0]] if len(node.inputs) == 1 and node.inputs[0] is not None else None


def _times_one(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """`x / 1` and `x * 1` -> x: diffusers scales by factors that configs leave at 1."""
    del graph
    value, factor = node.inputs
    known = None if factor is None else _array(factor)
    if value is None or known is None or known.shape != () or known != 1:
        return None
    return [value]


def _flat_of_scalar(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """`reshape(squeeze(x), [-1])` of a vector with one element -> x: how exporters pass sizes on."""
    del graph
    squeeze = _producer(node.inputs[0], "Squeeze")
    target = _array(node.inputs[1])
    if squeeze is None or target is None or target.tolist() != [-1]:
        return None
    vector = squeeze.inputs[0]
    sizes = _sizes(vector.producer()) if vector is not None else None
    return [vector] if vector is not None and sizes is not None and len(sizes) == 1 else None


def _split(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """The k-th item of a tensor split into a sequence -> the k-th output of a plain Split."""
    sequence = _producer(node.inputs[0], "SplitToSequence")
    index = _array(node.inputs[1])
    if sequence is None or index is None or sequence.inputs[0] is None or sequence.inputs[0].shape is None:
        return None
    axis = sequence.attributes.get_int("axis", 0)
    whole, size = sequence.inputs[0].shape[axis], _array(sequence.inputs[1])
    if not isinstance(whole, int) or size is None or size.shape != () or whole % int(size):
        return None
    place = int(index.item())
    name = f"{sequence.outputs[0].name}.split"
    split = next((use.node for use in sequence.inputs[0].uses() if use.node.name == name), None)
    if split is None:
        parts = _constant(graph, sequence, np.full(whole // int(size), int(size), np.int64))
        split = ir.node("Split", [sequence.inputs[0], parts], {"axis": axis}, num_outputs=whole // int(size))
        split.name = name
        for i, output in enumerate(split.outputs):
            output.name, output.type = f"{sequence.outputs[0].name}.{i}", sequence.inputs[0].type
        graph.insert_after(sequence, split)
    split.outputs[place].shape = node.outputs[0].shape
    return [split.outputs[place]]


def _swap_last_two(graph: ir.Graph, node: ir.Node) -> Sequence[ir.Value] | None:
    """Attention's `k` flattened to three dimensions, transposed and unflattened -> one Transpose.

    torch's exporter writes scaled-dot-product attention that way, for any number of dimensions; here
    are four. Source: `aten_scaled_dot_product_attention` of onnxscript.
    """
    turned = _producer(node.inputs[0], "Transpose")
    flat = _producer(turned.inputs[0], "Reshape") if turned is not None else None
    if turned is None or flat is None or list(turned.attributes.get_ints("perm", [])) != [0, 2, 1]:
        return None
    source = flat.inputs[0]
    if source is None or source.shape is None or len(source.shape) != 4:
        return None
    first, heads, rows, columns = (_size(source, axis) for axis in range(4))
    if _parts(flat.inputs[1]) != [-1, rows, columns]:
        return None
    if _parts(node.inputs[1]) != [first, heads, columns, rows]:
        return None
    swap = ir.node("Transpose", [source], {"perm": [0, 1, 3, 2]})
    swap.outputs[0].name, swap.outputs[0].type = f"{node.outputs[0].name}.swapped", source.type
    swap.outputs[0].shape = node.outputs[0].shape
    graph.insert_after(node, swap)
    return swap.outputs


def _parts(target: ir.Value | None) -> list[Any]:
    """Return a Reshape's target as a list of sizes: what Concat joins from constants and Shapes."""
    concat = _producer(target, "Concat")
    found: list[Any] = []
    for piece in concat.inputs if concat is not None else ():
        known = _array(piece)
        found += _cut(piece) if known is None else known.tolist()
    return found


def _cut(piece: ir.Value | None) -> list[Any]:
    """Return the sizes that a Slice takes out of a Shape."""
    cut = _producer(piece, "Slice")
    shape = _producer(cut.inputs[0], "Shape") if cut is not None else None
    if cut is None or shape is None or shape.inputs[0] is None or shape.inputs[0].shape is None:
        return [None]
    sizes = [_size(shape.inputs[0], axis) for axis in range(len(shape.inputs[0].shape))]
    part = _part(cut, sizes)
    return [None] if part is None else part


def _size(value: ir.Value, axis: int) -> Any:
    """Return a dimension: its number where it is fixed, else which one it is."""
    size = None if value.shape is None else value.shape[axis]
    return size if isinstance(size, int) else (value.name, axis)


RULES: dict[str, tuple[Rule, ...]] = {
    "Cast": (_same_type,),
    "CastLike": (_same_type,),
    "Concat": (_alone,),
    "Div": (_times_one,),
    "Gather": (_known_size,),
    "Identity": (_forward,),
    "Mul": (_times_one,),
    "Reshape": (_flat_of_scalar, _swap_last_two),
    "SequenceAt": (_split,),
    "Shape": (_known_size,),
    "Slice": (_known_size,),
}


# ---------------------------------------------------------------------------------------------------
# Weights, constants and what is left of the exporter


def _take_in_weights(graph: ir.Graph) -> list[Weight]:
    """Let weights enter in the form in which they are used: the nodes that only rearrange them go.

    A weight that is used in two forms keeps its nodes.
    """
    found = []
    for name, value in list(graph.initializers.items()):
        if value.const_value is not None or value.shape is None:
            continue
        users = [use.node for use in value.uses()]
        forms = [_form(user, value) for user in users]
        stored = shape = tuple(int(size) for size in value.shape)  # type: ignore[arg-type]
        transposed = False
        form = forms[0] if forms else None
        if form is not None and all(other == form for other in forms):
            shape = form
            transposed = users[0].op_type == "Transpose"
            for user in users:
                ir.convenience.replace_all_uses_with(user.outputs[0], value)
                graph.remove(user, safe=True)
            value.shape = ir.Shape(shape)
        found.append(Weight(name, stored, shape, transposed))
    return found


def _form(node: ir.Node, weight: ir.Value) -> tuple[int, ...] | None:
    """Return the shape that a weight has after a node that only rearranges it, or None."""
    if node.inputs[0] is not weight:
        return None
    shape = [int(size) for size in weight.shape]  # type: ignore[arg-type, union-attr]
    if node.op_type == "Transpose" and list(node.attributes.get_ints("perm", [])) == [1, 0]:
        return shape[1], shape[0]
    if node.op_type == "Unsqueeze":
        axes = _array(node.inputs[1])
        return None if axes is None else tuple(np.expand_dims(np.empty(shape, np.bool_), tuple(axes)).shape)
    return None


def _pool_constants(graph: ir.Graph) -> None:
    """Make every constant an initializer, equal ones the same one."""
    pool: dict[tuple[Any, ...], ir.Value] = {}
    for node in list(graph):
        for place, value in enumerate(node.inputs):
            array = None if value is None else _array(value)
            if array is None:
                continue
            key = (array.dtype.str, array.shape, array.tobytes())
            if key not in pool:
                name = f"constant.{len(pool)}"
                pool[key] = ir.Value(name=name, const_value=ir.tensor(array, name=name))
                graph.register_initializer(pool[key])
            node.replace_input_with(place, pool[key])
    for node in list(graph):
        if node.op_type == "Constant":
            graph.remove(node, safe=True)


def _forget_shapes(graph: ir.Graph) -> None:
    """Drop the inferred shapes, and where the exporter had each value from: they double the size."""
    outputs = {id(value) for value in graph.outputs}
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph:
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in outputs:
                value.shape = None
                value.type = None


def _array(value: ir.Value | None) -> Array | None:
    """Return the elements of a constant, or None for a weight or a computed value."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _constant(graph: ir.Graph, node: ir.Node, array: Array) -> ir.Value:
    """Return a new constant that stands before `node`, named after its output."""
    name = f"{node.outputs[0].name}.folded"
    constant = ir.node("Constant", [], {"value": ir.tensor(array, name=name)})
    value = constant.outputs[0]
    value.name, value.dtype, value.shape = name, ir.DataType.from_numpy(array.dtype), ir.Shape(array.shape)
    graph.insert_before(node, constant)
    return value


def _producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """Return the node that makes a value, where it is of that kind."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None
