"""Headers of hostile and broken safetensors files: a typed error each, never a traceback, no code run."""

import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from retouch.compiler.headers import read_header
from retouch.specs.errors import InputError

GOOD = {"a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def write(file: Path, header: object, data: bytes = b"\0" * 8, text: bytes | None = None) -> Path:
    """Write a safetensors file from a header object, or from its raw text."""
    encoded = json.dumps(header).encode() if text is None else text
    file.write_bytes(struct.pack("<Q", len(encoded)) + encoded + data)
    return file


def test_reads_what_the_library_writes(tmp_path: Path) -> None:
    tensors = {"b": np.arange(6, dtype=np.float16).reshape(2, 3), "a": np.array([1.5], np.float32)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    header = read_header(tmp_path / "x.safetensors")
    assert header.metadata == {"format": "pt"}
    assert {name: tensor.read().tolist() for name, tensor in header.tensors.items()} == {
        name: array.tolist() for name, array in tensors.items()
    }


def entry(**changed: object) -> dict[str, object]:
    return {"a.weight": {**GOOD["a.weight"], **changed}}


HOSTILE = {
    "not an object": (["list"], "not a JSON object"),
    "wrong dtype": (entry(dtype="F8_E4M3"), "dtype `F8_E4M3` is not supported"),
    "negative shape": (entry(shape=[-2]), "not a list of at most"),
    "boolean shape": (entry(shape=[True, 2]), "not a list of at most"),
    "huge shape": (entry(shape=[1 << 50]), "not a list of at most"),
    "too many dimensions": (entry(shape=[1] * 9 + [2]), "not a list of at most 8"),
    "beyond the end": (entry(data_offsets=[0, 9]), "take 9 bytes, but only 8 follow"),
    "falling offsets": (entry(data_offsets=[8, 0]), "do not lie in"),
    "wrong size": (entry(shape=[1]), "8 bytes for F32 [1], expected 4"),
    "missing key": ({"a": {"dtype": "F32"}}, "expected `dtype`, `shape` and `data_offsets`"),
    "extra key": (entry(other=1), "expected `dtype`, `shape` and `data_offsets`"),
    "path as a name": ({"../../etc/passwd": GOOD["a.weight"]}, "not a plain dotted name"),
    "markup as a name": ({"<script>": GOOD["a.weight"]}, "not a plain dotted name"),
    "metadata of numbers": ({"__metadata__": {"a": 1}, **GOOD}, "`__metadata__` is not a map of strings"),
    "overlap": ({**GOOD, "b": GOOD["a.weight"]}, "start at"),
    "hole": ({"b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, "start at"),
    "trailing bytes": ({"b": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, "the file at"),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_headers(name: str, tmp_path: Path) -> None:
    header, message = HOSTILE[name]
    with pytest.raises(InputError) as caught:
        read_header(write(tmp_path / "x.safetensors", header))
    assert message in str(caught.value)
    assert "x.safetensors" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not JSON"),
        (b'{"a": {}, "a": {}}', "stands there twice"),
        (b'{"__metadata__": {"k": "1", "k": "2"}}', "stands there twice"),
        (b"[" * 100_000, "not JSON"),
        (b"\xff\xfe", "not JSON"),
    ],
)
def test_hostile_text(text: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_header(write(tmp_path / "x.safetensors", None, text=text))


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, struct.pack("<Q", 1 << 62), struct.pack("<Q", 100) + b"{}"]
)
def test_truncated_files(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"E_SAFETENSORS|header"):
        read_header(tmp_path / "x.safetensors")


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.file,))


@pytest.mark.parametrize("suffix", [".safetensors", ".bin", ".ckpt", ".pt", ".pth", ".pkl", ".CKPT"])
def test_pickles_are_refused_and_never_opened(suffix: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    file = tmp_path / f"model{suffix}"
    file.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InputError) as caught:
        read_header(file)
    assert caught.value.faults[0].code == "E_PICKLE"
    assert not canary.exists()


@given(st.data())
def test_a_mutated_header_never_surprises(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("mutated")
    content = bytearray(write(folder / "x.safetensors", GOOD).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / "x.safetensors").write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        header = read_header(folder / "x.safetensors")
    except InputError as error:
        assert all(fault.message and fault.where for fault in error.faults)
    else:
        assert sum(tensor.size for tensor in header.tensors.values()) <= len(content)
