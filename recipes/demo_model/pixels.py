"""How do images become latents? Trains an AutoencoderKL that shrinks each side four times."""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from .scenes import Painter, Range
from .training import Dice, Plan, train

RANGE = Range(scale=(0.70, 1.0), shift=0.12, unnamed_colors=0.3)
CHANNELS = (32, 64, 64)
SQUARED, EDGES, PRIOR = (
    0.5,
    0.5,
    1e-4,
)  # weights beside the absolute error; from a trial on the same kind of images


def build_vae() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )


def train_vae(
    painter: Painter, plan: Plan, folder: Path, seed: int, stop_at: int | None = None
) -> AutoencoderKL | None:
    torch.manual_seed(seed)
    model = build_vae().to(memory_format=torch.channels_last)

    def loss_of_batch(dice: Dice) -> Tensor:
        images = painter.scenes(dice.numpy, plan.batch, RANGE).images * 2 - 1
        return reconstruction_loss(model, images.to(memory_format=torch.channels_last), dice)

    if not train("vae", model, loss_of_batch, plan, folder, seed, stop_at):
        return None
    model.register_to_config(scaling_factor=1 / latent_spread(model, painter, seed))
    model.save_pretrained(folder / "vae")
    return model


def reconstruction_loss(model: AutoencoderKL, images: Tensor, dice: Dice) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        latents = model.encode(images).latent_dist
        noise = torch.randn(latents.mean.shape, generator=dice.torch)
        drawn = model.decode(latents.mean + latents.std * noise).sample.float()
    error = drawn - images
    edges = sum(error.diff(dim=axis).abs().mean() for axis in (2, 3))
    prior = (
        0.5
        * (latents.mean.float() ** 2 + latents.var.float() - 1 - latents.logvar.float()).sum((1, 2, 3)).mean()
    )
    # The prior's weight counts per pixel, as the errors do.
    return (
        error.abs().mean()
        + SQUARED * (error**2).mean()
        + EDGES * edges
        + PRIOR * prior / latents.mean[0].numel()
    )


@torch.no_grad()
def latent_spread(model: AutoencoderKL, painter: Painter, seed: int) -> float:
    """The standard deviation of latents, by which the denoiser's inputs are divided."""
    images = painter.scenes(Dice.seeded(seed).numpy, 256, RANGE).images * 2 - 1
    return model.encode(images).latent_dist.mean.std().item()
