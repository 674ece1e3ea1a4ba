"""The whole way from a plan to an artefact under its final name, or to nothing at all.

emit targets -> spec, lock, sampling -> seal -> gates draw from the sealed bytes -> evidence,
manifest, card -> sync, rename
"""

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ..runtime.memory import peak_memory
from ..specs.canonical import digest_file, sealed
from ..specs.errors import Fault, GateError, UndecidedError, collected, quoted, raise_all
from ..specs.lock import Lock, check_lock, make_lock, read_lock, write_lock
from ..specs.manifest import Evidence, InputRecord, Manifest, TargetRecord
from .cache import default_cache
from .cost import check_room, estimate
from .digests import remembering
from .emit import Emitter, Job, Ledger, Watch
from .evidence import manifest as manifests
from .evidence.card import write_card
from .evidence.trial import hold_trial
from .graphs.aside import capture_aside, shares_of
from .graphs.shapes import check_shapes
from .load import source_files
from .plan import Plan, files_named, size_of
from .seal import ATTESTATIONS, records, transaction
from .studio import Quiet, Reporter
from .threads import single_threaded


@dataclass(frozen=True)
class Options:
    """How to build, apart from what: none of it may change a byte of the artefact."""

    force: bool = False
    locked: bool = False
    keep_failed: bool = False
    regardless: bool = False
    cache: Path = field(default_factory=default_cache)


def build(
    plan: Plan, target: Path, options: Options | None = None, report: Reporter | None = None
) -> Manifest:
    """Build a plan into the folder `target` and return its manifest.

    Raises:
        GateError: evidence does not meet its threshold; `target` is not written.
        SpecError, InputError, UndecidedError: with all faults; `target` is not written. UndecidedError too
            where this machine has too little memory or disk, unless `options.regardless`.
    """
    options, report = options or Options(), report or Quiet()
    cost = estimate(plan.pipeline, plan.spec.emit, options.cache, plan.steps())
    if not options.regardless:
        check_room(cost, target)
    raise_all(UndecidedError, collected(emitter.check_machine for emitter in plan.spec.emit))
    plan = plan.at_work(options.cache, report)
    started = time.time()
    lock = _locked_inputs(plan, options)
    if shares := shares_of(cost.cold):
        advance = report.task("capture graphs", len(cost.cold))
        capture_aside(plan.pipeline, shares, options.cache, advance)
    check_shapes(plan.pipeline, options.cache)
    # Sums of several threads depend on how many cores there are; bytes and evidence must not.
    with transaction(target, options.force) as folder, single_threaded(), ThreadPoolExecutor(1) as aside:
        # What passes solve, while tensors are written that need none of it.
        statements, ledger = aside.submit(plan.statements), Ledger()
        targets = [_emit(plan, emitter, folder, options, report, ledger) for emitter in plan.spec.emit]
        _write_spec(plan, lock, folder)
        seal = partial(_seal, plan, lock, folder, ledger, statements.result(), targets)
        manifest = seal([])
        if plan.spec.gates:
            manifest = seal(hold_trial(plan, folder, options.cache, report))
        _attest(folder, started)
        if not manifest.passed:
            _fail(manifest, folder, target, options)
    if not options.locked:
        _keep_lock(plan, lock)
    return manifest


def lock_file(plan: Plan) -> Path:
    """Return where a spec's lock lies: beside it, `edit.yaml` -> `edit.lock`."""
    return plan.file.with_suffix(".lock")


def watches_of(plan: Plan) -> list[Watch]:
    """Return fresh observers of every pass, each with the pipeline that its pass was given."""
    return [
        Watch(observer, step.before)
        for step in plan.carried
        for observer in step.edit.observers(step.before, step.after)
    ]


def _emit(
    plan: Plan,
    emitter: Emitter,
    folder: Path,
    options: Options,
    report: Reporter,
    ledger: Ledger,
) -> TargetRecord:
    """Write one target; its static evidence is what the observers saw of just these bytes."""
    watches = watches_of(plan)
    total = sum(size_of(plan.pipeline, name) for name in plan.pipeline.components)
    advance = report.task(f"write {emitter.name}", total)
    job = Job(plan.source, watches, lambda _, count: advance(count), options.cache, report.task, ledger)
    emitted = emitter.emit(plan.pipeline, folder, job)
    static = [evidence for watch in watches for evidence in watch.observer.evidence()]
    return TargetRecord(
        emitter=emitter.name,
        parameters=manifests.parameters(emitter),
        components=list(emitted.components),
        evidence=[*static, *emitted.evidence],
    )


def _locked_inputs(plan: Plan, options: Options) -> Lock:
    """Hash every input; with `locked`, refuse what differs from the lock beside the spec."""
    # A lock that is to be checked is worth reading every byte for.
    digest = digest_file if options.locked else remembering(options.cache)
    sources = [("source", name, path) for name, path in source_files(plan.source)]
    lock = make_lock(plan.file, [*sources, *files_named(plan.spec)], digest)
    if options.locked:
        check_lock(read_lock(lock_file(plan)), lock)
    return lock


def _write_spec(plan: Plan, lock: Lock, folder: Path) -> None:
    (folder / "spec").mkdir()
    (folder / "spec" / "edit.yaml").write_bytes(plan.file.read_bytes())
    write_lock(lock, folder / "spec" / "edit.lock")


def _seal(
    plan: Plan,
    lock: Lock,
    folder: Path,
    ledger: Ledger,
    statements: Sequence[Evidence],
    targets: Sequence[TargetRecord],
    gates: Sequence[Evidence],
) -> Manifest:
    """Write card and manifest over everything in the folder."""
    inputs = [
        InputRecord(role=item.role, path=item.path, size=item.size, sha256=item.sha256)
        for item in lock.inputs
    ]
    write_card(plan, targets, gates, folder)
    files = records(folder, ledger.digests)
    manifest = manifests.assemble(
        plan.spec, plan.pipeline, plan.carried, statements, targets, gates, inputs, files
    )
    manifests.write(manifest, folder)
    return manifest


def _keep_lock(plan: Plan, lock: Lock) -> None:
    """Leave the lock beside the spec, except where the spec lies in the installed package or is read-only."""
    place = lock_file(plan)
    if Path(__file__).parents[1] in place.parents or not os.access(place.parent, os.W_OK):
        return
    write_lock(lock, place)


def _attest(folder: Path, started: float) -> None:
    """Write what depends on the hour and the host, apart from everything that must be repeatable."""
    facts: dict[str, Any] = {
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "peak_memory_bytes": peak_memory(),
        "cores": os.cpu_count(),
        "manifest_sha256": digest_file(folder / "manifest.json"),
    }
    (folder / ATTESTATIONS).mkdir()
    (folder / ATTESTATIONS / "build.json").write_bytes(sealed(facts))


def _fail(manifest: Manifest, folder: Path, target: Path, options: Options) -> None:
    """Raise what did not pass; with `keep_failed`, leave the folder as `NAME.failed` to look at."""
    kept = target.with_name(target.name + ".failed")
    if options.keep_failed and not kept.exists():
        folder.rename(kept)
    raise GateError(*(_gate_fault(evidence) for evidence in manifest.measured if evidence.passed is False))


def _gate_fault(evidence: Evidence) -> Fault:
    between = f", 95 % interval {evidence.interval[0]} to {evidence.interval[1]}" if evidence.interval else ""
    wanted = f"{(evidence.comparator or '').replace('_', ' ')} {evidence.limit}"
    return Fault(
        "E_EVIDENCE",
        f"{evidence.claim} of {quoted(evidence.subject)} is {evidence.value}{between}; the spec wants "
        f"{wanted}",
        where=evidence.produced_by,
        hint="nothing was written under the final name; --keep-failed leaves the folder to look at",
    )
