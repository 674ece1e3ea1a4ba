"""A CLIP text encoder in NumPy, which computes each token of many prompts once and nothing else.

The encoder is causal: a token's state depends on the tokens before it alone. So prompts form a tree of
prefixes, each node is one row of work, and what comes after the last row that somebody reads is never
computed. Layers are read one at a time, and no padding is added to make prompts equally long.

Equal to transformers' CLIPTextModel and CLIPTextModelWithProjection in float32, without importing torch.
Source: Radford et al., 2103.00020, section 2.4; the causal mask of transformers' modeling_clip.py.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...specs.errors import Fault, InputError, raise_all
from ..tensors import Tensor

Floats = NDArray[np.float32]
Indices = NDArray[np.intp]

# Rows of one piece of work: enough for a fast product, few enough that its 4 D wide middle stays small.
# Pieces are always the same, whatever the number of threads, and so are the sums in them.
ROWS = 512


@dataclass(frozen=True)
class PrefixTree:
    """Prompts as paths of nodes: `tokens` and `depths` [N] say what each node is, `paths` lead from the
    start token to the last row asked for."""

    tokens: Indices
    depths: Indices
    paths: tuple[Indices, ...]

    @classmethod
    def of(cls, prompts: Iterable[Sequence[int]]) -> "PrefixTree":
        """Return the tree of some prompts' token ids."""
        nodes: dict[tuple[int, int], int] = {}
        paths, depths = [], []
        for ids in prompts:
            path, parent = [], -1
            for depth, token in enumerate(ids):
                if (parent, token) not in nodes:
                    nodes[parent, token] = len(nodes)
                    depths.append(depth)
                parent = nodes[parent, token]
                path.append(parent)
            paths.append(np.array(path, np.intp))
        tokens = np.array([token for _, token in nodes], np.intp)
        return cls(tokens, np.array(depths, np.intp), tuple(paths))

    def groups(self) -> list[Indices]:
        """Return the paths of each length, stacked [P, L], in pieces of about `ROWS` rows."""
        found = []
        for length in sorted({len(path) for path in self.paths}):
            alike = np.stack([path for path in self.paths if len(path) == length])
            count = max(1, ROWS // length)
            found += [alike[start : start + count] for start in range(0, len(alike), count)]
        return found


@dataclass(frozen=True)
class TextEncoderWeights:
    """A text encoder's config and its tensors under the names that all library versions share."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def layers(self) -> int:
        return int(self.config["num_hidden_layers"])

    @property
    def width(self) -> int:
        return int(self.config["hidden_size"])

    @property
    def epsilon(self) -> float:
        return float(self.config.get("layer_norm_eps", 1e-5))

    def read(self, name: str) -> Floats:
        return self.tensors[name].read().astype(np.float32, copy=False)

    def faults(self, layers: int, pooled: bool) -> list[Fault]:
        """Return what keeps the first `layers` layers from being computed."""
        found = [
            Fault("E_TENSOR_MISSING", "the text encoder lacks a tensor", name)
            for name in _names(layers, self.layers, pooled)
            if name not in self.tensors
        ]
        activation = self.config.get("hidden_act", "quick_gelu")
        if activation not in ACTIVATIONS:
            known = ", ".join(sorted(ACTIVATIONS))
            message = f"the text encoder's activation `{activation}` is not known"
            found.append(Fault("E_TEXT_ENCODER", message, "config.json", f"known: {known}"))
        return found


@dataclass(frozen=True)
class TextRows:
    """Text states [N, D] of a tree's nodes, and the pooled states [P, Dp] of its prompts where asked for."""

    states: Floats
    pooled: Floats | None


def run_text_encoder(
    weights: TextEncoderWeights,
    tree: PrefixTree,
    layer: int | None = None,
    ends: Indices | None = None,
) -> TextRows:
    """Compute text states of every node of a tree.

    Args:
        layer: which hidden state, as transformers counts them (-2: before the last layer, not normalized);
            None is the last one after the final layer norm.
        ends: nodes whose states are pooled, normalized and projected; [P].

    Raises:
        InputError: the config or the tensors are not a CLIP text encoder's, all faults at once.
    """
    wanted = weights.layers if layer is None else range(weights.layers + 1)[layer]
    last = wanted if ends is None else weights.layers
    raise_all(InputError, [*weights.faults(last, ends is not None), *_length_faults(weights, tree)])
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        work = _Work(weights, tree, pool)
        hidden = work.embedded()
        for number in range(wanted):
            work.layer(number, hidden)
        states = hidden if layer is not None else _normalized(weights, "final_layer_norm", hidden)
        if ends is None:
            return TextRows(states, None)
        hidden = hidden.copy() if states is hidden else hidden
        for number in range(wanted, last):
            work.layer(number, hidden, ends if number == last - 1 else None)
        pooled = _normalized(weights, "final_layer_norm", hidden[ends])
        return TextRows(states, pooled @ weights.read("text_projection.weight").T)


@dataclass(frozen=True)
class _Work:
    """The layers of one encoder on the nodes of one tree."""

    weights: TextEncoderWeights
    tree: PrefixTree
    pool: ThreadPoolExecutor

    def embedded(self) -> Floats:
        """Return token and position embeddings [N, D]; only the rows in use are read."""
        tokens = self.weights.tensors["embeddings.token_embedding.weight"].read()[self.tree.tokens]
        positions = self.weights.read("embeddings.position_embedding.weight")[self.tree.depths]
        return tokens.astype(np.float32) + positions

    def layer(self, number: int, hidden: Floats, only: Indices | None = None) -> None:
        """Carry `hidden` [N, D] through a layer, in place; with `only`, just those rows after attention."""
        place = f"encoder.layers.{number}"
        read = {name: self.weights.read(f"{place}.{name}") for name in LAYER}
        mixed = self._attention(read, hidden)
        rows = np.arange(len(hidden)) if only is None else only

        def carry(part: Indices) -> None:
            part_hidden = hidden[part] + _linear(read, "self_attn.out_proj", mixed[part])
            middle = _linear(read, "mlp.fc1", _norm(read, "layer_norm2", part_hidden, self.weights.epsilon))
            activation = ACTIVATIONS[self.weights.config.get("hidden_act", "quick_gelu")]
            hidden[part] = part_hidden + _linear(read, "mlp.fc2", activation(middle))

        list(self.pool.map(carry, _pieces(rows)))

    def _attention(self, read: Mapping[str, Floats], hidden: Floats) -> Floats:
        """Return the heads' outputs [N, D] before the output projection."""
        stacked = [f"self_attn.{name}_proj" for name in "qkv"]
        heads = int(self.weights.config.get("num_attention_heads", 8))
        projected = [np.empty_like(hidden) for _ in stacked]

        def project(part: Indices) -> None:
            normed = _norm(read, "layer_norm1", hidden[part], self.weights.epsilon)
            for name, into in zip(stacked, projected, strict=True):
                into[part] = _linear(read, name, normed)

        list(self.pool.map(project, _pieces(np.arange(len(hidden)))))
        mixed = np.empty_like(hidden)
        # One after the other where paths are written, so that a shared prefix has one author.
        groups = self.tree.groups()
        for group, rows in zip(
            groups, self.pool.map(lambda g: _attend(projected, g, heads), groups), strict=True
        ):
            mixed[group] = rows
        return mixed


def _attend(projected: Sequence[Floats], group: Indices, heads: int) -> Floats:
    """Return causal attention [P, L, D] over paths of one length."""
    count, length = group.shape
    width = projected[0].shape[1]
    query, key, value = (
        rows[group].reshape(count, length, heads, width // heads).transpose(0, 2, 1, 3) for rows in projected
    )
    scores = query @ key.transpose(0, 1, 3, 2) * np.float32((width // heads) ** -0.5)
    scores[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
    scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
    scores /= scores.sum(axis=-1, keepdims=True)
    return (scores @ value).transpose(0, 2, 1, 3).reshape(count, length, width)


def _pieces(rows: Indices) -> list[Indices]:
    return [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]


def _linear(read: Mapping[str, Floats], name: str, rows: Floats) -> Floats:
    return rows @ read[f"{name}.weight"].T + read[f"{name}.bias"]


def _norm(read: Mapping[str, Floats], name: str, rows: Floats, epsilon: float) -> Floats:
    centered = rows - rows.mean(axis=1, keepdims=True)
    variance = np.mean(centered * centered, axis=1, keepdims=True)
    return centered / np.sqrt(variance + np.float32(epsilon)) * read[f"{name}.weight"] + read[f"{name}.bias"]


def _normalized(weights: TextEncoderWeights, name: str, rows: Floats) -> Floats:
    read = {f"{name}.{part}": weights.read(f"{name}.{part}") for part in ("weight", "bias")}
    return _norm(read, name, rows, weights.epsilon)


def _quick_gelu(x: Floats) -> Floats:
    return np.divide(x, np.float32(1) + np.exp(np.float32(-1.702) * x), dtype=np.float32)


def _gelu(x: Floats) -> Floats:
    half, root = np.float32(0.5), np.float32(0.5**0.5)
    return np.multiply(half * x, np.float32(1) + erf(root * x), dtype=np.float32)


def erf(x: Floats) -> Floats:
    """Return the error function in float32, to 5e-7.

    Source: the rational approximation of Eigen's and XLA's float32 erf, odd in x, on [-4, 4].
    """
    x = np.clip(x, np.float32(-4), np.float32(4))
    square = x * x
    return np.divide(x * _polynomial(ERF_ABOVE, square), _polynomial(ERF_BELOW, square), dtype=np.float32)


def _polynomial(coefficients: Sequence[float], x: Floats) -> Floats:
    value = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value *= x
        value += np.float32(coefficient)
    return value


ERF_ABOVE = (
    -2.72614225801306e-10,
    2.77068142495902e-08,
    -2.10102402082508e-06,
    -5.69250639462346e-05,
    -7.34990630326855e-04,
    -2.95459980854025e-03,
    -1.60960333262415e-02,
)
ERF_BELOW = (
    -1.45660718464996e-05,
    -2.13374055278905e-04,
    -1.68282697438203e-03,
    -7.37332916720468e-03,
    -1.42647390514189e-02,
)
ACTIVATIONS: Mapping[str, Callable[[Floats], Floats]] = {"quick_gelu": _quick_gelu, "gelu": _gelu}
LAYER = tuple(
    f"{module}.{part}"
    for module in (
        *("layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"),
        *("self_attn.k_proj", "self_attn.out_proj", "self_attn.q_proj", "self_attn.v_proj"),
    )
    for part in ("weight", "bias")
)


def _names(layers: int, of: int, pooled: bool) -> list[str]:
    """Return the tensors that the first `layers` of an encoder's `of` layers need."""
    norm = ["final_layer_norm.weight", "final_layer_norm.bias"] if layers == of else []
    return [
        "embeddings.token_embedding.weight",
        "embeddings.position_embedding.weight",
        *(f"encoder.layers.{number}.{name}" for number in range(layers) for name in LAYER),
        *norm,
        *(["text_projection.weight"] if pooled else []),
    ]


def _length_faults(weights: TextEncoderWeights, tree: PrefixTree) -> list[Fault]:
    positions = weights.tensors.get("embeddings.position_embedding.weight")
    words = weights.tensors.get("embeddings.token_embedding.weight")
    found = []
    for tensor, most, what in (
        (positions, tree.depths.max(), "position"),
        (words, tree.tokens.max(), "token"),
    ):
        if tensor is not None and most >= tensor.shape[0]:
            message = f"{what} {most} of a prompt is beyond the {tensor.shape[0]} that the text encoder knows"
            hint = "the tokenizer belongs to another model"
            found.append(Fault("E_TEXT_ENCODER", message, "tokenizer", hint))
    return found
