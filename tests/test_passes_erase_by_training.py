"""Training goes on where it stopped, bit by bit, refuses contradictions, and says how it came out."""

import re
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import pytest

from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.plan import make_plan
from retouch.compiler.studio import Studio
from retouch.passes import _course, _esd, _training
from retouch.passes._warm_start import closed_form, factors
from retouch.specs.errors import SpecError

from .passes import evidence_of, make, metered, open_tiny

APPLE = {"name": "the apple logo", "towards": "a cloud"}
SHORT = {"concepts": [APPLE], "templates": ["{}"], "vocabulary": 2, "batch": 2, "steps": 10, "rounds": 0}


class Stopped(Exception):
    """Someone pulled the plug."""


class Watching:
    """A reporter that counts steps, and stops the work after some."""

    def __init__(self, until: int = 1_000_000) -> None:
        self.done, self.until, self.total = 0, until, 0

    def task(self, label: str, total: int):  # as the protocol has it
        self.total = total

        def advance(amount: int) -> None:
            self.done += amount
            if self.done >= self.until:
                raise Stopped

        return advance


def at_work(cache: Path, report: Watching) -> Pipeline:
    before = open_tiny()
    return replace(before, studio=Studio(before.sampling, cache, report))


def trained(pipeline: Pipeline, **block: object) -> dict[str, bytes]:
    after = make("erase_by_training", {**SHORT, **block}).run(pipeline)
    return {name: after.tensors[name].read().tobytes() for name in changed_tensors(pipeline, after)}


@pytest.fixture(autouse=True)
def _short_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let drawings and inversions be short, and checkpoints be written wherever they may."""
    for module in (_esd, _course):
        monkeypatch.setattr(module, "TRAJECTORY", 2)
        monkeypatch.setattr(module, "REFRESH", 4)
        monkeypatch.setattr(module, "BATCHES", 2)
    monkeypatch.setattr(_course, "DRAWING", 4)
    monkeypatch.setattr(_course, "INVERSION_STEPS", 2)
    monkeypatch.setattr(_esd, "INVERSION", replace(_esd.INVERSION, steps=2))
    monkeypatch.setattr(_esd, "SAVE_EVERY", 0.0)


@pytest.mark.parametrize("start", ["unedited", "linear"])
def test_a_training_that_was_stopped_goes_on_bit_by_bit(tmp_path: Path, start: str) -> None:
    block = {"rounds": 1, "start": start}
    whole = trained(at_work(tmp_path / "whole", Watching()), **block)
    with pytest.raises(Stopped):
        # In the second round, between two checkpoints, with a word found before.
        trained(at_work(tmp_path / "parts", Watching(until=18)), **block)
    second = Watching()
    assert trained(at_work(tmp_path / "parts", second), **block) == whole
    assert second.done == second.total == 20
    assert trained(at_work(tmp_path / "parts", Watching()), **block) == whole


def test_a_linear_start_that_learns_nothing_is_the_closed_form(tmp_path: Path) -> None:
    pipeline = at_work(tmp_path, Watching())
    edit = make("erase_by_training", {**SHORT, "start": "linear", "steps": 1, "rate": 1e-12})
    after = edit.run(pipeline)
    solved = closed_form(edit).run(pipeline)
    names = changed_tensors(pipeline, after)
    assert names == changed_tensors(pipeline, solved)
    for name in names:
        assert np.abs(after.tensors[name].read() - solved.tensors[name].read()).max() < 1e-6
        assert np.abs(after.tensors[name].read() - pipeline.tensors[name].read()).max() > 1e-3


def test_training_sees_the_closed_form_that_it_starts_at(tmp_path: Path) -> None:
    """The factors that training begins at are what fusing them gives."""
    pipeline = at_work(tmp_path, Watching())
    edit = make("erase_by_training", {**SHORT, "start": "linear"})
    solved = closed_form(edit).run(pipeline)
    for name, (down, up) in factors(edit, pipeline).items():
        fused = np.add(pipeline.tensors[name].read(), up @ down)
        assert np.abs(fused - solved.tensors[name].read()).max() < 1e-5


@pytest.mark.parametrize(
    ("block", "begins"),
    [
        ({}, "linear"),
        ({"concepts": [APPLE, {"name": "a dog"}]}, "unedited"),
        ({"where": "text_encoder"}, "unedited"),
        ({"start": "unedited"}, "unedited"),
    ],
)
def test_training_starts_at_the_closed_form_where_there_is_one(block: dict[str, object], begins: str) -> None:
    assert make("erase_by_training", {**SHORT, **block}).begins_at == begins


def test_prompts_are_led_to_the_guide_in_their_own_template() -> None:
    edit = make("erase_by_training", {**SHORT, "templates": ["{}", "{} in snow"]})
    course = edit.course(open_tiny())
    assert course.concepts == (("the apple logo", "the apple logo in snow"),)
    assert course.guides == (("a cloud", "a cloud in snow"),)
    unguided = make("erase_by_training", {**SHORT, "concepts": [{"name": "a dog"}]})
    assert unguided.course(open_tiny()).guides == (("",),)


@pytest.mark.parametrize("block", [{"rounds": 2}, {"strength": 1.0, "keep_weight": 0.0}])
def test_planning_counts_what_a_training_asks_for(tmp_path: Path, block: dict[str, object]) -> None:
    pipeline, edit = at_work(tmp_path, Watching()), make("erase_by_training", {**SHORT, **block})
    with metered() as asked:
        evidence_of(edit, pipeline, edit.run(pipeline))
    work = edit.work()
    assert (asked["predicted"], asked["differentiated"]) == (work.predicted, work.differentiated)
    assert edit.work(targets=3) + work == edit.work(targets=2) * 2


def test_another_seed_or_model_is_another_training(tmp_path: Path) -> None:
    pipeline = at_work(tmp_path, Watching())
    edits = [
        make("erase_by_training", {**SHORT, **more}) for more in ({}, {"seed": 1}, {"residual_at_most": "1"})
    ]
    files = [_training.checkpoint_of(edit, pipeline) for edit in edits]
    assert files[0] != files[1]
    assert files[0] == files[2]
    moved = pipeline.select("denoiser", "conv_in.weight").map(lambda weight: 2 * weight, "test")
    assert _training.checkpoint_of(edits[0], moved) != files[0]


def test_a_damaged_checkpoint_is_begun_anew(tmp_path: Path) -> None:
    pipeline = at_work(tmp_path, Watching())
    whole = trained(pipeline)
    (file,) = (tmp_path / "trainings").iterdir()
    file.write_bytes(file.read_bytes()[:100])
    assert trained(pipeline) == whole


@pytest.mark.parametrize(
    ("where", "pattern"),
    [("cross_attention", "unet.*attn2.to_*"), ("text_encoder", "text_encoder.encoder.layers.0.*")],
)
def test_only_the_chosen_place_changes(tmp_path: Path, where: str, pattern: str) -> None:
    names = trained(at_work(tmp_path, Watching()), where=where, steps=1)
    assert names
    assert all(fnmatchcase(name, pattern) for name in names)


def test_a_change_is_of_the_rank_asked_for(tmp_path: Path) -> None:
    pipeline = at_work(tmp_path, Watching())
    after = make("erase_by_training", {**SHORT, "start": "unedited", "rank": 2, "steps": 5}).run(pipeline)
    for name in changed_tensors(pipeline, after):
        change = after.tensors[name].read().astype(float) - pipeline.tensors[name].read()
        values = np.linalg.svd(change, compute_uv=False)
        assert values[2] < 1e-5 * values[0]


def test_keeping_more_moves_preserved_prompts_less(tmp_path: Path) -> None:
    drifts = []
    for weight in (0.0, 100.0):
        pipeline = at_work(tmp_path, Watching())
        edit = make("erase_by_training", {**SHORT, "keep_weight": weight, "rate": 0.1})
        found = {e.claim: float(e.value) for e in evidence_of(edit, pipeline, edit.run(pipeline))}
        drifts.append(found["keep.drift_p95"])
    assert drifts[1] < drifts[0]


def test_every_fault_of_a_block_is_told_at_once() -> None:
    block = {
        **SHORT,
        "concepts": [APPLE, {"name": "a shoe", "towards": "the apple logo"}, {"name": "A shoe"}],
        "preserve": ["the apple logo", " ".join(["cat"] * 20)],
        "templates": ["{}", "no place"],
    }
    with pytest.raises(SpecError) as caught:
        make("erase_by_training", block).run(open_tiny())
    codes = {fault.code for fault in caught.value.faults}
    assert codes == {
        "E_ERASE_TEMPLATE",
        "E_ERASE_TWICE",
        "E_ERASE_GUIDE",
        "E_ERASE_PRESERVED",
        "E_ERASE_TOKENS",
    }


def test_a_linear_start_needs_guides_and_keys_and_values() -> None:
    block = {**SHORT, "concepts": [{"name": "a dog"}], "start": "linear", "where": "text_encoder"}
    with pytest.raises(SpecError) as caught:
        make("erase_by_training", block).run(open_tiny())
    assert [fault.code for fault in caught.value.faults] == ["E_ERASE_START", "E_ERASE_START"]


@pytest.mark.parametrize("page", ["erase-by-training", "probes"])
def test_the_documented_blocks_are_specs(page: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / f"{page}.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    head = "schema: 1\nname: documented\nversion: 1.0.0\nsource: {model: demo}\nemit:\n  - onnx: {}\n"
    (tmp_path / "edit.yaml").write_text(head + block)
    plan = make_plan(tmp_path / "edit.yaml")
    assert [*plan.spec.edits, *plan.spec.gates]
