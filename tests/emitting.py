"""Emit a pipeline as the build does, and look at what was written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retouch.compiler.emit import Emitted, Emitter, Job, Watch
from retouch.compiler.evidence.parity import Emission
from retouch.compiler.graphs.capture import skeleton_of
from retouch.compiler.graphs.interfaces import Interface, interfaces
from retouch.compiler.graphs.skeleton import DATA, DTYPES, Skeleton
from retouch.compiler.ir import Pipeline
from retouch.compiler.load import load_pipeline
from retouch.compiler.tensors import Array, Edited, Tensor, Tied
from retouch.specs.manifest import Evidence

KEY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"


def load(folder: Path, sampler: str = "ddim", guidance_scale: float = 4.0) -> Pipeline:
    return load_pipeline(folder, sampler, 5, guidance_scale)


def emit(
    emitter: Emitter,
    pipeline: Pipeline,
    folder: Path,
    cache: Path,
    source: Pipeline | None = None,
    watches: Sequence[Watch] = (),
    advance: Callable[[str, int], None] = lambda label, count: None,
) -> Emitted:
    folder.mkdir(parents=True)
    return emitter.emit(pipeline, folder, Job(source or pipeline, watches, advance, cache))


def edited(pipeline: Pipeline, name: str, rule: Callable[[Any], Any]) -> Pipeline:
    """Return the pipeline with one tensor exchanged."""
    tensor = pipeline.tensors[name]
    return pipeline.with_tensors({name: Edited((tensor,), rule, tensor.dtype, tensor.shape, "test")})


def renamed(pipeline: Pipeline, name: str) -> Pipeline:
    """Return the pipeline with one tensor exchanged for another object with the same elements."""
    return pipeline.with_tensors({name: Tied(pipeline.tensors[name])})


def added(pipeline: Pipeline, name: str, tensor: Tensor) -> Pipeline:
    return pipeline.with_tensors({name: tensor})


def graphs(pipeline: Pipeline, cache: Path) -> dict[str, tuple[Interface, Skeleton]]:
    """Return each graph's interface and skeleton, by folder."""
    found = {}
    for interface in interfaces(pipeline):
        found[interface.folder] = interface, skeleton_of(interface, pipeline.graph_edits, cache)
    return found


def written(folder: Path, skeleton: Skeleton, name: str) -> Array:
    """Return a tensor of a data file as it is stored in a diffusers file."""
    offset = 0
    for binding in skeleton.weights:
        if binding.name == name:
            count = int(np.prod(binding.shape))
            data = np.fromfile(folder / DATA, DTYPES[binding.dtype], count, offset=offset)
            if binding.transposed:
                return data.reshape(binding.stored[::-1]).T
            return data.reshape(binding.stored)
        offset += binding.size
    raise KeyError(name)


def emissions(pipeline: Pipeline, cache: Path, folder: Path) -> list[Emission]:
    """Return the graphs of an emitted artefact."""
    return [Emission(*graph, folder / graph[0].folder) for graph in graphs(pipeline, cache).values()]


class Recorder:
    """An observer that keeps what it was shown."""

    def __init__(self, *names: str) -> None:
        self.names = frozenset(names)
        self.seen: list[tuple[str, Array, Array]] = []

    def see(self, name: str, before: Array, written: Array) -> tuple[str, Array, Array]:
        return name, before.copy(), written.copy()

    def add(self, told: tuple[str, Array, Array]) -> None:
        self.seen.append(told)

    def evidence(self) -> list[Evidence]:
        return []
