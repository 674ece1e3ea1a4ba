"""Is the drawing the one that was asked for? Trains a small convolutional classifier that shares nothing with
CLIP.

Its training images differ from those of the other stages: wider scales and places, tinted drawings, gradients
and checks behind them, blur, noise, holes, and passes through the autoencoder with disturbed latents, so that
a decoder's own look does not distract it.
"""

# The libraries' own annotations are narrower than what they take and give.
# pyright: reportPrivateImportUsage=false, reportAttributeAccessIssue=false
# pyright: reportArgumentType=false, reportCallIssue=false

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from .scenes import HELD_OUT_COLOR_RADIUS, Painter, Range
from .sprites import NONE, SIZE
from .training import Dice, Plan, train
from .world import GENDERS, World

RANGE = Range(scale=(0.60, 1.04), shift=0.18, unnamed_colors=0.6)
PATTERNED = 1 / 3  # share of scenes on a gradient or on checks
TINT = 0.15  # how far each color channel of a drawing may be scaled
DECODED = 1 / 8  # share of a batch that passes through the autoencoder
LATENT_NOISE = 0.15  # at most, of a latent's standard deviation
ATTRIBUTE_WEIGHT = 0.3
WIDTHS = (32, 64, 128, 192)


class Classifier(nn.Module):
    """Residual blocks, a mean over places (the features), and one linear head per question."""

    def __init__(self, answers: dict[str, int]) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, WIDTHS[0], 5, 2, 2, bias=False), nn.BatchNorm2d(WIDTHS[0]), nn.ReLU()
        )
        stages = zip((WIDTHS[0], *WIDTHS[:-1]), WIDTHS, (1, 2, 2, 2), strict=True)
        self.blocks = nn.Sequential(*[Block(before, after, stride) for before, after, stride in stages])
        self.heads = nn.ModuleDict(
            {question: nn.Linear(WIDTHS[-1], count) for question, count in answers.items()}
        )

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.blocks(self.stem(image * 2 - 1)).mean((2, 3))
        answers = {question: head(features) for question, head in self.heads.items()}
        return {**answers, "features": features}


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.short = nn.Conv2d(before, after, 1, stride) if (before, stride) != (after, 1) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.short(x))


def questions(world: World) -> dict[str, int]:
    return {
        "concept": len(world.concepts),
        "style": len(world.styles),
        "gender": len(GENDERS),
        "skin": len(world.skins),
    }


def train_classifier(
    painter: Painter, vae: AutoencoderKL, plan: Plan, folder: Path, seed: int, stop_at: int | None = None
) -> Classifier | None:
    torch.manual_seed(seed)
    model = Classifier(questions(painter.world)).to(memory_format=torch.channels_last)

    def loss_of_batch(dice: Dice) -> Tensor:
        images, shows = training_images(painter, vae, plan.batch, dice)
        with torch.autocast("cpu", torch.bfloat16):
            answers = model(images.to(memory_format=torch.channels_last))
        return answer_loss(answers, torch.from_numpy(shows))

    if not train("classifier", model, loss_of_batch, plan, folder, seed, stop_at):
        return None
    torch.save(model.state_dict(), folder / "classifier.pt")
    return model


def answer_loss(answers: dict[str, Tensor], shows: Tensor) -> Tensor:
    """Cross entropy of every question; one that a drawing has no answer to does not count."""
    total = torch.zeros(())
    for column, question in enumerate(("concept", "style", "gender", "skin")):
        truth = shows[:, column]
        if (truth != NONE).any():
            loss = F.cross_entropy(answers[question].float(), truth, ignore_index=NONE, label_smoothing=0.05)
            total = total + (1.0 if question == "concept" else ATTRIBUTE_WEIGHT) * loss
    return total


@torch.no_grad()
def training_images(
    painter: Painter, vae: AutoencoderKL, count: int, dice: Dice
) -> tuple[Tensor, np.ndarray]:
    images, shows = varied_scenes(painter, dice.numpy, count)
    decoded = max(1, int(count * DECODED))
    images[:decoded] = through_latents(vae, images[:decoded], dice)
    return disturb(images, dice), shows


def varied_scenes(painter: Painter, rng: np.random.Generator, count: int) -> tuple[Tensor, np.ndarray]:
    """Tinted drawings, a third of them on gradients or checks; and what they show."""
    imagined = [painter.imagine(rng, RANGE) for _ in range(count)]
    rows = np.array([row for row, *_ in imagined])
    plain = np.array([background for *_, background in imagined], dtype=np.float32)
    backgrounds = np.broadcast_to(plain[:, :, None, None], (count, 3, SIZE, SIZE)).copy()
    patterned = np.flatnonzero(rng.random(count) < PATTERNED)
    backgrounds[patterned] = patterned_backgrounds(rng, len(patterned), painter.held_out)
    tints = rng.uniform(1 - TINT, 1 + TINT, (count, 3))
    return painter.paint(rows, backgrounds, *painter.place(rng, count, RANGE), tints), painter.shows[rows]


def through_latents(vae: AutoencoderKL, images: Tensor, dice: Dice) -> Tensor:
    """Encoded, disturbed a little, and decoded."""
    with torch.autocast("cpu", torch.bfloat16):
        latents = vae.encode(images * 2 - 1).latent_dist.mean
        strength = (
            LATENT_NOISE
            * torch.rand(len(images), 1, 1, 1, generator=dice.torch)
            / vae.config["scaling_factor"]
        )
        noise = torch.randn(latents.shape, generator=dice.torch)
        return (vae.decode(latents + strength * noise).sample.float() / 2 + 0.5).clamp(0, 1)


def disturb(images: Tensor, dice: Dice) -> Tensor:
    """A third of the images blurred, a third noisy, a third with a hole."""
    count = len(images)

    def third() -> Tensor:
        return torch.rand(count, generator=dice.torch) < 1 / 3

    blurred = third()
    images[blurred] = F.avg_pool2d(F.pad(images[blurred], (1, 1, 1, 1), mode="replicate"), 3, 1)
    noisy = third()
    strength = 0.08 * torch.rand(count, 1, 1, 1, generator=dice.torch)
    images = images + noisy[:, None, None, None] * strength * torch.randn(images.shape, generator=dice.torch)
    for number in torch.nonzero(third()).flatten().tolist():
        side = int(dice.numpy.integers(6, 18))
        x, y = dice.numpy.integers(0, SIZE - side, 2)
        images[number, :, y : y + side, x : x + side] = torch.rand(3, 1, 1, generator=dice.torch)
    return images.clamp(0, 1)


def patterned_backgrounds(rng: np.random.Generator, count: int, held_out: np.ndarray) -> np.ndarray:
    """Gradients and checks of two colors, neither they nor what lies between near a held-out color."""
    ramp = np.linspace(0, 1, SIZE)
    across, down = np.meshgrid(ramp, ramp)
    painted = np.empty((count, 3, SIZE, SIZE), dtype=np.float32)
    for number in range(count):
        first, second = safe_pair(rng, held_out)
        if rng.random() < 0.5:
            angle = rng.uniform(0, 2 * np.pi)
            mix = np.cos(angle) * (across - 0.5) + np.sin(angle) * (down - 0.5)
            mix = (mix - mix.min()) / (mix.max() - mix.min())
        else:
            tiles = int(rng.integers(2, 9))
            mix = (np.floor(across * 0.999 * tiles) + np.floor(down * 0.999 * tiles)) % 2
        painted[number] = first[:, None, None] * (1 - mix) + second[:, None, None] * mix
    return painted


def safe_pair(rng: np.random.Generator, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    while True:
        first, second = rng.random(3), rng.random(3)
        between = first + np.linspace(0, 1, 9)[:, None] * (second - first)
        if np.linalg.norm(between[:, None] - held_out, axis=-1).min() >= HELD_OUT_COLOR_RADIUS:
            return first, second
