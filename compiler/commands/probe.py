"""retouch probe: what brings an erased concept back?

Tries on a finished artefact what an attacker could, with a control beside each attempt.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from pydantic import TypeAdapter, ValidationError

from ...runtime.artefact import open_artefact
from ...runtime.console import json_option, print_result, reporter
from ...specs.canonical import digest_file
from ...specs.errors import Fault, SpecError, quoted
from ...specs.manifest import Evidence, Manifest
from ...specs.probes import ProbeReport
from ..contract import Erasure
from ..cost import Pace
from ..environment import environment, retouch_version
from ..evidence.manifest import parameters
from ..gates._judging import JudgeFile, open_judge
from ..ir import Pipeline
from ..plan import Plan, make_plan
from ..probes import Probe
from ..registry import probes as registry
from ..seal import ATTESTATIONS
from ..torch_models.shipped import shipped_pipeline
from .plan import duration

if TYPE_CHECKING:
    from ..probes._examine import Examination

LIMITS = (
    "A probe that finds nothing proves nothing: another one, or more effort, may find it.",
    "A share means something only as far as it exceeds the control's.",
)


@click.command("probe")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option(
    "--spec", type=click.Path(path_type=Path), help="The spec it was built from; else the one in it."
)
@click.option("--concept", "concepts", multiple=True, help="An erased concept; all of the spec's by default.")
@click.option("--probes", "chosen", help="Names with commas; all by default.")
@click.option(
    "--effort", "efforts", multiple=True, metavar="PROBE.KEY=VALUE", help="Set a number of a probe."
)
@click.option(
    "--images", type=click.IntRange(1, 100_000), default=32, show_default=True, help="Drawn a probe."
)
@click.option(
    "--shown",
    multiple=True,
    metavar="CONCEPT=FOLDER",
    help="Pictures of a concept, where no base can draw them.",
)
@click.option("--judge", default="demo", show_default=True, help="`demo`, `demo-clip`, or an ONNX file.")
@click.option("--dry-run", is_flag=True, help="Say what it would cost, and stop.")
@click.option("--attach", is_flag=True, help="Leave the report in the artefact's attestations.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the report into a new file.")
@json_option
def command(
    folder: Path,
    spec: Path | None,
    concepts: tuple[str, ...],
    chosen: str | None,
    efforts: tuple[str, ...],
    images: int,
    shown: tuple[str, ...],
    judge: str,
    dry_run: bool,
    attach: bool,
    output: Path | None,
    as_json: bool,
) -> None:
    """Try to make the artefact in FOLDER draw what was erased from it.

    The base model draws what a probe imitates, so the source of the spec has to be at hand, or pictures of
    the concept. What it will cost is said first. Exits with 0 whatever is found: a threshold is the gate
    `probed` of a spec.
    """
    from ..probes._examine import Examination

    artefact = open_artefact(folder)
    manifest = artefact.manifest
    _refuse_existing(output)
    selected = _probes(chosen, efforts)
    given = dict(_pair(entry, "--shown") for entry in shown)
    plan = _plan(folder, manifest, spec, optional=bool(given))
    judging = open_judge(JudgeFile.resolve(judge, Path()))
    examination = Examination(
        folder=folder,
        erasures=_erasures(plan, concepts),
        probes=selected,
        judge=judging,
        images=images,
        base=None if plan is None else plan.source,
        edits=() if plan is None else plan.pipeline.graph_edits,
        given={name: Path(place) for name, place in given.items()},
    )
    cost = _cost(examination, shipped_pipeline(artefact, examination.edits))
    if dry_run:
        print_result({"folder": str(folder), "cost": cost}, "\n".join(_cost_lines(cost)), as_json)
        return
    if not as_json:
        click.echo("\n".join(_cost_lines(cost)), err=True)
    with reporter(quiet=as_json) as report:
        evidence = examination.run(report)
    document = ProbeReport(
        retouch=retouch_version(),
        manifest_sha256=digest_file(folder / "manifest.json"),
        judge=judging.name,
        judge_sha256=judging.sha256,
        probes={probe.name: parameters(probe) for probe in selected},
        evidence=evidence,
        environment=environment(),
        limits=list(LIMITS),
    )
    written = [str(place) for place in _write(document, folder, attach, output)]
    value = {"folder": str(folder), "written": written, **document.model_dump(mode="json", by_alias=True)}
    print_result(value, "\n".join(_lines(folder, evidence, written)), as_json)


def _cost(examination: "Examination", pipeline: Pipeline) -> dict[str, dict[str, float]]:
    """Return, for each part of an examination, samples that the denoiser predicts and an estimate of seconds.

    Examinations run on one thread, so that their results do not depend on the machine.
    """
    pace = Pace.of(pipeline)
    return {
        name: {
            "predicted": pace.evaluated(work) - work.differentiated,
            "differentiated": work.differentiated,
            "seconds": round(pace.seconds(work), 1),
        }
        for name, work in examination.work().items()
    }


def _cost_lines(cost: Mapping[str, Mapping[str, float]]) -> Iterable[str]:
    total = sum(part["seconds"] for part in cost.values())
    yield f"an estimated {duration(total)} on one thread of this machine"
    for name, part in cost.items():
        samples = f"{part['predicted']:,} samples of the denoiser, {part['differentiated']:,} with gradients"
        yield f"  {name:<24} {duration(part['seconds']):>8}  {samples}"


def _probes(chosen: str | None, efforts: Iterable[str]) -> list[Probe]:
    """Return the probes named, with their efforts. Raises SpecError for a name or number that is none."""
    names = (
        registry.names() if chosen is None else [name.strip() for name in chosen.split(",") if name.strip()]
    )
    blocks: dict[str, dict[str, Any]] = {name: {} for name in names}
    for entry in efforts:
        place, text = _pair(entry, "--effort")
        name, _, key = place.partition(".")
        if name not in blocks:
            raise SpecError(Fault("E_USAGE", f"{quoted(name)} is not among the probes that run", "--effort"))
        blocks[name][key] = text
    return [_make(name, block) for name, block in blocks.items()]


def _make(name: str, block: dict[str, Any]) -> Probe:
    try:
        return TypeAdapter[Any](registry.load(name)).validate_python(block, strict=False)
    except ValidationError as error:
        raise SpecError(
            *(
                Fault("E_USAGE", str(fault["msg"]), f"{name}.{'.'.join(map(str, fault['loc']))}")
                for fault in error.errors()
            )
        ) from error


def _pair(entry: str, option: str) -> tuple[str, str]:
    left, equals, right = entry.partition("=")
    if not equals or not left or not right:
        raise SpecError(Fault("E_USAGE", f"{quoted(entry)} has no `=` between two words", option))
    return left, right


def _plan(folder: Path, manifest: Manifest, spec: Path | None, optional: bool) -> Plan | None:
    """Return the plan that the artefact was built from, or None where its source may be missing.

    Raises:
        SpecError: the spec given is another one, or its source cannot be opened.
    """
    file = spec or folder / manifest.spec.path
    if digest_file(file) != manifest.spec.sha256:
        raise SpecError(Fault("E_PROBE_SPEC", "is not the spec that the artefact was built from", str(file)))
    try:
        return make_plan(file)
    except SpecError:
        if not optional:
            raise
        return None


def _erasures(plan: Plan | None, concepts: Sequence[str]) -> list[Erasure]:
    """Return what to revive: the concepts named, or all that the spec erased."""
    known = {} if plan is None else {erasure.name: erasure for erasure in plan.erased}
    missing = [name for name in concepts if plan is not None and name not in known]
    if missing or not (known or concepts):
        listed = ", ".join(map(quoted, known)) or "nothing"
        message = f"{quoted(missing[0])} was not erased" if missing else "no concept was erased"
        raise SpecError(Fault("E_PROBE_CONCEPT", message, "--concept", f"the spec erases {listed}"))
    return [known.get(name, Erasure((name,), "")) for name in (concepts or known)]


def _refuse_existing(output: Path | None) -> None:
    if output is not None and output.exists():
        raise SpecError(Fault("E_OUTPUT", "exists", str(output), "choose another output"))


def _write(document: ProbeReport, folder: Path, attach: bool, output: Path | None) -> list[Path]:
    """Write the report where it was asked for; an output that exists is refused."""
    _refuse_existing(output)
    text = document.text()
    places = [output] if output else []
    if attach:
        # Named after what it says: another examination stands beside it, the same one takes its place.
        attached = folder / ATTESTATIONS / f"probes-{hashlib.sha256(text).hexdigest()[:12]}.json"
        attached.parent.mkdir(exist_ok=True)
        places.append(attached)
    for place in places:
        fresh = place.with_name(place.name + ".part")
        fresh.write_bytes(text)
        fresh.replace(place)
    return places


def _lines(folder: Path, evidence: Sequence[Evidence], written: Sequence[str]) -> Iterable[str]:
    yield f"{folder}: {len(evidence)} attempts at revival"
    for found in evidence:
        within = f" [{found.interval[0]}, {found.interval[1]}]" if found.interval else ""
        control = f"control {found.details['control']}"
        yield f"  {found.subject:<24} {found.claim:<20} {found.value}{within} {found.unit}, {control}"
    yield from (f"  note  {limit}" for limit in LIMITS)
    yield from (f"  wrote {place}" for place in written)
