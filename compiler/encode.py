"""Prompts -> text states, by a pipeline's own tokenizer and its text encoder as the passes left it.

Text states are what cross-attention reads: one vector a token position, padding included. torch and
transformers are imported when something is encoded, not before.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..specs.errors import Fault, InputError
from .ir import Pipeline
from .tensors import Tensor, widen
from .threads import single_threaded

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

# Prompts encoded at once: enough to keep one core busy, few enough to stay small in memory.
BATCH = 16


@dataclass(frozen=True)
class Encoded:
    """Text states of some prompts.

    `states` is [P, S, D], `ids` [P, S]. `lengths` [P] counts the tokens from the start token to the
    end token, both included: position `length - 1` holds the end token, padding follows.
    """

    prompts: tuple[str, ...]
    states: NDArray[np.float32]
    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]


def encode_prompts(pipeline: Pipeline, component_name: str, prompts: Sequence[str]) -> Encoded:
    """Encode prompts with a text encoder of the pipeline, in the order given.

    The same prompts through the same tensors are encoded once a process: tensors are values, and so
    their own key. Passes of stage `erase` and their observers share the work that way.

    Raises:
        InputError: the pipeline lacks a tensor that the text encoder's config asks for.
    """
    component = pipeline.components[component_name]
    tensors = tuple(
        (pipeline.family.module_name(component_name, name), tensor)
        for name, tensor in pipeline.tensors_of(component_name).items()
    )
    folder = tokenizer_folder(pipeline, component_name)
    unique = tuple(dict.fromkeys(prompts))
    states, ids, lengths = _encode(json.dumps(dict(component.config)), tensors, folder, unique)
    places = [unique.index(prompt) for prompt in prompts]
    return Encoded(tuple(prompts), states[places], ids[places], lengths[places])


def tokenizer_folder(pipeline: Pipeline, component_name: str) -> Path:
    """Return the folder of the tokenizer that feeds a text encoder: both lists are in name order."""
    names = [component.name for component in pipeline.of_role("text")]
    return pipeline.of_role("tokenizer")[names.index(component_name)].folder


@lru_cache(maxsize=4)
def load_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Open a tokenizer folder of a model.

    Raises:
        InputError: it holds no tokenizer that transformers knows, or one without character offsets.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, use_fast=True)
    except (OSError, ValueError) as error:
        raise InputError(Fault("E_TOKENIZER", f"cannot be opened: {error}", str(folder))) from error
    if not tokenizer.is_fast:
        hint = "add the folder's tokenizer.json, or vocab.json and merges.txt"
        raise InputError(Fault("E_TOKENIZER", "it gives no character offsets", str(folder), hint))
    return tokenizer


def token_count(tokenizer: "PreTrainedTokenizerBase", prompt: str) -> int:
    """Return how many tokens a prompt has before truncation, start and end token included."""
    return len(tokenizer(prompt, truncation=False, verbose=False)["input_ids"])


def subject_span(tokenizer: "PreTrainedTokenizerBase", prompt: str, concept: str) -> range:
    """Return the token positions of a concept's last mention in a prompt; empty where there is none.

    The tokenizer's own offsets decide, so a mention inside a word (`x` in `a fox`) is none, and one
    that truncation cut off is none.
    """
    offsets = tokenizer(prompt, truncation=True, return_offsets_mapping=True)["offset_mapping"]
    starts = {begin: position for position, (begin, end) in reversed(list(enumerate(offsets))) if begin < end}
    ends = {end: position for position, (begin, end) in enumerate(offsets) if begin < end}
    text, wanted = prompt.lower(), concept.strip().lower()
    at = text.rfind(wanted) if wanted else -1
    while at >= 0:
        if at in starts and at + len(wanted) in ends:
            return range(starts[at], ends[at + len(wanted)] + 1)
        at = text.rfind(wanted, 0, at + len(wanted) - 1)
    return range(0)


@lru_cache(maxsize=8)
def _encode(
    config: str, tensors: tuple[tuple[str, Tensor], ...], tokenizer: Path, prompts: tuple[str, ...]
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    import torch

    tokens = load_tokenizer(tokenizer)(
        list(prompts), padding="max_length", truncation=True, return_tensors="np"
    )
    ids, lengths = tokens["input_ids"].astype(np.int64), tokens["attention_mask"].sum(axis=1).astype(np.int64)
    with single_threaded(), torch.inference_mode():
        encoder = _text_encoder(json.loads(config), dict(tensors))
        # No attention mask: Stable Diffusion's text states are made without one.
        batches = [
            encoder(torch.from_numpy(ids[start : start + BATCH])).last_hidden_state.numpy()
            for start in range(0, len(ids), BATCH)
        ]
    return np.concatenate(batches), ids, lengths


def _text_encoder(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "torch.nn.Module":
    """Build the text encoder around the pipeline's tensors: mapped float32 ones are not copied."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device("meta"):
        model = CLIPTextModel(CLIPTextConfig(**{**config, "attn_implementation": "sdpa"}))
    prefix = "text_model." if any(name.startswith("text_model.") for name in model.state_dict()) else ""
    wanted = {name: name.removeprefix(prefix) for name in model.state_dict()}
    missing = sorted(name for name in wanted.values() if name not in tensors)
    if missing:
        raise InputError(
            *(Fault("E_TENSOR_MISSING", "the text encoder lacks a tensor", name) for name in missing)
        )
    model.load_state_dict({name: _as_torch(tensors[short]) for name, short in wanted.items()}, assign=True)
    for name, buffer in list(model.named_buffers()):
        # The only buffer that is not stored: positions 0, 1, ... of the embeddings.
        model.get_submodule(name.rpartition(".")[0]).register_buffer(
            name.rpartition(".")[2], torch.arange(buffer.shape[-1])[None], persistent=False
        )
    return model.eval()


def _as_torch(tensor: Tensor) -> "torch.Tensor":
    import torch

    with warnings.catch_warnings():
        # A mapped file is read-only, and so is what is done with it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(widen(tensor.read()))
