"""Has every tensor the shape that its component's config describes? Asked once a build, before it writes.

Shapes are those of the module that the config describes, built without elements. They are kept in the
cache, so that a warm build imports no torch.
"""

import json
from pathlib import Path
from typing import Any

from ...specs.canonical import canonical, digest_of
from ...specs.errors import Fault, InputError, raise_all
from ..environment import installed
from ..ir import Component, Pipeline
from ..load import MODEL_ROLES
from ..store import Store
from ..torch_models.modules import NOT_STRUCTURE, build_module
from .capture import TRACERS

Shapes = dict[str, tuple[int, ...]]


def check_shapes(pipeline: Pipeline, cache: Path) -> None:
    """Stop a model that its configs do not describe; what is missing is for each target to say.

    Raises:
        InputError: tensors have another shape than the config says, all of them, or nothing can be built
            from a config.
    """
    faults = []
    for component in pipeline.components.values():
        if component.role in MODEL_ROLES:
            shapes = shapes_of(component, cache)
            for name, tensor in pipeline.tensors_of(component.name).items():
                wanted = shapes.get(pipeline.family.module_name(component.name, name), tensor.shape)
                if tensor.shape != wanted:
                    faults.append(misshapen(f"{component.name}.{name}", tensor.shape, wanted))
    raise_all(InputError, faults)


def misshapen(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> Fault:
    """Return the fault of a tensor that has another shape than its config says."""
    return Fault("E_TENSOR_SHAPE", f"shape {list(found)}, the config asks for {list(wanted)}", name)


def shapes_of(component: Component, cache: Path) -> Shapes:
    """Return the shape of each tensor of a component's module, from the cache where it is there and whole."""
    store, key = Store(cache), digest_of(["shapes", _structure(component)])
    kept = store.get(key)
    if kept is None:
        kept = canonical(_built(component))
        store.put(key, kept)
    return {name: tuple(shape) for name, shape in json.loads(kept).items()}


def _built(component: Component) -> dict[str, list[int]]:
    import torch

    with torch.device("meta"):
        module = build_module(component)
    return {name: list(value.shape) for name, value in module.state_dict().items()}


def _structure(component: Component) -> dict[str, Any]:
    """Return everything that the shapes depend on, as JSON."""
    return {
        "class": component.class_name,
        "config": {key: value for key, value in component.config.items() if key not in NOT_STRUCTURE},
        "versions": {name: installed(name) for name in TRACERS},
    }
