"""The table of erasures: a cell belongs to the bytes of its edit, and the page says what was counted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import erasure_table as table
from benchmarks._erasure_page import harmonic_mean, page_text
from retouch.compiler.cache import default_cache
from retouch.compiler.gates._judging import JudgeFile, open_judge
from retouch.compiler.load import load_pipeline
from retouch.compiler.studio import Quiet, Studio
from retouch.specs.fields import DEMO

GRID = table.Grid(seeds=4, kept_seeds=2, others=3, probe_images=4, steps=2, guidance=2.0)
METHODS, PROBES = ("linear", "training"), ("plain", "static")


@pytest.fixture
def bench(tmp_path: Path) -> table.Bench:
    source = load_pipeline(DEMO / "model", GRID.sampler, GRID.steps, GRID.guidance)
    studio = Studio(source.sampling, default_cache(), Quiet())
    return table.Bench(GRID, replace(source, studio=studio), {}, tmp_path / "results.json", lambda text: None)


def test_equal_bytes_have_equal_keys_and_other_edits_have_others(bench: table.Bench) -> None:
    keys = [table._edited(bench, "linear", count)[1] for count in (1, 1, 2)]
    assert keys[0] == keys[1] != keys[2]
    assert table._edited(bench, "nullspace", 1)[1] not in keys


def test_seconds_are_those_of_the_first_time(
    bench: table.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "default_cache", lambda: tmp_path)
    assert table._first_time(bench, "key", 7.5) == 7.5
    assert table._first_time(bench, "key", 0.1) == 7.5
    assert table._first_time(bench, "other", 0.1) == 0.1


def test_every_prompt_of_the_table_is_one_that_the_model_knows() -> None:
    for label, guide, others in table.CONCEPTS:
        assert table._prompt(label)
        assert table._prompt(guide.partition(" ")[2])
        assert all(table._prompt(other) for other in others)


def cell(recognized: int, lost: int) -> dict[str, Any]:
    """Return a cell of 100 images a label: of the erased so many recognized, of others so many lost."""
    groups = {"erased": {"a": [recognized, 0, 100 - recognized, 0]}}
    groups |= {name: {"b": [100 - lost, 0, lost, 0]} for name in ("near", "others")}
    judged = {name: {"demo": hits, "demo-clip": hits} for name, hits in groups.items()}
    return {"key": "", "seconds_to_edit": 1.25, **judged}


def probed(kind: str, value: float, control: float) -> dict[str, Any]:
    return {"found": [{"kind": kind, "value": value, "count": 100, "details": {"control": control}}]}


def page(cells: dict[str, Any], probes: dict[str, Any]) -> str:
    grid = {name: getattr(GRID, name) for name in GRID.__dataclass_fields__}
    kept = {"settings": {"grid": grid}, "probed": "1 of 2", "cells": cells, "probes": probes}
    return page_text(kept, METHODS, (1, 10), PROBES)


def test_the_page_counts_and_names_what_was_not_run() -> None:
    text = page({"linear/1": cell(2, 4), "training/10": cell(0, 0)}, {})
    assert "| 1 | linear | 2.0 (0.6 to 7.0) | a 2 | 4.0 (" in text
    assert f"{100 * harmonic_mean({'a': [2, 0, 98, 0]}, {'b': [96, 0, 4, 0]}):.1f} | 1.25 |" in text
    assert "Cells not run: training, 1; linear, 10." in text
    assert text.index("| 1 | linear |") < text.index("| 10 | training |")


def test_a_concept_that_comes_back_more_than_its_control_was_only_avoided() -> None:
    revived, gone = probed("revival", 0.6, 0.02), probed("revival", 0.03, 0.02)
    text = page(
        {}, {"linear/plain": revived, "linear/static": probed("static", 0.5, 0.9), "training/plain": gone}
    )
    assert "- **linear**: avoidance only, `plain` recovers 60 % (control 2 %)" in text
    assert "- **training**: `plain` recovered no more than the control" in text
    assert "| linear | 60 (50 to 69) [2] | 0.50 [0.90] |" in text


def test_a_probe_is_kept_until_the_edit_or_its_effort_is_another(
    bench: table.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = replace(bench, judges={"demo": open_judge(JudgeFile.resolve("demo", Path()))})
    monkeypatch.setattr(table, "PROBED", 1)
    monkeypatch.setattr(table.Bench, "settings", property(lambda self: {}))
    table.fill_probe(bench, "none", "plain")
    (found,) = table._load(bench)["probes"]["none/plain"]["found"]
    assert found["subject"] == table._prompt(table.CONCEPTS[0][0])
    assert found["count"] == GRID.probe_images
    told: list[str] = []
    table.fill_probe(replace(bench, tell=told.append), "none", "plain")
    assert not told
    other = replace(bench, tell=told.append, grid=replace(GRID, probe_images=2))
    table.fill_probe(other, "none", "plain")
    assert told
