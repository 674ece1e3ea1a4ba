"""How do latents follow from captions? Trains a UNet2DConditionModel on latents and text states computed
once."""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .scenes import Painter, Range
from .tokenizer import token_ids
from .training import Dice, Plan, train
from .world import GENDERS, read_world

T = TypeVar("T")
PROFESSIONS = [concept.name for concept in read_world().concepts if concept.is_profession]
RANGE = Range(scale=(0.78, 1.0), shift=0.10, unnamed_colors=0.0)  # mild, so that two cores can learn it
CHANNELS = (64, 128, 128)
# How much more often scenes of people are drawn than others: with even odds, recognition passed 95 %
# while "a female doctor" was still drawn like any doctor, and professions took after each other's
# stereotypes. It leaves the shares as they are.
PEOPLE, PEOPLE_OF_SAID_GENDER = 8.0, 4.0
UNCONDITIONAL = 0.1  # share of captions left empty, for classifier-free guidance
SNR_CAP = 5.0  # min-SNR weighting, Hang et al. 2023 (arXiv 2303.09556)


def build_unet(context_width: int) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        block_out_channels=CHANNELS,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=4,  # the number of heads, as in Stable Diffusion 1's configuration
        cross_attention_dim=context_width,
        norm_num_groups=16,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1's noise schedule, with more noise at its end, and sampled from there.

    With `beta_end` 0.012 and leading timesteps a tenth of every image showed through where sampling starts,
    from noise alone. The model took that for a picture of no color, which shifted shares of men: at guidance
    scale 1 they were 10 points too high on average, and 5 with the tenth put back.
    """
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.016,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",  # starts at the last timestep, as training does
    )


@dataclass
class Latents:
    """Encoded scenes with their captions."""

    latents: Tensor  # [N, 4, 16, 16], of unit variance
    captions: list[str]  # [N]
    style: Tensor  # [N], which style is drawn; -1 for marks


@dataclass
class Pairs:
    """Latents of scenes, and the text states of their captions, of which the last is the empty prompt's."""

    latents: Tensor  # [N, 4, 16, 16]
    caption: Tensor  # [N], which row of the states
    style: Tensor  # [N]
    states: Tensor  # [M, 24, width]
    captions: list[str]  # [M], each different

    @property
    def empty(self) -> int:
        return len(self.states) - 1

    @cached_property
    def says_gender(self) -> Tensor:
        """Which captions say one."""
        return torch.tensor([says_gender(text) for text in self.captions])

    @cached_property
    def odds(self) -> Tensor:
        """How often each scene is drawn, relative to others."""
        odds = torch.tensor([odds_of(text) for text in self.captions])
        return odds[self.caption].double()


def says_gender(caption: str) -> bool:
    return any(gender in caption.split() for gender in GENDERS)


def odds_of(caption: str) -> float:
    if says_gender(caption):
        return PEOPLE_OF_SAID_GENDER
    return PEOPLE if any(person in caption for person in PROFESSIONS) else 1.0


@torch.no_grad()
def encode_scenes(painter: Painter, vae: AutoencoderKL, count: int, seed: int) -> Latents:
    """Random scenes as the denoiser sees them."""
    dice = Dice.seeded(seed)
    latents, captions, styles = [], [], []
    while len(captions) < count:
        scenes = painter.scenes(dice.numpy, min(128, count - len(captions)), RANGE)
        images = (scenes.images * 2 - 1).to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(images).latent_dist.mean
        latents.append((mean.float() * vae.config["scaling_factor"]).half())
        captions += scenes.captions
        styles.append(torch.from_numpy(scenes.shows[:, 1]))
    return Latents(torch.cat(latents), captions, torch.cat(styles))


@torch.no_grad()
def with_states(scenes: Latents, encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> Pairs:
    """The scenes with the text states of every caption, each computed once."""
    captions = [*sorted(set(scenes.captions)), ""]
    number = {text: row for row, text in enumerate(captions)}
    rows = torch.tensor([number[text] for text in scenes.captions])
    states = [
        encoder(input_ids=token_ids(tokenizer, captions[start : start + 256])).last_hidden_state.half()
        for start in range(0, len(captions), 256)
    ]
    return Pairs(scenes.latents, rows, scenes.style, torch.cat(states), captions)


def stored(path: Path, make: Callable[[], T]) -> T:
    """What a file holds; it is made on first use."""
    if not path.exists():
        fresh = path.with_suffix(".fresh")
        torch.save(make(), fresh)
        fresh.replace(path)
    return torch.load(path, weights_only=False)


def train_unet(
    pairs: Pairs, plan: Plan, folder: Path, seed: int, stop_at: int | None = None
) -> UNet2DConditionModel | None:
    torch.manual_seed(seed)
    model = build_unet(pairs.states.shape[-1])  # so small that channels last would be slower
    model.set_attn_processor(
        AttnProcessor()
    )  # fused attention's backward pass in bfloat16 is 1.6 times slower on CPU
    scheduler = build_scheduler()

    def loss_of_batch(dice: Dice) -> Tensor:
        return denoising_loss(model, scheduler, *draw_pairs(pairs, plan.batch, dice), dice)

    if not train("unet", model, loss_of_batch, plan, folder, seed, stop_at):
        return None
    model.save_pretrained(folder / "unet")
    return model


def draw_pairs(pairs: Pairs, count: int, dice: Dice) -> tuple[Tensor, Tensor]:
    """Latents and text states, some of the captions left empty.

    Captions that say a gender never are: so people without a caption have the gender that people without a
    said gender have, and guidance, which moves away from the former, leaves the stereotypes as they are.
    """
    rows = torch.multinomial(pairs.odds, count, replacement=True, generator=dice.torch)
    captions = pairs.caption[rows].clone()
    emptied = torch.rand(count, generator=dice.torch) < UNCONDITIONAL
    captions[emptied & ~pairs.says_gender[captions]] = pairs.empty
    return pairs.latents[rows].float(), pairs.states[captions].float()


def denoising_loss(
    model: torch.nn.Module, scheduler: DDIMScheduler, latents: Tensor, states: Tensor, dice: Dice
) -> Tensor:
    steps = torch.randint(1000, (len(latents),), generator=dice.torch)
    noise = torch.randn(latents.shape, generator=dice.torch)
    noisy = scheduler.add_noise(latents, noise, steps)
    with torch.autocast("cpu", torch.bfloat16):
        guess = model(noisy, steps, encoder_hidden_states=states).sample
    error = F.mse_loss(guess.float(), noise, reduction="none").mean((1, 2, 3))
    kept = scheduler.alphas_cumprod[steps]
    snr = kept / (1 - kept)
    return (error * snr.clamp(max=SNR_CAP) / snr).mean()
