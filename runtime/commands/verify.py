"""retouch verify: is an artefact whole, and what does its evidence say?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from ...specs.errors import Fault, GateError
from ...specs.manifest import Evidence, Manifest
from ...specs.probes import ProbeReport
from ..artefact import Verified, probe_reports, verify
from ..console import json_option, one_line, print_result

COMPARATORS = {"at_most": "at most", "at_least": "at least", "equals": "exactly"}


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--integrity-only", is_flag=True, help="Exit with 0 for a whole artefact whose evidence failed."
)
@json_option
@click.pass_context
def command(context: click.Context, folder: Path, integrity_only: bool, as_json: bool) -> None:
    """Hash every file of the artefact in FOLDER and compare it with its manifest.

    Nothing may be missing, extra, linked or changed by a bit, else the exit code is 3 and every such
    file is named. That shows a whole artefact, not who made it: without a signature anyone can write
    a manifest. No code of the artefact runs and no network is used. Reports that `retouch probe` attached
    are shown; they have no limit to meet.
    """
    verified = verify(folder)
    reports = probe_reports(folder)
    failed = [evidence for evidence in _evidence(verified.manifest) if evidence.passed is False]
    faults = [] if integrity_only else [_fault(evidence) for evidence in failed]
    value = {**_value(verified), "probes": [_report(path, reports[path]) for path in reports]}
    print_result(value, "\n".join([*_lines(verified), *_probe_lines(reports)]), as_json, faults)
    if faults:
        context.exit(GateError.exit_code)


def _evidence(manifest: Manifest) -> list[Evidence]:
    of_targets = [evidence for target in manifest.targets for evidence in target.evidence]
    return [*manifest.statements, *of_targets, *manifest.gates]


def _fault(evidence: Evidence) -> Fault:
    return Fault("E_EVIDENCE", f"{_sentence(evidence)}: failed", "manifest.json")


def _sentence(evidence: Evidence) -> str:
    unit = f" {evidence.unit}" if evidence.unit else ""
    within = f" [{evidence.interval[0]}, {evidence.interval[1]}]" if evidence.interval else ""
    limit = f", expected {COMPARATORS[evidence.comparator]} {evidence.limit}" if evidence.comparator else ""
    return one_line(f"{evidence.claim} ({evidence.subject}): {evidence.value}{unit}{within}{limit}")


def _counts(manifest: Manifest) -> dict[str, int]:
    outcomes = [evidence.passed for evidence in _evidence(manifest)]
    return {"passed": outcomes.count(True), "failed": outcomes.count(False), "no_limit": outcomes.count(None)}


def _value(verified: Verified) -> dict[str, Any]:
    manifest = verified.manifest
    return {
        "folder": str(verified.folder),
        "statement": verified.statement,
        "name": manifest.name,
        "version": manifest.version,
        "retouch": manifest.retouch,
        "digest": manifest.digest,
        "merkle_root": manifest.merkle_root,
        "files": len(manifest.files),
        "bytes": verified.size,
        "evidence": {
            **_counts(manifest),
            "claims": [evidence.model_dump(mode="json") for evidence in _evidence(manifest)],
        },
        "limits": manifest.limits,
        "not_claimed": manifest.not_claimed,
    }


def _lines(verified: Verified) -> Iterator[str]:
    manifest, counts = verified.manifest, _counts(verified.manifest)
    provider = f" for {manifest.provider.name}" if manifest.provider.name else ""
    yield f"{verified.folder}: {verified.statement}"
    yield one_line(f"{manifest.name} {manifest.version}, built by retouch {manifest.retouch}{provider}")
    yield f"  files     {len(manifest.files)} and the manifest, {verified.size:,} bytes"
    yield f"  digest    {manifest.digest}"
    summary = (
        f"{counts['passed']} meet their limit, {counts['failed']} fail, {counts['no_limit']} have no limit"
    )
    yield f"  evidence  {sum(counts.values())} claims: {summary}"
    yield from (f"    {_mark(evidence)}  {_sentence(evidence)}" for evidence in _evidence(manifest))
    yield from _listed("limits", manifest.limits)
    yield from _listed("not claimed", manifest.not_claimed)


def _report(path: str, report: ProbeReport) -> dict[str, Any]:
    return {"path": path, **report.model_dump(mode="json", exclude={"environment", "schema_version"})}


def _probe_lines(reports: Mapping[str, ProbeReport]) -> Iterator[str]:
    for path, report in reports.items():
        yield one_line(f"  probed    {path}, judge {report.judge}")
        for evidence in report.evidence:
            control = f", control {evidence.details['control']}" if "control" in evidence.details else ""
            yield f"    {_mark(evidence)}  {one_line(_sentence(evidence) + control)}"


def _mark(evidence: Evidence) -> str:
    return {True: "good", False: "FAIL", None: "  - "}[evidence.passed]


def _listed(title: str, texts: list[str]) -> Iterator[str]:
    if texts:
        yield f"  {title}"
        yield from (f"    - {one_line(text)}" for text in texts)
