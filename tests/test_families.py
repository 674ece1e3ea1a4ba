"""Families as data: their files are sound, and the published configs describe the published models."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from retouch.compiler.families import Family, families, family_of
from retouch.compiler.families.published import CONFIGS, published_folder, published_models
from retouch.compiler.ir import Component
from retouch.compiler.text.conditioning import conditioning_of
from retouch.specs.errors import InputError

CLASSES = {
    "AutoencoderKL": AutoencoderKL,
    "CLIPTextModel": CLIPTextModel,
    "CLIPTextModelWithProjection": CLIPTextModelWithProjection,
    "UNet2DConditionModel": UNet2DConditionModel,
}
VAE = 83_653_863
CLIP_L, OPENCLIP_H, OPENCLIP_G = 123_060_480, 340_387_840, 694_659_840
INPAINTING = 5 * 3 * 3  # more input channels, times the kernel: weights a feature of the first convolution
# Parameters of the published checkpoints' modules. The refiner's U-Net is published as "2.3B" at most
# (Podell et al., 2307.01952, gives none): its count here only holds the config fast.
COUNTS = {
    "stable-diffusion-v1-5": {"unet": 859_520_964, "vae": VAE, "text_encoder": CLIP_L},
    "stable-diffusion-inpainting": {
        "unet": 859_520_964 + 320 * INPAINTING, "vae": VAE, "text_encoder": CLIP_L
    },
    "stable-diffusion-2-1": {"unet": 865_910_724, "vae": VAE, "text_encoder": OPENCLIP_H},
    "stable-diffusion-2-1-base": {"unet": 865_910_724, "vae": VAE, "text_encoder": OPENCLIP_H},
    "stable-diffusion-2-inpainting": {
        "unet": 865_910_724 + 320 * INPAINTING, "vae": VAE, "text_encoder": OPENCLIP_H
    },
    "stable-diffusion-xl-base-1.0": {
        "unet": 2_567_463_684, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_G
    },
    "stable-diffusion-xl-inpainting-1.0": {
        "unet": 2_567_463_684 + 320 * INPAINTING, "vae": VAE,
        "text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_G
    },
    "stable-diffusion-xl-refiner-1.0": {"unet": 2_259_526_660, "vae": VAE, "text_encoder_2": OPENCLIP_G},
}  # fmt: skip


@pytest.mark.parametrize("model", COUNTS)
def test_a_published_config_describes_the_published_module(model: str) -> None:
    folder = published_folder(model)
    assert {file.parent.name: _count(file) for file in folder.glob("*/config.json")} == COUNTS[model]


def test_every_published_config_is_counted() -> None:
    assert set(published_models()) == set(COUNTS)


@pytest.mark.parametrize("model", published_models())
def test_a_published_model_is_of_a_family_and_has_its_parts(model: str) -> None:
    index = json.loads((CONFIGS / model / "model_index.json").read_text())
    parts = {name: entry for name, entry in index.items() if isinstance(entry, list) and any(entry)}
    family = family_of(index["_class_name"], parts)
    assert set(parts) == set(family.roles)
    assert {name: parts[name][1] for name in family.classes} == family.classes
    assert {key: index[key] for key in family.settings} == family.settings


@pytest.mark.parametrize("model", published_models())
def test_a_published_model_says_what_its_denoiser_is_told(model: str) -> None:
    family, components = published(model)
    conditioning = conditioning_of(family, components, family.settings)
    expected = {
        "stable-diffusion-xl-base-1.0": ["hidden_states.11", "hidden_states.31"],
        "stable-diffusion-xl-inpainting-1.0": ["hidden_states.11", "hidden_states.31"],
        "stable-diffusion-xl-refiner-1.0": ["hidden_states.31"],
    }
    assert [source.output for source in conditioning.text] == expected.get(model, ["last_hidden_state"])
    assert conditioning.zero_negative == (model in list(expected)[:2])
    assert len(conditioning.time_ids) == {1: 5, 2: 6}.get(len(expected.get(model, [])), 0)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("unet", {"time_cond_proj_dim": 256}, "`time_cond_proj_dim: 256` is an input"),
        ("unet", {"in_channels": 9}, "9 input channels"),
        ("unet", {"cross_attention_dim": 768}, "768 wide, the text encoders make 2048"),
        ("unet", {"addition_embed_type": None}, "`addition_embed_type` is None"),
        ("unet", {"projection_class_embeddings_input_dim": 2560}, "reads 2560 numbers"),
        ("text_encoder_2", {"projection_dim": 1024}, "a pooled state is 1024 wide"),
        ("vae", {"latents_mean": [0.0, 0.0, 0.0, 0.0]}, "latents_mean"),
        ("vae", {"latent_channels": None}, "usable"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_named(part: str, change: dict[str, Any], message: str) -> None:
    family, components = published("stable-diffusion-xl-base-1.0")
    components[part] = replace(components[part], config={**components[part].config, **change})
    with pytest.raises(InputError, match=message):
        conditioning_of(family, components, family.settings)


def published(model: str) -> tuple[Family, dict[str, Component]]:
    """Return a published model's family, and its parts without tensors."""
    folder = published_folder(model)
    index = json.loads((folder / "model_index.json").read_text())
    family = family_of(
        index["_class_name"],
        {name for name, entry in index.items() if isinstance(entry, list) and any(entry)},
    )
    components = {}
    for name, role in family.roles.items():
        file = folder / name / "config.json"
        config = json.loads(file.read_text()) if file.is_file() else {}
        library, class_name = index[name]
        components[name] = Component(name, role, library, class_name, config, folder / name)
    return family, components


def test_an_unknown_published_model_is_an_error_that_names_the_known() -> None:
    with pytest.raises(InputError, match="stable-diffusion-xl-base"):
        published_folder("../configs")


def test_the_parts_of_a_model_choose_among_variants_of_a_class() -> None:
    parts = ["scheduler", "text_encoder_2", "tokenizer_2", "unet", "vae"]
    image_to_image = "StableDiffusionXLImg2ImgPipeline"
    assert family_of(image_to_image, parts).task == "refining"
    assert family_of(image_to_image, [*parts, "text_encoder", "tokenizer"]).task == "text_to_image"
    assert family_of(image_to_image).name == "stable_diffusion_xl_img2img"


def test_an_unknown_class_is_an_error_that_names_the_known() -> None:
    with pytest.raises(InputError, match="StableDiffusionXLPipeline"):
        family_of("FluxPipeline")


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_a_family_names_only_parts_that_it_has(family) -> None:
    for encoder in family.text_encoders:
        assert (family.roles[encoder.component], family.roles[encoder.tokenizer]) == ("text", "tokenizer")
    text = {name for name, role in family.roles.items() if role == "text"}
    assert text == {encoder.component for encoder in family.text_encoders}
    assert set(family.classes) <= set(family.roles)
    assert not set(family.left_out) & set(family.roles)


def _count(file: Path) -> int:
    config = json.loads(file.read_text())
    with torch.device("meta"):
        if "_class_name" in config:
            module = CLASSES[config["_class_name"]].from_config(config)
        else:
            module = CLASSES[config["architectures"][0]](CLIPTextConfig.from_dict(config))
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_page_names_every_class_and_title() -> None:
    page = (Path(__file__).parent.parent / "docs" / "families.md").read_text()
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    for family in families():
        drawn = "yes" if family.task == "text_to_image" else "no"
        named = [row for row in rows if f"`{family.pipeline_class}`" in row and f"| {family.title} |" in row]
        assert [row.split("|")[3].strip() for row in named] == [drawn], family.name
