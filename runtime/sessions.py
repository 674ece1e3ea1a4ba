"""onnxruntime sessions: which device, how many threads, and what a graph takes and gives.

Threads do not spin between operators: an idle session must not burn a core of its host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime.capi.onnxruntime_pybind11_state as errors
from numpy.typing import NDArray

from ..specs.errors import Fault, InputError, UndecidedError
from .artefact import Artefact

# onnxruntime's provider for each device, and the extra of retouch that brings it.
DEVICES: Mapping[str, tuple[str, str]] = {
    "cpu": ("CPUExecutionProvider", ""),
    "cuda": ("CUDAExecutionProvider", "gpu"),
}
LOG_ERRORS = 3
# onnxruntime's exceptions share no base class but Exception; these are what loading a graph raises.
LOAD_ERRORS: tuple[type[Exception], ...] = (
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
)
WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
TYPES: Mapping[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
}


@dataclass(frozen=True)
class Placement:
    """Where sessions run: a device of DEVICES, and threads an operator (0 lets onnxruntime choose)."""

    device: str = "cpu"
    threads: int = 0


@dataclass(frozen=True)
class Signature:
    """Type and shape of one graph input or output; a dimension that callers choose is None."""

    dtype: type[np.generic]
    shape: tuple[int | None, ...]


class Session:
    """A loaded graph: called with arrays by name, it returns arrays by name."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self.inputs = {node.name: _signature(node) for node in session.get_inputs()}
        self.outputs = {node.name: _signature(node) for node in session.get_outputs()}

    def __call__(self, **arrays: NDArray[np.generic]) -> dict[str, NDArray[Any]]:
        """Run the graph; each array is cast to the type of its input."""
        feeds = {name: np.asarray(array, self.inputs[name].dtype) for name, array in arrays.items()}
        results: Any = self._session.run(None, feeds)
        return dict(zip(self.outputs, results, strict=True))


def open_session(
    artefact: Artefact,
    path: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    placement: Placement | None = None,
) -> Session:
    """Load a graph of an artefact from the bytes that were hashed, its weights from beside it.

    Raises:
        InputError: the artefact has no such graph, or the graph takes other inputs or lacks an output.
        IntegrityError: the graph, or a file beside it, changed since it was verified.
        UndecidedError: the device is not available.
    """
    folder = str(PurePosixPath(path).parent)
    graph = artefact.read(path)
    artefact.check_unchanged(folder)
    session = load_session(graph, path, inputs, outputs, placement, str(artefact.folder / folder))
    artefact.check_unchanged(folder)
    return session


def load_session(
    graph: bytes,
    name: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    placement: Placement | None = None,
    weights_folder: str = "",
) -> Session:
    """Load a graph from its bytes; `name` is what errors call it. Raises as `open_session` does."""
    placement = placement or Placement()
    options = _options(placement.threads)
    if weights_folder:
        options.add_session_config_entry(WEIGHTS_FOLDER, weights_folder)
    try:
        session = Session(onnxruntime.InferenceSession(graph, options, providers=providers(placement.device)))
    except LOAD_ERRORS as error:
        raise InputError(Fault("E_GRAPH", f"onnxruntime cannot load it: {error}", name)) from error
    _check_names(name, session, inputs, outputs)
    return session


def providers(device: str) -> list[str]:
    """Return onnxruntime's providers for a device, best first.

    Raises:
        UndecidedError: the device is unknown or not available here.
    """
    if device not in DEVICES:
        raise UndecidedError(
            Fault("E_DEVICE", f"no device `{device}`", hint=f"there are: {', '.join(sorted(DEVICES))}")
        )
    provider, extra = DEVICES[device]
    if provider not in onnxruntime.get_available_providers():
        raise UndecidedError(Fault("E_DEVICE", f"onnxruntime has no {provider} here", hint=_way_out(extra)))
    return [provider] if device == "cpu" else [provider, "CPUExecutionProvider"]


def has_both_distributions() -> bool:
    """Whether `onnxruntime` and `onnxruntime-gpu` lie over each other: the later install wins, half."""
    return _is_installed("onnxruntime") and _is_installed("onnxruntime-gpu")


def _way_out(extra: str) -> str:
    if has_both_distributions():
        return (
            "`onnxruntime` and `onnxruntime-gpu` are both installed and overwrite each other: "
            "`pip uninstall onnxruntime onnxruntime-gpu`, then `pip install onnxruntime-gpu`"
        )
    return (
        f"`pip uninstall onnxruntime`, then `pip install 'retouch[{extra}]'`, on a machine with such a device"
    )


def _is_installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except PackageNotFoundError:
        return False


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _check_names(name: str, session: Session, inputs: Sequence[str], outputs: Sequence[str]) -> None:
    if sorted(session.inputs) != sorted(inputs):
        message = f"takes {', '.join(sorted(session.inputs))}, expected {', '.join(sorted(inputs))}"
        raise InputError(Fault("E_GRAPH", message, name))
    missing = [output for output in outputs if output not in session.outputs]
    if missing:
        message = f"gives {', '.join(sorted(session.outputs))}, expected {', '.join(missing)} too"
        raise InputError(Fault("E_GRAPH", message, name))


def _signature(node: Any) -> Signature:
    shape = tuple(size if isinstance(size, int) else None for size in node.shape)
    return Signature(TYPES.get(node.type, np.float32), shape)
