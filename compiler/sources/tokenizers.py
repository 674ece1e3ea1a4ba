"""CLIP's own tokenizer, for checkpoints that come without one: every published Stable Diffusion uses it.

The merges are those of openai/CLIP (MIT; see NOTICE), cut to the ones that the vocabulary of 49,408 tokens
uses. From them and a published model's settings a tokenizer folder is made in the cache.
"""

import gzip
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from ...specs.canonical import digest_file
from ..cache import default_cache

MERGES = Path(__file__).parent / "clip_merges.txt.gz"
SETTINGS = ("special_tokens_map.json", "tokenizer_config.json")
START, END = "<|startoftext|>", "<|endoftext|>"
SIZE = 49408  # tokens: 256 bytes, each at the end of a word too, one a merge, start and end


def clip_folder(settings: Path) -> Path:
    """Return a folder with CLIP's tokenizer and the settings of a published model's.

    It is made in the cache; the name tells the contents, and it appears there whole or not at all.
    """
    files = [MERGES, *(settings / name for name in SETTINGS)]
    name = "-".join(digest_file(file)[:16] for file in files)
    folder = default_cache() / "tokenizers" / name
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        _make(folder, settings)
    return folder


def is_tokenizer(folder: Path) -> bool:
    """Whether a folder holds what a tokenizer can be read from."""
    names = {file.name for file in folder.glob("*")}
    return "tokenizer.json" in names or {"vocab.json", "merges.txt"} <= names


def clip_merges() -> tuple[str, ...]:
    """Return the merges, the earliest first, each two pieces with a space between."""
    return tuple(gzip.decompress(MERGES.read_bytes()).decode().splitlines())


@cache
def clip_vocabulary() -> dict[str, int]:
    """Return the number of each token. Source: openai/CLIP, simple_tokenizer.py."""
    letters = _byte_letters()
    joined = (merge.replace(" ", "") for merge in clip_merges())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *joined, START, END]
    return {token: number for number, token in enumerate(tokens)}


def _byte_letters() -> list[str]:
    """Return a letter a byte: itself where it prints, else one from 256 on; those that print come first."""
    printing = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = 256 - len(printing)
    return [chr(byte) for byte in printing] + [chr(256 + i) for i in range(others)]


def _make(folder: Path, settings: Path) -> None:
    """Write a tokenizer folder beside its place and rename it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        place = Path(name) / folder.name
        place.mkdir()
        for setting in SETTINGS:
            shutil.copyfile(settings / setting, place / setting)
        vocabulary = json.dumps(clip_vocabulary(), ensure_ascii=False)
        (place / "vocab.json").write_text(vocabulary, encoding="utf-8")
        (place / "merges.txt").write_text("\n".join(["#version: 0.2", *clip_merges(), ""]), encoding="utf-8")
        try:
            place.rename(folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
