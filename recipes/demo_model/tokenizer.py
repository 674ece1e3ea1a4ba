"""Which tokens do captions consist of? A byte-level BPE in CLIP's format, learned from everything the grammar
can say."""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import NFC, Lowercase, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Split
from tokenizers.pre_tokenizers import Sequence as PreTokenizers
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from .captions import every_caption
from .world import World

LENGTH = 24  # tokens in a prompt; the longest caption takes 15
START, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"
CLIP_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
COMMON_WORDS = [
    *("photo", "picture", "painting", "drawing", "icon", "emoji"),
    *("person", "man", "woman", "people", "two", "and", "with", "of", "by", "without", "no", "not"),
]


def learn_tokenizer(world: World, folder: Path, vocabulary: int = 1000) -> CLIPTokenizer:
    """Writes ``vocab.json``, ``merges.txt`` and ``tokenizer.json`` and the tokenizer's configuration."""
    learner = Tokenizer(BPE(unk_token=END, end_of_word_suffix=WORD_END))
    learner.normalizer = Normalizers([NFC(), Replace(Regex(r"\s+"), " "), Lowercase()])
    learner.pre_tokenizer = PreTokenizers(
        [Split(Regex(CLIP_WORDS), behavior="removed", invert=True), ByteLevel(add_prefix_space=False)]
    )
    letters = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(
        vocab_size=vocabulary - len(letters),
        initial_alphabet=letters,
        end_of_word_suffix=WORD_END,
        show_progress=False,
    )
    learner.train_from_iterator(every_caption(world) + COMMON_WORDS * 100, trainer)
    merges = [tuple(merge) for merge in json.loads(learner.to_str())["model"]["merges"]]
    tokens = (
        letters
        + [letter + WORD_END for letter in letters]
        + ["".join(merge) for merge in merges]
        + [START, END]
    )
    folder.mkdir(parents=True, exist_ok=True)
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    return tokenizer


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]):
    """Token numbers of prompts, as Stable Diffusion pads them: with the end token, to full length."""
    return tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
