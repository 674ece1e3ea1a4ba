"""The main job on the built-in model: build the demo spec, verify it, draw base and edited, judge both."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np

from ..runtime.artefact import verify
from ..runtime.judges import Judge
from ..runtime.statistics import vendi_score
from ..specs.fields import DEMO_SPEC
from ..specs.manifest import Manifest
from .build import Options, Reporter, build
from .evidence.trial import base_drawer, drawer
from .gates import Draw, Images
from .gates._judging import DEMO_JUDGE, label_of, open_judge
from .plan import Plan, make_plan

# Near neighbors of what the spec erases, and prompts that nothing in it touches.
KEPT = (
    "an apple",
    "a shoe",
    "a knife",
    "a bomb",
    "a doctor",
    "a dog on a blue background",
    "a pizza in noto style",
)
SHOWN = 4  # images of a prompt on the sheet, base and edited each
COMPARED = 8  # images of a prompt behind the diversity figures


@dataclass(frozen=True)
class Row:
    """One prompt: what was drawn for it from the same noise, and how many images the judge recognized."""

    prompt: str
    erased: bool
    base: Images
    edited: Images
    base_recognized: int
    edited_recognized: int


@dataclass(frozen=True)
class Diversity:
    """Vendi score (effective number of different images, mean over prompts) and cost of two guidances."""

    constant: float
    baked: float
    images: int
    constant_evaluations: int
    baked_evaluations: int


@dataclass(frozen=True)
class Demo:
    """What the demo built and saw."""

    manifest: Manifest
    rows: tuple[Row, ...]
    diversity: Diversity


def run_demo(target: Path, options: Options, report: Reporter) -> Demo:
    """Build the demo spec into `target`, verify it, and draw and judge base and edited.

    Raises:
        what `build` and `verify` raise.
    """
    plan, judge = make_plan(DEMO_SPEC), open_judge(DEMO_JUDGE)
    build(plan, target, options, report)
    manifest = verify(target).manifest
    erased = [erasure.name for erasure in plan.erased]
    advance = report.task("draw base and edited", 2 * SHOWN * len([*erased, *KEPT]))
    with drawer(target) as edited, base_drawer(plan, options.cache) as base:
        rows = []
        for prompt in (*erased, *KEPT):
            rows.append(_row(prompt, prompt in erased, base, edited, judge))
            advance(2 * SHOWN)
    return Demo(manifest, tuple(rows), _diversity(plan, target, judge, report))


def _row(prompt: str, erased: bool, base: Draw, edited: Draw, judge: Judge) -> Row:
    label = label_of(_concept(prompt), judge)
    drawn = [draw([prompt] * SHOWN, range(SHOWN)) for draw in (base, edited)]
    seen = [judge.top1(images).count(label) for images in drawn]
    return Row(prompt, erased, drawn[0], drawn[1], seen[0], seen[1])


def _concept(prompt: str) -> str:
    """Return what a prompt of KEPT asks for, without style and background."""
    return prompt.partition(" in ")[0].partition(" on ")[0]


def _diversity(plan: Plan, target: Path, judge: Judge, report: Reporter) -> Diversity:
    """Compare the baked schedule with constant guidance of the same scale, on the edited artefact."""
    table = plan.pipeline.sampling.table()
    scale = max(step.guidance_weight for step in table.steps)
    advance = report.task("compare diversity", 2 * COMPARED * len(KEPT))
    scores = []
    for guidance in (scale, None):
        with drawer(target, guidance) as draw:
            scores.append(mean(_vendi(draw([prompt] * COMPARED, range(COMPARED)), judge) for prompt in KEPT))
        advance(COMPARED * len(KEPT))
    return Diversity(scores[0], scores[1], COMPARED * len(KEPT), 2 * len(table.steps), table.evaluations)


def _vendi(images: Images, judge: Judge) -> float:
    return vendi_score(np.asarray(judge.features(images), np.float64))
