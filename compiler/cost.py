"""What a build will take in time, memory and disk, before it starts; from headers and a small measured model.

The model's constants were measured with benchmarks/compile.py on two cores of an AMD EPYC, which is no fast
machine: times are for orientation, memory and disk are what `check_room` refuses by.
"""

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..runtime.memory import available_memory
from ..specs.errors import Fault, UndecidedError, raise_all
from .emit import Emitter
from .evidence.parity import MAPPED_ONLY
from .evidence.trial import BATCH
from .graphs.aside import cold_graphs, shares_of
from .ir import Pipeline
from .load import MODEL_ROLES
from .multiplications import of_image
from .work import Step, Work
from .write import AHEAD

# Importing torch, diffusers and transformers, and tracing, for each weight of a graph. SD 1.5's U-Net has
# 686 weights and took 12 s in all; SDXL's has 1680 and took 28 s.
IMPORT_SECONDS, CAPTURE_SECONDS = 5.0, 0.012
# Bytes a second that are read, hashed twice and written.
WRITE_RATE = 350e6
# Python with NumPy and onnx; the same with torch and the two model libraries; a weight's share of a trace.
WARM_MEMORY, COLD_MEMORY, CAPTURE_MEMORY = 160 << 20, 400 << 20, 150 << 10
# The same once torch and onnxruntime have computed: 0.5 to 0.7 GB for the demo, whose weights are nothing.
RUN_MEMORY = 600 << 20
# Multiplications a second and core while images are drawn: 83e9 for the demo model in batches of 8, 44e9 for
# SD 2.1 and SDXL at 256x256, one image a call (benchmarks/true_size.py, without loading): between the two.
DRAW_RATE = 60e9
# The same of torch on one thread: 26e9 to 53e9 for the demo model, 33e9 to 53e9 for SD 1.5's U-Net, in
# batches of 1 to 16; a sample with a gradient takes as long as 1.7 to 2.9 without (benchmarks/paces.py).
TORCH_RATE, GRADIENT = 45e9, 2.5
# Building engines with TensorRT-RTX 1.7.1: seconds an engine, and bytes of weights a second. The demo's four
# took 3.4 s, SD 1.5's took 33 s for 2.3 GB (benchmarks/compile.py).
ENGINE_SECONDS, ENGINE_RATE = 0.8, 75e6
# Bytes of values beside the weights: of a run, for each number of its widest layer, 19 to 26 where the demo's
# graphs are compared at 512x512 (38 for SD 1.5's U-Net at that size, with what torch itself takes); of a
# gradient, for each number of all layers, 8 to 12 for SD 1.5's and 11 to 17 for the demo's
# (benchmarks/paces.py).
RUN_BYTES, GRADIENT_BYTES = 24, 10
# The same where onnxruntime draws: for SD 1.5, 2.1 and SDXL at 256x256 `retouch run` takes 0.1 to 0.4 GB
# beside the weights (benchmarks/compile.py, true_size.py): at most 12 for the decoder, which is widest.
DRAW_BYTES = 12
# Room beside what is written: graphs, tokenizers, evidence.
SMALL_FILES = 64 << 20


@dataclass(frozen=True)
class Cost:
    """An estimate: seconds, bytes of memory at the peak, bytes on disk.

    `cold` are the graphs that must be captured, with how many weights each one's component has.
    `engine_memory` is the share of the memory that a process which builds engines takes.
    """

    seconds: float
    memory: int
    disk: int
    cold: Mapping[str, int]
    engine_memory: int = 0


def estimate(
    pipeline: Pipeline, emitters: Sequence[Emitter], cache: Path, steps: Sequence[Step] = ()
) -> Cost:
    """Return what a build of such steps takes.

    Time is without encoding prompts, and without what the steps ask of the model: `Pace` times that.
    """
    cold = graphs_to_capture(pipeline, emitters, cache)
    # Weights that each process traces, one graph after the other.
    traced = [[cold[name] for name in share] for share in shares_of(cold) or [list(cold)]]
    disk = sum(emitter.written_bytes(pipeline) for emitter in emitters)
    imports = IMPORT_SECONDS if cold or any(step.work.in_torch for step in steps) else 0.0
    seconds = disk / WRITE_RATE + imports + CAPTURE_SECONDS * max(map(sum, traced))
    engines = max((emitter.engine_memory(pipeline) for emitter in emitters), default=0)
    working = [_working_memory(pipeline, step) for step in steps]
    memory = max(_memory(pipeline, traced), WARM_MEMORY + engines, *working)
    # What is drawn from beside the artefact is written as well, to go again: the source, or a loop's model.
    beside = max((_float32(pipeline, MODEL_ROLES) for step in steps if step.work.drawn), default=0)
    return Cost(seconds, memory, disk + beside + SMALL_FILES, cold, engines)


@dataclass(frozen=True)
class Pace:
    """How long a model's work takes here: multiplications of its parts, and evaluations an image.

    `before` are those of the model's source, which is guided in every step.
    """

    denoiser: int
    decoder: int
    evaluations: int
    before: int

    @classmethod
    def of(cls, pipeline: Pipeline, source: Pipeline | None = None, cells: int | None = None) -> "Pace":
        """Return that of images with so many latent cells; by default of the model's own size."""
        tables = (each.sampling.table().evaluations for each in (pipeline, source or pipeline))
        denoiser, decoder = of_image(pipeline, cells)
        return cls(denoiser.multiplications, decoder.multiplications, *tables)

    def evaluated(self, work: Work) -> int:
        """Return how many samples the denoiser predicts, with a gradient or without."""
        drawn = (work.drawn + work.sampled) * self.evaluations + work.drawn_before * self.before
        return drawn + work.predicted + work.differentiated

    def seconds(self, work: Work) -> float:
        """Return about how long work takes."""
        return sum(
            (
                self._drawing(work) / (DRAW_RATE * (os.cpu_count() or 1)),
                (self._in_torch(work) + work.multiplied) / TORCH_RATE,
                work.engines * ENGINE_SECONDS + work.engine_bytes / ENGINE_RATE,
            )
        )

    def _drawing(self, work: Work) -> int:
        evaluations = work.drawn * self.evaluations + work.drawn_before * self.before
        return evaluations * self.denoiser + (work.drawn + work.drawn_before) * self.decoder

    def _in_torch(self, work: Work) -> float:
        evaluations = work.sampled * self.evaluations + work.predicted + GRADIENT * work.differentiated
        return evaluations * self.denoiser + work.sampled * self.decoder


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


def graphs_to_capture(pipeline: Pipeline, emitters: Sequence[Emitter], cache: Path) -> dict[str, int]:
    """Return the graphs that must be captured, and how many weights each component has."""
    return cold_graphs(pipeline, {role for emitter in emitters for role in emitter.captures}, cache)


def _working_memory(pipeline: Pipeline, step: Step) -> int:
    """Return about how many bytes a step holds: networks in float32, and what they compute on the way."""
    work, (denoiser, decoder) = step.work, of_image(pipeline, step.cells)
    needed = [WARM_MEMORY]
    if work.with_modules:
        modules = _float32(pipeline, ("denoiser", "text"))
        # Afterwards the model as it was and the edited one are held side by side.
        learning = modules + GRADIENT_BYTES * work.at_once * denoiser.values
        needed.append(RUN_MEMORY + max(2 * modules, learning))
    if work.multiplied:
        largest = max(_float32(pipeline, (role,)) for role in MODEL_ROLES)
        needed.append(RUN_MEMORY + min(largest, MAPPED_ONLY) + RUN_BYTES * work.compared_values)
    if work.drawn:
        models = _float32(pipeline, MODEL_ROLES) * (2 if work.drawn_before else 1)
        batch = BATCH * max(2 * denoiser.widest, decoder.widest)
        needed.append(COLD_MEMORY + models + (os.cpu_count() or 1) * DRAW_BYTES * batch)
    return max(needed)


def _float32(pipeline: Pipeline, roles: Iterable[str]) -> int:
    """Return the bytes of all components of some roles in float32."""
    components = [component.name for role in roles for component in pipeline.of_role(role)]
    return 4 * sum(prod(t.shape) for name in components for t in pipeline.tensors_of(name).values())


def _memory(pipeline: Pipeline, traced: Sequence[Sequence[int]]) -> int:
    """Return what writing takes, and before it the processes that trace graphs."""
    largest = max((2 * prod(tensor.shape) * 4 for tensor in pipeline.tensors.values()), default=0)
    writing = WARM_MEMORY + max(AHEAD, largest)
    tracing = sum(COLD_MEMORY + CAPTURE_MEMORY * max(weights) for weights in traced if weights)
    return max(writing, tracing + (WARM_MEMORY if len(traced) > 1 else 0))
