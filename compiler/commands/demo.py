"""retouch demo: the main job on the built-in model, with a sheet to look at."""

from pathlib import Path
from typing import Any

import click

from ...runtime.console import json_option, print_result, reporter
from ...runtime.images import contact_sheet
from ..build import Options
from ..demo import SHOWN, Demo, run_demo


@click.command("demo")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder for artefact and sheet."
)
@click.option("--force", is_flag=True, help="Replace an artefact that stands there.")
@json_option
def command(output: Path, force: bool, as_json: bool) -> None:
    """Merge an adapter, erase three concepts and bake a guidance interval in the built-in model.

    Writes OUTPUT/artefact and OUTPUT/sheet.png (rows: prompts; columns: base and edited, from the same
    noise) and says what the independent judge recognizes.
    """
    with reporter(quiet=as_json) as report:
        demo = run_demo(output / "artefact", Options(force=force), report)
    sheet = output / "sheet.png"
    _draw_sheet(demo).save(sheet)
    print_result(_value(demo, output), _text(demo, output), as_json)


def _draw_sheet(demo: Demo) -> Any:
    headers = ["base"] * SHOWN + ["edited"] * SHOWN
    rows = {f"{row.prompt}{' (erased)' if row.erased else ''}": [*row.base, *row.edited] for row in demo.rows}
    return contact_sheet(rows, headers, title=f"{demo.manifest.name} {demo.manifest.version}")


def _value(demo: Demo, output: Path) -> dict[str, Any]:
    diversity = demo.diversity
    return {
        "artefact": str(output / "artefact"),
        "sheet": str(output / "sheet.png"),
        "digest": demo.manifest.digest,
        "rows": [
            {
                "prompt": row.prompt,
                "erased": row.erased,
                "images": SHOWN,
                "base_recognized": row.base_recognized,
                "edited_recognized": row.edited_recognized,
            }
            for row in demo.rows
        ],
        "diversity": {
            "vendi_constant_guidance": round(diversity.constant, 3),
            "vendi_baked_interval": round(diversity.baked, 3),
            "images": diversity.images,
            "evaluations_constant_guidance": diversity.constant_evaluations,
            "evaluations_baked_interval": diversity.baked_evaluations,
        },
    }


def _text(demo: Demo, output: Path) -> str:
    width = max(len(row.prompt) for row in demo.rows)
    lines = [
        f"{output / 'artefact'}: intact, not signed",
        f"{output / 'sheet.png'}: recognized of {SHOWN} images",
        "",
    ]
    lines.append(f"  {'':<{width}}  base  edited")
    for row in demo.rows:
        note = "  erased" if row.erased else ""
        lines.append(f"  {row.prompt:<{width}}  {row.base_recognized:>4}  {row.edited_recognized:>6}{note}")
    diversity = demo.diversity
    cost = "denoiser evaluations an image"
    lines += [
        "",
        f"Diversity within a prompt (Vendi score, {diversity.images} images each):",
        f"  constant guidance  {diversity.constant:.2f}  {diversity.constant_evaluations} {cost}",
        f"  baked interval     {diversity.baked:.2f}  {diversity.baked_evaluations} {cost}",
    ]
    return "\n".join(lines)
