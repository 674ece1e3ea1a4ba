"""Engines take the batches and sizes that they were built for: calls are fitted to them, or refused early."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from runtime_artefact import (
    CELLS,
    CHANNELS,
    DOWNSCALE,
    LENGTH,
    WIDTH,
    Recipe,
    make_artefact,
    seal,
    some_steps,
)

from retouch.runtime import rtx_sessions, sessions
from retouch.runtime.artefact import Artefact, open_artefact
from retouch.runtime.sampler import Sampler
from retouch.runtime.sessions import Placement, Session, from_onnxruntime
from retouch.specs.errors import IntegrityError, SpecError
from retouch.specs.manifest import Evidence, TargetRecord

GRAPHS = ("text_encoder", "unet", "vae_decoder")
PROMPTS, SEEDS = ["a cat", "an apple", "a shoe"], [1, 2, 3]
RTX = Placement("rtx")
Profile = dict[str, list[list[int]]]


def profiles(
    batch: tuple[int, int, int], evaluations: tuple[int, int, int], most: int = CELLS
) -> dict[str, Profile]:
    """What a manifest says of engines that take images of CELLS to `most` cells."""
    sides = (CELLS, CELLS, most)
    return {
        "text_encoder": {"input_ids": [[n, LENGTH] for n in batch]},
        "unet": {
            "sample": [[n, CHANNELS, side, side] for n, side in zip(evaluations, sides, strict=True)],
            "encoder_hidden_states": [[n, LENGTH, WIDTH] for n in evaluations],
        },
        "vae_decoder": {
            "latent_sample": [[n, CHANNELS, side, side] for n, side in zip(batch, sides, strict=True)]
        },
    }


def with_engines(folder: Path, told: dict[str, Any], recipe: Recipe | None = None) -> Artefact:
    """Make an artefact whose engines are its own graphs, and whose manifest says what they take."""
    make_artefact(folder, recipe)
    shutil.copytree(folder, folder / "engines", ignore=shutil.ignore_patterns("manifest.json", "engines"))
    (folder / "engines").rename(folder / "tensorrt_rtx")
    evidence = [
        Evidence(
            kind="static",
            claim="engine built ahead of time",
            subject=f"tensorrt_rtx/{name}",
            value="1",
            produced_by="a test",
            details={"profile": profile},
        )
        for name, profile in told.items()
    ]
    record = TargetRecord(emitter="tensorrt_rtx", parameters={}, components=[], evidence=evidence)
    seal(folder, targets=(record,))
    return open_artefact(folder).within("tensorrt_rtx")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Graphs that run here in place of engines; which of them ran, on how many rows."""
    made: list[tuple[str, int]] = []

    def load(graph: Path, placement: Placement) -> Session:
        session = from_onnxruntime(onnxruntime.InferenceSession(str(graph)), str(graph))

        def run(feeds: dict[str, Any]) -> Any:
            made.append(
                (graph.parent.name if graph.stem == "model" else graph.stem, len(next(iter(feeds.values()))))
            )
            return session.run(feeds)

        return Session(session.inputs, session.outputs, run)

    monkeypatch.setattr(rtx_sessions, "load_rtx", load)
    monkeypatch.setattr(sessions, "check_device", lambda name: None)
    return made


@pytest.mark.parametrize(
    ("batch", "evaluations", "weights"),
    [
        ((1, 1, 1), (2, 2, 2), (3.0, 2.0)),
        ((1, 1, 1), (1, 1, 1), (1.0, 1.0)),
        ((2, 2, 2), (4, 4, 4), (3.0, 2.0)),
        ((1, 1, 4), (1, 2, 8), (3.0, 1.0)),
    ],
)
@pytest.mark.parametrize("guidance_scale", [None, 1.0, 5.0])
def test_engines_are_called_with_the_batches_that_they_take(
    tmp_path: Path,
    calls: list[tuple[str, int]],
    batch: tuple[int, int, int],
    evaluations: tuple[int, int, int],
    weights: tuple[float, float],
    guidance_scale: float | None,
) -> None:
    recipe = Recipe(steps=some_steps(weights))
    artefact = with_engines(tmp_path / "artefact", profiles(batch, evaluations), recipe)
    drawn = Sampler.open(artefact, RTX).draw(PROMPTS, SEEDS, guidance_scale=guidance_scale)
    ranges = {"text_encoder": batch, "unet": evaluations, "vae_decoder": batch}
    assert {name for name, _ in calls} >= set(ranges)
    for name, (least, _, most) in ranges.items():
        assert all(least <= rows <= most for graph, rows in calls if graph == name)
    free = Sampler.open(artefact, Placement()).draw(PROMPTS, SEEDS, guidance_scale=guidance_scale)
    np.testing.assert_allclose(drawn.astype(int), free.astype(int), atol=1)


def test_a_size_outside_of_an_engine_is_refused_before_it_runs(
    tmp_path: Path, calls: list[tuple[str, int]]
) -> None:
    told = profiles((1, 1, 1), (2, 2, 2), most=2 * CELLS)
    sampler = Sampler.open(with_engines(tmp_path / "artefact", told), RTX)
    side = CELLS * DOWNSCALE
    assert sampler.draw(["a cat"], [1], size=(side, 2 * side)).shape == (1, side, 2 * side, 3)
    calls.clear()
    with pytest.raises(SpecError, match=rf"{3 * side} x {side} pixels.*\n.*there are: 8x8, 16x16"):
        sampler.draw(["a cat"], [1], size=(3 * side, side))
    assert "unet" not in dict(calls)


def test_a_manifest_that_says_nonsense_of_an_engine_is_refused(
    tmp_path: Path, calls: list[tuple[str, int]]
) -> None:
    artefact = with_engines(tmp_path / "artefact", {"unet": {"sample": "large"}})
    with pytest.raises(IntegrityError, match="shapes of the engine `tensorrt_rtx/unet` cannot be read"):
        Sampler.open(artefact, RTX)
    assert not calls
