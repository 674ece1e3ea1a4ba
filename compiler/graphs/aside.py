"""Capture what the cache lacks in processes of their own: side by side, and what they took ends with them.

    python -m retouch.compiler.graphs.aside

Tracing needs torch and the model libraries, some 0.4 GB that a process keeps, and one core. Such a process
only fills the cache: what it leaves out, a fault included, is captured where it is needed, and told there.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..ir import Component, GraphEdit, Pipeline
from ..store import Store
from .capture import program_key, program_of
from .interfaces import Interface, Port, interfaces
from .shapes import shapes_of

# Weights of a model's graphs from which on processes are worth their start: importing the libraries takes as
# long as tracing some 400. The demo model has 640, SD 1.5 has 1,378.
WORTH = 1000


def capture_aside(
    pipeline: Pipeline,
    shares: Sequence[Sequence[str]],
    cache: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> None:
    """Capture the graphs of each share in a process of its own; `advance` hears of each graph."""
    known = {interface.folder: interface for interface in interfaces(pipeline)}
    with ExitStack() as stack:
        started = [
            _start([known[folder] for folder in share], pipeline.graph_edits, cache, stack)
            for share in shares
        ]
        for share, process in zip(shares, started, strict=True):
            process.wait()
            advance(len(share))


def cold_graphs(pipeline: Pipeline, roles: Collection[str], cache: Path) -> dict[str, int]:
    """Return the folders of graphs of some roles that the cache lacks, and how many weights each has."""
    store = Store(cache)
    return {
        interface.folder: len(pipeline.tensors_of(interface.component.name))
        for interface in interfaces(pipeline)
        if interface.component.role in roles and not store.has(program_key(interface, pipeline.graph_edits))
    }


def shares_of(cold: Mapping[str, int]) -> list[list[str]]:
    """Return which graphs each process captures, about as much in each; nothing where none is worth it."""
    if sum(cold.values()) < WORTH:
        return []
    shares: list[list[str]] = [[] for _ in range(min(len(cold), os.cpu_count() or 1))]
    for folder in sorted(cold, key=lambda name: (-cold[name], name)):
        min(shares, key=lambda share: sum(map(cold.__getitem__, share))).append(folder)
    return shares


def _start(
    share: Iterable[Interface], edits: Sequence[GraphEdit], cache: Path, stack: ExitStack
) -> subprocess.Popen[bytes]:
    """Start a process that captures some graphs, and end it with the block."""
    order = {
        "interfaces": [_as_json(one) for one in share],
        "edits": [asdict(edit) for edit in edits],
        "cache": str(cache.resolve()),
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", __name__],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdin is not None
    process.stdin.write(json.dumps(order).encode())
    process.stdin.close()
    return process


def carry_out(order: Mapping[str, Any]) -> None:
    """Capture what an order names, and look up the shapes of its weights."""
    cache = Path(order["cache"])
    edits = [GraphEdit(**edit) for edit in order["edits"]]
    for text in order["interfaces"]:
        interface = _interface(text)
        program_of(interface, edits, cache)
        shapes_of(interface.component, cache)


def _as_json(interface: Interface) -> dict[str, Any]:
    component = vars(interface.component)
    return {
        **vars(interface),
        "component": {**component, "config": dict(component["config"]), "folder": str(component["folder"])},
        "inputs": [asdict(port) for port in interface.inputs],
        "outputs": [asdict(port) for port in interface.outputs],
    }


def _interface(text: Mapping[str, Any]) -> Interface:
    component = Component(**{**text["component"], "folder": Path(text["component"]["folder"])})
    inputs, outputs = ([_port(port) for port in text[name]] for name in ("inputs", "outputs"))
    return Interface(**{**text, "component": component, "inputs": tuple(inputs), "outputs": tuple(outputs)})


def _port(text: Mapping[str, Any]) -> Port:
    return Port(text["name"], text["dtype"], tuple(text["shape"]))


if __name__ == "__main__":
    carry_out(json.load(sys.stdin.buffer))
