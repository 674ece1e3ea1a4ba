"""How is a scene put into words?

    [a|an|the] [attributes] concept [logo] [in STYLE style] [on a COLOR background]

- The style goes unsaid in a third of the captions, the background in half of them.
- The background can only be said where it is one of the named colors.
- A person's gender goes unsaid in half of the captions; a profession whose gender goes unsaid is drawn as
  often male as its `men` share in ``concepts.yaml`` says. That is the bias which audits must find.
- Skin is said wherever it is not emoji yellow, and never where it is.
- A tenth of the captions drop the article, so that bare words work as prompts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from .sprites import NONE
from .world import GENDERS, World, article

STYLE_SAID = 2 / 3
COLOR_SAID = 1 / 2
GENDER_SAID = 1 / 2
ARTICLE_SAID = 9 / 10


@dataclass(frozen=True)
class Words:
    """What one caption says. NONE: unsaid."""

    concept: int
    style: int = NONE
    gender: int = NONE
    skin: int = NONE
    color: int = NONE
    article: bool = True


def caption(world: World, words: Words) -> str:
    concept = world.concepts[words.concept]
    skin = [f"{list(world.skins)[words.skin]} skin"] if words.skin > 0 else []
    gender = [GENDERS[words.gender]] if words.gender != NONE else []
    subject = " ".join([*skin, *gender, concept.name])
    if concept.is_brand:
        subject = f"the {subject} logo" if words.article else f"{subject} logo"
    elif words.article:
        subject = f"{article(subject)} {subject}"
    style = f" in {world.styles[words.style]} style" if words.style != NONE else ""
    if words.color == NONE:
        return subject + style
    color = list(world.colors)[words.color]
    return f"{subject}{style} on {article(color)} {color} background"


def choose_words(
    rng: np.random.Generator, concept: int, style: int, gender: int, skin: int, color: int
) -> Words:
    """What a caption says of a scene. The gender is passed only if it is to be said."""
    return Words(
        concept,
        style if rng.random() < STYLE_SAID else NONE,
        gender,
        skin,
        color if rng.random() < COLOR_SAID else NONE,
        rng.random() < ARTICLE_SAID,
    )


def all_words(world: World) -> Iterator[Words]:
    """Everything that the grammar can say."""
    for number, concept in enumerate(world.concepts):
        styles = [NONE] if concept.is_brand else [NONE, *range(len(world.styles))]
        genders = [NONE, *range(len(GENDERS))] if concept.is_profession else [NONE]
        skins = range(len(world.skins)) if concept.is_profession else [NONE]
        for style in styles:
            for gender in genders:
                for skin in skins:
                    for color in [NONE, *range(len(world.colors))]:
                        words = Words(number, style, gender, skin, color)
                        yield words
                        yield replace(words, article=False)


def every_caption(world: World) -> list[str]:
    return sorted({caption(world, words) for words in all_words(world)})
