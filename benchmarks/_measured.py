"""Run a command in a process of its own: seconds, peak of memory, and what became of it."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# ru_maxrss is in KiB on Linux and in bytes on macOS.
UNIT = 1 if sys.platform == "darwin" else 1024
LIMIT = 16 << 30  # bytes that a peer may take: what a good laptop has
START = "import sys; from retouch.runtime.cli import main; sys.exit(main(sys.argv[1:]))"
INTERVAL = 0.2  # seconds between two looks at a process
PROCESSES = Path("/proc")
# Fields of /proc/stat that are work: user, nice, system, irq, softirq. Source: proc_stat(5).
WORK = (0, 1, 2, 5, 6)
NO_MEMORY = ("MemoryError", "can't allocate memory", "Cannot allocate memory", "bad_alloc")


@dataclass(frozen=True)
class Run:
    """What a process took, with those that it started. `outcome` is `done`, or why there is no result.

    `load` is the machine's at the start, and `others` how many cores other programs kept busy meanwhile.
    """

    outcome: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    load: float
    others: float

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
    """Run a command and wait for it; it is stopped after `timeout` seconds, or over `limit` bytes."""
    started, worked, load = time.monotonic(), _worked() - time.process_time(), os.getloadavg()[0]
    with (log or Path(os.devnull)).open("ab") as stream:
        process = subprocess.Popen(
            [str(part) for part in command],
            env={**os.environ, **(environment or {})},
            stdout=stream,
            stderr=stream,
        )
        stopped, peak, usage = _wait(process, started + timeout, limit)
    seconds, own = time.monotonic() - started, usage.ru_utime + usage.ru_stime
    outcome = {
        "late": f"took longer than {timeout / 60:g} min",
        "large": f"did not fit {(limit or 0) >> 30} GiB",
        "": _outcome(process.returncode, limit, log),
    }[stopped]
    return Run(
        outcome,
        round(seconds, 1),
        round(own, 1),
        max(peak, usage.ru_maxrss * UNIT),
        round(load, 1),
        round(max(0.0, _worked() - time.process_time() - worked - own) / seconds, 1),
    )


def _wait(
    process: subprocess.Popen[bytes], deadline: float, limit: int | None
) -> tuple[str, int, resource.struct_rusage]:
    """Return why a process was stopped if it was, the most bytes that it held, and its usage."""
    stopped, peak = "", 0
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            process.returncode = os.waitstatus_to_exitcode(status)
            return stopped, peak, usage
        family = _family(process.pid)
        held = sum(family.values())
        peak = max(peak, held)
        if not stopped and (time.monotonic() > deadline or (limit is not None and held > limit)):
            stopped = "late" if time.monotonic() > deadline else "large"
            for member in {process.pid, *family}:
                with suppress(ProcessLookupError):
                    os.kill(member, signal.SIGKILL)
        time.sleep(INTERVAL)


def _family(first: int) -> dict[int, int]:
    """Return the bytes of memory that a process and its descendants hold; none where the system is silent."""
    parents, held = {}, {}
    for place in PROCESSES.glob("[0-9]*"):
        # A process may end between two looks.
        with suppress(OSError):
            # After the name in parentheses: state, parent; and 20 fields on, resident pages.
            fields = (place / "stat").read_text().rpartition(")")[2].split()
            parents[int(place.name)] = int(fields[1])
            held[int(place.name)] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    members = {first} & held.keys()
    while more := {pid for pid, parent in parents.items() if parent in members} - members:
        members |= more
    return {pid: held[pid] for pid in members}


def _worked() -> float:
    """Return the seconds that all cores have worked since the machine's start; 0 where it does not say."""
    with suppress(OSError):
        ticks = (PROCESSES / "stat").read_text().partition("\n")[0].split()[1:]
        return sum(int(ticks[place]) for place in WORK) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _outcome(status: int, limit: int | None, log: Path | None) -> str:
    if status == 0:
        return "done"
    said = log.read_text(errors="replace") if log is not None and log.is_file() else ""
    if status == -signal.SIGKILL or any(word in said for word in NO_MEMORY):
        return "did not fit this machine" if limit is None else f"did not fit {limit >> 30} GiB"
    last = said.strip().rsplit("\n", 1)[-1][:200]
    return f"failed ({status}): {last}"
