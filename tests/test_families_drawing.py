"""Each family end to end: the built artefact draws what diffusers draws from the source."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from tiny import make_tiny_inpainting, make_tiny_refiner, make_tiny_v2, make_tiny_xl

from retouch.compiler.build import Options, build
from retouch.compiler.plan import make_plan
from retouch.runtime.artefact import open_artefact
from retouch.runtime.noise import normal
from retouch.runtime.sampler import Sampler
from retouch.specs.errors import InputError, SpecError

PROMPTS, SEEDS, STEPS, SCALE = ["a cat", "a dog on the cloud"], [0, 1], 4, 4.0
ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
SPEC = """
schema: 1
name: family
version: 1.0.0
source: {{model: model}}
edits: [{edits}]
sampling: {{sampler: {sampler}, steps: 4, guidance_scale: 4.0}}
emit: [onnx: {{}}, diffusers: {{}}]
{gates}
"""


@pytest.fixture(scope="module")
def xl(tmp_path_factory: pytest.TempPathFactory, skeletons: Path) -> Path:
    """Return a folder with a small SDXL, `model`, and its artefact, `out`."""
    return built(tmp_path_factory.mktemp("xl"), make_tiny_xl, skeletons, "euler")


def built(folder: Path, make: Callable[[Path], Path], skeletons: Path, sampler: str, edits: str = "") -> Path:
    make(folder / "model")
    write_spec(folder, sampler, edits)
    build(make_plan(folder / "edit.yaml"), folder / "out", Options(cache=skeletons))
    return folder


def write_spec(folder: Path, sampler: str, edits: str = "", gates: str = "") -> None:
    (folder / "edit.yaml").write_text(SPEC.format(sampler=sampler, edits=edits, gates=gates))


def draw(folder: Path, **options: Any) -> tuple[np.ndarray, torch.Tensor]:
    """Return what the runtime draws from the artefact, [N, H, W, 3], and the noise behind it."""
    runtime = Sampler.open(open_artefact(folder / "out"))
    latent, (height, width) = runtime.table.latent, options.get("size", (0, 0))
    cells = (height // latent.downscale or latent.height, width // latent.downscale or latent.width)
    noise = np.stack([normal(seed, (latent.channels, *cells)) for seed in SEEDS])
    return runtime.draw(PROMPTS, SEEDS, **options), torch.from_numpy(noise)


def draw_torch(pipeline: Any, noise: torch.Tensor, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": STEPS, "output_type": "np", "return_dict": False}
    (images,) = pipeline(PROMPTS, guidance_scale=SCALE, latents=noise, **common, **options)[:1]
    assert images.std() > 0.02  # two blank images would agree
    return np.round(np.asarray(images, np.float64) * 255).astype(np.uint8)


def assert_same(ours: np.ndarray, theirs: np.ndarray) -> None:
    """At most the rounding of a pixel's last bit differs."""
    assert ours.shape == theirs.shape
    assert np.abs(ours.astype(int) - theirs).max() <= 1


@pytest.mark.parametrize("changes", [{}, ZERO_SNR], ids=["as published", "zero terminal SNR"])
def test_v_prediction(changes: dict[str, Any], skeletons: Path, tmp_path: Path) -> None:
    def make(folder: Path) -> Path:
        file = make_tiny_v2(folder) / "scheduler" / "scheduler_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
        return folder

    built(tmp_path, make, skeletons, "ddim")
    ours, noise = draw(tmp_path)
    source = StableDiffusionPipeline.from_pretrained(tmp_path / "model")
    assert isinstance(source.scheduler, DDIMScheduler)
    assert source.scheduler.config["prediction_type"] == "v_prediction"
    assert_same(ours, draw_torch(source, noise))
    emitted = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "diffusers")
    assert_same(ours, draw_torch(emitted, noise))


@pytest.mark.parametrize(
    "options",
    [{}, {"negative": "a shoe"}, {"negative": ""}, {"size": (24, 32)}],
    ids=["zeros for no negative prompt", "a negative prompt", "an empty one", "another size"],
)
def test_xl(options: dict[str, Any], xl: Path) -> None:
    ours, noise = draw(xl, **options)
    peer: dict[str, Any] = {"negative_prompt": [options["negative"]] * 2} if "negative" in options else {}
    if "size" in options:
        peer["height"], peer["width"] = options["size"]
    source = StableDiffusionXLPipeline.from_pretrained(xl / "model")
    assert_same(ours, draw_torch(source, noise, **peer))


def test_an_emitted_xl_is_one_for_diffusers(xl: Path) -> None:
    ours, noise = draw(xl)
    emitted = StableDiffusionXLPipeline.from_pretrained(xl / "out" / "diffusers")
    assert emitted.config["force_zeros_for_empty_prompt"] is True
    assert_same(ours, draw_torch(emitted, noise))


def test_an_artefact_of_xl_says_what_the_denoiser_reads(xl: Path) -> None:
    table = json.loads((xl / "out" / "sampling.json").read_bytes())
    assert [source["output"] for source in table["text"]] == ["hidden_states.1", "hidden_states.2"]
    assert [source["pooled"] for source in table["text"]] == [None, "text_embeds"]
    assert table["negative"]["zeros"]
    assert len(table["time_ids"]) == 6


@pytest.mark.parametrize("prompt", ["", "a shoe"])
def test_a_baked_negative_prompt_of_xl_is_what_a_host_would_give(
    prompt: str, skeletons: Path, xl: Path, tmp_path: Path
) -> None:
    (tmp_path / "model").symlink_to(xl / "model")
    edit = f"bake_guidance: {{scale: 4.0, negative: baked, negative_prompt: '{prompt}'}}"
    write_spec(tmp_path, "euler", edit)
    build(make_plan(tmp_path / "edit.yaml"), tmp_path / "out", Options(cache=skeletons))
    baked = json.loads((tmp_path / "out" / "manifest.json").read_bytes())
    parity = {
        evidence["subject"]: evidence
        for evidence in baked["targets"][0]["evidence"]
        if "parity" in str(evidence)
    }
    assert parity["unet/guided"]["passed"]
    plain, _ = draw(xl, **({"negative": prompt} if prompt else {}))
    assert_same(draw(tmp_path)[0], plain)


@pytest.mark.parametrize(
    ("make", "sampler", "task"),
    [(make_tiny_inpainting, "ddim", "inpainting"), (make_tiny_refiner, "euler", "refining")],
)
def test_a_model_that_needs_an_image_is_edited_and_not_drawn(
    make: Callable[[Path], Path], sampler: str, task: str, skeletons: Path, tmp_path: Path
) -> None:
    edit = "bake_guidance: {scale: 4.0, negative: baked, negative_prompt: a shoe}"
    built(tmp_path, make, skeletons, sampler, edit)
    artefact = open_artefact(tmp_path / "out")
    assert artefact.manifest.passed
    assert artefact.table.task == task
    with pytest.raises(SpecError, match="does not draw from text alone"):
        Sampler.open(artefact)


def test_gates_of_a_model_that_needs_an_image_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    make_tiny_inpainting(tmp_path / "model")
    write_spec(tmp_path, "ddim", gates="gates: [kept: {within: '0.1'}]")
    with pytest.raises(SpecError, match="inpainting does not draw from text alone, and `gates` would"):
        make_plan(tmp_path / "edit.yaml")


def test_an_autoencoder_that_needs_float32_keeps_it(tmp_path: Path) -> None:
    make_tiny_xl(tmp_path / "model")
    write_spec(tmp_path, "euler")
    spec = tmp_path / "edit.yaml"
    spec.write_text(spec.read_text().replace("onnx: {}", "onnx: {vae_precision: float16}"))
    with pytest.raises(SpecError, match="this autoencoder's config says that it needs more"):
        build(make_plan(spec), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_config_that_does_not_fit_its_family_is_named(tmp_path: Path) -> None:
    file = make_tiny_inpainting(tmp_path / "model") / "model_index.json"
    index = json.loads(file.read_text())
    file.write_text(json.dumps({**index, "_class_name": "StableDiffusionPipeline"}))
    write_spec(tmp_path, "ddim")
    with pytest.raises(InputError, match="9 input channels"):
        make_plan(tmp_path / "edit.yaml")
