"""The main job, on the built-in model: what a newcomer's first command does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from retouch.runtime.artefact import verify

RETOUCH = (sys.executable, "-c", "from retouch.runtime.cli import main; raise SystemExit(main())")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> tuple[Path, dict]:
    """The folder that `retouch demo` wrote, and what it said."""
    folder = tmp_path_factory.mktemp("demo")
    environment = {**os.environ, "RETOUCH_CACHE": str(request.getfixturevalue("skeletons"))}
    command = [*RETOUCH, "demo", "-o", str(folder), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, json.loads(done.stdout)


def test_the_artefact_is_whole_and_says_what_was_done(demo: tuple[Path, dict]) -> None:
    folder, said = demo
    manifest = verify(folder / "artefact").manifest
    assert manifest.digest == said["digest"]
    assert [record.name for record in manifest.passes] == [
        "merge_adapters",
        "erase_concepts",
        "bake_guidance",
    ]
    assert manifest.passed


def test_the_judge_sees_erased_concepts_in_the_base_only(demo: tuple[Path, dict]) -> None:
    erased = [row for row in demo[1]["rows"] if row["erased"]]
    assert [row["prompt"] for row in erased] == ["the nike logo", "the apple logo", "a pistol"]
    assert all(row["base_recognized"] >= 3 for row in erased)
    assert all(row["edited_recognized"] == 0 for row in erased)


def test_the_judge_sees_the_rest_in_both(demo: tuple[Path, dict]) -> None:
    kept = [row for row in demo[1]["rows"] if not row["erased"]]
    base, edited = (sum(row[key] for row in kept) for key in ("base_recognized", "edited_recognized"))
    assert base >= 0.85 * sum(row["images"] for row in kept)
    assert edited >= 0.85 * base


def test_the_interval_costs_less_and_keeps_variety(demo: tuple[Path, dict]) -> None:
    diversity = demo[1]["diversity"]
    assert diversity["evaluations_baked_interval"] < diversity["evaluations_constant_guidance"]
    assert diversity["vendi_baked_interval"] > 0.95 * diversity["vendi_constant_guidance"]


def test_the_sheet_shows_every_row(demo: tuple[Path, dict]) -> None:
    with Image.open(demo[0] / "sheet.png") as sheet:
        assert sheet.width > 8 * 128
        assert sheet.height > len(demo[1]["rows"]) * 128
