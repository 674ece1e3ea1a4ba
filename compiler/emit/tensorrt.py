"""Plain TensorRT: its engines are built on the GPU that they are for; the artefact holds all that it takes.

That is the graph, checked with TensorRT-RTX's parser where that is installed (both share it), the
shapes, and the exact commands.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...runtime.devices import has_driver
from ...specs.errors import Fault, UndecidedError
from ...specs.manifest import Evidence
from ..engines.building import PLAIN, RTX, STEPS, Order, Shapes, build, check_installed, parse
from ..engines.profiles import as_numbers
from ..ir import Pipeline
from ..work import Work
from . import Job
from ._engines import EngineEmitter

GRAPH, ENGINE, SCRIPT = "model.onnx", "model.plan", "build.sh"
HEAD = "#!/bin/sh\n# Builds the engines on the GPU that they are for. Run it in this folder.\nset -eu\n"


@dataclass(frozen=True)
class Tensorrt(EngineEmitter):
    """Writes `tensorrt/`: the graphs, and `build.sh` with a `trtexec` command for each.

    `engines` makes them too, for the GPU of this machine: their bytes differ from build to build,
    because TensorRT chooses kernels by their time.
    """

    engines: bool = False

    def written_bytes(self, pipeline: Pipeline) -> int:
        """Engines stay beside the graphs, as large as these."""
        return (1 + self.engines) * self._graphs(pipeline).written_bytes(pipeline)

    def engine_memory(self, pipeline: Pipeline) -> int:
        return super().engine_memory(pipeline) if self.engines else 0

    def work(self, pipeline: Pipeline) -> Work:
        return super().work(pipeline) + self.built(pipeline) * self.engines

    def check_machine(self) -> None:
        if self.engines:
            check_installed(PLAIN)
            check_driver()

    def build(self, place: Path, profile: dict[str, Shapes], job: Job) -> Sequence[Evidence]:
        command = trtexec(place.name, profile)
        append_command(place.parent / SCRIPT, command)
        evidence = [self._checked(place, command, profile)]
        if self.engines:
            order = Order(place / GRAPH, profile, module=PLAIN)
            engine = build(order, place / ENGINE, job.task(f"build {place.name} engine", STEPS))
            job.ledger.remember(place / ENGINE, engine.sha256)
            facts = {"sha256": engine.sha256, "bytes": engine.size, "tensorrt": engine.version}
            layers = str(engine.layers)
            evidence.append(self.static(place.name, "engine built", layers, "layers", details=facts))
        return evidence

    def weights(self, data: str) -> str:
        return data

    def _checked(self, place: Path, command: Sequence[str], profile: Mapping[str, Shapes]) -> Evidence:
        """Return what TensorRT-RTX's parser made of the graph; without it, that nobody asked."""
        claim = "graph checked with TensorRT's parser"
        facts: dict[str, Any] = {"command": list(command), "profile": as_numbers(profile)}
        if find_spec(RTX) is None:
            facts["note"] = "TensorRT-RTX's parser is not installed, so the graph was not checked with it."
            return self.static(place.name, claim, "0", "parsers", details=facts)
        parsed = parse(place / GRAPH)
        facts |= {"tensorrt_rtx": parsed.version, "layers": parsed.layers}
        return self.static(place.name, claim, "1", "parsers", details=facts)


def check_driver() -> None:
    """Raise UndecidedError where this machine has no NVIDIA driver, which no package brings."""
    if not has_driver():
        hint = "build on the machine with the GPU, with the commands in tensorrt/build.sh"
        raise UndecidedError(Fault("E_DRIVER", "there is no NVIDIA driver here", hint=hint))


def trtexec(folder: str, profile: Mapping[str, Shapes]) -> list[str]:
    """Return the command that builds one graph's engine, to be run in the target's folder.

    Networks are strongly typed: precision is the graph's own. Attention for which a GPU has no kernel may
    become plain matrix products.
    """
    command = ["trtexec", f"--onnx={folder}/{GRAPH}", f"--saveEngine={folder}/{ENGINE}"]
    command += ["--stronglyTyped", "--decomposableAttentions=*"]
    for option, which in (("min", "smallest"), ("opt", "usual"), ("max", "largest")):
        shapes = [
            f"{name}:{'x'.join(map(str, getattr(shape, which)))}" for name, shape in sorted(profile.items())
        ]
        command += [f"--{option}Shapes={','.join(shapes)}"] if shapes else []
    return [*command, "--skipInference"]


def append_command(script: Path, command: Sequence[str]) -> None:
    """Add a command to the script that builds engines, which begins with its first one."""
    text = script.read_text(encoding="utf-8") if script.exists() else HEAD
    script.write_text(f"{text}{shlex.join(command)}\n", encoding="utf-8")
