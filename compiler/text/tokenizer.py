"""The tokenizer of a source: token ids of prompts, and which tokens spell a concept.

Opened with the `tokenizers` library alone. transformers would do the same and import torch on the way,
which a warm build has no other use for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from ...runtime.prompts import PromptTokenizer, Tokens
from ...specs.errors import Fault, InputError

START, END = "<|startoftext|>", "<|endoftext|>"
# How CLIP splits text before the byte pairs. Source: Radford et al., 2103.00020, simple_tokenizer.py.
WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WORD_END = "</w>"
# Prompts whose tokens are remembered, about 1 KB each: an edit asks for those of each prompt ten times.
KEPT = 1 << 15


@dataclass(frozen=True)
class Spelling:
    """A prompt as tokens, start and end token included, without padding.

    `offsets` are the characters that each token spells, empty for start and end; `cut` counts the tokens
    that did not fit.
    """

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    cut: int


class SourceTokenizer(PromptTokenizer):
    """A tokenizer that also knows where in a prompt each token stands."""

    def __init__(self, text: str, config: dict[str, Any], special_tokens: dict[str, Any]) -> None:
        super().__init__(text, config, special_tokens)
        self._spelled = lru_cache(KEPT)(self._spell)

    def tokens(self, prompt: str) -> Tokens:
        """Return the token ids of a prompt, padded to `length`."""
        found = self.spelling(prompt)
        return Tokens((*found.ids, *[self._pad] * (self.length - len(found.ids))), found.cut)

    def spelling(self, prompt: str) -> Spelling:
        """Return the tokens of a prompt, truncated to `length`."""
        return self._spelled(prompt)

    def _spell(self, prompt: str) -> Spelling:
        encoding = self._tokenizer.encode(prompt)
        around = self._tokenizer.num_special_tokens_to_add(False)
        cut = sum(len(piece.ids) - around for piece in encoding.overflowing)
        return Spelling(tuple(encoding.ids), tuple(encoding.offsets), cut)

    def spelled(self, prompt: str, concept: str) -> range:
        """Return the token positions of a concept's last mention in a prompt; empty where there is none.

        The tokenizer's own offsets decide, so a mention inside a word (`x` in `a fox`) is none, and one
        that truncation cut off is none.
        """
        offsets = self.spelling(prompt).offsets
        starts = {begin: i for i, (begin, end) in reversed(list(enumerate(offsets))) if begin < end}
        ends = {end: i for i, (begin, end) in enumerate(offsets) if begin < end}
        text, wanted = prompt.lower(), concept.strip().lower()
        at = text.rfind(wanted) if wanted else -1
        while at >= 0:
            if at in starts and at + len(wanted) in ends:
                return range(starts[at], ends[at + len(wanted)] + 1)
            at = text.rfind(wanted, 0, at + len(wanted) - 1)
        return range(0)

    @property
    def unknown(self) -> int | None:
        """The id that stands for what the vocabulary lacks."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        return None if token is None else self._tokenizer.token_to_id(token)

    def words(self) -> tuple[str, ...]:
        """Return the whole words of the vocabulary in the order of their ids, frequent ones first.

        Only those in ASCII: other characters of a byte-level vocabulary stand for bytes, and say something
        else as text.
        """
        pieces = sorted(self._tokenizer.get_vocab().items(), key=lambda item: item[1])
        return tuple(
            piece.removesuffix(WORD_END)
            for piece, _ in pieces
            if piece.endswith(WORD_END) and piece.isascii()
        )

    def ids_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the tokens that spell each text, start and end left out: many at once, none remembered."""
        return [encoding.ids[1:-1] for encoding in self._tokenizer.encode_batch_fast(list(texts))]


@lru_cache(maxsize=8)
def load_tokenizer(folder: Path) -> SourceTokenizer:
    """Open a tokenizer folder of a model.

    Raises:
        InputError: it holds neither tokenizer.json nor vocab.json with merges.txt, or they cannot be read.
    """
    try:
        config = _json(folder / "tokenizer_config.json")
        special = _json(folder / "special_tokens_map.json")
        return SourceTokenizer(tokenizer_json(folder), config, special)
    except InputError:
        raise
    except Exception as error:  # The library raises plain Exception for a file that it cannot read.
        raise InputError(Fault("E_TOKENIZER", f"cannot be opened: {error}", str(folder))) from error


def tokenizer_json(folder: Path) -> str:
    """Return tokenizer.json, made from vocab.json and merges.txt where it is missing.

    Raises:
        InputError: the folder holds neither.
    """
    if (folder / "tokenizer.json").is_file():
        return (folder / "tokenizer.json").read_text(encoding="utf-8")
    if not ((folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()):
        hint = "expected tokenizer.json, or vocab.json and merges.txt"
        raise InputError(Fault("E_TOKENIZER", "no tokenizer that can be read", str(folder), hint))
    special = _json(folder / "tokenizer_config.json") | _json(folder / "special_tokens_map.json")
    lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    merges = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    return clip_tokenizer(_json(folder / "vocab.json"), merges, special).to_str()


def clip_tokenizer(vocab: dict[str, int], merges: list[Any], special: dict[str, Any]) -> Tokenizer:
    """Return CLIP's tokenizer around a vocabulary and its merges.

    Args:
        special: contents of `bos_token`, `eos_token` and `unk_token`, where they are not CLIP's own.
    """
    start, end, unknown = (
        _content(special.get(key), usual)
        for key, usual in (("bos_token", START), ("eos_token", END), ("unk_token", END))
    )
    model = models.BPE(
        vocab=vocab,
        merges=merges,
        continuing_subword_prefix="",
        end_of_word_suffix=WORD_END,
        fuse_unk=False,
        unk_token=unknown,
    )
    tokenizer: Any = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        (end, vocab[end]), (start, vocab[start]), trim_offsets=False, add_prefix_space=False
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, normalized=False) for token in dict.fromkeys([start, end])]
    )
    return tokenizer


def _content(token: Any, usual: str) -> str:
    return str(token["content"] if isinstance(token, dict) else token or usual)


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
