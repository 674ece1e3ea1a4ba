"""What an edit of the text path keeps for everything that nobody named: words and captions.

A map that is right for the few prompts of a spec moves all others. Words that the model knows, each in a
template, stand for what it is asked for otherwise.
"""

from collections.abc import Iterable
from functools import lru_cache

from ..compiler.ir import Pipeline
from ..compiler.text.encode import tokenizer_of
from ..specs.errors import Fault, InputError
from ..specs.fields import CaptionsFile
from ._nouns import load_nouns

# The unconditional half of guidance reads these states in every image: they count ten prompts.
EMPTY_WEIGHT = 10.0
SHORTEST_WORD = 3
# One word in so many of the most frequent ones is taken, so that not all are function words.
STRIDE = 4
# Captions beyond these change a second moment no more.
MOST_CAPTIONS = 50_000


def vocabulary_prompts(pipeline: Pipeline, count: int, without: Iterable[str]) -> tuple[str, ...]:
    """Return `a WORD` for up to `count` words that the tokenizer knows whole, none of which is in `without`.

    Nouns that can be drawn come first, then other words, both in the order of their ids: byte-pair ids
    rise as words get rarer.
    """
    banned = {word for text in without for word in text.lower().split()}
    nouns = frozenset(load_nouns().words)
    plain = [word for word in _words(pipeline) if word not in banned]
    drawn = [word for word in plain if word in nouns][:count]
    others = [word for word in plain if word not in nouns]
    left = count - len(drawn)
    stride = max(1, min(STRIDE, len(others) // max(left, 1)))
    return tuple(f"a {word}" for word in [*drawn, *others[::stride][:left]])


@lru_cache(maxsize=4)
def read_captions(file: CaptionsFile) -> tuple[str, ...]:
    """Return the captions of a text file, one a line, each once.

    Raises:
        InputError: it cannot be read, is no UTF-8 text, or holds none.
    """
    try:
        lines = file.path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(Fault("E_CAPTIONS", f"cannot be read: {error}", file.text)) from error
    captions = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))[:MOST_CAPTIONS]
    if not captions:
        raise InputError(Fault("E_CAPTIONS", "holds no caption", file.text, "write one caption a line"))
    return captions


def _words(pipeline: Pipeline) -> list[str]:
    words = tokenizer_of(pipeline).words()
    return [word for word in words if word.isalpha() and len(word) >= SHORTEST_WORD]
