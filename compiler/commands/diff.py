"""retouch diff: what differs between two models, specs or artefacts, tensor by tensor."""

from pathlib import Path

import click

from ...runtime.console import json_option, print_result
from ...specs.errors import Fault, InputError
from ...specs.schema import Source
from ..canonical_text import difference, unified
from ..ir import Pipeline
from ..load import load_pipeline, open_source
from ..plan import make_plan

# Models carry no sampling of their own: both sides get the same, so that it does not differ.
SAMPLER, STEPS = "dpmpp_2m", 20


@click.command("diff")
@click.argument("before")
@click.argument("after")
@json_option
def command(before: str, after: str, as_json: bool) -> None:
    """Show what differs from BEFORE to AFTER.

    Each is a diffusers folder, a single file, a built-in model, an artefact with a `diffusers` target, or
    a spec, which stands for the model as it would be built. Exits with 0 whether or not there is a
    difference.
    """
    rows = difference(_open(before), _open(after))
    text = unified(rows) if rows else "no difference"
    print_result({"differences": [row.as_json() for row in rows]}, text.rstrip("\n"), as_json)


def _open(place: str) -> Pipeline:
    """Open one side by its headers."""
    path = Path(place)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        return make_plan(path).pipeline
    if (path / "manifest.json").is_file():
        if not (path / "diffusers").is_dir():
            hint = "add `- diffusers: {}` to the spec's `emit`, or compare the specs"
            raise InputError(
                Fault("E_DIFF", "the artefact holds no diffusers target to compare", place, hint)
            )
        path = path / "diffusers"
    if path.is_dir():
        return load_pipeline(path, SAMPLER, STEPS)
    return open_source(Source(place), Path(), SAMPLER, STEPS)
