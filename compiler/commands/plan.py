"""retouch plan: what a build would do and cost, without reading a weight."""

from pathlib import Path
from typing import Any

import click

from ...runtime.console import json_option, print_result
from ..cache import default_cache
from ..cost import Pace, check_room, estimate
from ..plan import Plan, make_plan

UNITS = ("bytes", "kB", "MB", "GB", "TB")


@click.command("plan")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--regardless", is_flag=True, help="Do not fail where memory or disk looks too small.")
@json_option
def command(spec: Path, regardless: bool, as_json: bool) -> None:
    """Show the order of the passes of SPEC, the tensors each one touches, and what build and gates cost.

    Exits with 4 when this machine has too little memory or disk for the build.
    """
    plan = make_plan(spec)
    cost = estimate(plan.pipeline, plan.spec.emit, default_cache(), plan.steps())
    summary = plan.summary()
    summary["cost"] |= {
        "disk_bytes": cost.disk,
        "memory_bytes": cost.memory,
        "engine_memory_bytes": cost.engine_memory,
        "seconds": round(cost.seconds, 1),
        "captures": list(cost.cold),
        "steps": (steps := _steps(plan)),
        "total_seconds": round(cost.seconds + sum(step["seconds"] for step in steps), 1),
    }
    print_result({"plan": summary}, _text(summary), as_json)
    if not regardless:
        check_room(cost, spec)


def _text(plan: dict[str, Any]) -> str:
    source, sampling, cost = plan["source"], plan["sampling"], plan["cost"]
    lines = [
        f"{plan['name']} {plan['version']}",
        f"  source    {source['model']}: {source['family']}, {size(source['bytes'])} of weights",
    ]
    lines += [f"            {note}" for note in source["notes"]]
    for step in plan["passes"]:
        lines.append(f"  {step['stage']:<9} {step['name']}: {step['tensors']} tensors, {size(step['bytes'])}")
    guided = f"{sampling['guided_steps']} of {sampling['steps']} steps guided"
    evaluations = f"{sampling['denoiser_evaluations']} denoiser evaluations an image"
    lines.append(f"  sampling  {sampling['sampler']}, {guided}, {evaluations}")
    lines += [f"  emit      {emitter['name']}" for emitter in plan["emit"]]
    lines += [f"  gate      {gate['name']}" for gate in plan["gates"]]
    lines.append(
        f"  cost      {duration(cost['seconds'])} to write it, {size(cost['memory_bytes'])} of memory, "
        f"{size(cost['disk_bytes'])} on disk, largest tensor {size(cost['largest_tensor_bytes'])}"
    )
    if cost["captures"]:
        lines.append(f"            graphs to capture first: {', '.join(cost['captures'])}")
    if cost["engine_memory_bytes"]:
        lines.append(f"            of the memory {size(cost['engine_memory_bytes'])} to build engines")
    lines += [f"            {duration(step['seconds']):>7}  {_asked(step)}" for step in cost["steps"]]
    if cost["steps"]:
        lines.append(f"            {duration(cost['total_seconds']):>7}  in all on this machine, an estimate")
    return "\n".join(lines)


def _steps(plan: Plan) -> list[dict[str, Any]]:
    """Return what each step asks of the model and about how long that takes here, as plain data."""
    paces = {step.cells: Pace.of(plan.pipeline, plan.source, step.cells) for step in plan.steps()}
    return [
        {
            "name": step.name,
            "seconds": round(paces[step.cells].seconds(step.work), 1),
            "images": step.work.images,
            "denoiser_evaluations": paces[step.cells].evaluated(step.work),
            "gradients": step.work.differentiated,
            "multiplications": step.work.multiplied,
            "engines": step.work.engines,
        }
        for step in plan.steps()
    ]


def _asked(step: dict[str, Any]) -> str:
    """Return a step's work in words, without what it does not ask for."""
    parts = [
        f"{step['images']:,} images" * bool(step["images"]),
        f"{step['denoiser_evaluations']:,} denoiser evaluations" * bool(step["denoiser_evaluations"]),
        f"{step['gradients']:,} of them with a gradient" * bool(step["gradients"]),
        "graphs compared with torch" * bool(step["multiplications"]),
        f"{step['engines']} engines built" * bool(step["engines"]),
    ]
    return f"{step['name']}: {', '.join(filter(None, parts))}"


def duration(seconds: float) -> str:
    """Return a time in the largest unit that leaves at least two of it.

    >>> duration(0.4), duration(90), duration(150), duration(9000)
    ('< 1 s', '90 s', '2 min', '2.5 h')
    """
    if seconds < 1:
        return "< 1 s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Return a number of bytes in the largest decimal unit that leaves a digit before the point.

    >>> size(999), size(1_500), size(3_440_000_000)
    ('999 bytes', '1.5 kB', '3.4 GB')
    """
    unit = 0
    while count >= 1000 and unit < len(UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.0f} {UNITS[0]}" if unit == 0 else f"{count:.1f} {UNITS[unit]}"
