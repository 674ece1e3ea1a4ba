"""Run a command in a process of its own: seconds, peak of memory, and what became of it."""

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# ru_maxrss is in KiB on Linux and in bytes on macOS.
UNIT = 1 if sys.platform == "darwin" else 1024
LIMIT = 16 << 30  # bytes that a peer may take: what a good laptop has
START = "import sys; from retouch.runtime.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass(frozen=True)
class Run:
    """What a process took. `outcome` is `done`, or why there is no result."""

    outcome: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def retouch(*arguments: str | Path) -> list[str]:
    """Return the command line of `retouch` in this environment."""
    return [sys.executable, "-c", START, *map(str, arguments)]


def measured(
    command: Sequence[str | Path],
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
    limit: int | None = None,
    timeout: float = 600.0,
) -> Run:
    """Run a command and wait for it; with `limit`, it may not have more bytes of memory than that."""
    started = time.monotonic()
    with (log or Path(os.devnull)).open("ab") as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(environment or {})},
            stdout=stream,
            stderr=stream,
            preexec_fn=None if limit is None else lambda: _restrict(limit),
        )
        status, usage, late = _wait(process, started + timeout)
    seconds = time.monotonic() - started
    outcome = f"not done after {timeout:.0f} s" if late else _outcome(status, limit, log)
    return Run(outcome, round(seconds, 1), round(usage.ru_utime + usage.ru_stime, 1), usage.ru_maxrss * UNIT)


def _restrict(limit: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _wait(process: subprocess.Popen[bytes], deadline: float) -> tuple[int, resource.struct_rusage, bool]:
    """Return exit status and usage of a process; one that is late is killed."""
    late = False
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return process.returncode, usage, late
        if time.monotonic() > deadline and not late:
            process.kill()
            late = True
        time.sleep(0.02)


def _outcome(status: int, limit: int | None, log: Path | None) -> str:
    if status == 0:
        return "done"
    said = log.read_text(errors="replace") if log is not None and log.is_file() else ""
    words = ("MemoryError", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "Killed")
    if limit is not None and (status == -9 or any(word in said for word in words)):
        return f"did not fit {limit >> 30} GiB"
    last = said.strip().rsplit("\n", 1)[-1][:200]
    return f"failed ({status}): {last}"
