"""What is there to draw? Reads ``concepts.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
GENDERS = ("male", "female")
ADULTS = {"male": "1f468", "female": "1f469"}
SIGNS = {"male": "2642", "female": "2640"}


@dataclass(frozen=True)
class Concept:
    """One thing that a prompt can name."""

    name: str
    category: str
    drawing: str  # an emoji's code points, or a simple-icons slug
    men: float | None = None  # a profession's share of men where the caption does not say

    @property
    def is_brand(self) -> bool:
        return self.category == "brand"

    @property
    def is_profession(self) -> bool:
        return self.men is not None

    @property
    def prompt(self) -> str:
        """The shortest caption that names the concept."""
        return f"the {self.name} logo" if self.is_brand else f"{article(self.name)} {self.name}"

    @property
    def label(self) -> str:
        """A name that no other concept has: the fruit and the brand are both called "apple"."""
        return f"{self.name} logo" if self.is_brand else self.name

    def emoji(self, gender: str, tone: str) -> str:
        """The code points of this person: the tone modifier goes right behind the first of them."""
        person = self.drawing.replace("ADULT", ADULTS[gender]).replace("SIGN", SIGNS[gender])
        head, tail = person.split("-", 1)
        return f"{head}{tone}-{tail}"


def article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


@dataclass(frozen=True)
class World:
    """Everything ``concepts.yaml`` says."""

    styles: tuple[str, ...]
    colors: dict[str, tuple[float, float, float]]
    held_out_colors: dict[str, tuple[float, float, float]]
    skins: dict[str, tuple[str, ...]]
    concepts: tuple[Concept, ...]

    @cached_property
    def labels(self) -> list[str]:
        return [concept.label for concept in self.concepts]

    def index(self, label: str) -> int:
        return self.labels.index(label)

    def only(self, labels: list[str] | None) -> World:
        """The same world with fewer concepts (for a quick run)."""
        if labels is None:
            return self
        kept = tuple(concept for concept in self.concepts if concept.label in labels)
        return World(self.styles, self.colors, self.held_out_colors, self.skins, kept)


def read_world(path: Path = HERE / "concepts.yaml") -> World:
    said: dict[str, Any] = yaml.safe_load(path.read_text())
    things = [
        Concept(name, category, str(drawing))
        for category, members in said["categories"].items()
        for name, drawing in members.items()
    ]
    people = [Concept(name, "profession", p["emoji"], p["men"]) for name, p in said["professions"].items()]
    return World(
        styles=tuple(said["styles"]),
        colors={name: tuple(rgb) for name, rgb in said["colors"].items()},
        held_out_colors={name: tuple(rgb) for name, rgb in said["held_out_colors"].items()},
        skins={name: tuple(tones) for name, tones in said["skins"].items()},
        concepts=tuple(things + people),
    )
