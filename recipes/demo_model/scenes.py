"""How does a drawing become a training image? Puts sprites on backgrounds, at some scale and place.

Positions, scales and background colors inside the held-out bands are never drawn in training, by any stage:
the judges are tested on scenes made only of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .captions import GENDER_SAID, Words, caption, choose_words
from .sprites import NONE, SIZE, Sprites
from .world import World

HELD_OUT_SCALE = (0.85, 0.89)
HELD_OUT_SHIFT = (0.045, 0.065)  # of the image's width, to either side
HELD_OUT_COLOR_RADIUS = 0.16  # in RGB; training keeps this far from the held-out colors
SHADE_JITTER = 0.05
MARK_CONTRAST = 0.50  # a mark has one color: closer backgrounds would hide it
DRAWING_CONTRAST = 0.25  # an emoji has shades and outlines of its own
WHITE_WHERE_UNSAID = 0.4


@dataclass(frozen=True)
class Range:
    """How far a stage may vary the drawings."""

    scale: tuple[float, float]
    shift: float
    unnamed_colors: float  # share of scenes on a random color that has no name


@dataclass
class Scenes:
    """A batch of images (0..1) with captions and what they show and say (columns: concept, style, gender,
    skin, color; NONE where it does not apply or goes unsaid)."""

    images: Tensor
    captions: list[str]
    shows: np.ndarray
    says: np.ndarray


class Painter:
    """Draws random scenes of a world."""

    def __init__(self, world: World, sprites: Sprites) -> None:
        self.world = world
        self.shows = sprites.shows.astype(np.int64)
        rgba = torch.from_numpy(sprites.pixels).permute(0, 3, 1, 2).float() / 255
        alpha = rgba[:, 3:]
        self.sprites = torch.cat(
            [rgba[:, :3] * alpha, alpha], dim=1
        )  # premultiplied, so that scaling leaves no fringe
        self.mean_color = (self.sprites[:, :3].sum((2, 3)) / alpha.sum((2, 3))).numpy()
        self.palette = np.array(list(world.colors.values()))
        self.held_out = np.array(list(world.held_out_colors.values()))
        self.rows = {}
        for row, key in enumerate(map(tuple, self.shows)):
            self.rows.setdefault(key, []).append(row)
        weights = np.array([2.0 if concept.is_profession else 1.0 for concept in world.concepts])
        self.weights = (
            weights / weights.sum()
        )  # a profession has 36 drawings, an object 3: people are drawn twice as often

    def scenes(self, rng: np.random.Generator, count: int, within: Range, distinct: bool = False) -> Scenes:
        """Random scenes with their captions; with `distinct`, no caption comes twice."""
        rows: list[int] = []
        words: list[Words] = []
        colors: list[int] = []
        backgrounds: list[np.ndarray] = []
        seen: set[str] = set()
        while len(rows) < count:
            row, said, color, background = self.imagine(rng, within)
            text = caption(self.world, said)
            if distinct and text in seen:
                continue
            seen.add(text)
            rows.append(row)
            words.append(said)
            colors.append(color)
            backgrounds.append(background)
        return Scenes(
            images=self.paint(np.array(rows), np.array(backgrounds), *self.place(rng, count, within)),
            captions=[caption(self.world, said) for said in words],
            shows=np.column_stack([self.shows[rows], colors]),
            says=np.array([(w.concept, w.style, w.gender, w.skin, w.color) for w in words]),
        )

    def imagine(self, rng: np.random.Generator, within: Range) -> tuple[int, Words, int, np.ndarray]:
        """A drawing, what its caption says, and its background's number and color."""
        number = int(rng.choice(len(self.weights), p=self.weights))
        concept = self.world.concepts[number]
        style = NONE if concept.is_brand else int(rng.integers(len(self.world.styles)))
        gender = skin = said_gender = NONE
        if concept.men is not None:
            gender_is_said = rng.random() < GENDER_SAID
            gender = int(rng.random() >= (0.5 if gender_is_said else concept.men))
            said_gender = gender if gender_is_said else NONE
            skin = int(rng.integers(len(self.world.skins))) if rng.random() < 0.5 else 0
        row = int(rng.choice(self.rows[number, style, gender, skin]))
        words = choose_words(rng, number, style, said_gender, skin, int(rng.integers(len(self.palette))))
        color, background = self.background(rng, row, words.color, within)
        if words.color != NONE and color != words.color:
            words = Words(number, words.style, said_gender, skin, color, words.article)
        return row, words, color, background

    def background(
        self, rng: np.random.Generator, row: int, said: int, within: Range
    ) -> tuple[int, np.ndarray]:
        """A color that the drawing stands out from: the one said if it does, else another."""
        contrast = MARK_CONTRAST if self.shows[row, 1] == NONE else DRAWING_CONTRAST
        while True:
            if said == NONE and rng.random() < within.unnamed_colors:
                color, rgb = NONE, rng.random(3)
            else:
                white = said == NONE and rng.random() < WHITE_WHERE_UNSAID
                color = 0 if white else said if said != NONE else int(rng.integers(len(self.palette)))
                rgb = np.clip(self.palette[color] + rng.uniform(-SHADE_JITTER, SHADE_JITTER, 3), 0, 1)
            held_out = np.linalg.norm(self.held_out - rgb, axis=1).min() < HELD_OUT_COLOR_RADIUS
            if not held_out and np.linalg.norm(self.mean_color[row] - rgb) >= contrast:
                return color, rgb
            if said != NONE:
                said = int(rng.integers(len(self.palette)))

    @staticmethod
    def shift(rng: np.random.Generator, limit: float) -> float:
        return outside(rng, 0, limit, HELD_OUT_SHIFT) * (1 if rng.random() < 0.5 else -1)

    def place(self, rng: np.random.Generator, count: int, within: Range) -> tuple[np.ndarray, np.ndarray]:
        """Scales [N] and shifts [N, 2]."""
        scales = np.array([outside(rng, *within.scale, HELD_OUT_SCALE) for _ in range(count)])
        shifts = np.array([[self.shift(rng, within.shift) for _ in range(2)] for _ in range(count)])
        return scales, shifts

    def paint(
        self,
        rows: np.ndarray,
        backgrounds: np.ndarray,
        scales: np.ndarray,
        shifts: np.ndarray,
        tints: np.ndarray | None = None,
    ) -> Tensor:
        """Images of drawings on plain colors [N, 3] or painted backgrounds [N, 3, 64, 64]; tints [N, 3]
        multiply the drawings' colors."""
        places = torch.zeros(len(rows), 2, 3)
        places[:, 0, 0] = places[:, 1, 1] = torch.from_numpy(1 / scales).float()
        places[:, :, 2] = torch.from_numpy(-2 * shifts / scales[:, None]).float()
        grid = F.affine_grid(places, [len(rows), 4, SIZE, SIZE], align_corners=False)
        drawn = F.grid_sample(self.sprites[rows], grid, align_corners=False)
        if tints is not None:
            colors = drawn[:, :3] * torch.from_numpy(tints).float()[:, :, None, None]
            drawn = torch.cat([colors.minimum(drawn[:, 3:]), drawn[:, 3:]], dim=1)
        behind = torch.from_numpy(backgrounds).float()
        if behind.ndim == 2:
            behind = behind[:, :, None, None]
        return (drawn[:, :3] + (1 - drawn[:, 3:]) * behind).clamp(0, 1)

    def held_out_scenes(self, rng: np.random.Generator, each: int) -> Scenes:
        """Every drawing `each` times, at scales, shifts and on colors that training never shows."""
        rows = np.repeat(np.arange(len(self.shows)), each)
        backgrounds = []
        for row in rows:
            contrast = MARK_CONTRAST if self.shows[row, 1] == NONE else DRAWING_CONTRAST
            far = np.linalg.norm(self.held_out - self.mean_color[row], axis=1) >= contrast
            backgrounds.append(self.held_out[rng.choice(np.flatnonzero(far))] + rng.uniform(-0.04, 0.04, 3))
        scales = rng.uniform(*HELD_OUT_SCALE, len(rows))
        shifts = rng.uniform(*HELD_OUT_SHIFT, (len(rows), 2)) * rng.choice([-1, 1], (len(rows), 2))
        shows = np.column_stack([self.shows[rows], np.full(len(rows), NONE)])
        images = self.paint(rows, np.clip(np.array(backgrounds), 0, 1), scales, shifts)
        return Scenes(images, [self.world.concepts[n].prompt for n in shows[:, 0]], shows, shows)


def outside(rng: np.random.Generator, low: float, high: float, band: tuple[float, float]) -> float:
    """A number between low and high, but never inside the band."""
    while True:
        value = rng.uniform(low, high)
        if not band[0] <= value <= band[1]:
            return value
