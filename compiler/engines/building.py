"""An ONNX graph -> a TensorRT engine, built in a process of its own that may not take all memory.

TensorRT-RTX builds engines ahead of time on a machine without a GPU; plain TensorRT builds them on
the GPU that they are for. The bytes of the former depend on graph, weights, profile, capabilities
and the library's version, and on nothing else where every shape is fixed; where shapes are free, two
builds may differ in some hundred bytes, which name values (1.7.1).
Source: TensorRT-RTX documentation, "Working with CPU-only ahead-of-time engines".
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...runtime.memory import available_memory
from ...specs.errors import Fault, InputError, UndecidedError

# The bindings' own name: both the CUDA 12 and the CUDA 13 wheels hold it.
RTX, PLAIN = "tensorrt_rtx_bindings", "tensorrt"
EXTRAS: Mapping[str, str] = {RTX: "rtx", PLAIN: "tensorrt"}
LIBRARIES: Mapping[str, str] = {RTX: "TensorRT-RTX", PLAIN: "TensorRT"}
# Peak memory of a build. TensorRT-RTX 1.7.1 took 5.5 GB for SD 1.5's 1.72 GB of float16 weights, and 0.5 GB
# for a network of a few hundred kilobytes; the answer of each build says what it took.
TIMES_WEIGHTS, BASE = 3.3, 600 << 20
WORKER = f"{__package__}.worker"
STEPS = 1000  # of a progress bar
# The variables of its environment that the process with TensorRT needs.
KEPT = ("LD_LIBRARY_PATH", "PATH", "PYTHONPATH", "SYSTEMROOT", "VIRTUAL_ENV")


@dataclass(frozen=True)
class Shapes:
    """The shapes that an engine takes for one input: every one from `smallest` to `largest`.

    It is made to be fastest at `usual`.
    """

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class Order:
    """What to build: from which graph, for which inputs and GPUs (compute capabilities, such as "8.6")."""

    graph: Path
    profile: Mapping[str, Shapes] = field(default_factory=dict)
    capabilities: tuple[str, ...] = ()
    module: str = RTX


@dataclass(frozen=True)
class Parsed:
    """What TensorRT made of a graph. `messages` are its warnings."""

    version: str
    layers: int
    messages: tuple[str, ...]


@dataclass(frozen=True)
class Engine(Parsed):
    """An engine as written. `peak_memory` is the builder's, in bytes, and differs from run to run.

    `fixed_addresses` is whether the builder's memory addresses were not random, on which the bytes of an
    engine with free dimensions depend.
    """

    sha256: str
    size: int
    peak_memory: int
    fixed_addresses: bool


def check_installed(module: str) -> None:
    """Raise UndecidedError where a TensorRT is not installed; nothing is loaded."""
    if find_spec(module) is None:
        message = f"{LIBRARIES[module]} is not installed"
        raise UndecidedError(Fault("E_EXTRA", message, module, f"pip install 'retouch[{EXTRAS[module]}]'"))


def parse(graph: Path, module: str = RTX) -> Parsed:
    """Read a graph with TensorRT's own parser, without building anything.

    Raises:
        InputError: TensorRT cannot read it; each node that it refuses is a fault.
        UndecidedError: TensorRT is not installed, or the process ended.
    """
    answer, messages = _run(Order(graph, module=module), None, None, lambda share: None)
    return Parsed(answer["version"], answer["layers"], messages)


def build(
    order: Order,
    file: Path,
    advance: Callable[[int], None] = lambda steps: None,
    memory_limit: int | None = None,
) -> Engine:
    """Build an engine into a new file, with at most `memory_limit` bytes (else what is available).

    `advance` hears of `STEPS` steps in all. A build that fails leaves no file.

    Raises:
        InputError: TensorRT cannot read the graph, or cannot build it.
        UndecidedError: TensorRT is not installed, or needs more memory than there is.
    """
    limit = available_memory() if memory_limit is None else memory_limit
    _refuse_too_large(order, limit)
    try:
        answer, messages = _run(order, file, limit, _stepper(advance))
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return Engine(messages=messages, **answer)


def memory_needed(weights: int) -> int:
    """Return about how many bytes of memory the build of an engine with so many bytes of weights takes."""
    return BASE + int(TIMES_WEIGHTS * weights)


def _refuse_too_large(order: Order, limit: int) -> None:
    """Raise UndecidedError before hours of swapping, where the weights alone say that it cannot fit."""
    weights = sum(file.stat().st_size for file in order.graph.parent.glob(f"{order.graph.name}_data"))
    needed = memory_needed(weights)
    if needed > limit:
        raise UndecidedError(_too_little(order, f"about {_gigabytes(needed)}", limit))


def _too_little(order: Order, needed: str, limit: int) -> Fault:
    return Fault(
        "E_MEMORY",
        f"a build with {LIBRARIES[order.module]} needs {needed} of memory, {_gigabytes(limit)} are available",
        str(order.graph),
        "build on a larger machine, end other programs, or use `precision: float16`",
    )


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _stepper(advance: Callable[[int], None]) -> Callable[[float], None]:
    """Return what turns shares of the whole into steps of a progress bar."""
    done = 0

    def step(share: float) -> None:
        nonlocal done
        reached = int(share * STEPS)
        advance(reached - done)
        done = reached

    return step


def _run(
    order: Order, file: Path | None, limit: int | None, progress: Callable[[float], None]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Let a worker carry out an order; return its answer and TensorRT's warnings."""
    check_installed(order.module)
    messages: list[str] = []
    with tempfile.TemporaryFile() as noise, _worker(order, noise) as worker:
        _tell(worker, order, file, limit)
        for kind, value in _heard(worker):
            if kind == "progress":
                progress(value)
            elif kind == "message":
                messages.append(value)
            elif kind == "memory":
                raise UndecidedError(_too_little(order, f"more than {_gigabytes(value)}", limit or 0))
            elif kind == "faults":
                raise InputError(*(_refusal(order, fault) for fault in value))
            else:
                progress(1.0)
                return value, tuple(messages)
        raise _ended(order, worker, messages, noise)


@contextmanager
def _worker(order: Order, noise: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Give a running worker, and end it with the block."""
    # What is built for other machines must depend neither on a GPU of this one, nor on who builds it.
    fixed = {"CUDA_VISIBLE_DEVICES": ""} if order.module == RTX else {}
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment = {**kept, **fixed, "PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
    # In the graph's own folder, so that TensorRT sees a name of the same length everywhere.
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", WORKER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=noise,
        env=environment,
        cwd=order.graph.parent,
    )
    try:
        yield worker
    finally:
        worker.kill()
        assert worker.stdout is not None
        worker.stdout.close()
        worker.wait()


def _tell(worker: subprocess.Popen[bytes], order: Order, file: Path | None, limit: int | None) -> None:
    text = {
        "module": order.module,
        "graph": order.graph.name,
        "engine": None if file is None else str(file.resolve()),
        "capabilities": order.capabilities,
        "profile": {name: list(asdict(shapes).values()) for name, shapes in sorted(order.profile.items())},
        "memory_limit": limit,
    }
    assert worker.stdin is not None
    worker.stdin.write(json.dumps(text).encode())
    worker.stdin.close()


def _heard(worker: subprocess.Popen[bytes]) -> Iterator[tuple[str, Any]]:
    assert worker.stdout is not None
    for line in worker.stdout:
        yield from json.loads(line).items()


def _refusal(order: Order, fault: Mapping[str, str]) -> Fault:
    node = f" of node `{fault['node']}`" if fault["node"] else ""
    message = (
        f"{LIBRARIES[order.module]} cannot read operator `{fault['operator']}`{node}: {fault['message']}"
    )
    return Fault("E_ENGINE", message, str(order.graph))


def _ended(
    order: Order, worker: subprocess.Popen[bytes], messages: list[str], noise: Any
) -> InputError | UndecidedError:
    """Return what to say of a worker that gave no answer."""
    code = worker.wait()
    if code == -9:
        message = f"the process with {LIBRARIES[order.module]} was killed, most likely for want of memory"
        return UndecidedError(Fault("E_MEMORY", message, str(order.graph)))
    noise.seek(0)
    said = [*messages, *noise.read().decode(errors="replace").strip().splitlines()]
    message = f"{LIBRARIES[order.module]} built nothing: {said[-1] if said else f'exit code {code}'}"
    return InputError(Fault("E_ENGINE", message, str(order.graph)))
