"""Graphs on OpenVINO: the fastest way on CPUs that multiply in bfloat16 (AMX, AVX-512 BF16).

It computes in float32 unless told otherwise: evidence was measured in float32.
"""

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from ..specs.errors import Fault, InputError, UndecidedError
from .sessions import Placement, Session, Signature

HINTS: Mapping[str, str] = {"float32": "f32", "bfloat16": "bf16"}
TYPES: Mapping[str, type[np.generic]] = {
    "f16": np.float16,
    "f32": np.float32,
    "f64": np.float64,
    "i32": np.int32,
    "i64": np.int64,
}


def load_openvino(graph: Path | bytes, name: str, placement: Placement) -> Session:
    """Load a graph from its file, or one without a weights file from its bytes.

    Raises:
        InputError: OpenVINO cannot read it.
        UndecidedError: this CPU does not have the precision.
    """
    core = import_module("openvino").Core()
    _check_precision(core, placement.precision)
    settings = {"INFERENCE_PRECISION_HINT": HINTS[placement.precision]}
    if placement.threads:
        settings["INFERENCE_NUM_THREADS"] = str(placement.threads)
    try:
        model = core.read_model(str(graph) if isinstance(graph, Path) else graph)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise InputError(Fault("E_GRAPH", f"OpenVINO cannot load it: {error}", name)) from error
    return Session(_signatures(compiled.inputs), _signatures(compiled.outputs), _runner(compiled))


def _check_precision(core: Any, precision: str) -> None:
    if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        message = "this CPU does not multiply in bfloat16"
        hint = "draw without --precision; bfloat16 would be emulated, which is slower"
        raise UndecidedError(Fault("E_PRECISION", message, hint=hint))


def _runner(compiled: Any) -> Callable[[dict[str, Any]], Sequence[Any]]:
    """Return what runs a graph, one call at a time: all calls share one set of buffers."""
    request, lock = compiled.create_infer_request(), Lock()

    def run(feeds: dict[str, Any]) -> Sequence[Any]:
        with lock:
            return list(request.infer(feeds).values())

    return run


def _signatures(ports: Sequence[Any]) -> dict[str, Signature]:
    return {port.get_any_name(): _signature(port) for port in ports}


def _signature(port: Any) -> Signature:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return Signature(TYPES.get(port.get_element_type().get_type_name(), np.float32), shape)
