"""TensorRT-RTX engines, through the provider that NVIDIA publishes for onnxruntime.

Written after its documentation; the authors have not yet run it on a GPU, and manifests say so. An engine
is code for a GPU: draw only from artefacts whose maker you trust.
Source: NVIDIA/TensorRT-RTX-EP-ABI, integration guide.
"""

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import onnxruntime

from ..specs.errors import Fault, UndecidedError
from .devices import RTX_PLUGIN
from .sessions import Placement, Session, from_onnxruntime, load_errors, session_options


def load_rtx(graph: Path, placement: Placement) -> Session:
    """Load a graph by its file: an engine lies beside it.

    Raises:
        UndecidedError: the provider finds no library of its own, no GPU, or cannot use the engine.
    """
    options = session_options(placement.threads)
    options.add_provider_for_devices([_gpu()], {})
    try:
        return from_onnxruntime(onnxruntime.InferenceSession(str(graph), options), str(graph))
    except load_errors() as error:
        hint = "an engine runs on the GPUs that the spec named, with the TensorRT-RTX that built it"
        message = f"the GPU cannot use it: {error}"
        raise UndecidedError(Fault("E_ENGINE", message, str(graph), hint)) from error


@cache
def _gpu() -> Any:
    """Return the first GPU that the provider can use; it is registered once a process."""
    plugin = import_module(RTX_PLUGIN)
    name = plugin.get_ep_name()
    try:
        onnxruntime.register_execution_provider_library(name, plugin.get_library_path())
    except load_errors() as error:
        hint = "it needs NVIDIA's driver and the CUDA runtime of the version that it was made for"
        message = f"the TensorRT-RTX provider cannot be loaded: {error}"
        raise UndecidedError(Fault("E_DRIVER", message, hint=hint)) from error
    found = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name]
    if not found:
        raise UndecidedError(Fault("E_DEVICE", "the TensorRT-RTX provider finds no GPU that it can use"))
    return found[0]
