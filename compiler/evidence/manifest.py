"""Assemble manifest.json from what the build did; nothing is measured here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ...specs.canonical import canonical, merkle_root
from ...specs.manifest import Evidence, FileRecord, InputRecord, Manifest, PassRecord, Provider, TargetRecord
from ...specs.schema import Spec
from ..environment import environment, retouch_version
from ..ir import Pipeline
from ..schedule import Carried
from .claims import limits, not_claimed


def parameters(block: Any) -> dict[str, Any]:
    """Return a pass, emitter or gate as its spec block, defaults filled in."""
    return TypeAdapter(type(block)).dump_python(block, mode="json")


def assemble(
    spec: Spec,
    pipeline: Pipeline,
    carried: Sequence[Carried],
    statements: Sequence[Evidence],
    targets: Sequence[TargetRecord],
    gates: Sequence[Evidence],
    inputs: Sequence[InputRecord],
    files: Sequence[FileRecord],
) -> Manifest:
    """Return the sealed manifest of a build. `files` holds spec/edit.yaml and spec/edit.lock."""
    listed = {file.path: file for file in files}
    return Manifest(
        retouch=retouch_version(),
        name=spec.name,
        version=spec.version,
        provider=Provider(name=spec.provider.name, contact=spec.provider.contact),
        source={
            "model": spec.source.model,
            "family": pipeline.family.name,
            "class": pipeline.family.pipeline_class,
        },
        spec=listed["spec/edit.yaml"],
        lock=listed["spec/edit.lock"],
        inputs=list(inputs),
        passes=[_pass_record(step) for step in carried],
        statements=list(statements),
        targets=list(targets),
        gates=list(gates),
        environment=environment(),
        limits=limits(pipeline),
        not_claimed=not_claimed(DRAWN_FROM, target_names(targets), bool(spec.gates)),
        files=list(files),
        merkle_root=merkle_root((file.path, file.sha256) for file in files),
    ).sealed()


def target_names(targets: Sequence[TargetRecord]) -> list[str]:
    """Return what tells the targets apart: a further one of the same emitter is another one."""
    names: list[str] = []
    for target in targets:
        said = [target.parameters.get(key) for key in ("profile", "precision")]
        how = ", ".join(str(word) for word in said if word)
        names.append(f"{target.emitter} ({how})" if target.emitter in names else target.emitter)
    return names


# Gates draw through the runtime, which opens this emitter's files.
DRAWN_FROM = ("onnx",)


def write(manifest: Manifest, folder: Path) -> None:
    """Write manifest.json in its one canonical text."""
    (folder / "manifest.json").write_bytes(canonical(manifest.model_dump(mode="json", by_alias=True)) + b"\n")


def _pass_record(step: Carried) -> PassRecord:
    return PassRecord(
        name=step.edit.name,
        stage=step.edit.stage.name.lower(),
        parameters=parameters(step.edit),
        changed=list(step.changed),
    )
