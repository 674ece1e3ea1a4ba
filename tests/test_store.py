"""The cache: whole entries or none, whoever writes at the same time, dies, or fills the disk."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retouch.compiler.store import ABANDONED, ASIDE, Store

KEYS = [hashlib.sha256(bytes([i])).hexdigest() for i in range(4)]
VALUE = b"value " * 1000
# Does not compress.
NOISE = [b"".join(hashlib.sha256(f"{i}.{j}".encode()).digest() for j in range(8192)) for i in range(4)]


def test_what_was_put_is_got(tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    assert store.get(KEYS[0]) is None
    store.put(KEYS[0], VALUE)
    assert store.get(KEYS[0]) == VALUE
    assert store.get(KEYS[1]) is None
    assert [file.name for file in (tmp_path / "cache").iterdir()] == [KEYS[0]]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty"])
def test_a_damaged_entry_reads_as_absent_and_is_replaced(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path)
    store.put(KEYS[0], VALUE)
    file = tmp_path / KEYS[0]
    whole = file.read_bytes()
    broken = {"cut": whole[:-3], "flip": whole[:40] + bytes([whole[40] ^ 1]) + whole[41:], "empty": b""}
    file.write_bytes(broken[damage])
    assert store.get(KEYS[0]) is None
    store.put(KEYS[0], VALUE)
    assert store.get(KEYS[0]) == VALUE


WRITER = """
import sys
from pathlib import Path
from retouch.compiler.store import Store

folder, key, line = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
store = Store(folder)
print("ready", flush=True)
sys.stdin.read(1)
for _ in range(50):
    store.put(key, line.encode() * 2000)
    assert store.get(key) == line.encode() * 2000
"""


def test_writers_of_one_key_do_not_disturb_each_other(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WRITER, str(tmp_path), KEYS[0], "same"]
    pipe = subprocess.PIPE
    writers = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.communicate("x", timeout=120)
    assert [writer.returncode for writer in writers] == [0, 0]
    assert Store(tmp_path).get(KEYS[0]) == b"same" * 2000
    assert [file.name for file in tmp_path.iterdir()] == [KEYS[0]]


def test_what_a_killed_writer_left_is_swept_once_it_is_old(tmp_path: Path) -> None:
    fresh, old = tmp_path / f"{ASIDE}fresh", tmp_path / f"{ASIDE}old"
    for file in (fresh, old):
        file.write_bytes(b"half")
    then = time.time() - 2 * ABANDONED
    os.utime(old, (then, then))
    Store(tmp_path).put(KEYS[0], VALUE)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([fresh.name, KEYS[0]])


def test_what_was_used_least_recently_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETOUCH_CACHE_SIZE", "1")  # MiB; an entry takes a quarter
    store = Store(tmp_path)
    (tmp_path / "other.txt").write_text("not an entry")
    for i, key in enumerate(KEYS[:3]):
        store.put(key, NOISE[i])
        os.utime(tmp_path / key, (i, i))
    assert store.get(KEYS[0]) == NOISE[0]  # used again: now the newest
    store.put(KEYS[3], NOISE[3])
    assert store.get(KEYS[1]) is None
    assert [store.get(KEYS[i]) for i in (0, 2, 3)] == [NOISE[i] for i in (0, 2, 3)]
    assert (tmp_path / "other.txt").exists()


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "cache")
    store.put(KEYS[0], VALUE)
    assert store.get(KEYS[0]) is None
