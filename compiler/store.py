"""A bounded folder of values that cost time to make: one file a key, whole or absent.

A file is a digest and the compressed value that it is of, so a cut or rotten one reads as absent. It
is written aside and renamed: builds that run side by side, or are killed, leave no half of one. What
was used least recently goes first.
"""

import contextlib
import hashlib
import os
import re
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

DEFAULT_LIMIT = 256 << 20  # bytes; a program of SDXL's U-Net takes under one of its 256 MiB
ENTRY = re.compile(r"[0-9a-f]{64}")
ASIDE = ".making-"
# Nobody needs an hour to write an entry: what is older was left by a process that died.
ABANDONED = 3600.0


def size_limit() -> int:
    """Return how many bytes a cache may take: $RETOUCH_CACHE_SIZE in MiB, else `DEFAULT_LIMIT`."""
    chosen = os.environ.get("RETOUCH_CACHE_SIZE", "")
    return int(chosen) << 20 if chosen.isdecimal() else DEFAULT_LIMIT


@dataclass(frozen=True)
class Store:
    """A folder of values by key, a key being 64 hex digits."""

    folder: Path

    def get(self, key: str) -> bytes | None:
        """Return a value and mark it as used, or None where there is none or it is not what was written."""
        file = self.folder / key
        try:
            content = file.read_bytes()
            digest, packed = content[:32], content[32:]
            value = zlib.decompress(packed)
        except (OSError, zlib.error):
            return None
        if hashlib.sha256(value).digest() != digest:
            return None
        with contextlib.suppress(OSError):
            os.utime(file)
        return value

    def has(self, key: str) -> bool:
        """Whether there is an entry, whole or not."""
        return (self.folder / key).is_file()

    def put(self, key: str, value: bytes) -> None:
        """Keep a value; of several writers of one key any may win, for they write the same.

        A folder that cannot be written costs the next build its time, nothing else.
        """
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=ASIDE, dir=self.folder)
            with os.fdopen(handle, "wb") as stream:
                stream.write(hashlib.sha256(value).digest() + zlib.compress(value, 9))
            Path(name).replace(self.folder / key)
            tidy(self.folder, ENTRY, key)


def tidy(folder: Path, entry: re.Pattern[str], newest: str) -> None:
    """Sweep what dead writers left, then drop the least recently used entries beyond the limit."""
    now = time.time()
    for file in sorted(folder.glob(f"{ASIDE}*")):
        if now - file.stat().st_mtime > ABANDONED:
            file.unlink(missing_ok=True)
    files = [file for file in folder.iterdir() if entry.fullmatch(file.name) and file.is_file()]
    oldest_last = sorted(files, key=lambda file: (file.name == newest, file.stat().st_mtime), reverse=True)
    taken = 0
    for file in oldest_last:
        taken += file.stat().st_size
        if taken > size_limit() and file.name != newest:
            file.unlink(missing_ok=True)
