"""Which prompts are close to a concept and suffer first when it goes? Its siblings, one word apart.

A sibling is the concept with another word in the place of one of its own: `the adidas logo` for `the nike
logo`, `a knife` for `a dagger`. Words are close where their token embeddings are, so every word that the
tokenizer knows is looked at, and no prompt is encoded to find one.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from ..compiler.ir import Pipeline
from ..compiler.text.encode import token_embeddings, tokenizer_of
from ._closed_form import Floats
from ._nouns import bare, load_nouns
from ._templates import fill

SHORTEST_WORD = 3
# Words among which close ones are looked for, the most frequent: rarer tokens have hardly been trained.
CANDIDATES = 20_000
# Siblings of all concepts together: as many prompts as a vocabulary of 400 in five templates.
MOST = 2000
# A plural's ending.
ENDING = 2


def neighbor_prompts(
    pipeline: Pipeline, concepts: Sequence[str], count: int, erased: Sequence[str]
) -> tuple[str, ...]:
    """Return the siblings of each concept by the `count` words closest to each of its words, each once.

    The last word says what kind of thing a concept is: siblings share it, and words close to it stand
    alone. None holds a name in `erased`, a form or a synonym of one, or a wider or narrower term. Of many
    concepts each has fewer, so that all have at most `MOST`, or one for each word.
    """
    places = list(dict.fromkeys(place for concept in concepts for place in _places(concept)))
    each = min(count, max(1, MOST // max(len(places), 1)))
    if not each:
        return ()
    closest = _Closest(pipeline, erased)
    texts = (fill(frame, word) for frame, replaced in places for word in closest.to(replaced)[:each])
    return tuple(dict.fromkeys(text for text in texts if not _says(text, erased)))


def _places(concept: str) -> Iterator[tuple[str, str]]:
    """Yield each word of a concept that others can stand for, behind the words around its place, `{}`."""
    words = concept.lower().split()
    first = len(words) - len(bare(concept).split())
    for i, word in enumerate(words[:-1]):
        if i >= first and _is_word(word):
            yield " ".join([*words[:i], "{}", *words[i + 1 :]]), word
    yield "a {}", words[-1]


class _Closest:
    """The words that a tokenizer knows whole, in the order of how close they are to a given one.

    Closeness is the cosine between token embeddings, with the mean over all words taken off.
    """

    def __init__(self, pipeline: Pipeline, erased: Sequence[str]) -> None:
        self._tokenizer = tokenizer_of(pipeline)
        self._embeddings = token_embeddings(pipeline)
        known = [word for word in self._tokenizer.words() if _is_word(word)][:CANDIDATES]
        vectors = np.array([self._embedding(word) for word in known])
        self._mean = vectors.mean(axis=0)
        free = _free(known, erased)
        self._words = [known[place] for place in free]
        self._directions = _unit(vectors[free] - self._mean)

    def to(self, word: str) -> list[str]:
        """Return every word that may be said, the closest ones first."""
        closeness = self._directions @ (self._embedding(word) - self._mean)
        return [self._words[place] for place in np.argsort(-closeness, kind="stable")]

    def _embedding(self, word: str) -> Floats:
        """Return the mean over the tokens that spell a word."""
        ids = self._tokenizer.spelling(word).ids[1:-1]
        # An id that the encoder has no row for is refused where prompts are encoded.
        return self._embeddings.take(ids, axis=0, mode="clip").mean(axis=0, dtype=np.float64)


def _free(words: Sequence[str], erased: Iterable[str]) -> list[int]:
    """Return the places of the words that are no form of a word in `erased`, and no relation of a name."""
    names = [bare(name) for name in erased]
    said = {word for name in names for word in name.split() if _is_word(word)}
    banned = {word[: len(word) - cut] for word in said for cut in range(ENDING + 1)}
    banned |= load_nouns().relations(names)
    return [
        place
        for place, word in enumerate(words)
        if word not in banned and said.isdisjoint(word[:end] for end in range(SHORTEST_WORD, len(word)))
    ]


def _says(text: str, names: Iterable[str]) -> bool:
    """Say whether a text holds one of the names as whole words."""
    return any(f" {bare(name)} " in f" {text} " for name in names)


def _is_word(text: str) -> bool:
    return text.isalpha() and len(text) >= SHORTEST_WORD


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(float).tiny)
