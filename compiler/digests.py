"""SHA-256 of large inputs, remembered: a rebuild after an edit need not read a checkpoint twice.

A remembered digest holds for one file as the file system knows it: device, inode, size, and the times
of its last write and of its last change, which a user cannot set. Files changed in the last moments are
always read: a second write within one tick of the clock would go unseen.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..specs.canonical import canonical, digest_file
from .store import Store
from .tensors import Tensor

# File systems count time in steps of up to two seconds (FAT).
TICK = 2.0
SMALL = 1 << 20  # bytes; smaller files are read at once


def remembering(cache: Path) -> Callable[[Path], str]:
    """Return what gives a file's SHA-256, from the cache where the file is the one that was read."""
    store = Store(cache)

    def digest(file: Path) -> str:
        status = file.stat()
        if status.st_size < SMALL or time.time() - max(status.st_mtime, status.st_ctime) < TICK:
            return digest_file(file)
        key = _key(file, status)
        kept = store.get(key)
        if kept is not None:
            return kept.decode("ascii")
        found = digest_file(file)
        store.put(key, found.encode("ascii"))
        return found

    return digest


def feed(digest: Any, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Feed tensors into a hash of `hashlib`, in the order given, each with its name, type and shape."""
    for name, tensor in tensors:
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode())
        digest.update(tensor.read().reshape(-1).view(np.uint8).data)


def _key(file: Path, status: os.stat_result) -> str:
    facts = [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    return hashlib.sha256(canonical(["digest", str(file.resolve()), *map(str, facts)])).hexdigest()
