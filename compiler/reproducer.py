"""One file that says how to see a failure again: what was captured, in which form, with which versions.

It holds structure and versions, no weight and no prompt, so that it can be attached to a report.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..specs.canonical import canonical, digest_of
from .environment import environment, retouch_version
from .graphs.interfaces import Interface

FOLDER = "failures"


def keep_failure(cache: Path, interface: Interface, happened: Mapping[str, Any]) -> Path:
    """Write the file for a failure of one graph into the cache and return its path."""
    component = interface.component
    facts = {
        "retouch": retouch_version(),
        "environment": environment(),
        "graph": interface.folder,
        "class": component.class_name,
        "config": dict(component.config),
        "inputs": [asdict(port) for port in interface.inputs],
        "outputs": [asdict(port) for port in interface.outputs],
        "happened": dict(happened),
    }
    place = cache / FOLDER / f"{interface.folder}-{digest_of(facts)[:16]}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(canonical(facts) + b"\n")
    return place
