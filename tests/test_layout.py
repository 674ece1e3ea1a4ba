"""The files without tensors: every form of the tokenizer is there, and says the same."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from retouch.compiler.layout import TOKENIZER, write_tokenizer
from retouch.specs.errors import InputError


def given(tiny: Path, folder: Path, *names: str) -> Path:
    """Return a folder with only some files of the tiny tokenizer."""
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes((tiny / "tokenizer" / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    "names",
    [
        TOKENIZER,
        ("vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
        ("tokenizer.json", "tokenizer_config.json"),
    ],
)
def test_every_form_is_written(tiny: Path, tmp_path: Path, names: tuple[str, ...]) -> None:
    write_tokenizer(given(tiny, tmp_path / "source", *names), tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(TOKENIZER)
    theirs = Tokenizer.from_file(str(tiny / "tokenizer" / "tokenizer.json"))
    ours = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    for text in ("a cat on the cloud", "Zebra, 2!"):
        assert ours.encode(text).ids == theirs.encode(text).ids
    for name in ("vocab.json", "special_tokens_map.json"):
        assert json.loads((tmp_path / "out" / name).read_text()) == json.loads(
            (tiny / "tokenizer" / name).read_text()
        )
    assert (tmp_path / "out" / "merges.txt").read_text() == (tiny / "tokenizer" / "merges.txt").read_text()


def test_no_tokenizer_is_refused(tiny: Path, tmp_path: Path) -> None:
    source = given(tiny, tmp_path / "source", "tokenizer_config.json")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        write_tokenizer(source, tmp_path / "out")
