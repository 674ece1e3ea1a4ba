"""What a build will do, from headers alone: the order, the tensors each pass touches, the cost."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ..specs.errors import Fault, InputError, SpecError, collected, raise_all
from ..specs.fields import input_files
from ..specs.manifest import Evidence
from ..specs.read import Registries, read_spec
from ..specs.schema import Spec
from . import registry
from .contract import Balancing, Erasure
from .evidence.manifest import parameters
from .gates import Gate
from .gates._judging import JudgeFile
from .ir import Pipeline
from .load import MODEL_ROLES, open_source
from .schedule import Carried, carry_out
from .studio import Reporter, Studio
from .tensors import bytes_of
from .text.conditioning import check_draws
from .work import Step, Work

REGISTRIES = Registries(registry.passes, registry.emitters, registry.gates)


@dataclass(frozen=True)
class Plan:
    """A spec that has been read and carried out lazily: nothing is computed, nothing is written."""

    file: Path
    spec: Spec
    source: Pipeline
    carried: tuple[Carried, ...]

    @property
    def pipeline(self) -> Pipeline:
        """The edited pipeline."""
        return self.carried[-1].after if self.carried else self.source

    @property
    def erased(self) -> tuple[Erasure, ...]:
        """Every concept that a pass says it erases, in spec order."""
        return tuple(erasure for step in self.carried for erasure in step.edit.erasures())

    @property
    def balanced(self) -> tuple[Balancing, ...]:
        """Every concept that a pass says it balances, in spec order."""
        return tuple(balancing for step in self.carried for balancing in step.edit.balancings())

    def statements(self) -> list[Evidence]:
        """Return what every pass says without a written tensor; that may take as long as its solution."""
        return [
            evidence for step in self.carried for evidence in step.edit.statements(step.before, step.after)
        ]

    def images(self) -> int:
        """Images that the gates will draw."""
        return sum(gate.work(len(self.erased), self.balanced).images for gate in self.spec.gates)

    def steps(self) -> list[Step]:
        """Return what of the build asks anything of the model: passes, targets and gates, in their order."""
        emitters, erased = self.spec.emit, len(self.erased)
        # Gates draw from the first target that can be drawn from, and that may fix the size.
        cells = next((emitter.cells(self.pipeline) for emitter in emitters if emitter.drawn_from), None)
        asked = [
            *(Step(edit.name, edit.work(len(emitters))) for edit in self.spec.edits),
            *(Step(f"emit/{emitter.name}", emitter.work(self.pipeline)) for emitter in emitters),
            *(Step(f"gates/{g.name}", g.work(erased, self.balanced), cells) for g in self.spec.gates),
        ]
        return [step for step in asked if step.work != Work()]

    def at_work(self, cache: Path, report: Reporter) -> "Plan":
        """Return this plan with its passes told what they draw with: the sampling that the spec ends in."""
        studio = Studio(self.pipeline.sampling, cache, report)
        source = replace(self.source, studio=studio)
        return replace(self, source=source, carried=tuple(carry_out(source, self.spec.edits)))

    def summary(self) -> dict[str, Any]:
        """Return the plan as plain data: what `retouch plan --json` prints."""
        table = self.pipeline.sampling.table()
        models = {name: size_of(self.pipeline, name) for name in _models(self.pipeline)}
        largest = max(map(bytes_of, self.pipeline.tensors.values()), default=0)
        return {
            "name": self.spec.name,
            "version": self.spec.version,
            "source": {
                "model": self.spec.source.model,
                "family": self.source.family.title,
                "bytes": sum(models.values()),
                "notes": list(self.source.notes),
            },
            "passes": [
                {
                    "name": step.edit.name,
                    "stage": step.edit.stage.name.lower(),
                    "tensors": len(step.changed),
                    "bytes": sum(
                        bytes_of(step.after.tensors[name])
                        for name in step.changed
                        if name in step.after.tensors
                    ),
                    "changed": list(step.changed),
                }
                for step in self.carried
            ],
            "sampling": {
                "sampler": table.sampler,
                "steps": len(table.steps),
                "guided_steps": sum(step.guided for step in table.steps),
                "denoiser_evaluations": table.evaluations,
            },
            "emit": [{"name": emitter.name, **parameters(emitter)} for emitter in self.spec.emit],
            "gates": [{"name": gate.name, **parameters(gate)} for gate in self.spec.gates],
            "cost": {"largest_tensor_bytes": largest},
        }


def make_plan(file: Path) -> Plan:
    """Read a spec, open its source by the headers, and run the passes lazily.

    Raises:
        SpecError, InputError: with all faults that were found.
    """
    spec = read_spec(file, REGISTRIES)
    raise_all(InputError, _missing(spec))
    raise_all(SpecError, _undrawn(spec))
    sampling = spec.sampling
    source = open_source(spec.source, file.parent, sampling.sampler, sampling.steps, sampling.guidance_scale)
    if spec.gates:
        check_draws(source.family, "`gates`")
    plan = Plan(file, spec, source, tuple(carry_out(source, spec.edits)))
    raise_all(SpecError, collected(partial(emitter.check, plan.pipeline) for emitter in spec.emit))
    return plan


def files_named(spec: Spec) -> list[tuple[str, str, Path]]:
    """Return every file that the blocks of a spec name and a build reads, as (role, name, path)."""
    files = []
    for block in (*spec.edits, *spec.gates):
        for file in input_files(block):
            if not isinstance(file, JudgeFile):
                files.append((file.role, file.text, file.path))
            elif isinstance(block, Gate) or block.work().images:
                # a judge is a graph and, beside it, its labels; a pass that draws nothing asks none
                files += [
                    (file.role, file.text, file.path),
                    (file.role, f"{file.text} (labels)", file.path.with_suffix(".json")),
                ]
    return files


def _missing(spec: Spec) -> list[Fault]:
    hint = "paths are relative to the spec's folder"
    return [
        Fault("E_FILE", f"no file `{path}`", name, hint)
        for _, name, path in files_named(spec)
        if not path.exists()
    ]


def _undrawn(spec: Spec) -> list[Fault]:
    """Return what is wrong where there are gates and nothing that they could draw from."""
    if not spec.gates or any(emitter.drawn_from for emitter in spec.emit):
        return []
    hint = "add `- onnx: {}` under `emit`, or remove the gates"
    return [Fault("E_GATES", "gates draw images, and no emitted target can draw here", "gates", hint)]


def size_of(pipeline: Pipeline, component: str) -> int:
    """Return the bytes of a component's tensors in the types they are stored in."""
    return sum(map(bytes_of, pipeline.tensors_of(component).values()))


def _models(pipeline: Pipeline) -> list[str]:
    return sorted(name for name, component in pipeline.components.items() if component.role in MODEL_ROLES)
