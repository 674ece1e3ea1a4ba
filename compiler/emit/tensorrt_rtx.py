"""TensorRT-RTX engines, built ahead of time on a machine without a GPU, for named kinds of GPU.

Beside each engine stands a small ONNX graph with one node that refers to it, so that onnxruntime with
its TensorRT-RTX provider opens the folder like any other pipeline and compiles nothing but kernels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, Field

from ...specs.errors import Fault, InputError
from ...specs.manifest import Evidence
from ..engines.building import RTX, STEPS, Engine, Order, Shapes, build, check_installed
from ..engines.profiles import as_numbers
from ..graphs.skeleton import DATA, IR_VERSION, OPSET
from ..ir import Pipeline
from ..work import Work
from . import Job
from ._engines import EngineEmitter

GRAPH, ENGINE = "model.onnx", "model.engine"
PROVIDER = "NvTensorRTRTXExecutionProvider"
# "8.6" is RTX 30, "8.9" RTX 40, "12.0" RTX 50, "7.5" RTX 20.
Capability = Literal["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"]
ALONE: Capability = "7.5"  # Turing shares no engine with later GPUs


def _sorted(wanted: tuple[Capability, ...]) -> tuple[Capability, ...]:
    """Return capabilities from old to new: their order changes an engine's bytes."""
    if len(set(wanted)) < len(wanted):
        raise ValueError("names a compute capability twice")
    if ALONE in wanted and len(wanted) > 1:
        raise ValueError(f'"{ALONE}" needs an engine of its own: emit this target in a spec of its own')
    return tuple(sorted(wanted, key=get_args(Capability).index))


Capabilities = Annotated[tuple[Capability, ...], Field(min_length=1), AfterValidator(_sorted)]


@dataclass(frozen=True)
class TensorrtRtx(EngineEmitter):
    """Writes `tensorrt_rtx/`: an engine a component, for the GPUs of `compute_capabilities`.

    `twice` builds every engine a second time and fails where a byte differs.
    """

    compute_capabilities: Capabilities = ("8.6", "8.9", "12.0")
    twice: bool = False

    def check_machine(self) -> None:
        check_installed(RTX)

    def work(self, pipeline: Pipeline) -> Work:
        return super().work(pipeline) + self.built(pipeline) * (1 + self.twice)

    def build(self, place: Path, profile: dict[str, Shapes], job: Job) -> Sequence[Evidence]:
        order = Order(place / GRAPH, profile, self.compute_capabilities)
        engine = build(order, place / ENGINE, job.task(f"build {place.name} engine", STEPS))
        job.ledger.remember(place / ENGINE, engine.sha256)
        again = self._build_again(order, job) if self.twice else None
        _wrap(place, self.compute_capabilities, engine)
        (place / DATA).unlink()
        # Its weights are inside the engine, which computes no guidance.
        (place / "guided.onnx").unlink(missing_ok=True)
        return [*self._evidence(place.name, profile, engine), *self._repeated(place.name, engine, again)]

    def weights(self, data: str) -> str:
        return data.replace(DATA, ENGINE)

    def _build_again(self, order: Order, job: Job) -> Engine:
        file = order.graph.with_name(f"{ENGINE}.again")
        engine = build(order, file, job.task(f"build {order.graph.parent.name} engine again", STEPS))
        file.unlink()
        return engine

    def _evidence(self, name: str, profile: dict[str, Shapes], engine: Engine) -> list[Evidence]:
        facts = {
            "sha256": engine.sha256,
            "bytes": engine.size,
            "tensorrt_rtx": engine.version,
            "compute_capabilities": list(self.compute_capabilities),
            "profile": as_numbers(profile),
            "messages": sorted(set(engine.messages)),
        }
        note = "The engine was built on a CPU; neither it nor the graph that wraps it was run on a GPU."
        return [
            self.static(name, "engine built ahead of time", str(engine.layers), "layers", details=facts),
            self.static(name, "run on a GPU", "0", "runs", details={"verified": False, "note": note}),
        ]

    def _repeated(self, name: str, engine: Engine, again: Engine | None) -> list[Evidence]:
        """Return the evidence of a second build: the number of different engines, which must be one."""
        if again is None:
            return []
        different = len({engine.sha256, again.sha256})
        limit: dict[str, Any] = {"comparator": "equals", "limit": "1", "passed": different == 1, "count": 2}
        return [self.static(name, "same bytes when built again", str(different), "engines", **limit)]


def _wrap(place: Path, capabilities: Sequence[str], engine: Engine) -> None:
    """Put a graph of one node, which refers to the engine beside it, in place of the graph.

    Source: `EPContext` of onnxruntime's contrib operators, and what its TensorRT-RTX provider reads.
    """
    import onnx

    graph = onnx.load(place / GRAPH, load_external_data=False).graph
    node = onnx.helper.make_node(
        "EPContext",
        [value.name for value in graph.input],
        [value.name for value in graph.output],
        name=place.name,
        domain="com.microsoft",
        embed_mode=0,
        ep_cache_context=ENGINE,
        ep_sdk_version=engine.version,
        hardware_architecture=",".join(f"sm{value.replace('.', '')}" for value in capabilities),
        main_context=0,
        onnx_model_filename=GRAPH,
        partition_name=place.name,
        source=PROVIDER,
    )
    wrapped = onnx.helper.make_graph([node], place.name, graph.input, graph.output)
    opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(
        wrapped, producer_name="retouch", opset_imports=opsets, ir_version=IR_VERSION
    )
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise InputError(Fault("E_GRAPH", f"cannot be wrapped: {error}", f"{place.name}/{GRAPH}")) from error
    (place / GRAPH).write_bytes(model.SerializeToString(deterministic=True))
