"""The process that holds TensorRT: reads one order on stdin, writes what happens on stdout.

    python -m retouch.compiler.engines.worker

It is a process of its own because a build takes several times the memory of the weights, and because
what a native library does when it fails (abort, or take all memory) must not end a compiler. Lines
on stdout are JSON objects with one key: `progress` (a share of the whole), `message` (a warning of
TensorRT), `memory` (peak bytes: the limit was passed), `faults`, or `done`.
"""

import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any, BinaryIO

from ...runtime.memory import peak_memory

INTERVAL = 0.05  # seconds between two looks at the memory
OVER_LIMIT = 75  # exit code where the limit was passed
FIXED_ADDRESSES = 0x0040000  # ADDR_NO_RANDOMIZE of Linux' personality(2)


class Reporter:
    """Writes one JSON object a line to the process that started this one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def __call__(self, kind: str, value: Any) -> None:
        with self._lock:
            self._stream.write(json.dumps({kind: value}).encode() + b"\n")
            self._stream.flush()


class Progress:
    """Turns TensorRT's nested phases into one share: each phase is worth a step of the one around it.

    Phases may come and go twice within a step, so what was reached is kept.
    """

    def __init__(self) -> None:
        self._phases: dict[str, list[int]] = {}  # open ones, outermost first: steps done, steps in all
        self.share = 0.0  # of the whole, 0 to 1; it never falls

    def start(self, phase: str, steps: int) -> None:
        self._phases[phase] = [0, max(steps, 1)]

    def step(self, phase: str) -> None:
        if phase in self._phases:
            self._phases[phase][0] += 1
        share = 0.0
        for done, steps in reversed(self._phases.values()):
            share = min((done + share) / steps, 1.0)
        self.share = max(self.share, share)

    def finish(self, phase: str) -> None:
        self._phases.pop(phase, None)


def main() -> None:
    """Carry out the order: parse a graph, and build an engine where it names one.

    That happens on a thread of its own, whose memory the C library takes from a fresh place: what Python
    had in memory before (paths, hash seeds) must not decide where TensorRT's values lie.
    """
    fixed = _has_fixed_addresses()
    # Native code that prints must not break the lines.
    report = Reporter(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)
    order = json.load(sys.stdin)
    _watch_memory(order["memory_limit"], report)
    with Path(order["engine"] or os.devnull).open("wb") as stream:
        thread = threading.Thread(target=_carry_out, args=(order, stream, fixed, report))
        thread.start()
        thread.join()


def _has_fixed_addresses() -> bool:
    """Start this process again without random addresses, and say whether they are fixed.

    Where dimensions are free, TensorRT-RTX 1.7.1 orders some values by their addresses, and two builds
    differ in some hundred bytes. Fixed addresses make that less frequent; its own threads still take turns
    by chance. A container may forbid the call, and other systems lack it.
    """
    if sys.platform != "linux":
        return False
    personality = ctypes.CDLL(None).personality
    current = personality(0xFFFFFFFF)
    if current & FIXED_ADDRESSES:
        return True
    if personality(current | FIXED_ADDRESSES) != -1:
        os.execv(sys.executable, [sys.executable, "-P", "-m", __spec__.name])
    return False


def _watch_memory(limit: int | None, report: Reporter) -> None:
    """End this process as soon as it has used more than `limit` bytes."""
    watching = threading.Event()

    def watch() -> None:
        while limit is not None and peak_memory() <= limit:
            watching.set()
            time.sleep(INTERVAL)
        watching.set()
        if limit is not None:
            report("memory", peak_memory())
            os._exit(OVER_LIMIT)

    threading.Thread(target=watch, daemon=True).start()
    # It has taken its memory before the builder takes any: their order must not be up to chance.
    watching.wait()


def _carry_out(order: Mapping[str, Any], stream: BinaryIO, fixed: bool, report: Reporter) -> None:
    trt = import_module(order["module"])
    logger = _logger(trt, report)
    builder = trt.Builder(logger)
    # Strongly typed: every type is the graph's own, which also makes the bytes repeatable.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(order["graph"]):
        report("faults", [_fault(parser.get_error(i)) for i in range(parser.num_errors)])
        return
    _let_attention_decompose(trt, network)
    done: dict[str, Any] = {"version": trt.__version__, "layers": network.num_layers}
    if order["engine"] is not None:
        config = _configure(trt, builder, order)
        config.progress_monitor = _monitor(trt, report)
        digest = sha256()
        if not builder.build_serialized_network_to_stream(network, config, _writer(trt, stream, digest)):
            return
        done |= {"sha256": digest.hexdigest(), "size": stream.tell(), "fixed_addresses": fixed}
        done |= {"peak_memory": peak_memory()}
    report("done", done)


def _let_attention_decompose(trt: Any, network: Any) -> None:
    """Allow plain matrix products where a width of heads has no attention kernel of its own."""
    for place in range(network.num_layers):
        layer = network.get_layer(place)
        if layer.type == trt.LayerType.ATTENTION_OUTPUT:
            layer.__class__ = trt.IAttentionOutputLayer  # TensorRT's own way to narrow a layer
            layer.attention.decomposable = True


def _configure(trt: Any, builder: Any, order: Mapping[str, Any]) -> Any:
    """Return the build's settings; no timing cache, which would ask for a GPU."""
    config = builder.create_builder_config()
    if order["capabilities"]:
        config.num_compute_capabilities = len(order["capabilities"])
    for place, capability in enumerate(order["capabilities"]):
        member = getattr(trt.ComputeCapability, "SM" + capability.replace(".", ""))
        config.set_compute_capability(member, place)
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in order["profile"].items():
        profile.set_shape(name, smallest, usual, largest)
    config.add_optimization_profile(profile)
    return config


def _writer(trt: Any, stream: BinaryIO, digest: Any) -> Any:
    """Return what takes an engine piece by piece: it is never whole in memory beside the builder's own."""

    class Writer(trt.IStreamWriter):
        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)

        def write(self, data: bytes) -> int:
            digest.update(data)
            return stream.write(data)

    return Writer()


def _monitor(trt: Any, report: Reporter) -> Any:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.progress = Progress()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            del parent_phase
            self.progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            del step
            self.progress.step(phase_name)
            report("progress", self.progress.share)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self.progress.finish(phase_name)

    return Monitor()


def _logger(trt: Any, report: Reporter) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.WARNING:
                report("message", message)

    return Logger()


def _fault(error: Any) -> dict[str, Any]:
    return {"operator": error.node_operator(), "node": error.node_name(), "message": error.desc()}


if __name__ == "__main__":
    # The process that gave the order is gone: nobody is left to tell.
    with suppress(BrokenPipeError):
        main()
