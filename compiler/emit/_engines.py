"""What both TensorRT targets share: their parameters, and the graphs that engines are built from."""

from abc import abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ...specs.manifest import Evidence
from ..engines.building import Shapes, memory_needed
from ..engines.profiles import own_size, profiles_of
from ..graphs.interfaces import interfaces
from ..ir import Pipeline
from ..sources import MODEL_ROLES
from ..work import Work
from . import Emitted, Emitter, Job
from .onnx import Onnx, Size

Count = Annotated[int, Field(ge=1, le=16)]


@dataclass(frozen=True)
class EngineEmitter(Emitter):
    """A target of engines, in a folder named after it: what the target `onnx` writes, and more.

    `batch` is how many images are drawn at once: fewest, usual, most. `sizes` are image sizes, the usual
    one first; none means the model's own. An engine takes every shape in between, and is fastest, and the
    same at every build, where there is one shape. `precision` is that of text encoders and denoiser;
    autoencoders have their own.
    """

    precision: Literal["float32", "float16"] = "float16"
    vae_precision: Literal["float32", "float16"] = "float32"
    batch: tuple[Count, Count, Count] = (1, 1, 1)
    sizes: Annotated[tuple[Size, ...], Field(max_length=16)] = ()
    parity: bool = True

    @property
    def captures(self) -> Collection[str]:
        return MODEL_ROLES

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        profiles = profiles_of(pipeline, self.batch, self.sizes)
        self.check_machine()
        place = folder / self.name
        place.mkdir()
        graphs = self._graphs(pipeline).emit(pipeline, place, job)
        built = [evidence for name in profiles for evidence in self.build(place / name, profiles[name], job)]
        records = [
            record.model_copy(update={"weights": f"{self.name}/{self.weights(record.weights)}"})
            for record in graphs.components
        ]
        return Emitted(tuple(records), (*graphs.evidence, *built))

    def written_bytes(self, pipeline: Pipeline) -> int:
        """Engines stand beside the graphs' weights while they are built, one at a time."""
        return self._graphs(pipeline).written_bytes(pipeline) + self._largest(pipeline)

    def work(self, pipeline: Pipeline) -> Work:
        return self._graphs(pipeline).work(pipeline)

    def built(self, pipeline: Pipeline) -> Work:
        """Return what it takes to build every engine once."""
        weights = self._graphs(pipeline).written_bytes(pipeline)
        return Work(engines=len(interfaces(pipeline)), engine_bytes=weights)

    def engine_memory(self, pipeline: Pipeline) -> int:
        return memory_needed(self._largest(pipeline))

    def _largest(self, pipeline: Pipeline) -> int:
        """Return the bytes of the largest component's weights."""
        graphs = self._graphs(pipeline)
        return max(graphs.bytes_of(pipeline, name) for name in pipeline.components)

    def check(self, pipeline: Pipeline) -> None:
        profiles_of(pipeline, self.batch, self.sizes)
        self._graphs(pipeline).check(pipeline)

    def _graphs(self, pipeline: Pipeline) -> Onnx:
        """Return the target that writes the graphs: of one size where only one is asked for."""
        sizes = self.sizes or (own_size(pipeline),)
        return Onnx(
            profile="tensorrt",
            precision=self.precision,
            vae_precision=self.vae_precision,
            size=sizes[0] if len(sizes) == 1 else None,
            parity=self.parity,
        )

    def static(self, graph: str, claim: str, value: str, unit: str, **rest: Any) -> Evidence:
        """Return what was found of a graph's engine without running it."""
        return Evidence(
            kind="static",
            claim=claim,
            subject=f"{self.name}/{graph}",
            value=value,
            unit=unit,
            produced_by=f"emit/{self.name}",
            **rest,
        )

    @abstractmethod
    def build(self, place: Path, profile: dict[str, Shapes], job: Job) -> Sequence[Evidence]:
        """Make an engine of the graph in `place`, or what it takes to make one."""

    @abstractmethod
    def weights(self, data: str) -> str:
        """Return which file holds the weights that the graphs have in the file `data`."""
