"""Checkpoints of true size that cost no disk: the header of a published model, and a hole for its data.

Shapes come from the modules that the published configs describe, built without elements.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retouch.compiler.emit.single_file import single_file_items
from retouch.compiler.families.published import published_folder
from retouch.compiler.graphs.prebuild import config_pipeline
from retouch.compiler.headers import header_bytes
from retouch.compiler.ir import Pipeline
from retouch.compiler.sources import MODEL_ROLES
from retouch.compiler.tensors import Array, Tensor
from retouch.compiler.torch_models.modules import build_module


@dataclass(frozen=True)
class Hollow:
    """A tensor without elements: reading it gives zeros."""

    dtype: np.dtype
    shape: tuple[int, ...]

    def read(self) -> Array:
        return np.zeros(self.shape, self.dtype)


def hollow_pipeline(model: str, dtype: str = "float16") -> Pipeline:
    """Return a published model with every tensor that its modules have, and no element."""
    import torch

    pipeline = config_pipeline(published_folder(model))
    tensors: dict[str, Tensor] = {}
    for name, component in pipeline.components.items():
        if component.role in MODEL_ROLES:
            with torch.device("meta"):
                module = build_module(component)
            for key, value in module.state_dict().items():
                tensors[f"{name}.{key}"] = Hollow(np.dtype(dtype), tuple(value.shape))
    return pipeline.with_tensors(tensors)


def write_hollow(pipeline: Pipeline, file: Path) -> Path:
    """Write a pipeline as a single file whose data are a hole."""
    items = single_file_items(pipeline)
    head = header_bytes([(item.name, item.dtype, item.shape) for item in items], {"format": "pt"})
    size = sum(int(np.prod(item.shape)) * item.dtype.itemsize for item in items)
    with file.open("xb") as stream:
        stream.write(head)
        stream.truncate(len(head) + size)
    return file
