"""Prompts become the token ids that transformers' CLIPTokenizer makes of them."""

import json
from pathlib import Path

import numpy as np
import pytest
from runtime_artefact import EMBEDDING, END, LENGTH, make_artefact, write_tokenizer
from transformers import CLIPTokenizer

from retouch.runtime.artefact import open_artefact
from retouch.runtime.prompts import PromptEncoder, PromptTokenizer
from retouch.specs.errors import InputError

PROMPTS = [
    "",
    "a cat",
    "  An  APPLE's\tlogo,\nrunning!! 2024 ",
    "ein Käfer über den Wolken: 🐱 ½",
    "cafe\u0301 café",
    "<|endoftext|> a cat <|startoftext|>",
    "a photo of a cat on a cloud on a shoe on an apple on the logo on a cloud",
]


def read_tokenizer(folder: Path) -> PromptTokenizer:
    config, special = (
        json.loads((folder / name).read_text())
        for name in ("tokenizer_config.json", "special_tokens_map.json")
    )
    return PromptTokenizer((folder / "tokenizer.json").read_text(), config, special)


@pytest.mark.parametrize("pad", [END, "!"])
def test_ids_equal_those_of_transformers(tmp_path: Path, pad: str) -> None:
    write_tokenizer(tmp_path / "tokenizer", pad)
    peer = CLIPTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    expected = peer(PROMPTS, padding="max_length", max_length=LENGTH, truncation=True).input_ids
    tokenizer = read_tokenizer(tmp_path / "tokenizer")
    assert [list(tokenizer.tokens(prompt).ids) for prompt in PROMPTS] == expected


def test_the_pad_token_is_the_tokenizers_own(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer", "!")
    vocabulary = json.loads((tmp_path / "tokenizer/vocab.json").read_text())
    ids = read_tokenizer(tmp_path / "tokenizer").tokens("a cat").ids
    assert vocabulary[END] in ids
    assert ids[-1] == vocabulary["!"] != vocabulary[END]


def test_what_does_not_fit_is_counted(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "tokenizer")
    tokenizer = read_tokenizer(tmp_path / "tokenizer")
    assert tokenizer.tokens(PROMPTS[-1]).cut == len(PROMPTS[-1].split()) - (LENGTH - 2)
    assert tokenizer.tokens("a cat").cut == 0
    # Exactly full is not cut.
    assert tokenizer.tokens(" ".join(["a"] * (LENGTH - 2))).cut == 0
    assert tokenizer.tokens(" ".join(["a"] * (LENGTH - 1))).cut == 1


@pytest.mark.parametrize("length", [None, 10**30, 2, "77"])
def test_an_unknown_length_is_refused(tmp_path: Path, length: object) -> None:
    write_tokenizer(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    with pytest.raises(InputError, match="model_max_length"):
        PromptTokenizer(text, {"model_max_length": length}, {})


def test_a_pad_token_that_is_none_is_refused(tmp_path: Path) -> None:
    write_tokenizer(tmp_path)
    config = {"model_max_length": LENGTH, "pad_token": {"content": "<pad>"}}
    with pytest.raises(InputError, match="pads with `<pad>`, which is no token"):
        PromptTokenizer((tmp_path / "tokenizer.json").read_text(), config, {})


def test_states_are_the_text_encoders_in_order(tmp_path: Path) -> None:
    encoder = PromptEncoder.open(open_artefact(make_artefact(tmp_path / "artefact")))
    states = encoder.encode(["a cat", "a shoe", "a cat"])
    (only,) = encoder.encoders
    ids = [list(only.tokenizer.tokens(prompt).ids) for prompt in ("a cat", "a shoe", "a cat")]
    assert states.sequence.dtype == np.float32
    np.testing.assert_array_equal(states.sequence, EMBEDDING[np.array(ids)])
    assert states.pooled is None


def test_a_prompt_is_encoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = PromptEncoder.open(open_artefact(make_artefact(tmp_path / "artefact")))
    first = encoder.encode(["a cat"])
    monkeypatch.setattr(encoder, "encoders", ())
    np.testing.assert_array_equal(encoder.encode(["a cat", "a cat"]).sequence[1], first.sequence[0])
