"""Prompts -> token ids -> text states, as CLIPTokenizer and the artefact's text encoder make them.

Padding, truncation and the two end tokens are those of `CLIPTokenizer(padding="max_length",
truncation=True)`; the pad token comes from the tokenizer's own files (Stable Diffusion 2 pads with `!`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..specs.errors import Fault, InputError
from .artefact import Artefact
from .sessions import Placement, Session, open_session

PAD_OF_CLIP = "<|endoftext|>"
KEPT = 1024  # prompts whose states are remembered; each is a few hundred kilobytes at most
LONGEST = 4096  # tokens; a larger model_max_length is transformers' way to say that it has none


@dataclass(frozen=True)
class Tokens:
    """Padded token ids [S] of a prompt, and the number of tokens that did not fit."""

    ids: tuple[int, ...]
    cut: int


class PromptTokenizer:
    """Splits prompts as the model's own tokenizer does.

    Args:
        text: tokenizer.json.
        config: tokenizer_config.json, whose `model_max_length` and `pad_token` count.
        special_tokens: special_tokens_map.json, asked where the config names no pad token.

    Raises:
        InputError: the files do not say how long a prompt is, or pad with a token that is none.
    """

    def __init__(self, text: str, config: dict[str, Any], special_tokens: dict[str, Any]) -> None:
        self._tokenizer: Tokenizer = Tokenizer.from_str(text)
        self.length = _length(config)
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.length)
        self._pad = self._pad_id(config, special_tokens)

    @classmethod
    def open(cls, artefact: Artefact, folder: str = "tokenizer") -> "PromptTokenizer":
        """Read the tokenizer of an artefact."""
        config = json.loads(artefact.read(f"{folder}/tokenizer_config.json"))
        special_file = f"{folder}/special_tokens_map.json"
        special = json.loads(artefact.read(special_file)) if special_file in artefact else {}
        return cls(artefact.read(f"{folder}/tokenizer.json").decode(), config, special)

    def tokens(self, prompt: str) -> Tokens:
        """Return the token ids of a prompt, padded to `length`."""
        encoding = self._tokenizer.encode(prompt)
        around = self._tokenizer.num_special_tokens_to_add(False)
        cut = sum(len(piece.ids) - around for piece in encoding.overflowing)
        padding = [self._pad] * (self.length - len(encoding.ids))
        return Tokens((*encoding.ids, *padding), cut)

    def _pad_id(self, config: dict[str, Any], special_tokens: dict[str, Any]) -> int:
        token = config.get("pad_token") or special_tokens.get("pad_token") or PAD_OF_CLIP
        content = token["content"] if isinstance(token, dict) else token
        number = self._tokenizer.token_to_id(content)
        if number is None:
            raise InputError(Fault("E_TOKENIZER", f"pads with `{content}`, which is no token", "tokenizer"))
        # As in transformers a pad token is never merged with its neighbors, not even where a prompt has it.
        self._tokenizer.add_special_tokens([content])
        return number


class PromptEncoder:
    """Turns prompts into text states; each prompt is encoded alone, so its states depend on nothing else."""

    def __init__(self, tokenizer: PromptTokenizer, encoder: Session) -> None:
        self.tokenizer = tokenizer
        self._encoder = encoder
        self._known: dict[str, NDArray[np.float32]] = {}

    @classmethod
    def open(cls, artefact: Artefact, placement: Placement | None = None) -> "PromptEncoder":
        """Load tokenizer and text encoder of an artefact."""
        graph = "text_encoder/model.onnx"
        encoder = open_session(artefact, graph, ["input_ids"], ["last_hidden_state"], placement)
        return cls(PromptTokenizer.open(artefact), encoder)

    def encode(self, prompts: Sequence[str]) -> NDArray[np.float32]:
        """Return the text states of prompts, [B, S, D]."""
        return np.stack([self._states(prompt) for prompt in prompts])

    def _states(self, prompt: str) -> NDArray[np.float32]:
        known = self._known.get(prompt)
        if known is not None:
            return known
        if len(self._known) >= KEPT:
            self._known = {}
        ids = np.array([self.tokenizer.tokens(prompt).ids])
        states = self._encoder(input_ids=ids)["last_hidden_state"][0].astype(np.float32)
        self._known[prompt] = states
        return states


def _length(config: dict[str, Any]) -> int:
    length = config.get("model_max_length")
    if not isinstance(length, int) or not 3 <= length <= LONGEST:
        message = f"model_max_length is {length}, expected 3 to {LONGEST}"
        raise InputError(Fault("E_TOKENIZER", message, "tokenizer/tokenizer_config.json"))
    return length
