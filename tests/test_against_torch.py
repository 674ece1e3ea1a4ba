"""What the runtime draws without torch is what diffusers' own pipeline draws, for every sampler."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from tiny import make_tiny

from retouch.compiler.build import Options, build
from retouch.compiler.plan import make_plan
from retouch.runtime.artefact import open_artefact
from retouch.runtime.noise import normal
from retouch.runtime.sampler import Sampler

SPEC = """
schema: 1
name: parity
version: 1.0.0
source: {{model: model}}
edits:
  - erase_concepts:
      concepts: [{{name: a cat, towards: a cloud}}]
      preserve: [a dog]
      templates: ["{{}}"]
      held_out: []
sampling: {{sampler: {sampler}, steps: 8, guidance_scale: 4.0}}
emit: [onnx: {{}}, diffusers: {{}}]
"""
PROMPTS, SEEDS = ["a cat", "a dog on the cloud"], [0, 1]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio of 8-bit images, in dB."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_runtime_draws_what_diffusers_draws(sampler: str, skeletons: Path, tmp_path: Path) -> None:
    make_tiny(tmp_path / "model")
    (tmp_path / "edit.yaml").write_text(SPEC.format(sampler=sampler))
    build(make_plan(tmp_path / "edit.yaml"), tmp_path / "out", Options(cache=skeletons))

    runtime = Sampler.open(open_artefact(tmp_path / "out"))
    ours = runtime.draw(PROMPTS, SEEDS)

    latent = runtime.table.latent
    noise = np.stack([normal(seed, (latent.channels, latent.height, latent.width)) for seed in SEEDS])
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "diffusers")
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        PROMPTS,
        num_inference_steps=8,
        guidance_scale=4.0,
        latents=torch.from_numpy(noise),
        output_type="np",
        return_dict=False,
    )
    theirs = np.round(np.asarray(drawn[0], np.float64) * 255).astype(np.uint8)
    assert theirs.std() > 5  # two blank images would agree
    assert psnr(ours, theirs) > 40
