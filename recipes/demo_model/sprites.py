"""What does each drawing look like? Renders all of them once, 64 pixels square, with transparency."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image

from .fetch import unpacked
from .world import GENDERS, Concept, World

SIZE = 64
NONE = -1  # stands for an attribute that a drawing does not have


@dataclass(frozen=True)
class Sprites:
    """Drawings (RGBA, 0..255) and, row by row, what each shows: concept, style, gender, skin."""

    pixels: np.ndarray  # uint8 [N, 64, 64, 4]
    shows: np.ndarray  # int16 [N, 4]; NONE where it does not apply

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, pixels=self.pixels, shows=self.shows)


def load_sprites(path: Path) -> Sprites:
    stored = np.load(path)
    return Sprites(stored["pixels"], stored["shows"])


def render_sprites(world: World, packages: Path) -> Sprites:
    pixels: list[np.ndarray] = []
    shows: list[tuple[int, int, int, int]] = []
    for number, concept in enumerate(world.concepts):
        if concept.is_brand:
            pixels.append(draw_mark(packages, concept.drawing))
            shows.append((number, NONE, NONE, NONE))
            continue
        for style_number, style in enumerate(world.styles):
            for gender, skin, code in variants(world, concept):
                pixels.append(draw_emoji(packages, style, code))
                shows.append((number, style_number, gender, skin))
    return Sprites(np.stack(pixels), np.array(shows, dtype=np.int16))


def variants(world: World, concept: Concept) -> list[tuple[int, int, str]]:
    """Gender, skin and code points of every drawing of a concept in one style."""
    if not concept.is_profession:
        return [(NONE, NONE, concept.drawing)]
    return [
        (gender_number, skin_number, concept.emoji(gender, tone))
        for gender_number, gender in enumerate(GENDERS)
        for skin_number, tones in enumerate(world.skins.values())
        for tone in tones
    ]


def draw_emoji(packages: Path, style: str, code: str) -> np.ndarray:
    if style == "fluent":
        assets = unpacked(packages, "@lobehub/fluent-emoji-modern") / "assets"
        named = assets / f"{code}.svg"  # this set is not consistent about the emoji variation selector
        svg = named if named.exists() else assets / f"{code.replace('-fe0f', '')}.svg"
        return rasterize(svg.read_text())
    vendor = {"noto": "google", "twemoji": "twitter"}[style]
    png = unpacked(packages, f"emoji-datasource-{vendor}") / "img" / vendor / "64" / f"{code}.png"
    return np.asarray(Image.open(png).convert("RGBA").resize((SIZE, SIZE)))


def draw_mark(packages: Path, slug: str) -> np.ndarray:
    """A brand's mark in the brand's own color."""
    folder = unpacked(packages, "simple-icons")
    entries = {
        entry["slug"]: entry for entry in json.loads((folder / "data" / "simple-icons.json").read_text())
    }
    terms = entries[slug].get("license", {"type": "CC0-1.0"})["type"]
    if terms != "CC0-1.0":
        raise ValueError(f"simple-icons lists {slug} under {terms}; the demo model uses CC0 drawings only")
    svg = (folder / "icons" / f"{slug}.svg").read_text()
    return rasterize(svg.replace("<svg ", f'<svg fill="#{entries[slug]["hex"]}" ', 1))


def rasterize(svg: str) -> np.ndarray:
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA").resize((SIZE, SIZE)))
