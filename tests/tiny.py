"""A Stable Diffusion pipeline of a few hundred kilobytes with random weights, for tests.

It has every part of a real one: a tokenizer in CLIP's format, a text encoder, a U-Net with
cross-attention, a KL autoencoder and a scheduler config. It draws noise, but all names, shapes and
files are those that diffusers writes.
"""

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

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
    optional = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    StableDiffusionPipeline(**parts, **optional).save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> CLIPTokenizer:
    """Write a byte-level BPE of letters and a few words, in each of the forms that readers ask for."""
    vocab: Any = {token: number for number, token in enumerate(TOKENS)}
    merges: Any = MERGES
    specials = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH, **specials)
    tokenizer.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "special_tokens_map.json").write_text(json.dumps(specials, indent=2) + "\n")
    return tokenizer


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
