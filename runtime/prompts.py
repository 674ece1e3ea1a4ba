"""Prompts -> token ids -> text states, as CLIPTokenizer and the artefact's text encoders make them.

Padding, truncation and the two end tokens are those of `CLIPTokenizer(padding="max_length",
truncation=True)`; the pad token comes from the tokenizer's own files (Stable Diffusion 2 pads with `!`).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ..specs.errors import Fault, InputError
from ..specs.sampling import TextSource
from .artefact import Artefact
from .sessions import Placement, Session, open_session

Floats = NDArray[np.float32]
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


@dataclass(frozen=True)
class TextStates:
    """What a denoiser reads of prompts: `sequence` [B, S, D], and `pooled` [B, Dp] where it reads one."""

    sequence: Floats
    pooled: Floats | None = None

    def arrays(self) -> dict[str, Floats]:
        """Return the states as inputs of the denoiser, by name."""
        pooled = {} if self.pooled is None else {"text_embeds": self.pooled}
        return {"encoder_hidden_states": self.sequence, **pooled}

    def map(self, rule: Callable[..., Floats], *others: "TextStates") -> "TextStates":
        """Return `rule` of each kind of state, and of the same kind of the others."""
        sequence = rule(self.sequence, *(other.sequence for other in others))
        if self.pooled is None:
            return TextStates(sequence)
        return TextStates(sequence, rule(self.pooled, *(other.pooled for other in others)))


@dataclass(frozen=True)
class TextEncoder:
    """One graph's share of the text states, with the tokenizer that feeds it."""

    source: TextSource
    tokenizer: PromptTokenizer
    session: Session

    @classmethod
    def open(cls, artefact: Artefact, source: TextSource, placement: Placement | None) -> "TextEncoder":
        """Load tokenizer and graph."""
        outputs = [name for name in (source.output, source.pooled) if name is not None]
        graph = f"{source.graph}/model.onnx"
        session = open_session(artefact, graph, ["input_ids"], outputs, placement)
        return cls(source, PromptTokenizer.open(artefact, source.tokenizer), session)

    def states(self, prompt: str) -> TextStates:
        """Return the share of one prompt: [1, S, its width], and its pooled state where it has one."""
        found = self.session(input_ids=np.array([self.tokenizer.tokens(prompt).ids]))
        pooled = None if self.source.pooled is None else found[self.source.pooled].astype(np.float32)
        return TextStates(found[self.source.output].astype(np.float32), pooled)


class PromptEncoder:
    """Turns prompts into text states; each prompt is encoded alone, so its states depend on nothing else."""

    def __init__(self, encoders: Sequence[TextEncoder]) -> None:
        self.encoders = tuple(encoders)
        self._known: dict[str, TextStates] = {}

    @classmethod
    def open(cls, artefact: Artefact, placement: Placement | None = None) -> "PromptEncoder":
        """Load the tokenizers and text encoders that an artefact's sampling table names.

        Raises:
            InputError: the encoders take prompts of different lengths.
        """
        encoders = [TextEncoder.open(artefact, source, placement) for source in artefact.table.text]
        lengths = {encoder.source.tokenizer: encoder.tokenizer.length for encoder in encoders}
        if len(set(lengths.values())) > 1:
            found = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise InputError(Fault("E_TOKENIZER", f"prompts of different lengths: {found}", "sampling.json"))
        return cls(encoders)

    def encode(self, prompts: Sequence[str]) -> TextStates:
        """Return the text states of prompts: the encoders' side by side on the last axis."""
        first, *others = (self._states(prompt) for prompt in prompts)
        return first.map(lambda *parts: np.concatenate(parts), *others)

    def cut(self, prompt: str) -> int:
        """Return how many tokens of a prompt some encoder does not see."""
        return max(encoder.tokenizer.tokens(prompt).cut for encoder in self.encoders)

    def _states(self, prompt: str) -> TextStates:
        known = self._known.get(prompt)
        if known is not None:
            return known
        if len(self._known) >= KEPT:
            self._known = {}
        shares = [encoder.states(prompt) for encoder in self.encoders]
        pooled = [share.pooled for share in shares if share.pooled is not None]
        sequence = np.concatenate([share.sequence for share in shares], axis=-1)
        states = TextStates(sequence, np.concatenate(pooled, axis=-1) if pooled else None)
        self._known[prompt] = states
        return states


def _length(config: dict[str, Any]) -> int:
    length = config.get("model_max_length")
    if not isinstance(length, int) or not 3 <= length <= LONGEST:
        message = f"model_max_length is {length}, expected 3 to {LONGEST}"
        raise InputError(Fault("E_TOKENIZER", message, "tokenizer/tokenizer_config.json"))
    return length
