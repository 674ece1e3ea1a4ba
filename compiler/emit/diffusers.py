"""A diffusers folder with the edited weights: for hosts that run torch, and for further training."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...specs.manifest import ComponentRecord
from ..interfaces import OWN
from ..ir import Component, Pipeline
from ..layout import write_config, write_layout
from ..load import MODEL_ROLES
from ..tensors import CODES, Tensor
from ..write import Entry, WritePass
from . import Emitted, Emitter, Job

FOLDER = "diffusers"
# The file that a library looks for first.
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}


@dataclass(frozen=True)
class Diffusers(Emitter):
    """Writes `diffusers/` inside the artefact: the source's layout, one safetensors file a component.

    `precision: source` keeps each tensor's type, so that untouched ones are byte-equal to the source's.
    Baked guidance is no part of it: diffusers takes guidance from its caller.
    """

    precision: Literal["source", "float32", "float16"] = "source"

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        place = folder / FOLDER
        place.mkdir()
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
    """Return the head of a safetensors file: its length, then each tensor's type, shape and place.

    Source: the format's description in the safetensors repository.
    """
    table: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for entry in entries:
        end = offset + int(np.prod(entry.tensor.shape, dtype=np.int64)) * entry.dtype.itemsize
        table[entry.name.removeprefix(component + ".")] = {
            "dtype": CODES[entry.dtype],
            "shape": list(entry.tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
