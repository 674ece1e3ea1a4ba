"""A diffusers folder with the edited weights: for hosts that run torch, and for further training."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ...specs.manifest import ComponentRecord
from ..graphs.interfaces import OWN
from ..headers import header_bytes
from ..ir import Component, Pipeline
from ..layout import write_config, write_layout
from ..load import MODEL_ROLES
from ..tensors import Tensor
from ..text.text_map import fuse_text_map
from ..write import Entry, WritePass
from . import Emitted, Emitter, Job

FOLDER = "diffusers"
# The file that a library looks for first.
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}


@dataclass(frozen=True)
class Diffusers(Emitter):
    """Writes `diffusers/` inside the artefact: the source's layout, one safetensors file a component.

    `precision: source` keeps each tensor's type, so that untouched ones are byte-equal to the source's.
    Baked guidance is no part of it: diffusers takes guidance from its caller. An edit that was to be a
    matrix in the graph (`output: text_map`) is fused into the weights, there is no graph here.
    """

    precision: Literal["source", "float32", "float16"] = "source"

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        place = folder / FOLDER
        place.mkdir()
        pipeline = fuse_text_map(pipeline, self.name)
        writing = WritePass(pipeline, job)
        records = [
            self._write_component(writing, component, folder)
            for _, component in sorted(pipeline.components.items())
            if component.role in MODEL_ROLES
        ]
        writing.finish()
        write_layout(pipeline, place)
        return Emitted(tuple(records))

    def _write_component(self, writing: WritePass, component: Component, folder: Path) -> ComponentRecord:
        place = folder / FOLDER / component.name
        place.mkdir()
        write_config(component, place)
        entries = self._entries(writing.pipeline, component)
        file = place / WEIGHTS[component.library]
        return writing.write(component.name, file, folder, entries, start=header(component.name, entries))

    def _entries(self, pipeline: Pipeline, component: Component) -> list[Entry]:
        """Return a component's tensors: wide types first, so that each lies at a multiple of its size."""
        tensors = pipeline.tensors_of(component.name)
        entries = [
            Entry(f"{component.name}.{name}", tensor, self._dtype(tensor))
            for name, tensor in tensors.items()
            if not name.startswith(OWN)
        ]
        return sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))

    def _dtype(self, tensor: Tensor) -> np.dtype:
        if self.precision == "source" or tensor.dtype.kind in "iub":
            return tensor.dtype
        return np.dtype(self.precision)


def header(component: str, entries: Sequence[Entry]) -> bytes:
    """Return the head of a component's safetensors file."""
    rows = [(entry.name.removeprefix(component + "."), entry.dtype, entry.tensor.shape) for entry in entries]
    return header_bytes(rows, {"format": "pt"})
