"""What a build will take in time, memory and disk, before it starts; from headers and a small measured model.

The model's constants were measured with benchmarks/compile.py on two cores of an AMD EPYC, which is no fast
machine: times are for orientation, memory and disk are what `check_room` refuses by.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..runtime.memory import available_memory
from ..specs.errors import Fault, UndecidedError, raise_all
from .emit import Emitter
from .graphs.capture import program_key
from .graphs.interfaces import interfaces
from .ir import Pipeline
from .multiplications import of_image
from .store import Store
from .write import AHEAD

# Importing torch, diffusers and transformers, and tracing, for each weight of a graph. SD 1.5's U-Net has
# 686 weights and took 12 s in all; SDXL's has 1680 and took 28 s.
IMPORT_SECONDS, CAPTURE_SECONDS = 5.0, 0.012
# Bytes a second that are read, hashed twice and written.
WRITE_RATE = 350e6
# Python with NumPy and onnx; the same with torch and the two model libraries; a weight's share of a trace.
WARM_MEMORY, COLD_MEMORY, CAPTURE_MEMORY = 160 << 20, 400 << 20, 150 << 10
# Multiplications a second and core while images are drawn: 83e9 for the demo model in batches of 8, 44e9 for
# SD 2.1 and SDXL at 256x256, one image a call (benchmarks/true_size.py, without loading): between the two.
DRAW_RATE = 60e9
# Room beside what is written: graphs, tokenizers, evidence.
SMALL_FILES = 64 << 20


@dataclass(frozen=True)
class Cost:
    """An estimate: seconds, bytes of memory at the peak, bytes on disk; `cold` graphs must be captured.

    `engine_memory` is the share of the memory that a process which builds engines takes.
    """

    seconds: float
    memory: int
    disk: int
    cold: tuple[str, ...]
    engine_memory: int = 0


def estimate(pipeline: Pipeline, emitters: Sequence[Emitter], cache: Path) -> Cost:
    """Return what a build takes; time without encoding prompts, training, drawing and building engines."""
    cold = _cold(pipeline, emitters, cache)
    weights = sum(cold.values())
    disk = sum(emitter.written_bytes(pipeline) for emitter in emitters)
    seconds = disk / WRITE_RATE + (IMPORT_SECONDS + CAPTURE_SECONDS * weights if cold else 0.0)
    engines = max((emitter.engine_memory(pipeline) for emitter in emitters), default=0)
    memory = max(_memory(pipeline, cold), WARM_MEMORY + engines)
    return Cost(seconds, memory, disk + SMALL_FILES, tuple(cold), engines)


def drawing_seconds(pipeline: Pipeline, images: int, evaluations: int) -> float:
    """Return about how long images of the model's own size take here, with so many evaluations in all."""
    denoiser, decoder = of_image(pipeline)
    return (evaluations * denoiser + images * decoder) / (DRAW_RATE * (os.cpu_count() or 1))


def check_room(cost: Cost, target: Path) -> None:
    """Refuse to start what this machine has no room for.

    Raises:
        UndecidedError: memory or disk is too small; both are named.
    """
    raise_all(UndecidedError, shortages(cost, target))


def shortages(cost: Cost, target: Path) -> list[Fault]:
    """Return what a build needs and this machine does not have."""
    place = next(folder for folder in [target.absolute(), *target.absolute().parents] if folder.is_dir())
    free, memory = shutil.disk_usage(place).free, available_memory()
    hint = "free some, or give --regardless to try anyway"
    faults = []
    if cost.disk > free:
        message = f"about {cost.disk / 1e9:.1f} GB will be written, {free / 1e9:.1f} GB are free"
        faults.append(Fault("E_DISK", message, str(place), hint))
    if cost.memory > memory:
        message = f"about {cost.memory / 1e9:.1f} GB of memory are needed, {memory / 1e9:.1f} GB are free"
        faults.append(Fault("E_MEMORY", message, hint=hint))
    return faults


def _cold(pipeline: Pipeline, emitters: Sequence[Emitter], cache: Path) -> dict[str, int]:
    """Return the graphs that must be captured, and how many weights each component has."""
    if not any(emitter.captures for emitter in emitters):
        return {}
    store = Store(cache)
    return {
        interface.folder: len(pipeline.tensors_of(interface.component.name))
        for interface in interfaces(pipeline)
        if not store.has(program_key(interface, pipeline.graph_edits))
    }


def _memory(pipeline: Pipeline, cold: dict[str, int]) -> int:
    largest = max((2 * prod(tensor.shape) * 4 for tensor in pipeline.tensors.values()), default=0)
    writing = WARM_MEMORY + max(AHEAD, largest)
    return max(writing, COLD_MEMORY + CAPTURE_MEMORY * max(cold.values())) if cold else writing
