"""Stable Diffusion pipelines of a few hundred kilobytes with random weights, for tests.

Each has every part of a real one: tokenizers in CLIP's format, text encoders, a U-Net with
cross-attention, a KL autoencoder and a scheduler config. They draw noise, but all names, shapes and
files are those that diffusers writes. Those of SD 2.1 and SDXL are the published configs with smaller
numbers.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint import (
    StableDiffusionInpaintPipeline,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl_img2img import (
    StableDiffusionXLImg2ImgPipeline,
)
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from retouch.compiler.families.published import published_folder

START, END, WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
LENGTH = 16  # tokens of a prompt
WIDTH = 32  # of a text state
WORDS = (
    *("a", "an", "of", "on", "the"),
    *("cat", "dog", "cloud", "doctor", "woman", "man", "apple", "shoe", "logo"),
)


def make_tiny(folder: Path, seed: int = 0) -> Path:
    """Write the pipeline that belongs to `seed` in diffusers' layout, and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "vae": _shaken(AutoencoderKL.from_config(AUTOENCODER)),
            "text_encoder": _shaken(CLIPTextModel(CLIPTextConfig.from_dict(TEXT_ENCODER))),
            "unet": _shaken(UNet2DConditionModel.from_config(DENOISER)),
            "tokenizer": write_tokenizer(folder / "tokenizer"),
            "scheduler": DDIMScheduler.from_config(SCHEDULER),
        }
    StableDiffusionPipeline(**parts, **UNCHECKED).save_pretrained(folder)
    return folder


def make_tiny_v2(folder: Path, seed: int = 0) -> Path:
    """Write a small SD 2.1: v-prediction, linear projections in attention, an OpenCLIP-like encoder."""
    model = "stable-diffusion-2-1"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "vae": _shaken(AutoencoderKL.from_config(_scaled(model, "vae", AUTOENCODER))),
            "text_encoder": _shaken(CLIPTextModel(_text_config(model, "text_encoder", {}))),
            "unet": _shaken(UNet2DConditionModel.from_config(_scaled(model, "unet", DENOISER_V2))),
            "tokenizer": write_tokenizer(folder / "tokenizer", PAD_V2),
            "scheduler": DDIMScheduler.from_config(_published(model, "scheduler/scheduler_config.json")),
        }
    StableDiffusionPipeline(**parts, **UNCHECKED).save_pretrained(folder)
    return folder


def make_tiny_xl(folder: Path, seed: int = 0) -> Path:
    """Write a small SDXL: two text encoders, the second pooled, and time ids; the pooled width is SDXL's."""
    model = "stable-diffusion-xl-base-1.0"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _xl_parts(model, folder, DENOISER_XL)
        parts["text_encoder"] = _shaken(CLIPTextModel(_text_config(model, "text_encoder", {})))
        parts["tokenizer"] = write_tokenizer(folder / "tokenizer")
    StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(folder)
    return folder


def make_tiny_refiner(folder: Path, seed: int = 0) -> Path:
    """Write a small SDXL refiner: the second text encoder alone, and a score among the time ids."""
    model = "stable-diffusion-xl-refiner-1.0"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts = _xl_parts(model, folder, DENOISER_REFINER)
    absent: Any = {"text_encoder": None, "tokenizer": None}
    StableDiffusionXLImg2ImgPipeline(
        **parts,
        **absent,
        requires_aesthetics_score=True,
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def make_tiny_inpainting(folder: Path, seed: int = 0) -> Path:
    """Write a small Stable Diffusion that fills in images: five more input channels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        parts: dict[str, Any] = {
            "vae": _shaken(AutoencoderKL.from_config(AUTOENCODER)),
            "text_encoder": _shaken(CLIPTextModel(CLIPTextConfig.from_dict(TEXT_ENCODER))),
            "unet": _shaken(UNet2DConditionModel.from_config({**DENOISER, "in_channels": 9})),
            "tokenizer": write_tokenizer(folder / "tokenizer"),
            "scheduler": DDIMScheduler.from_config(SCHEDULER),
        }
    StableDiffusionInpaintPipeline(**parts, **UNCHECKED).save_pretrained(folder)
    return folder


def _xl_parts(model: str, folder: Path, denoiser: dict[str, Any]) -> dict[str, Any]:
    """Return what SDXL and its refiner share."""
    second = _text_config(model, "text_encoder_2", TEXT_ENCODER_2)
    return {
        "vae": _shaken(AutoencoderKL.from_config(_scaled(model, "vae", AUTOENCODER))),
        "text_encoder_2": _shaken(CLIPTextModelWithProjection(second)),
        "unet": _shaken(UNet2DConditionModel.from_config(_scaled(model, "unet", denoiser))),
        "tokenizer_2": write_tokenizer(folder / "tokenizer_2", PAD_V2),
        "scheduler": EulerDiscreteScheduler.from_config(_published(model, "scheduler/scheduler_config.json")),
    }


def write_tokenizer(folder: Path, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """Write a byte-level BPE of letters and a few words, in each of the forms that readers ask for."""
    vocab: Any = {token: number for number, token in enumerate(TOKENS)}
    merges: Any = MERGES
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pad}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, **specials)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    return tokenizer


def _scaled(model: str, component: str, smaller: dict[str, Any]) -> dict[str, Any]:
    """Return a component's published config with smaller numbers."""
    return {**_published(model, f"{component}/config.json"), **smaller}


def _text_config(model: str, component: str, others: dict[str, Any]) -> CLIPTextConfig:
    """Return a text encoder's published config with smaller numbers; the end token's number stays wrong.

    Published configs say that token 2 ends a prompt, which makes transformers look for the largest.
    """
    smaller = {key: value for key, value in TEXT_ENCODER.items() if not key.endswith("_token_id")}
    return CLIPTextConfig.from_dict(_scaled(model, component, {**smaller, **others}))


def _published(model: str, file: str) -> dict[str, Any]:
    return json.loads((published_folder(model) / file).read_text())


def _shaken(module: Any) -> Any:
    """Move every parameter a little, so that no bias is zero and no scale is one."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def _merges() -> list[tuple[str, str]]:
    """Return the merges that grow each word from its first letter on."""
    found: dict[tuple[str, str], None] = {}
    for word in WORDS:
        parts = [*word[:-1], word[-1] + WORD_END]
        for i in range(1, len(parts)):
            found["".join(parts[:i]), parts[i]] = None
    return list(found)


LETTERS = sorted(ByteLevel.alphabet())
MERGES = _merges()
TOKENS = [*LETTERS, *(letter + WORD_END for letter in LETTERS), *map("".join, MERGES), START, END]
TEXT_ENCODER = {
    "vocab_size": len(TOKENS),
    "hidden_size": WIDTH,
    "intermediate_size": 2 * WIDTH,
    "projection_dim": WIDTH,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "bos_token_id": len(TOKENS) - 2,
    "eos_token_id": len(TOKENS) - 1,
    "pad_token_id": len(TOKENS) - 1,
}
DENOISER = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
}
AUTOENCODER = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "down_block_types": ("DownEncoderBlock2D", "DownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "UpDecoderBlock2D"),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
SCHEDULER = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
UNCHECKED: dict[str, Any] = {
    "safety_checker": None,
    "feature_extractor": None,
    "requires_safety_checker": False,
}
PAD_V2 = "!"
DENOISER_V2 = {
    **DENOISER,
    "block_out_channels": (8, 16),
    "attention_head_dim": (2, 4),
}
WIDTH_2, POOLED = 48, 1280  # of SDXL's second text encoder: text states, and the pooled one
TEXT_ENCODER_2 = {
    "hidden_size": WIDTH_2,
    "intermediate_size": 2 * WIDTH_2,
    "projection_dim": POOLED,
    "num_hidden_layers": 3,
}
DENOISER_XL = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1, 2),
    "norm_num_groups": 4,
    "attention_head_dim": (1, 2, 4),
    "cross_attention_dim": WIDTH + WIDTH_2,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": POOLED + 6 * 8,
}
DENOISER_REFINER = {
    **DENOISER_XL,
    "block_out_channels": (8, 8, 16, 16),
    "transformer_layers_per_block": 1,
    "attention_head_dim": (1, 1, 2, 4),
    "cross_attention_dim": WIDTH_2,
    "projection_class_embeddings_input_dim": POOLED + 5 * 8,
}
