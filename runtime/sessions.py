"""Loaded graphs: where they run, how many threads they take, what they take and give.

Threads do not spin between operators: an idle session must not burn a core of its host. onnxruntime is
imported when the first graph is loaded: a build that draws nothing needs neither its time nor its memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..specs.errors import Fault, InputError, SpecError, UndecidedError
from .artefact import Artefact
from .devices import DEVICES, check_device

if TYPE_CHECKING:
    import onnxruntime

Size = tuple[int, int]  # height and width of an image, in pixels
Precision = Literal["float32", "bfloat16"]
LOG_ERRORS, LOG_FATAL = 3, 4
SIZE = re.compile("[1-9][0-9]{0,4}x[1-9][0-9]{0,4}")  # as emitters name graphs of one size
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
    """Where sessions run: a device of DEVICES, and threads an operator (0 lets the device choose).

    `precision` is what a device multiplies in, whatever the graph's types; only OpenVINO has a choice.
    """

    device: str = "cpu"
    threads: int = 0
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.precision != "float32" and self.device != "openvino":
            message = f"the device `{self.device}` computes in the precision of the graphs"
            raise SpecError(Fault("E_PRECISION", message, "precision", "--device openvino has a choice"))


class Taken(NamedTuple):
    """The shapes that an input of an engine takes: everything from the smallest to the largest."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True)
class Signature:
    """Type and shape of one graph input or output; a dimension that callers choose is None.

    `taken` is for inputs of engines, which do not take every choice.
    """

    dtype: type[np.generic]
    shape: tuple[int | None, ...]
    taken: Taken | None = None

    @property
    def usual(self) -> tuple[int | None, ...]:
        """The shape that the graph was made for; None for dimensions that are open."""
        return self.taken.usual if self.taken else self.shape

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether the last dimensions may be `shape`."""
        skipped = len(self.shape) - len(shape)
        fixed = zip(self.shape[skipped:], shape, strict=True)
        smallest, _, largest = self.taken or (shape, shape, shape)
        ranges = zip(smallest[-len(shape) :], shape, largest[-len(shape) :], strict=True)
        return all(size in (None, wanted) for size, wanted in fixed) and all(
            low <= wanted <= high for low, wanted, high in ranges
        )


class Session:
    """A loaded graph: called with arrays by name, it returns arrays by name.

    `run` takes the inputs by name and returns the outputs in order.
    """

    def __init__(
        self,
        inputs: Mapping[str, Signature],
        outputs: Mapping[str, Signature],
        run: Callable[[dict[str, Any]], Sequence[Any]],
    ) -> None:
        self.inputs, self.outputs, self.run = inputs, outputs, run

    def __call__(self, **arrays: NDArray[np.generic]) -> dict[str, NDArray[Any]]:
        """Run the graph; each array is cast to the type of its input."""
        feeds = {name: np.asarray(array, self.inputs[name].dtype) for name, array in arrays.items()}
        return dict(zip(self.outputs, self.run(feeds), strict=True))


def open_session(
    artefact: Artefact,
    path: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    placement: Placement | None = None,
    size: Size | None = None,
) -> Session:
    """Load a graph of an artefact from the bytes that were hashed, its weights from beside it.

    Where graphs for the device or for images of `size` lie beside it, it is one of those.

    Raises:
        InputError: the artefact has no such graph, or the graph takes other inputs or lacks an output.
        IntegrityError: the graph, or a file beside it, changed since it was verified.
        UndecidedError: the device is not available.
    """
    placement = placement or Placement()
    path = _preferred(artefact, path, placement.device, size)
    folder = str(PurePosixPath(path).parent)
    graph = artefact.read(path)
    artefact.check_unchanged(folder)
    session = load_session(graph, path, inputs, outputs, placement, str(artefact.folder / folder))
    artefact.check_unchanged(folder)
    if placement.device == "rtx":
        from .engines import fitted, taken_by

        return fitted(session, taken_by(artefact, path))
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
    session = _load(graph, name, placement, weights_folder)
    _check_names(name, session, inputs, outputs)
    return session


@cache
def load_errors() -> tuple[type[Exception], ...]:
    """Return what loading a graph raises: onnxruntime's exceptions share no base class but Exception."""
    import onnxruntime.capi.onnxruntime_pybind11_state as errors

    return (
        errors.Fail,
        errors.InvalidArgument,
        errors.InvalidGraph,
        errors.InvalidProtobuf,
        errors.NoSuchFile,
        errors.NotImplemented,
        errors.RuntimeException,
    )


def from_onnxruntime(session: onnxruntime.InferenceSession, name: str) -> Session:
    """Return a session of onnxruntime's as one of ours; `name` is what errors call its graph."""
    import onnxruntime

    quiet = onnxruntime.RunOptions()
    quiet.log_severity_level = LOG_FATAL

    def run(feeds: dict[str, Any]) -> Sequence[Any]:
        try:
            return session.run(None, feeds, quiet)
        except load_errors() as error:
            shapes = ", ".join(f"{key} {list(value.shape)}" for key, value in feeds.items())
            message = f"onnxruntime cannot run it on {shapes}: {error}"
            hint = "is there memory for images of this size? draw smaller ones, or fewer at once"
            raise UndecidedError(Fault("E_RUN", message, name, hint)) from error

    inputs = {node.name: _signature(node) for node in session.get_inputs()}
    return Session(inputs, {node.name: _signature(node) for node in session.get_outputs()}, run)


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Return onnxruntime's options: `threads` an operator, none of which spins."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = LOG_ERRORS
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def sizes_beside(artefact: Artefact, path: str) -> list[Size]:
    """Return the sizes that have a graph of their own beside a graph, such as `model.512x768.onnx`."""
    stem, folder = PurePosixPath(path).stem, str(PurePosixPath(path).parent)
    names = (PurePosixPath(each).name.split(".") for each in artefact.inside(folder))
    ends = {name[-2] for name in names if name[0] == stem and name[-1] == "onnx"}
    found = [end.split("x") for end in ends if SIZE.fullmatch(end)]
    return sorted((int(height), int(width)) for height, width in found)


def _preferred(artefact: Artefact, path: str, device: str, size: Size | None = None) -> str:
    """Return the graph that was made for a size and a device, such as `model.cuda.512x768.onnx`.

    One for the size comes first: one for the device may be fixed to another.
    """
    profile = DEVICES[device].profile if device in DEVICES else ""
    ends = [f".{size[0]}x{size[1]}", ""] if size else [""]
    profiles = [f".{profile}", ""] if profile else [""]
    wanted = (str(PurePosixPath(path).with_suffix(f"{kind}{end}.onnx")) for end in ends for kind in profiles)
    return next((each for each in wanted if each in artefact), path)


def _load(graph: bytes, name: str, placement: Placement, weights_folder: str) -> Session:
    check_device(placement.device)
    file = Path(weights_folder, PurePosixPath(name).name)
    if placement.device == "openvino":
        from .openvino_sessions import load_openvino

        return load_openvino(file if weights_folder else graph, name, placement)
    if placement.device == "rtx":
        from .rtx_sessions import load_rtx

        return load_rtx(file, placement)
    return _load_onnxruntime(graph, name, placement, weights_folder)


def _load_onnxruntime(graph: bytes, name: str, placement: Placement, weights_folder: str) -> Session:
    import onnxruntime

    options = session_options(placement.threads)
    if weights_folder:
        options.add_session_config_entry(WEIGHTS_FOLDER, weights_folder)
    wanted = DEVICES[placement.device].provider
    # Single operators that a device lacks run on the CPU.
    providers = list(dict.fromkeys([wanted, DEVICES["cpu"].provider]))
    try:
        session = onnxruntime.InferenceSession(graph, options, providers=providers)
    except load_errors() as error:
        raise InputError(Fault("E_GRAPH", f"onnxruntime cannot load it: {error}", name)) from error
    if wanted not in session.get_providers():
        # onnxruntime goes on without a provider whose libraries it cannot load.
        hint = "are CUDA and cuDNN of onnxruntime's version installed?"
        raise UndecidedError(Fault("E_DRIVER", f"onnxruntime cannot start its {wanted}", name, hint))
    return from_onnxruntime(session, name)


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
