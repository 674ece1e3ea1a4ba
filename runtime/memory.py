"""How much memory can a process still take here, of machine and container, and what has it taken?"""

import os
import resource
import sys
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
# ru_maxrss is in KiB on Linux and in bytes on macOS.
UNIT = 1 if sys.platform == "darwin" else 1024


def peak_memory() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT


def available_memory() -> int:
    """Return the bytes that can be taken without swapping: the least of what machine and container leave."""
    return min([_of_machine(), *_of_container()])


def _of_machine() -> int:
    """Return what Linux estimates to be available; elsewhere all the machine's memory."""
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_container() -> list[int]:
    """Return what the control group's limit leaves, where there is one (version 2)."""
    try:
        limit = (CGROUP / "memory.max").read_text(encoding="ascii").strip()
        used = int((CGROUP / "memory.current").read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in (CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        )
    except (OSError, ValueError):
        return []
    # Files that were read and can be dropped count as used, but are free for the asking.
    return [] if limit == "max" else [max(0, int(limit) - used + int(stat.get("inactive_file", 0)))]
