"""One text, and so one digest, for one value: RFC 8785 JSON, and Merkle roots over it."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import rfc8785

BLOCK = 1 << 20


def canonical(value: Any) -> bytes:
    """Return the canonical JSON of a value (RFC 8785: sorted keys, shortest numbers, no spaces)."""
    return rfc8785.dumps(value)


def digest_of(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of a value, in hex."""
    return hashlib.sha256(canonical(value)).hexdigest()


def sealed(value: dict[str, Any]) -> bytes:
    """Return the text of a document that carries its own digest: canonical, with a newline at its end."""
    return canonical({**value, "digest": digest_of(value)}) + b"\n"


def intact(text: bytes) -> dict[str, Any]:
    """Return what a sealed document says, its digest included.

    Raises:
        ValueError: a byte of it was changed since it was sealed.
    """
    value = json.loads(text.decode())
    if not isinstance(value, dict) or canonical(value) + b"\n" != text:
        raise ValueError("not in canonical form: the text was changed after the build")
    unsealed = {key: item for key, item in value.items() if key != "digest"}
    if value.get("digest") != digest_of(unsealed):
        raise ValueError(f"its own digest is {digest_of(unsealed)}, expected {value.get('digest')}")
    return value


def digest_file(file: Path) -> str:
    """Return the SHA-256 of a file, read once in blocks."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def merkle_root(leaves: Iterable[tuple[str, str]]) -> str:
    """Return the root over (name, SHA-256 in hex) pairs, in the order given.

    A leaf is H(0 | name | 0 | digest), a node H(1 | left | right); an odd node moves up as it is.
    The prefixes keep a leaf from passing for a node (RFC 6962, 2.1).
    """
    level = [
        hashlib.sha256(b"\0" + name.encode() + b"\0" + bytes.fromhex(digest)).digest()
        for name, digest in leaves
    ]
    if not level:
        return hashlib.sha256(b"").hexdigest()
    while len(level) > 1:
        pairs = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [
            hashlib.sha256(b"\1" + b"".join(pair)).digest() if len(pair) == 2 else pair[0] for pair in pairs
        ]
    return level[0].hex()
