"""The header of a safetensors file: every tensor's type, shape and place, no element.

A file is hostile until its header says otherwise: sizes are bounded before they are used, keys are
unique, names are plain, and the byte ranges tile the data exactly. Pickles are refused by content,
whatever their name.
"""

import json
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..specs.errors import Fault, InputError, raise_all
from .ir import NAME
from .tensors import CODES, DTYPES, Stored

# The format's own limit is 100 MB; SDXL's largest header is 0.3 MB.
MAX_HEADER = 32 << 20
MAX_DIMENSIONS = 8
PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth", ".joblib", ".npy"})
_PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK\x03\x04", b"\x93NUMPY")


@dataclass(frozen=True)
class Header:
    """What a safetensors file holds: tensors by name, and its string metadata."""

    tensors: Mapping[str, Stored]
    metadata: Mapping[str, str]


def read_header(file: Path) -> Header:
    """Return the header of a safetensors file.

    Raises:
        InputError: the file is missing, is a pickle, or its header is malformed; with all faults.
    """
    text, start, size = _header_bytes(file)
    entries = _parse(text, file)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _malformed(file, "`__metadata__` is not a map of strings")
    _check_room(entries, file, size - start)
    faults, tensors = [], {}
    for name in sorted(entries):
        try:
            tensors[name] = _stored(name, entries[name], file, start, size - start)
        except ValueError as problem:
            faults.append(Fault("E_SAFETENSORS", str(problem), where=f"{file}: {name[:80]!r}"))
    raise_all(InputError, faults)
    _check_tiling(tensors, file, start, size)
    return Header(tensors, metadata)


def header_bytes(rows: Iterable[tuple[str, np.dtype, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """Return the head of a safetensors file for (name, type, shape) in the order of the data.

    Source: the format's description in the safetensors repository.
    """
    table: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in rows:
        end = offset + prod(shape) * dtype.itemsize
        table[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def refuse_pickle(file: Path) -> None:
    """Raise where a file's name says that it is a pickle or an archive of one.

    Raises:
        InputError: always for such a name; the file is not opened.
    """
    if file.suffix.lower() in PICKLE_SUFFIXES:
        hint = "convert it to safetensors with a tool you trust, in a sandbox"
        raise InputError(
            Fault("E_PICKLE", "pickles can run code when they are opened, and are refused", str(file), hint)
        )


def _header_bytes(file: Path) -> tuple[bytes, int, int]:
    refuse_pickle(file)
    try:
        with file.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            first = stream.read(8)
            if first.startswith(_PICKLE_STARTS):
                raise InputError(
                    Fault(
                        "E_PICKLE", "the content is a pickle or an archive of one, not safetensors", str(file)
                    )
                )
            if len(first) < 8:
                raise _malformed(file, f"{size} bytes are too few for a header")
            (length,) = struct.unpack("<Q", first)
            if length > min(MAX_HEADER, size - 8):
                message = f"a header of {length} bytes in a file of {size}; at most {MAX_HEADER} are read"
                if length > MAX_HEADER:
                    message = f"not safetensors: its first 8 bytes would mean {message}"
                raise _malformed(file, message)
            return stream.read(length), 8 + length, size
    except OSError as error:
        raise InputError(Fault("E_FILE", f"cannot be read: {error.strerror}", str(file))) from error


def _parse(text: bytes, file: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        if len(set(keys)) != len(keys):
            twice = sorted(key for key in set(keys) if keys.count(key) > 1)
            raise ValueError(f"the key {twice[0][:80]!r} stands there twice")
        return dict(pairs)

    try:
        entries = json.loads(text, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise _malformed(file, f"the header is not JSON: {error}") from error
    if not isinstance(entries, dict):
        raise _malformed(file, "the header is not a JSON object")
    return entries


def _stored(name: str, entry: Any, file: Path, start: int, room: int) -> Stored:
    """Check one entry of the header. Raises ValueError with what is wrong."""
    if not NAME.fullmatch(name):
        raise ValueError("the name is not a plain dotted name")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError("expected `dtype`, `shape` and `data_offsets`")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"dtype `{code}` is not supported; supported: {', '.join(DTYPES)}")
    if not _whole(shape) or len(shape) > MAX_DIMENSIONS:
        raise ValueError(f"shape {shape!r} is not a list of at most {MAX_DIMENSIONS} whole numbers")
    if not _whole(offsets) or len(offsets) != 2 or not offsets[0] <= offsets[1] <= room:
        raise ValueError(f"offsets {offsets!r} do not lie in the {room} bytes of data")
    expected = prod(shape) * DTYPES[code].itemsize
    if offsets[1] - offsets[0] != expected:
        raise ValueError(f"{offsets[1] - offsets[0]} bytes for {code} {shape}, expected {expected}")
    return Stored(file, start + offsets[0], DTYPES[code], tuple(shape))


def _check_room(entries: Mapping[str, Any], file: Path, room: int) -> None:
    """Refuse a file that was cut off in one sentence, not in one for each tensor."""
    found = [entry.get("data_offsets") for entry in entries.values() if isinstance(entry, dict)]
    offsets: list[Any] = [pair for pair in found if _whole(pair)]
    needed = max((pair[1] for pair in offsets if len(pair) == 2), default=0)
    if needed > room:
        raise _malformed(file, f"the tensors take {needed} bytes, but only {room} follow the header")


def _whole(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def _check_tiling(tensors: Mapping[str, Stored], file: Path, start: int, size: int) -> None:
    """Refuse holes, overlaps and trailing bytes: they could hide data from every digest of a tensor."""
    end = start
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].size)):
        if tensor.offset != end:
            raise _malformed(file, f"the bytes of {name[:80]!r} start at {tensor.offset}, expected {end}")
        end = tensor.offset + tensor.size
    if end != size:
        raise _malformed(file, f"the tensors end at byte {end}, the file at {size}")


def _malformed(file: Path, what: str) -> InputError:
    return InputError(
        Fault("E_SAFETENSORS", what, str(file), hint="is the file complete? compare its size and digest")
    )
