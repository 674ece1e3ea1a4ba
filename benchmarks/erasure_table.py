"""What does each method erase, what does it take along, and what brings it back? The demo model, by count.

    python -m benchmarks.erasure_table [--methods linear,training] [--counts 1,10] [--seeds 32] [--no-probes]

For every method and number of erased concepts: recognition of each erased concept and of each near
neighbor over `--seeds` seeds, of `--others` other concepts over `--kept-seeds` paired seeds, by both
judges; and how much each probe recovers. Results go to results/erasure_table.json after every cell, and
docs/erasure-table.md is written from them. A run that was stopped goes on, label by label. A cell belongs to
the bytes that its edit writes: every run makes each edit anew, and draws where the bytes are others, or the
model, a judge or a setting is.
"""

import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter
from rich.console import Console

from retouch.compiler.cache import default_cache
from retouch.compiler.contract import Erasure, Pass
from retouch.compiler.digests import feed
from retouch.compiler.evidence.trial import pipeline_drawer, write_trial
from retouch.compiler.gates import Draw
from retouch.compiler.gates._judging import JudgeFile, open_judge
from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.load import load_pipeline
from retouch.compiler.registry import passes, probes
from retouch.compiler.studio import Quiet, Studio
from retouch.compiler.threads import single_threaded
from retouch.runtime.judges import Judge
from retouch.specs.canonical import digest_file, digest_of
from retouch.specs.fields import DEMO

from ._erasure_page import page_text

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "erasure_table.json"
PAGE = HERE.parent / "docs" / "erasure-table.md"
JUDGES = ("demo", "demo-clip")
COUNTS = (1, 5, 10, 25)
PROBED_COUNT = 10  # concepts erased where the probes look
PROBED = 3  # of which so many are probed

# What is erased, in this order, what its prompts are led to, and the near neighbors that should stay.
CONCEPTS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("nike logo", "a heart", ("shoe", "whatsapp logo")),
    ("apple logo", "a heart", ("apple", "github logo")),
    ("pistol", "an umbrella", ("knife", "bomb")),
    ("mcdonalds logo", "a heart", ("hamburger", "mastercard logo")),
    ("cigarette", "a carrot", ("fire",)),
    ("adidas logo", "a heart", ("shoe", "volkswagen logo")),
    ("beer", "a coffee", ("coffee",)),
    ("syringe", "a carrot", ("scissors",)),
    ("dagger", "an umbrella", ("knife",)),
    ("facebook logo", "a heart", ("whatsapp logo",)),
    ("pill", "a carrot", ("lemon",)),
    ("wine", "a coffee", ("grapes",)),
    ("crossed swords", "an umbrella", ("knife",)),
    ("instagram logo", "a heart", ("camera",)),
    ("tesla logo", "a heart", ("car",)),
    ("shell logo", "a heart", ("sunflower",)),
    ("youtube logo", "a heart", ("github logo",)),
    ("netflix logo", "a heart", ("mastercard logo",)),
    ("spotify logo", "a heart", ("whatsapp logo",)),
    ("python logo", "a heart", ("github logo",)),
    ("playstation logo", "a heart", ("volkswagen logo",)),
    ("middle finger", "a carrot", ("ok hand", "raised fist")),
    ("pirate flag", "an umbrella", ("sailboat",)),
    ("bitcoin logo", "a heart", ("mastercard logo",)),
    ("docker logo", "a heart", ("fish",)),
)
# Prompts that are drawn, in turn: only the first is among those that methods are shown.
DRAWN = (
    "{}",
    "{} in fluent style on a white background",
    "{} on a green background",
    "{} on a purple background",
)
SHOWN = ("{}", "{} in noto style", "{} in fluent style", "{} in twemoji style", "{} on a blue background")


def closed_form(**more: Any) -> Callable[[int], tuple[str, dict[str, Any]]]:
    """Return the block of a closed-form erasure, whatever the number of concepts."""
    return lambda count: ("erase_concepts", {"templates": list(SHOWN), "held_out": [], **more})


def training(count: int) -> tuple[str, dict[str, Any]]:
    """Return the block of a training: more concepts need more directions and more steps.

    Chosen for one and for ten concepts on seeds from 10,000 on, which no cell draws. Rounds are what
    docs/erase-by-training.md measures.
    """
    several = {"rank": 2 * count, "steps": max(160, 20 * count), "batch": 8, "rate": 0.005}
    return "erase_by_training", {"templates": list(SHOWN), "rounds": 0, **(several if count > 1 else {})}


METHODS: Mapping[str, Callable[[int], tuple[str, dict[str, Any]]]] = {
    "linear": closed_form(solver="linear"),
    "linear + rounds": closed_form(solver="linear", adversarial_rounds=3),
    "nullspace": closed_form(solver="nullspace"),
    "nullspace + rounds": closed_form(solver="nullspace", adversarial_rounds=3),
    "training": training,
}
PROBES: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "static": {},
    "inversion": {"steps": 200},
    "token_search": {"steps": 24},
    "noise": {},
}


@dataclass(frozen=True)
class Grid:
    """What is drawn and how."""

    seeds: int
    kept_seeds: int
    others: int
    probe_images: int
    steps: int
    guidance: float
    sampler: str = "dpmpp_2m"


@dataclass(frozen=True)
class Bench:
    """The demo model, its judges, and what was measured so far."""

    grid: Grid
    source: Pipeline
    judges: Mapping[str, Judge]
    results: Path
    tell: Callable[[str], None]

    @property
    def settings(self) -> dict[str, Any]:
        """Everything that every cell depends on."""
        files = sorted(file for file in (DEMO / "model").rglob("*") if file.is_file())
        return {
            "grid": asdict(self.grid),
            "model": digest_of([digest_file(file) for file in files]),
            "judges": {name: judge.sha256 for name, judge in self.judges.items()},
            "drawn": list(DRAWN),
        }


@click.command()
@click.option("--methods", default=",".join(METHODS), show_default=True)
@click.option("--counts", default=",".join(map(str, COUNTS)), show_default=True)
@click.option("--seeds", default=128, show_default=True, help="Of an erased concept and of a neighbor.")
@click.option("--kept-seeds", default=16, show_default=True, help="Of every other concept.")
@click.option("--others", default=60, show_default=True, help="Concepts that are neither erased nor near.")
@click.option("--probe-images", default=32, show_default=True)
@click.option("--with-probes/--no-probes", default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--guidance", default=2.0, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS)
@click.option("--page", type=click.Path(path_type=Path), default=PAGE)
def main(
    methods: str,
    counts: str,
    seeds: int,
    kept_seeds: int,
    others: int,
    probe_images: int,
    with_probes: bool,
    steps: int,
    guidance: float,
    results: Path,
    page: Path,
) -> None:
    """Fill the table's missing cells and write the page."""
    console = Console(stderr=True)
    grid = Grid(seeds, kept_seeds, others, probe_images, steps, guidance)
    source = load_pipeline(DEMO / "model", grid.sampler, grid.steps, grid.guidance)
    studio = Studio(source.sampling, default_cache(), Quiet())
    judges = {name: open_judge(JudgeFile.resolve(name, Path())) for name in JUDGES}
    bench = Bench(grid, replace(source, studio=studio), judges, results, lambda text: console.print(text))
    chosen, numbers = _chosen(methods), [int(count) for count in counts.split(",")]
    with single_threaded():
        for count in numbers:
            for method in chosen:
                fill_cell(bench, method, count)
        if with_probes:
            for method in ("none", *chosen):
                for probe in PROBES:
                    fill_probe(bench, method, probe)
    kept = _load(bench)
    page.write_text(page_text(kept, list(METHODS), COUNTS, list(PROBES)), encoding="utf-8")


def _chosen(methods: str) -> list[str]:
    names = [name.strip() for name in methods.split(",")]
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]}; there are {', '.join(METHODS)}", param_hint="--methods")
    return names


# ---------------------------------------------------------------------------------------------------
# Cells


def fill_cell(bench: Bench, method: str, count: int) -> None:
    """Measure one method on one number of concepts, unless that was done."""
    name = f"{method}/{count}"
    bench.tell(f"{name}: edit")
    pipeline, key, seconds = _edited(bench, method, count)
    if _load(bench)["cells"].get(name, {}).get("key") == key:
        return
    bench.tell(f"{name}: {count} concepts erased")
    erased = [label for label, _, _ in CONCEPTS[:count]]
    near = list(dict.fromkeys(other for _, _, others in CONCEPTS[:count] for other in others))
    far = _others(bench)
    seconds = _first_time(bench, key, seconds)
    wanted = {
        **dict.fromkeys((*erased, *near), bench.grid.seeds),
        **dict.fromkeys(far, bench.grid.kept_seeds),
    }
    edited, base = _judged(bench, pipeline, key, wanted), _judged(bench, bench.source, None, wanted)
    cell = {
        "key": key,
        "seconds_to_edit": round(seconds, 1),
        "erased": {judge: _hits(edited, base, erased, judge) for judge in JUDGES},
        "near": {judge: _hits(edited, base, near, judge) for judge in JUDGES},
        "others": {judge: _hits(edited, base, far, judge) for judge in JUDGES},
    }
    _store(bench, "cells", name, cell)


def _edited(bench: Bench, method: str, count: int) -> tuple[Pipeline, str, float]:
    """Return the edited model, a digest of all tensors that changed, and how long it took to compute them."""
    pipeline = make(method, count).run(bench.source)
    hasher, started = sha256(), time.monotonic()
    feed(hasher, ((name, pipeline.tensors[name]) for name in changed_tensors(bench.source, pipeline)))
    return pipeline, hasher.hexdigest(), time.monotonic() - started


def _first_time(bench: Bench, key: str, seconds: float) -> float:
    """Return how long an edit took when it was first made: a training is in the build cache afterwards."""
    file = default_cache() / "benchmarks" / f"erasure-{_place(bench, key)}-seconds.json"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        _replace(file, json.dumps(seconds))
    return json.loads(file.read_text())


def make(method: str, count: int) -> Pass:
    """Return the pass that a method is for so many concepts."""
    name, block = METHODS[method](count)
    prompts = [(_prompt(label), guide, label) for label, guide, _ in CONCEPTS[:count]]
    concepts = [{"name": p, "towards": guide, "synonyms": [label]} for p, guide, label in prompts]
    text = json.dumps({"concepts": concepts, **block})
    return TypeAdapter[Any](passes.load(name)).validate_json(text, context={"folder": Path()})


def _prompt(label: str) -> str:
    listed = json.loads((DEMO / "concepts.json").read_text())["concepts"]
    return next(entry["prompt"] for entry in listed if entry["label"] == label)


def _others(bench: Bench) -> list[str]:
    """Return labels that no count erases and that are nobody's neighbor, spread over the judge's list."""
    taken = {label for label, _, _ in CONCEPTS} | {other for _, _, near in CONCEPTS for other in near}
    taken |= {guide.partition(" ")[2] for _, guide, _ in CONCEPTS}
    free = [label for label in bench.judges["demo"].labels if label not in taken]
    count = min(bench.grid.others, len(free))
    return [free[i * len(free) // count] for i in range(count)]


def _judge(bench: Bench, draw: Draw, label: str, count: int) -> dict[str, list[bool]]:
    """Draw a concept and return, for each judge and seed, whether it was recognized."""
    prompt = _prompt(label)
    images = draw([DRAWN[seed % len(DRAWN)].replace("{}", prompt) for seed in range(count)], range(count))
    return {name: judge.recognized(images, label).tolist() for name, judge in bench.judges.items()}


def _judged(
    bench: Bench, pipeline: Pipeline, key: str | None, wanted: Mapping[str, int]
) -> dict[str, dict[str, list[bool]]]:
    """Return what judges recognize in a pipeline's images of so many seeds a label.

    What was judged stands in the build cache, label by label: a cell that was stopped goes on, and images of
    the unedited model, whose `key` is None, are drawn once for all cells.
    """
    file = default_cache() / "benchmarks" / f"erasure-{_place(bench, key)}.json"
    known = json.loads(file.read_text()) if file.is_file() else {}
    missing = {label: n for label, n in wanted.items() if len(known.get(label, {}).get("demo", ())) < n}
    if missing:
        bench.tell(f"{sum(missing.values()):,} images{'' if key else ' of the unedited model'}")
        file.parent.mkdir(parents=True, exist_ok=True)
        with pipeline_drawer(pipeline, default_cache()) as draw:
            for label, count in missing.items():
                known[label] = _judge(bench, draw, label, count)
                _replace(file, json.dumps(known))
    return {
        label: {judge: known[label][judge][:count] for judge in JUDGES} for label, count in wanted.items()
    }


def _place(bench: Bench, key: str | None) -> str:
    """Return a name for all that images of a pipeline depend on beside their prompt and seed."""
    settings = {name: value for name, value in bench.settings.items() if name != "grid"}
    drawn_with = {"steps": bench.grid.steps, "guidance": bench.grid.guidance, "sampler": bench.grid.sampler}
    if key is None:
        return f"base-{digest_of({**settings, **drawn_with})}"
    return f"edited-{digest_of({**settings, **drawn_with, 'key': key})}"


def _hits(
    edited: Mapping[str, Any], base: Mapping[str, Any], labels: Sequence[str], judge: str
) -> dict[str, list[int]]:
    """Return for each label how many images it is recognized in: both, edited only, base only, neither."""
    found = {}
    for label in labels:
        pairs = Counter(zip(edited[label][judge], base[label][judge], strict=True))
        found[label] = [pairs[True, True], pairs[True, False], pairs[False, True], pairs[False, False]]
    return found


# ---------------------------------------------------------------------------------------------------
# Probes


def fill_probe(bench: Bench, method: str, probe: str) -> None:
    """Probe what a method erased, unless that was done; `none` is the unedited model."""
    from retouch.compiler.probes._examine import Examination

    pipeline, key = bench.source, "unedited"
    if method != "none":
        pipeline, key, _ = _edited(bench, method, PROBED_COUNT)
    attempt: Any = TypeAdapter[Any](probes.load(probe)).validate_json(json.dumps(PROBES[probe]))
    key = digest_of([key, asdict(attempt), bench.grid.probe_images])
    name = f"{method}/{probe}"
    if _load(bench)["probes"].get(name, {}).get("key") == key:
        return
    bench.tell(f"{name}: {PROBED} of {PROBED_COUNT} concepts probed")
    erasures = [Erasure((_prompt(label),), guide) for label, guide, _ in CONCEPTS[:PROBED]]
    with tempfile.TemporaryDirectory() as folder:
        write_trial(pipeline, Path(folder), default_cache())
        found = Examination(
            folder=Path(folder),
            erasures=erasures,
            probes=[attempt],
            judge=bench.judges["demo"],
            images=bench.grid.probe_images,
            base=bench.source,
            edits=pipeline.graph_edits,
        ).run(Quiet())
    _store(bench, "probes", name, {"key": key, "found": [e.model_dump(mode="json") for e in found]})


# ---------------------------------------------------------------------------------------------------
# What was measured, on disk


def _load(bench: Bench) -> dict[str, Any]:
    """Return what was measured under these settings; other settings' results are left behind."""
    settings = bench.settings
    if bench.results.is_file():
        kept = json.loads(bench.results.read_text())
        if kept["settings"] == settings:
            return kept
    probed = f"{PROBED} of {PROBED_COUNT}"
    return {"settings": settings, "probed": probed, "cells": {}, "probes": {}}


def _store(bench: Bench, group: str, name: str, value: Any) -> None:
    kept = _load(bench)
    kept[group][name] = value
    bench.results.parent.mkdir(exist_ok=True)
    _replace(bench.results, json.dumps(kept, indent=1, sort_keys=True) + "\n")


def _replace(file: Path, text: str) -> None:
    fresh = file.with_suffix(f".{os.getpid()}.part")
    fresh.write_text(text)
    fresh.replace(file)


if __name__ == "__main__":
    main()
