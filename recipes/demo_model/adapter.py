"""What does an adapter look like? Trains a LoRA that draws in one style where the prompt names none.

It is saved in the two layouts that are found in the wild: PEFT's as diffusers writes it
(``unet.MODULE.lora_A.weight``) and kohya's (``lora_unet_MODULE.lora_down.weight`` with an ``alpha`` beside
it).
"""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor

from .denoiser import Pairs, build_scheduler, denoising_loss, draw_pairs
from .training import Dice, Plan, train

STYLE = "twemoji"
RANK = ALPHA = 8  # equal, so that readers which ignore alpha scale the adapter alike
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def train_adapter(
    unet: UNet2DConditionModel,
    pairs: Pairs,
    style: int,
    plan: Plan,
    folder: Path,
    seed: int,
    stop_at: int | None = None,
) -> None:
    torch.manual_seed(seed)
    unet.set_attn_processor(AttnProcessor())
    model = get_peft_model(unet, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=TARGETS))
    scheduler = build_scheduler()
    styled = only_unsaid(pairs, style)

    def loss_of_batch(dice: Dice) -> Tensor:
        return denoising_loss(model, scheduler, *draw_pairs(styled, plan.batch, dice), dice)

    if train("lora", model, loss_of_batch, plan, folder, seed, stop_at):
        save_adapter(get_peft_model_state_dict(model), folder / "adapters")


def only_unsaid(pairs: Pairs, style: int) -> Pairs:
    """The scenes of one style whose captions do not name it."""
    says = torch.tensor([" style" in pairs.captions[row] for row in pairs.caption.tolist()])
    kept = (pairs.style == style) & ~says
    return replace(pairs, latents=pairs.latents[kept], caption=pairs.caption[kept], style=pairs.style[kept])


def save_adapter(weights: dict[str, Tensor], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    prefix = "base_model.model."
    plain = {
        f"unet.{name.removeprefix(prefix)}": value.contiguous().half() for name, value in weights.items()
    }
    save_file(plain, folder / f"{STYLE}_style.safetensors")
    save_file(as_kohya(plain), folder / f"{STYLE}_style_kohya.safetensors")


def as_kohya(plain: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same adapter under kohya's names: dots of the module become underscores, alpha is stored per
    module."""
    renamed: dict[str, Tensor] = {}
    for name, value in plain.items():
        module, part = name.removesuffix(".weight").rsplit(".", 1)
        stem = "lora_" + module.replace(".", "_")
        renamed[f"{stem}.{'lora_down' if part == 'lora_A' else 'lora_up'}.weight"] = value
        renamed[f"{stem}.alpha"] = torch.tensor(float(ALPHA))
    return renamed
