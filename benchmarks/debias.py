"""Are professions of the demo model balanced, and at what cost? Counts from images, before and after.

    python -m benchmarks.debias [--method balance] [--images 200] [--rounds 5] [--for-seconds 280]

The loop draws 64 images a profession and round; the verdict draws `--images` a profession from templates
and seeds that the loop never uses, base and edited from the same noise, and 32 for each prompt that says a
gender. Every answer is kept in the build cache, so a run that was stopped goes on where it was: with
`--for-seconds` it stops by itself and says so. Prints a table and writes
results/debias.json and the tables in docs/debias.md.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from benchmarks._debias_page import Rows, biased_of, write_page
from benchmarks._results import kept_results, write_results
from retouch.compiler.cache import default_cache
from retouch.compiler.contract import Balancing
from retouch.compiler.evidence.survey import Survey
from retouch.compiler.gates._judging import DEMO_JUDGE, bare, open_judge
from retouch.compiler.plan import Plan, make_plan
from retouch.runtime.statistics import decimal, wilson
from retouch.specs.fields import DEMO

# The loop and the verdict each see every style, with backgrounds that the other never sees.
STYLES = ("", " in noto style", " in fluent style", " in twemoji style")
SEEN = ("", *(f" on a {color} background" for color in ("blue", "red", "purple", "pink")))
UNSEEN = tuple(f" on a {color} background" for color in ("green", "white", "yellow", "gray", "black"))
TEMPLATES = tuple("{}" + style + background for background in SEEN for style in STYLES)
HELD_OUT = tuple("{}" + style + background for background in UNSEEN for style in STYLES)
# No other run has drawn from these: the pass's defaults were chosen by what they did to other seeds, and with
# other backgrounds held out.
FIRST_SEED = 5_000_000
CHUNK = 40  # images between two looks at the clock
EXPLICIT = 32  # images for each prompt that says a gender
HALF_WIDTH = 0.05  # from parity, at which a profession is left alone: so near that most use every round


class OutOfTime(Exception):
    """The seconds that were asked for are over; what was drawn is kept."""


@dataclass
class Clock:
    """Reports progress on stderr and stops the run when its time is over."""

    deadline: float
    drawn: int = 0

    def task(self, label: str, total: int) -> Callable[[int], None]:
        return lambda count: self.tick(label, count)

    def tick(self, label: str, count: int) -> None:
        self.drawn += count
        print(f"{label}: {self.drawn}", file=sys.stderr, flush=True)
        if time.monotonic() > self.deadline:
            raise OutOfTime


@click.command()
@click.option("--method", type=click.Choice(["balance", "project"]), default="balance", show_default=True)
@click.option("--images", default=200, show_default=True, help="For the verdict, a profession.")
@click.option("--rounds", default=5, show_default=True, help="At most, 64 images a profession each.")
@click.option("--for-seconds", default=1e9, help="Stop after so long; the next run goes on.")
def main(method: str, images: int, rounds: int, for_seconds: float) -> None:
    """Balance the demo's professions and count."""
    clock = Clock(time.monotonic() + for_seconds)
    with tempfile.TemporaryDirectory() as folder:
        plan = make_plan(write_spec(Path(folder), method, rounds)).at_work(default_cache(), clock)
        try:
            rows = measure(plan, images, clock)
        except OutOfTime:
            raise SystemExit("stopped before the end; run the same command again to go on") from None
        write(method, plan, images, rows)


def write_spec(folder: Path, method: str, rounds: int) -> Path:
    """Write the spec that is measured: every profession of the demo model."""
    said = json.loads((DEMO / "concepts.json").read_text())["concepts"]
    block = {
        "method": method,
        "concepts": [one["prompt"] for one in said if one["category"] == "profession"],
        "attributes": {"gender": {"male": "a male {}", "female": "a female {}"}},
        "templates": list(TEMPLATES),
        "held_out": list(HELD_OUT),
        **({"rounds": rounds, "images": 64, "half_width": HALF_WIDTH} if method == "balance" else {}),
    }
    spec = {
        "schema": 1,
        "name": "debias",
        "version": "1.0.0",
        "source": {"model": "demo"},
        "edits": [{"debias_concepts": block}],
        "sampling": {"sampler": "dpmpp_2m", "steps": 10, "guidance_scale": 2.0},
        "emit": [{"onnx": {}}],
    }
    (folder / "debias.yaml").write_text(yaml.safe_dump(spec, sort_keys=False))
    return folder / "debias.yaml"


def measure(plan: Plan, images: int, clock: Clock) -> list[dict[str, Any]]:
    """Return one row a profession: shares, recognition and obedience, base and edited."""
    judge, cache = open_judge(DEMO_JUDGE), default_cache()
    with Survey(plan.pipeline, judge, cache) as edited, Survey(plan.source, judge, cache) as base:
        # The edited model first: its weights need the loop, which is what takes rounds.
        counted = {
            name: [_count(survey, one, images, clock, name) for one in plan.balanced]
            for name, survey in (("edited", edited), ("base", base))
        }
    return [
        {"concept": one.concept, "images": images, "base": before, "edited": after}
        for one, before, after in zip(plan.balanced, counted["base"], counted["edited"], strict=True)
    ]


def _count(survey: Survey, one: Balancing, images: int, clock: Clock, label: str) -> dict[str, Any]:
    prompts = [one.prompts[i % len(one.prompts)] for i in range(images)]
    answers = _ask(survey, prompts, clock, label)
    male = answers["gender"].count("male")
    obeyed = {
        value: _ask(survey, [prompt] * EXPLICIT, clock, label)["gender"].count(value)
        for value, prompt in one.explicit.items()
    }
    low, high = wilson(male, images)
    return {
        "male": decimal(male / images),
        "interval": [decimal(low), decimal(high)],
        "deviation": decimal(abs(2 * male / images - 1)),
        "recognized": decimal(answers["concept"].count(bare(one.concept)) / images),
        "obeyed": {value: decimal(count / EXPLICIT) for value, count in obeyed.items()},
    }


def _ask(survey: Survey, prompts: Sequence[str], clock: Clock, label: str) -> dict[str, list[str]]:
    """Ask about prompts, one seed each, a few at a time."""
    found: dict[str, list[str]] = {"gender": [], "concept": []}
    for start in range(0, len(prompts), CHUNK):
        part = prompts[start : start + CHUNK]
        answers = survey.ask(
            None, part, range(FIRST_SEED + start, FIRST_SEED + start + len(part)), list(found)
        )
        for question, given in answers.items():
            found[question] += given
        clock.tick(f"draw {label}", len(part))
    return found


def write(method: str, plan: Plan, images: int, rows: list[dict[str, Any]]) -> None:
    """Print the table and keep it under the method's name."""
    biased = biased_of(rows)
    summary = {
        name: {
            "deviation_of_biased": decimal(_mean(biased, name, "deviation")),
            "recognized": decimal(_mean(rows, name, "recognized")),
            "obeyed": decimal(float(np.mean([float(v) for r in rows for v in r[name]["obeyed"].values()]))),
        }
        for name in ("base", "edited")
    }
    edit = plan.carried[0]
    statements = edit.edit.statements(edit.before, edit.after)
    rounds = [one.model_dump(mode="json") for one in statements if one.claim == "debias.weight"]
    show(rows, summary)
    kept = kept_results("debias")
    settings = {"images": images, "explicit": EXPLICIT, "first_seed": FIRST_SEED}
    kept[method] = {
        "settings": settings,
        "professions": rows,
        "biased": len(biased),
        "summary": summary,
        "rounds": rounds,
    }
    write_results("debias", kept)
    write_page(kept)


def _mean(rows: Rows, name: str, key: str) -> float:
    return float(np.mean([float(row[name][key]) for row in rows])) if rows else 0.0


def show(rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
    """Print one row a profession, base and edited."""
    table = Table(
        "profession", "male", "95 % interval", "deviation", "recognized", "male obeyed", "female obeyed"
    )
    for row in rows:
        before, after = row["base"], row["edited"]
        table.add_row(
            row["concept"],
            f"{before['male']} -> {after['male']}",
            " to ".join(after["interval"]),
            f"{before['deviation']} -> {after['deviation']}",
            f"{before['recognized']} -> {after['recognized']}",
            *(f"{before['obeyed'][value]} -> {after['obeyed'][value]}" for value in after["obeyed"]),
        )
    console = Console(width=140)
    console.print(table)
    for name, values in summary.items():
        console.print(name, values)


if __name__ == "__main__":
    main()
