"""CLIP's own tokenizer as we ship it: the known numbers, and the settings of each published model."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from retouch.compiler.families.published import published_folder
from retouch.compiler.sources.tokenizers import SIZE, clip_folder, clip_merges, clip_vocabulary
from retouch.compiler.text.tokenizer import load_tokenizer

# Token numbers that the published tokenizer gives, padding left out. Source: openai/CLIP and the examples in
# the documentation of transformers.
KNOWN = {
    "a photo of a cat": [49406, 320, 1125, 539, 320, 2368, 49407],
    "a photo of a dog": [49406, 320, 1125, 539, 320, 1929, 49407],
    "Hello, World!": [49406, 3306, 267, 1002, 256, 49407],
}


def settings(model: str, component: str = "tokenizer") -> Path:
    return published_folder(model) / component


def test_the_vocabulary_has_its_published_size() -> None:
    assert len(clip_merges()) == SIZE - 2 * 256 - 2
    assert len(clip_vocabulary()) == SIZE
    assert clip_vocabulary()["<|startoftext|>"] == 49406


@pytest.mark.parametrize("prompt", KNOWN)
def test_known_prompts_have_their_known_numbers(prompt: str) -> None:
    tokenizer = load_tokenizer(clip_folder(settings("stable-diffusion-v1-5")))
    assert list(tokenizer.spelling(prompt).ids) == KNOWN[prompt]


def test_transformers_reads_the_folder_alike() -> None:
    folder = clip_folder(settings("stable-diffusion-v1-5"))
    theirs, ours = CLIPTokenizer.from_pretrained(folder), load_tokenizer(folder)
    for prompt in ("", "Ünïcode  and\tspaces", "don't stop, it's 1234 o'clock!!", "日本語 🎉", "word " * 200):
        expected = theirs(prompt, padding="max_length", truncation=True)["input_ids"]
        assert list(ours.tokens(prompt).ids) == expected


@pytest.mark.parametrize(
    ("model", "component", "pad"),
    [
        ("stable-diffusion-v1-5", "tokenizer", 49407),
        ("stable-diffusion-2-1", "tokenizer", 0),
        ("stable-diffusion-xl-base-1.0", "tokenizer", 49407),
        ("stable-diffusion-xl-base-1.0", "tokenizer_2", 0),
    ],
)
def test_each_model_pads_as_it_was_trained(model: str, component: str, pad: int) -> None:
    ids = load_tokenizer(clip_folder(settings(model, component))).tokens("a cat").ids
    assert len(ids) == 77
    assert ids[4:] == (pad,) * 73


def test_the_folder_is_made_once_and_left_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path))
    folder = clip_folder(settings("stable-diffusion-v1-5"))
    before = {file.name: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert clip_folder(settings("stable-diffusion-v1-5")) == folder
    assert {file.name: file.stat().st_mtime_ns for file in folder.iterdir()} == before
    assert [place.name for place in folder.parent.iterdir()] == [folder.name]
    assert clip_folder(settings("stable-diffusion-2-1")) != folder
