"""Prompts -> text states, by a pipeline's own tokenizers and its text encoders as the passes left them.

Text states are what the denoiser reads: one vector a token position, padding included, and for some
families one pooled vector a prompt. Only rows that are asked for are computed, each prefix of tokens
once. Thousands of prompts go through an encoder in pieces, so that memory does not grow with them; each
piece is kept in the build cache under the digest of the encoder and the tokens.
"""

import contextlib
import hashlib
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...specs.canonical import canonical, digest_of
from ...specs.errors import Fault, InputError, quoted, raise_all
from ..cache import default_cache
from ..digests import feed, remembering
from ..environment import environment
from ..families import TextEncoder
from ..ir import Pipeline
from ..store import ASIDE, tidy
from ..tensors import Array, Stored, Tensor
from ..threads import single_threaded
from .text_encoder import Indices, PrefixTree, TextEncoderWeights, TextRows, run_text_encoder
from .tokenizer import SourceTokenizer, load_tokenizer

# A part of every cache key: raise it when `text_encoder.py` changes what it computes.
VERSION = 2
# What the last bits of a text state depend on beside the encoder and the tokens.
CIRCUMSTANCES = ("numpy", "machine", "cpu")
ENTRY = re.compile(r"[0-9a-f]{64}\.npz")
# Tokens of prompts that are encoded at a time: SDXL's second encoder needs some 0.3 GB for so many.
PIECE = 1 << 14


@dataclass(frozen=True)
class Share:
    """One encoder's share of the text states: its rows [N, width], and which of them are each prompt's."""

    rows: NDArray[np.float32]
    paths: tuple[NDArray[np.intp], ...]
    pooled: NDArray[np.float32] | None


@dataclass(frozen=True)
class Encoded:
    """Text states of some prompts.

    `ids` is [P, S], the first tokenizer's, with padding. `lengths` [P] counts the tokens from the start
    token to the end token, both included: position `length - 1` holds the end token, padding follows.
    """

    prompts: tuple[str, ...]
    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    shares: tuple[Share, ...]

    def rows(self, prompt: str) -> NDArray[np.float32]:
        """Return the leading rows of a prompt's text states that were asked for, [n, D]."""
        place = self._places[prompt]
        return np.concatenate([share.rows[share.paths[place]] for share in self.shares], axis=1)

    @property
    def width(self) -> int:
        """D, the width of a text state: all encoders' side by side."""
        return sum(share.rows.shape[1] for share in self.shares)

    @property
    def states(self) -> NDArray[np.float32]:
        """All text states, [P, S, D]; only where whole prompts were asked for."""
        return np.stack([self.rows(prompt) for prompt in self.prompts])

    @property
    def pooled(self) -> NDArray[np.float32] | None:
        """The pooled states, [P, Dp], of the encoder that has them; None where none has."""
        return next((share.pooled for share in self.shares if share.pooled is not None), None)

    def pooled_row(self, prompt: str) -> NDArray[np.float32]:
        """Return a prompt's pooled state, [1, Dp]."""
        if self.pooled is None:
            raise ValueError("no text encoder of this family is pooled")
        return self.pooled[self._places[prompt]][None]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {prompt: place for place, prompt in enumerate(self.prompts)}


def encode_prompts(
    pipeline: Pipeline, prompts: Sequence[str], needed: Sequence[int] | None = None
) -> Encoded:
    """Encode prompts with the text encoders of a pipeline, in the order given.

    Args:
        needed: how many leading rows of each prompt are read; what comes behind is not computed. None
            means all. Pooled states are computed where the family has them, whatever is needed.

    Raises:
        InputError: a text encoder lacks a tensor or is no CLIP text encoder, or two tokenizers of the
            pipeline spell a prompt with different numbers of tokens.
    """
    tokenizers = [tokenizer_of(pipeline, encoder) for encoder in pipeline.family.text_encoders]
    raise_all(InputError, _spelling_faults(tokenizers, prompts))
    rows = [tokenizers[0].length] * len(prompts) if needed is None else list(needed)
    shares = tuple(
        _share(pipeline, encoder, tokenizer, prompts, rows)
        for encoder, tokenizer in zip(pipeline.family.text_encoders, tokenizers, strict=True)
    )
    ids = np.array([tokenizers[0].tokens(prompt).ids for prompt in prompts], np.int64)
    lengths = np.array([len(tokenizers[0].spelling(prompt).ids) for prompt in prompts], np.int64)
    return Encoded(tuple(prompts), ids, lengths, shares)


def tokenizer_of(pipeline: Pipeline, encoder: TextEncoder | None = None) -> SourceTokenizer:
    """Return the tokenizer that feeds a text encoder, the family's first one where none is named."""
    chosen = encoder or pipeline.family.text_encoders[0]
    return load_tokenizer(pipeline.components[chosen.tokenizer].folder)


def token_embeddings(pipeline: Pipeline) -> Array:
    """Return what the family's first text encoder reads for each token, [V, width], in the type stored.

    Raises:
        InputError: the text encoder lacks it.
    """
    weights = _source(pipeline, pipeline.family.text_encoders[0]).weights
    raise_all(InputError, weights.faults(0, pooled=False))
    return weights.tensors["embeddings.token_embedding.weight"].read()


def text_width(pipeline: Pipeline) -> int:
    """Return D, the width of a text state, from the configs alone."""
    encoders = pipeline.family.text_encoders
    return sum(int(pipeline.components[encoder.component].config["hidden_size"]) for encoder in encoders)


def pooled_width(pipeline: Pipeline) -> int:
    """Return Dp, the width of a pooled state, from the config alone; 0 where the family has none."""
    encoders = [encoder for encoder in pipeline.family.text_encoders if encoder.pooled]
    return sum(int(pipeline.components[encoder.component].config["projection_dim"]) for encoder in encoders)


def _share(
    pipeline: Pipeline,
    encoder: TextEncoder,
    tokenizer: SourceTokenizer,
    prompts: Sequence[str],
    needed: Sequence[int],
) -> Share:
    component, source = pipeline.components[encoder.component], _source(pipeline, encoder)
    ids = [tokenizer.tokens(prompt).ids for prompt in prompts]
    ends = (
        [_pooled_position(one, component.config.get("eos_token_id")) for one in ids] if encoder.pooled else []
    )
    reach = [max(n, end + 1) for n, end in zip(needed, ends, strict=True)] if ends else needed
    return _kept(source, tuple(i[:n] for i, n in zip(ids, reach, strict=True)), tuple(needed), tuple(ends))


def _source(pipeline: Pipeline, encoder: TextEncoder) -> "_Source":
    config = pipeline.components[encoder.component].config
    tensors = tuple(
        (pipeline.family.module_name(encoder.component, name), tensor)
        for name, tensor in pipeline.tensors_of(encoder.component).items()
    )
    return _Source(json.dumps(dict(config), sort_keys=True), tensors, encoder)


def _pooled_position(ids: Sequence[int], end: int | None) -> int:
    """Return the position that CLIP pools: the first end token's.

    Configs older than transformers 4.31 say 2, which is no end token; the highest id is meant.
    """
    return ids.index(end) if end in ids and end != 2 else int(np.argmax(ids))


def _spelling_faults(tokenizers: Sequence[SourceTokenizer], prompts: Sequence[str]) -> Iterator[Fault]:
    for prompt in prompts:
        lengths = [len(tokenizer.spelling(prompt).ids) for tokenizer in tokenizers]
        if len(set(lengths)) > 1:
            message = (
                f"{quoted(prompt)} is {' or '.join(map(str, lengths))} tokens, as the tokenizers spell it"
            )
            yield Fault("E_TOKENIZER", message, hint="both text encoders must read the same positions")


# ---------------------------------------------------------------------------------------------------
# What was computed once: in this process, and in the build cache


@dataclass(frozen=True)
class _Source:
    """All that a text state depends on beside the tokens; values, so that it is its own key."""

    config: str
    tensors: tuple[tuple[str, Tensor], ...]
    encoder: TextEncoder

    @property
    def weights(self) -> TextEncoderWeights:
        return TextEncoderWeights(json.loads(self.config), dict(self.tensors))


@lru_cache(maxsize=8)
def _kept(
    source: _Source, ids: tuple[tuple[int, ...], ...], needed: tuple[int, ...], ends: tuple[int, ...]
) -> Share:
    """Return an encoder's share, piece by piece; a piece comes from the cache where it is there and whole."""
    pieces = list(_pieces(ids))
    trees = [PrefixTree.of(ids[place] for place in piece) for piece in pieces]
    rows = np.empty((sum(len(tree.tokens) for tree in trees), source.weights.width), np.float32)
    paths: dict[int, Indices] = {}
    pooled: dict[int, NDArray[np.float32]] = {}
    start = 0
    for piece, tree in zip(pieces, trees, strict=True):
        found = _piece(source, tree, tuple(ends[place] for place in piece) if ends else ())
        rows[start : start + len(found.states)] = found.states
        paths |= {place: start + path for place, path in zip(piece, tree.paths, strict=True)}
        pooled |= {} if found.pooled is None else dict(zip(piece, found.pooled, strict=True))
        start += len(found.states)
    every = range(len(ids))
    ordered = tuple(paths[place][: needed[place]] for place in every)
    return Share(rows, ordered, np.stack([pooled[place] for place in every]) if pooled else None)


def _pieces(ids: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
    """Yield the places of prompts in pieces of about `PIECE` tokens; those that begin alike come together."""
    piece: list[int] = []
    tokens = 0
    for place in sorted(range(len(ids)), key=ids.__getitem__):
        tokens += len(ids[place])
        if piece and tokens > PIECE:
            yield piece
            piece, tokens = [], len(ids[place])
        piece.append(place)
    if piece:
        yield piece


def _piece(source: _Source, tree: PrefixTree, ends: tuple[int, ...]) -> TextRows:
    pooled = np.array([path[end] for path, end in zip(tree.paths, ends, strict=True)]) if ends else None
    place = default_cache() / "text_states" / f"{_key(source, tree, ends)}.npz"
    found = _load(place)
    if found is None:
        with single_threaded():
            found = run_text_encoder(source.weights, tree, source.encoder.layer, pooled)
        _keep(found, place)
    return found


def _key(source: _Source, tree: PrefixTree, ends: tuple[int, ...]) -> str:
    circumstances = {name: value for name, value in environment().items() if name in CIRCUMSTANCES}
    parts = [VERSION, circumstances, source.config, _digest(source.tensors), source.encoder.layer or 0]
    return digest_of([*parts, [tree.tokens[path].tolist() for path in tree.paths], list(ends)])


@lru_cache(maxsize=8)
def _digest(tensors: tuple[tuple[str, Tensor], ...]) -> str:
    """Return a digest of tensors and their names: of a place in a file, or of elements that were edited."""
    hasher, known = hashlib.sha256(), cache(remembering(default_cache()))
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        if isinstance(tensor, Stored):
            place = [name, tensor.dtype.name, list(tensor.shape), tensor.offset, known(tensor.file)]
            hasher.update(canonical(place))
        else:
            feed(hasher, [(name, tensor)])
    return hasher.hexdigest()


def _load(file: Path) -> TextRows | None:
    """Return what a cache file holds, or None where it is not there or not whole."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            found = TextRows(arrays["states"], arrays.get("pooled", None))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    with contextlib.suppress(OSError):
        os.utime(file)  # what was used stays longest
    return found


def _keep(rows: TextRows, file: Path) -> None:
    """Put text states into the cache, whole or not at all; a cache that cannot be written is none."""
    arrays: dict[str, Any] = {"states": rows.states}
    arrays |= {} if rows.pooled is None else {"pooled": rows.pooled}
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=ASIDE, delete=False) as made:
            np.savez(made, **arrays)
        Path(made.name).replace(file)
        tidy(file.parent, ENTRY, file.name)
    except OSError:
        return
