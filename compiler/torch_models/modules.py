"""A component's torch module: built from its config without elements, then given tensors by name.

A tensor that is stored in float32 is mapped, not copied; any other is held once, in float32. Modules are
for looking and for gradients: their parameters are frozen, and writing to one is an error.
"""

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ...specs.errors import Fault, InputError, raise_all
from ..graphs.graph_edits import edit_module
from ..ir import Component, GraphEdit, Pipeline
from ..tensors import Array, widen

if TYPE_CHECKING:
    import torch

# Keys of a config that say where it came from, not what the module is.
NOT_STRUCTURE = frozenset(
    {"_diffusers_version", "_name_or_path", "dtype", "torch_dtype", "transformers_version"}
)


def load_module(pipeline: Pipeline, component_name: str) -> "torch.nn.Module":
    """Return a component's module around the pipeline's tensors, edits included, frozen.

    Memory: the component in float32, apart from what is mapped.

    Raises:
        InputError: a tensor that the config asks for is missing or has another shape; all of them.
    """
    import torch

    with torch.device("meta"):
        module = build_module(pipeline.components[component_name], pipeline.graph_edits)
    spell = pipeline.family.module_name
    tensors = {
        spell(component_name, name): tensor for name, tensor in pipeline.tensors_of(component_name).items()
    }
    wanted = {name: spell(component_name, name) for name in module.state_dict()}
    raise_all(
        InputError,
        [
            Fault(
                "E_TENSOR_MISSING",
                "the config asks for a tensor that is not there",
                f"{component_name}.{key}",
            )
            for key in wanted.values()
            if key not in tensors
        ],
    )
    return fill_module(module, {name: widen(tensors[key].read()) for name, key in wanted.items()})


def fill_module(module: "torch.nn.Module", weights: Mapping[str, Array]) -> "torch.nn.Module":
    """Give a module without elements its weights, and the buffers that no file holds; freeze it.

    A weight that is not given stays without elements.

    Raises:
        InputError: a weight has another shape than the module's; all of them.
    """
    import torch

    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    raise_all(
        InputError,
        [
            Fault("E_TENSOR_SHAPE", f"shape {list(array.shape)}, expected {list(shapes[name])}", name)
            for name, array in weights.items()
            if name in shapes and array.shape != shapes[name]
        ],
    )
    with warnings.catch_warnings():
        # A mapped file is read-only, and so is what is done with it here.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        given = {name: torch.from_numpy(array) for name, array in weights.items()}
    module.load_state_dict(given, strict=False, assign=True)
    for name, values in fixed_buffers(module).items():
        owner, _, last = name.rpartition(".")
        module.get_submodule(owner).register_buffer(last, torch.from_numpy(values), persistent=False)
    return module.eval().requires_grad_(False)


def build_module(component: Component, edits: Iterable[GraphEdit] = ()) -> "torch.nn.Module":
    """Return the component's module in float32, built from its config alone, with its graph edits made.

    Raises:
        InputError: the libraries can build nothing from the config.
    """
    import torch

    torch.set_default_dtype(torch.float32)
    try:
        module = _from_config(component)
    except Exception as error:
        # What the libraries raise over a value that they cannot use is their own affair, and of any type.
        message = f"no `{component.class_name}` can be built from it: {error}"
        raise InputError(Fault("E_CONFIG", message, f"{component.name}/config.json")) from error
    return edit_module(module, component.name, edits).eval()


def _from_config(component: Component) -> "torch.nn.Module":
    import diffusers
    import transformers

    config: dict[str, Any] = {
        key: value for key, value in component.config.items() if key not in NOT_STRUCTURE
    }
    if component.library == "transformers":
        kind = getattr(transformers, component.class_name)
        return kind(kind.config_class.from_dict({**config, "attn_implementation": "sdpa"}))
    return getattr(diffusers, component.class_name).from_config(config)


def fixed_buffers(module: "torch.nn.Module") -> dict[str, np.ndarray]:
    """Return the elements of the buffers that no file holds: fake modules do not know them.

    Raises:
        InputError: there is one that is not a row of position numbers.
    """
    stored = module.state_dict().keys()
    found = {name: buffer for name, buffer in module.named_buffers() if name not in stored}
    unknown = [name for name in sorted(found) if not name.endswith("position_ids")]
    raise_all(
        InputError,
        [Fault("E_CAPTURE", "a buffer that no file holds and that is not known", name) for name in unknown],
    )
    return {name: np.arange(buffer.shape[-1], dtype=np.int64)[None] for name, buffer in sorted(found.items())}
