"""Guidance as a table: intervals, ramps, CFG++ against its own loop, and the baked negative prompt."""

from math import cos, pi, sqrt

import numpy as np
import pytest

from retouch.compiler.graphs.interfaces import NEGATIVE
from retouch.compiler.text.encode import encode_prompts
from retouch.specs.errors import SpecError

from .passes import make, open_tiny


def _weights(block: dict, sampler: str = "ddim") -> tuple[float, ...]:
    return make("bake_guidance", block).run(open_tiny(sampler=sampler)).sampling.guidance.weights


def _fractions() -> list[float]:
    return [step.timestep / 1000 for step in open_tiny().sampling.table().steps]


def test_an_interval_is_open_below_and_closed_above() -> None:
    sigmas = open_tiny().sampling.sigmas()
    found = _weights({"scale": 3.0, "interval": [sigmas[5], sigmas[2]]})
    assert found == (1, 1, 3, 3, 3, 1, 1, 1)


@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        ("constant", lambda p: 4.0),
        ("linear", lambda p: 8.0 * (1 - p)),
        ("cosine", lambda p: 4.0 * (1 + cos(pi * p))),
        ("clamp_linear", lambda p: max(2.0, 8.0 * (1 - p))),
    ],
)
def test_ramps_follow_their_formulas(schedule: str, formula) -> None:
    found = _weights({"scale": 4.0, "schedule": schedule, "clamp": 2.0})
    assert found == pytest.approx([formula(p) for p in _fractions()], rel=1e-12)


def test_a_list_is_taken_as_it_is() -> None:
    given = [1.0, 2.0, 3.0, 4.0, 5.0, 4.0, 3.0, 1.0]
    assert _weights({"weights": given}) == tuple(given)


@pytest.mark.parametrize("sampler", ["ddim", "euler"])
def test_cfg_plus_plus_equals_its_loop_with_unguided_renoising(sampler: str) -> None:
    """Step on x0 of u + lambda (c - u), then renoise with u: Chung et al., 2406.08070, algorithm 2."""
    pipeline, rate = open_tiny(sampler=sampler), 0.6
    weights = _weights({"cfg_plus_plus": rate}, sampler)
    random = np.random.default_rng(0)
    for row, weight in zip(pipeline.sampling.table().steps, weights, strict=True):
        x, u, c = random.normal(size=(3, 50))
        scale = 1 / sqrt(1 + row.sigma**2) / row.input_scale

        def x0(output: np.ndarray, row=row, x=x) -> np.ndarray:
            return row.x0_from_sample * x + row.x0_from_output * output

        plain = row.next_from_sample * x + row.next_from_x0 * x0(u + weight * (c - u))
        noise = (x / scale - x0(u)) / row.sigma
        # The step is linear: of a sample scale (x0 + sigma noise), x0 and noise arrive with these factors.
        kept, renoised = row.next_from_sample * scale + row.next_from_x0, row.next_from_sample * scale
        assert plain == pytest.approx(kept * x0(u + rate * (c - u)) + renoised * row.sigma * noise, rel=1e-9)


def test_a_baked_negative_prompt_is_a_tensor_and_a_graph_edit() -> None:
    before = open_tiny()
    after = make("bake_guidance", {"scale": 3.0, "negative_prompt": "a shoe", "negative": "baked"}).run(
        before
    )
    (edit,) = after.graph_edits
    assert (edit.component, edit.name) == ("unet", "baked_negative")
    states = after.tensors[f"unet.{NEGATIVE}"]
    expected = encode_prompts(before, ["a shoe"]).states
    assert states.read().shape == states.shape
    assert (states.read() == expected).all()
    assert after.sampling.table().negative.baked


@pytest.mark.parametrize(
    ("block", "codes"),
    [
        ({}, ["E_GUIDANCE_WAY"]),
        ({"scale": 3.0, "cfg_plus_plus": 0.5}, ["E_GUIDANCE_WAY"]),
        ({"weights": [1.0, 2.0], "schedule": "linear"}, ["E_GUIDANCE_WAY", "E_GUIDANCE_WEIGHTS"]),
        ({"scale": 3.0, "interval": [20.0, 30.0]}, ["E_GUIDANCE_INTERVAL"]),
    ],
)
def test_what_cannot_be_meant_is_refused(block: dict, codes: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        _weights(block)
    assert [fault.code for fault in caught.value.faults] == codes


def test_cfg_plus_plus_is_no_table_for_a_sampler_with_memory() -> None:
    with pytest.raises(SpecError, match="dpmpp_2m"):
        _weights({"cfg_plus_plus": 0.6}, "dpmpp_2m")
