"""Prompts -> text states, by a pipeline's own tokenizer and its text encoder as the passes left it.

Text states are what cross-attention reads: one vector a token position, padding included. torch and
transformers are imported when something is encoded, not before.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..specs.canonical import canonical
from ..specs.errors import Fault, InputError, raise_all
from .families import Family
from .ir import Component, Pipeline
from .tensors import Tensor, widen

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# Prompts encoded at once: enough to keep one core busy, few enough to stay small in memory.
BATCH = 16


@dataclass(frozen=True)
class Encoded:
    """Text states of some prompts.

    `states` is [P, S, D] float32, `ids` [P, S]; `lengths` [P] counts the tokens from the start token
    to the end token, both included, so that position `length - 1` holds the end token.
    """

    prompts: tuple[str, ...]
    states: NDArray[np.float32]
    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]

    def of(self, prompt: str) -> NDArray[np.float32]:
        """Return the text states of one of the prompts, [S, D]."""
        return self.states[self.prompts.index(prompt)]


def encode_prompts(pipeline: Pipeline, component_name: str, prompts: Sequence[str]) -> Encoded:
    """Encode prompts with a text encoder of the pipeline, in the order given.

    The same prompts through equal tensors are encoded once a process: tensors are values, so they
    are their own key.

    Raises:
        InputError: the component's tensors are not those that its config asks for.
    """
    component = pipeline.components[component_name]
    unique = tuple(dict.fromkeys(prompts))
    tensors = tuple(sorted(pipeline.tensors_of(component_name).items()))
    states, ids, lengths = _encode(
        _Encoder(component.class_name, canonical(dict(component.config)), component.name, pipeline.family.name),
        tensors,
        tokenizer_folder(pipeline, component_name),
        unique,
    )
    place = [unique.index(prompt) for prompt in prompts]
    return Encoded(tuple(prompts), states[place], ids[place], lengths[place])
