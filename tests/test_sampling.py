"""The sampling tables draw what diffusers' schedulers draw, for every convention they are asked for."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler

from retouch.compiler.sampling import Sampling, Schedule, check_sampler, constant
from retouch.specs.errors import InputError, SpecError
from retouch.specs.sampling import Latent, SamplingTable

PEERS = {
    "ddim": (DDIMScheduler, {"clip_sample": False, "set_alpha_to_one": False}),
    "euler": (EulerDiscreteScheduler, {}),
    "dpmpp_2m": (DPMSolverMultistepScheduler, {}),
}
LATENT = Latent(channels=4, height=8, width=8, downscale=8, scaling_factor=0.18215)
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


def denoise(sample: np.ndarray, timestep: float) -> np.ndarray:
    """A stand-in that is smooth, not linear, and depends on the timestep."""
    return np.tanh(0.3 * sample + timestep / 1e5)


def draw(table: SamplingTable, noise: np.ndarray) -> np.ndarray:
    """The loop of specs/sampling.py, written once more."""
    x, before = noise * table.initial_scale, np.zeros_like(noise)
    for step in table.steps:
        out = denoise(x * step.input_scale, step.timestep)
        x0 = step.x0_from_sample * x + step.x0_from_output * out
        x = step.next_from_sample * x + step.next_from_x0 * x0 + step.next_from_previous_x0 * before
        before = x0
    return x


@pytest.mark.parametrize("steps", [2, 5, 20, 50])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", sorted(PEERS))
def test_table_draws_what_diffusers_draws(sampler: str, spacing: str, prediction: str, steps: int) -> None:
    check_against_diffusers(
        sampler, {**BETAS, "timestep_spacing": spacing, "prediction_type": prediction}, steps
    )


def check_against_diffusers(
    sampler: str, config: dict[str, Any], steps: int, tolerance: float = 2e-5
) -> None:
    peer, options = PEERS[sampler]
    scheduler = peer(**config, **options)
    scheduler.set_timesteps(steps)
    schedule = Schedule.from_config({**config, "set_alpha_to_one": False}, "here")
    table = Sampling(schedule, LATENT, sampler, steps, constant(1.0, steps)).table()

    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = noise * float(scheduler.init_noise_sigma)
    for timestep in scheduler.timesteps:
        model_input = scheduler.scale_model_input(x, timestep).numpy()
        x = scheduler.step(torch.from_numpy(denoise(model_input, float(timestep))), timestep, x).prev_sample

    assert [step.timestep for step in table.steps] == pytest.approx([float(t) for t in scheduler.timesteps])
    # diffusers keeps its tables in float32, ours are float64
    atol = tolerance * max(float(x.abs().max()), 1.0)
    np.testing.assert_allclose(draw(table, noise.numpy()), x.numpy(), rtol=0, atol=atol)


@pytest.mark.parametrize("steps", [3, 20])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("sampler", sorted(PEERS))
def test_zero_terminal_snr_draws_what_diffusers_draws(sampler: str, spacing: str, steps: int) -> None:
    config = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": spacing}
    # diffusers' Euler subtracts numbers of the first sigma's size in float32: half a last bit of 4096
    tolerance = 2.0**-12 if sampler == "euler" else 2e-5
    check_against_diffusers(sampler, {**BETAS, **config}, steps, tolerance)


def test_pure_noise_has_no_signal_in_a_ddim_table() -> None:
    config = {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    }
    schedule = Schedule.from_config({**BETAS, **config}, "here")
    first = Sampling(schedule, LATENT, "ddim", 10, constant(1.0, 10)).table().steps[0]
    assert (first.timestep, first.x0_from_sample, first.x0_from_output) == (999.0, 0.0, -1.0)
    assert first.sigma == pytest.approx(4096)


def test_document_survives_its_own_text() -> None:
    schedule = Schedule.from_config(BETAS, "here")
    table = Sampling(schedule, LATENT, "dpmpp_2m", 20, constant(4.0, 20)).table()
    assert SamplingTable.model_validate_json(table.model_dump_json(by_alias=True)) == table
    assert table.evaluations == 40


def test_unsupported_schedule_names_every_key() -> None:
    unsupported = {"use_karras_sigmas": True, "thresholding": True}
    with pytest.raises(InputError) as caught:
        Schedule.from_config({**BETAS, **unsupported}, "cfg.json")
    assert [fault.code for fault in caught.value.faults] == ["E_SCHEDULE", "E_SCHEDULE"]
    assert "cfg.json" in str(caught.value)


def test_zero_terminal_snr_needs_a_prediction_that_tells_an_image() -> None:
    with pytest.raises(InputError, match="pure noise"):
        Schedule.from_config({**BETAS, "rescale_betas_zero_snr": True}, "cfg.json")


def test_a_table_of_schema_1_says_what_it_always_meant() -> None:
    table = Sampling(Schedule.from_config(BETAS, "here"), LATENT, "euler", 3, constant(4.0, 3)).table()
    old = table.model_dump(by_alias=True)
    for key in ("task", "text", "time_ids"):
        del old[key]
    del old["negative"]["zeros"]
    assert SamplingTable.model_validate({**old, "schema": 1}) == table.model_copy(
        update={"schema_version": 1}
    )


def test_unknown_sampler_suggests_the_nearest() -> None:
    with pytest.raises(SpecError, match="did you mean `dpmpp_2m`"):
        check_sampler("dpm++_2m", 20, Schedule.from_config(BETAS, "here"))
