"""A list of nouns that can be drawn, and the super-category of each: WordNet 3.1, see NOTICE.

`_nouns.txt.gz` is written by `python -m recipes.nouns`.
"""

import gzip
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

FILE = Path(__file__).with_name("_nouns.txt.gz")
# A super-category is wide enough to stand for a concept when so many nouns of the list are below it, and
# known to a model when its word occurs so often in WordNet's tagged texts.
WIDE, FAMILIAR = 300, 10
WIDEST = "object"
# Super-categories that no picture shows.
VAGUE = frozenset({"abstraction", "attribute", "communication", "entity", "group", "matter", "shape"})
VOWELS = "aeiou"
ARTICLES = ("the ", "an ", "a ")


class Nouns:
    """Meanings in the order of their use, each with its words and the one above it."""

    def __init__(self, text: str) -> None:
        rows = [line.split("\t") for line in text.splitlines()]
        self._words = [row[0].split(",") for row in rows]
        self._above = [int(row[1]) for row in rows]
        self._uses = [int(row[2]) for row in rows]

    @cached_property
    def words(self) -> tuple[str, ...]:
        """Every single word of the list, frequent ones first."""
        return tuple(dict.fromkeys(word for words in self._words for word in words if word.isalpha()))

    def super_category(self, concept: str, without: Collection[str] = ()) -> str:
        """Return the nearest wide and familiar super-category of a concept's last word, with its article.

        Args:
            without: bare concepts that it must not be; those below it are no trouble while it is wide.

        >>> load_nouns().super_category("a pistol")
        'an instrument'
        >>> load_nouns().super_category("a tabby cat")
        'an animal'
        >>> load_nouns().super_category("something unheard of")
        'an object'
        """
        at = self._places.get(bare(concept).rpartition(" ")[2])
        while at is not None and self._above[at] != at:
            at = self._above[at]
            word = self._words[at][0]
            known = self._below[at] >= WIDE and self._uses[at] >= FAMILIAR
            if known and word not in VAGUE and word not in without:
                return with_article(word)
        return with_article(WIDEST)

    def relations(self, nouns: Iterable[str]) -> frozenset[str]:
        """Return the words that mean the same as one of some nouns, something wider, or something narrower.

        >>> sorted({"handgun", "weapon", "revolver", "knife"} & load_nouns().relations(["pistol"]))
        ['handgun', 'revolver', 'weapon']
        """
        places = {self._places[noun] for noun in nouns if noun in self._places}
        wider = {above for place in places for above in self._upwards(place)}
        narrower = (at for at in range(len(self._words)) if not places.isdisjoint(self._upwards(at)))
        found = {*wider, *narrower} if places else ()
        return frozenset(word for at in found for word in self._words[at])

    def _upwards(self, at: int) -> Iterator[int]:
        """Yield a meaning and everything above it."""
        yield at
        while self._above[at] != at:
            at = self._above[at]
            yield at

    @cached_property
    def _places(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for at, words in enumerate(self._words):
            for word in words:
                found.setdefault(word, at)
        return found

    @cached_property
    def _below(self) -> list[int]:
        """How many words of the list are below each meaning, or mean it."""
        found = [0] * len(self._words)
        for at, words in enumerate(self._words):
            place, count = at, len(words)
            found[place] += count
            while self._above[place] != place:
                place = self._above[place]
                found[place] += count
        return found


@lru_cache(maxsize=1)
def load_nouns() -> Nouns:
    """Read the list that ships with the package."""
    return Nouns(gzip.decompress(FILE.read_bytes()).decode())


def bare(text: str) -> str:
    """Return a text in small letters without its article.

    >>> bare("The Nike logo")
    'nike logo'
    """
    small = " ".join(text.lower().split())
    return next((small.removeprefix(article) for article in ARTICLES if small.startswith(article)), small)


def with_article(noun: str) -> str:
    """Return `a NOUN` or `an NOUN`."""
    return f"{'an' if noun[0] in VOWELS else 'a'} {noun}"
