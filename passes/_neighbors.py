"""Which prompts are close to a concept and suffer first when it goes? Its siblings and namesakes.

A sibling is the concept with another word in the place of one of its own: `the adidas logo` for `the nike
logo`, `a knife` for `a dagger`. Words are close where their token embeddings are, so every word that the
tokenizer knows is looked at, and no prompt is encoded to find one. A namesake is a noun that a concept is
named after: `an apple` for `the apple logo`.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, chain, islice

import numpy as np
from numpy.typing import NDArray

from ..compiler.ir import Pipeline
from ..compiler.tensors import Array, widen
from ..compiler.text.encode import token_embeddings, tokenizer_of
from ..compiler.text.tokenizer import SourceTokenizer
from ._nouns import bare, load_nouns, with_article
from ._templates import fill

SHORTEST_WORD = 3
# Words among which close ones are looked for, the most frequent: rarer tokens have hardly been trained.
CANDIDATES = 20_000
# Siblings of all concepts together: as many prompts as a vocabulary of 400 in five templates.
MOST = 2000
# A plural's ending.
ENDING = 2
# Words whose closeness to all candidates is held at once, and candidates whose embeddings are.
AT_ONCE, BLOCK = 256, 1024


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
    closest = _closest(pipeline, list(dict.fromkeys(word for _, word in places)), each, erased)
    texts = (fill(frame, word) for frame, replaced in places for word in closest[replaced])
    names = frozenset(bare(name) for name in erased)
    return tuple(dict.fromkeys(text for text in texts if not _says(text, names)))


def namesakes(concepts: Iterable[str], erased: Iterable[str]) -> tuple[str, ...]:
    """Return the nouns that concepts are named after, each once and none that is a relation of a name.

    Their text states are closest of all, and no sibling stands for them: they hold a word of the name.
    """
    nouns = frozenset(load_nouns().words) - load_nouns().relations(bare(name) for name in erased)
    named_after = (word for concept in concepts for word in bare(concept).split()[:-1] if word in nouns)
    return tuple(dict.fromkeys(map(with_article, named_after)))


def _places(concept: str) -> Iterator[tuple[str, str]]:
    """Yield each word of a concept that others can stand for, behind the words around its place, `{}`."""
    words = concept.lower().split()
    first = len(words) - len(bare(concept).split())
    for i, word in enumerate(words[:-1]):
        if i >= first and _is_word(word):
            yield " ".join([*words[:i], "{}", *words[i + 1 :]]), word
    yield "a {}", words[-1]


def _closest(
    pipeline: Pipeline, words: Sequence[str], count: int, erased: Sequence[str]
) -> dict[str, list[str]]:
    """Return for each word the `count` closest of those that the tokenizer knows whole and that may be said.

    Closeness is the cosine between token embeddings, with the mean over all words taken off.
    """
    tokenizer, embeddings = tokenizer_of(pipeline), token_embeddings(pipeline)
    known = list(islice(filter(_is_word, tokenizer.words()), CANDIDATES))
    free, found = _free(known, erased), {word: [] for word in words}
    if not free:
        return found
    blocks = [known[start : start + BLOCK] for start in range(0, len(known), BLOCK)]
    mean = sum(_embedded(tokenizer, embeddings, block).sum(axis=0) for block in blocks) / len(known)
    for start in range(0, len(words), AT_ONCE):
        some = words[start : start + AT_ONCE]
        rows = _embedded(tokenizer, embeddings, some) - mean
        directions = (_directions(_embedded(tokenizer, embeddings, block) - mean) for block in blocks)
        closeness = np.concatenate([rows @ block.T for block in directions], axis=1)
        for word, row in zip(some, closeness, strict=True):
            found[word] = [known[free[place]] for place in _largest(row[free], count)]
    return found


def _embedded(tokenizer: SourceTokenizer, embeddings: Array, words: Sequence[str]) -> NDArray[np.float32]:
    """Return the mean over the tokens that spell each word, [N, width]."""
    spelled = tokenizer.ids_of(words)
    # An id that the encoder has no row for is refused where prompts are encoded.
    rows = widen(embeddings.take(list(chain.from_iterable(spelled)), axis=0, mode="clip"))
    if len(rows) > len(words):
        ends = list(accumulate(map(len, spelled)))
        parts = (rows[end - len(ids) : end] for ids, end in zip(spelled, ends, strict=True))
        rows = np.stack([part.mean(axis=0) for part in parts])
    return rows.astype(np.float32, copy=False)


def _directions(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    norms = np.sqrt(np.einsum("ij,ij->i", rows, rows))
    return rows / np.maximum(norms, np.finfo(np.float32).tiny)[:, None]


def _largest(values: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return the places of the largest values, the largest first."""
    some = np.argpartition(-values, min(count, len(values)) - 1)[:count]
    return some[np.argsort(-values[some], kind="stable")]


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


def _says(text: str, names: frozenset[str]) -> bool:
    """Say whether words of a text, side by side, are one of the names."""
    words = text.split()
    ends = range(1, len(words) + 1)
    return any(" ".join(words[start:end]) in names for end in ends for start in range(end))


def _is_word(text: str) -> bool:
    return text.isalpha() and len(text) >= SHORTEST_WORD
