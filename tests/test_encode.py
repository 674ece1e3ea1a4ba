"""Text states equal transformers', only what is needed is computed, and a warm cache needs no torch."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from retouch.compiler.families.published import published_folder
from retouch.compiler.load import load_pipeline
from retouch.compiler.sources.tokenizers import clip_folder
from retouch.compiler.tensors import Shared
from retouch.compiler.text import encode
from retouch.compiler.text.encode import encode_prompts, tokenizer_of
from retouch.compiler.text.text_encoder import PrefixTree, TextEncoderWeights, erf, run_text_encoder
from retouch.compiler.text.tokenizer import load_tokenizer
from retouch.specs.errors import InputError

from .passes import open_tiny, tiny_folder
from .tiny import make_tiny_xl

PROMPTS = ("", "a cat", "a cat on the apple logo", "The  DOG on a shoe", "a woman's cat, 12!", "a " * 30)
CONFIG = {
    "vocab_size": 50,
    "hidden_size": 24,
    "intermediate_size": 40,
    "projection_dim": 20,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "max_position_embeddings": 12,
    "bos_token_id": 48,
    "eos_token_id": 49,
    "pad_token_id": 0,
}


def _tensor(array: np.ndarray) -> Shared:
    return Shared(lambda: array, array.dtype, array.shape)


def _made(**config: Any) -> tuple[Any, TextEncoderWeights]:
    """Return a random text encoder of transformers, shaken so that nothing is zero or one; its weights."""
    torch.manual_seed(0)
    model = CLIPTextModelWithProjection(CLIPTextConfig(**{**CONFIG, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    tensors = {
        name.removeprefix("text_model."): _tensor(value.numpy()) for name, value in model.state_dict().items()
    }
    return model, TextEncoderWeights(model.config.to_dict(), tensors)


def _ids(count: int = 9, length: int = 12, end: int = 49) -> np.ndarray:
    random = np.random.default_rng(0)
    ids = random.integers(0, 4, (count, length))
    ids[:, 0] = 48
    for row, stop in zip(ids, random.integers(2, length, count), strict=True):
        row[stop], row[stop + 1 :] = end, 0
    return ids


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [49, 2])
@pytest.mark.parametrize("layer", [None, -2, -1, 0])
def test_rows_and_pooled_states_are_those_of_transformers(
    activation: str, end: int, layer: int | None
) -> None:
    model, weights = _made(hidden_act=activation, eos_token_id=end)
    ids = _ids()
    with torch.inference_mode():
        found = model(torch.from_numpy(ids), output_hidden_states=True)
    wanted = found.last_hidden_state if layer is None else found.hidden_states[layer]
    tree = PrefixTree.of([tuple(row) for row in ids.tolist()])
    ends = np.array([path[np.argmax(row == 49)] for path, row in zip(tree.paths, ids, strict=True)])
    rows = run_text_encoder(weights, tree, layer, ends)
    assert np.abs(rows.states[np.stack(tree.paths)] - wanted.numpy()).max() < 1e-5
    assert np.abs(rows.pooled - found.text_embeds.numpy()).max() < 1e-5


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=12))
def test_a_tree_spells_every_prompt_and_holds_each_prefix_once(prompts: list[list[int]]) -> None:
    tree = PrefixTree.of(prompts)
    assert [tree.tokens[path].tolist() for path in tree.paths] == prompts
    assert all(tree.depths[path].tolist() == list(range(len(path))) for path in tree.paths)
    assert len(tree.tokens) == len({tuple(p[: i + 1]) for p in prompts for i in range(len(p))})


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_the_error_function_is_right_to_float_precision(seed: int) -> None:
    x = np.random.default_rng(seed).normal(0, 2, 500).astype(np.float32)
    assert np.abs(erf(x) - [math.erf(value) for value in x]).max() < 6e-7


def test_prompts_become_the_states_that_stable_diffusion_makes() -> None:
    pipeline, folder = open_tiny(), tiny_folder()
    tokenizer = AutoTokenizer.from_pretrained(str(folder / "tokenizer"))
    ids = tokenizer(list(PROMPTS), padding="max_length", truncation=True, return_tensors="pt").input_ids
    model = CLIPTextModel.from_pretrained(str(folder / "text_encoder"))
    with torch.inference_mode():
        expected = model(ids).last_hidden_state.numpy()
    encoded = encode_prompts(pipeline, PROMPTS)
    assert (encoded.ids == ids.numpy()).all()
    assert np.abs(encoded.states - expected).max() < 1e-5
    assert encoded.pooled is None


def test_rows_that_nobody_needs_are_not_computed_and_the_others_stay_the_same() -> None:
    pipeline = open_tiny()
    whole, part = encode_prompts(pipeline, PROMPTS), encode_prompts(pipeline, PROMPTS, [3, 4, 5, 6, 7, 8])
    assert len(part.shares[0].rows) < len(whole.shares[0].rows)
    for count, prompt in zip((3, 4, 5, 6, 7, 8), PROMPTS, strict=True):
        assert part.rows(prompt).shape == (count, part.width)
        assert np.abs(part.rows(prompt) - whole.rows(prompt)[:count]).max() < 1e-5


def test_pieces_give_the_same_states_in_the_order_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = load_pipeline(make_tiny_xl(tmp_path / "model"), "ddim", 4, 2.0)
    whole = encode_prompts(pipeline, PROMPTS)
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(encode, "PIECE", 2 * whole.ids.shape[1])
    encode._kept.cache_clear()
    parts = encode_prompts(pipeline, PROMPTS)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == len(PROMPTS)  # two encoders, two prompts a piece
    assert np.abs(parts.states - whole.states).max() < 1e-5
    assert parts.pooled is not None and whole.pooled is not None
    assert np.abs(parts.pooled - whole.pooled).max() < 1e-5


def test_a_damaged_cache_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path))
    encode._kept.cache_clear()
    first = encode_prompts(open_tiny(), ["a cat"]).states
    (file,) = tmp_path.rglob("*.npz")
    file.write_bytes(file.read_bytes()[:200])
    encode._kept.cache_clear()
    assert (encode_prompts(open_tiny(), ["a cat"]).states == first).all()
    encode._kept.cache_clear()
    monkeypatch.setattr(encode, "run_text_encoder", None)
    assert (encode_prompts(open_tiny(), ["a cat"]).states == first).all()


def test_the_cache_keeps_what_was_used_last_within_its_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path))

    def encoded(prompt: str) -> list[Path]:
        encode._kept.cache_clear()
        encode_prompts(open_tiny(), [prompt])
        return sorted(tmp_path.rglob("*.npz"))

    (first,) = encoded("a cat")
    assert len(encoded("a dog")) == 2
    os.utime(first, (0, 0))
    assert len(encoded("a cat")) == 2  # found, and used last
    monkeypatch.setenv("RETOUCH_CACHE_SIZE", "0")
    (newest,) = encoded("a shoe")
    assert newest != first


def test_encoding_imports_no_torch() -> None:
    script = (
        "import sys; from pathlib import Path; from retouch.compiler.load import load_pipeline;"
        "from retouch.compiler.text.encode import encode_prompts;"
        "encode_prompts(load_pipeline(Path(sys.argv[1]), 'ddim', 4, 2.0), ['a cat']);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tiny_folder())], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_missing_tensor_and_an_unknown_activation_are_told_at_once() -> None:
    _, weights = _made()
    tensors = {name: tensor for name, tensor in weights.tensors.items() if "fc1.bias" not in name}
    broken = TextEncoderWeights({**weights.config, "hidden_act": "swish"}, tensors)
    with pytest.raises(InputError) as caught:
        run_text_encoder(broken, PrefixTree.of([(48, 49)]))
    assert [fault.code for fault in caught.value.faults] == ["E_TENSOR_MISSING"] * 3 + ["E_TEXT_ENCODER"]


@pytest.mark.parametrize("without", ["", "tokenizer.json"])
def test_tokens_and_offsets_are_those_of_transformers(tmp_path: Path, without: str) -> None:
    shutil.copytree(tiny_folder() / "tokenizer", tmp_path / "tokenizer")
    if without:
        (tmp_path / "tokenizer" / without).unlink()
    ours = load_tokenizer(tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"))
    for prompt in (*PROMPTS, "x <|endoftext|> y", "Ünï ☃", "<|startoftext|>a"):
        expected = theirs(prompt, truncation=True, return_offsets_mapping=True)
        found = ours.spelling(prompt)
        assert list(found.ids) == expected["input_ids"]
        assert list(found.offsets) == [tuple(pair) for pair in expected["offset_mapping"]]
        full = theirs(prompt, truncation=False, verbose=False)["input_ids"]
        assert len(found.ids) + found.cut == len(full)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no tokenizer"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 77}')
    with pytest.raises(InputError, match="cannot be opened"):
        load_tokenizer(tmp_path)


def test_the_vocabulary_lists_whole_words() -> None:
    words = tokenizer_of(open_tiny()).words()
    assert {"cat", "logo"} <= set(words)
    assert "log" not in words


def test_words_are_text_and_no_bytes_of_other_text() -> None:
    tokenizer = load_tokenizer(clip_folder(published_folder("stable-diffusion-v1-5") / "tokenizer"))
    words = tokenizer.words()
    assert len(words) > 30_000
    assert tokenizer.ids_of(words[:300]) == [list(tokenizer.spelling(word).ids[1:-1]) for word in words[:300]]
    # In a byte-level vocabulary `Ã©` is how `é` is written.
    assert all(word.isascii() for word in words)
