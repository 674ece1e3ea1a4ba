"""retouch build: carry out a spec and write the artefact, or nothing."""

from pathlib import Path

import click

from ...runtime.console import json_option, print_result, reporter
from ..build import Options, build
from ..plan import make_plan
from .plan import size


@click.command("build")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the artefact."
)
@click.option("--force", is_flag=True, help="Replace an artefact that stands there.")
@click.option("--locked", is_flag=True, help="Refuse inputs that differ from the lock beside the spec.")
@click.option("--keep-failed", is_flag=True, help="Leave an artefact whose evidence failed as OUTPUT.failed.")
@click.option("--regardless", is_flag=True, help="Start even where memory or disk looks too small.")
@click.option("--dry-run", is_flag=True, help="Plan only: read headers, write nothing.")
@json_option
@click.pass_context
def command(
    context: click.Context,
    spec: Path,
    output: Path,
    force: bool,
    locked: bool,
    keep_failed: bool,
    regardless: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Build SPEC into a folder that `retouch verify` and `retouch run` open.

    Exits with 1 when evidence does not meet the spec's thresholds, and with 4 when this machine has too
    little memory or disk; nothing is then written.
    """
    if dry_run:
        from .plan import command as plan_command

        context.invoke(plan_command, spec=spec, as_json=as_json)
        return
    plan = make_plan(spec)
    with reporter(quiet=as_json) as report:
        options = Options(force, locked, keep_failed, regardless)
        manifest = build(plan, output, options, report)
    written = sum(file.size for file in manifest.files)
    limited = [evidence for evidence in manifest.measured if evidence.passed is not None]
    lines = [
        f"{output}: {len(manifest.files)} files, {size(written)}",
        f"  evidence  {len(manifest.measured)} claims measured, {len(limited)} with a threshold, all passed",
        f"  digest    {manifest.digest}",
    ]
    value = {"output": str(output), "digest": manifest.digest, "bytes": written, "passed": manifest.passed}
    print_result(value, "\n".join(lines), as_json)
