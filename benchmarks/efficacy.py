"""Does the demo spec erase what it says, and keep the rest? Counts from images of the built artefact.

    python -m benchmarks.efficacy [--images 128] [--concepts 60] [--kept-images 16] [--judge demo]

Each erased concept is drawn from `--images` seeds, each of `--concepts` kept ones from `--kept-images`,
from the base and from the edited artefact with the same noise. Prints a table with 95 % intervals and
writes results/efficacy.json.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from benchmarks._results import write_results
from retouch.compiler.build import Options, build
from retouch.compiler.evidence.trial import hold_trial
from retouch.compiler.gates._judging import JudgeFile
from retouch.compiler.gates.erased import Erased
from retouch.compiler.gates.kept import Kept
from retouch.compiler.plan import make_plan
from retouch.runtime.console import reporter
from retouch.specs.fields import DEMO_SPEC
from retouch.specs.manifest import Evidence


@click.command()
@click.option("--spec", type=click.Path(path_type=Path, exists=True), default=DEMO_SPEC)
@click.option("--images", default=128, show_default=True, help="Seeds an erased concept.")
@click.option("--concepts", default=60, show_default=True, help="Kept concepts.")
@click.option("--kept-images", default=16, show_default=True, help="Seeds a kept concept.")
@click.option("--judge", default="demo", show_default=True)
def main(spec: Path, images: int, concepts: int, kept_images: int, judge: str) -> None:
    """Measure the demo spec."""
    plan, options = make_plan(spec), Options()
    named = JudgeFile.resolve(judge, spec.parent)
    gates = (Erased("0.05", images, named), Kept("0.05", concepts, kept_images, named))
    with tempfile.TemporaryDirectory() as folder, reporter() as report:
        artefact = Path(folder) / "artefact"
        build(replace(plan, spec=replace(plan.spec, gates=())), artefact, options, report)
        measured = hold_trial(
            replace(plan, spec=replace(plan.spec, gates=gates)), artefact, options.cache, report
        )
    show(measured)
    write_results("efficacy", [evidence.model_dump(mode="json") for evidence in measured])


def show(measured: list[Evidence]) -> None:
    """Print one row an evidence."""
    table = Table("claim", "of", "base", "edited", "value", "95 % interval", "limit", "passed")
    for evidence in measured:
        edited = evidence.details.get("edited", evidence.value)
        low, high = evidence.interval or ("", "")
        table.add_row(
            evidence.claim,
            evidence.subject,
            str(evidence.details["base"]),
            str(edited),
            evidence.value,
            f"{low} to {high}",
            f"{evidence.comparator} {evidence.limit}",
            "yes" if evidence.passed else "NO",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
