"""Which rows of text states an edit of the text path moves and keeps: positions are the tokenizer's."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..compiler.ir import Pipeline
from ..compiler.text.encode import encode_prompts, tokenizer_of
from ._closed_form import Floats
from ._templates import fill

Tokens = Literal["subject", "subject_and_eot", "subject_to_end"]
Reads = Literal["sequence", "pooled"]


@dataclass(frozen=True)
class Mention:
    """A text in a template, `a cat` in `a photo of {}`: the prompt, and where in it the text stands."""

    template: str
    text: str

    @property
    def prompt(self) -> str:
        return fill(self.template, self.text)


class TextStates:
    """Rows of text states of some mentions, float64 [N, D], chosen from a text's last token on.

    Of each prompt only what `tokens` asks for is encoded: nothing behind the end token, unless padding is
    to be moved as well. Of the empty prompt, which guidance reads in every image, all of it is.

    Args:
        captions: prompts of which every token is kept.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        mentions: Iterable[Mention],
        tokens: Tokens = "subject_and_eot",
        captions: Iterable[str] = (),
    ) -> None:
        self._tokenizer = tokenizer_of(pipeline)
        self._tokens: Tokens = tokens
        reach = {"": self._tokenizer.length}
        for mention in mentions:
            reach[mention.prompt] = max(reach.get(mention.prompt, 0), self._reach(mention))
        for caption in captions:
            reach[caption] = max(reach.get(caption, 0), self._length(caption))
        self._encoded = encode_prompts(pipeline, tuple(reach), tuple(reach.values()))

    def empty(self, reads: Reads) -> Floats:
        """Return every row of the empty prompt, padding included."""
        return self._row("") if reads == "pooled" else self._rows("")

    def moved(self, reads: Reads, mention: Mention, towards: str) -> tuple[Floats, Floats]:
        """Return the rows of a concept and, aligned at its last token, those of its guide.

        Rows past the last known one of the guide take that: it is padding.
        """
        guide = Mention(mention.template, towards)
        if reads == "pooled":
            return self._row(mention.prompt), self._row(guide.prompt)
        positions, rows = self._positions(mention), self._rows(guide.prompt)
        shift = self._last(guide) - positions[0]
        aligned = [min(position + shift, len(rows) - 1) for position in positions]
        return self._rows(mention.prompt)[positions], rows[aligned]

    def kept(self, reads: Reads, mention: Mention) -> Floats:
        """Return the rows of a preserved text: from its last token to the last row encoded."""
        if reads == "pooled":
            return self._row(mention.prompt)
        return self._rows(mention.prompt)[self._last(mention) : self._reach(mention)]

    def caption(self, reads: Reads, caption: str) -> Floats:
        """Return the rows of every token of a caption, the start token left out: all prompts share it."""
        if reads == "pooled":
            return self._row(caption)
        return self._rows(caption)[1 : self._length(caption)]

    def _reach(self, mention: Mention) -> int:
        """Return how many leading rows of a mention's prompt are read."""
        whole = self._tokens == "subject_to_end"
        return self._tokenizer.length if whole else self._length(mention.prompt)

    def _positions(self, mention: Mention) -> list[int]:
        last, length = self._last(mention), self._length(mention.prompt)
        match self._tokens:
            case "subject":
                return [last]
            case "subject_and_eot":
                return [last, length - 1]
        return list(range(last, self._tokenizer.length))

    def _length(self, prompt: str) -> int:
        return len(self._tokenizer.spelling(prompt).ids)

    def _last(self, mention: Mention) -> int:
        return self._tokenizer.spelled(mention.prompt, mention.text)[-1]

    def _rows(self, prompt: str) -> Floats:
        return self._encoded.rows(prompt).astype(np.float64)

    def _row(self, prompt: str) -> Floats:
        return self._encoded.pooled_row(prompt).astype(np.float64)


def mentions_of(templates: Iterable[str], texts: Iterable[str]) -> Iterator[Mention]:
    """Yield every text in every template."""
    known = tuple(texts)
    return (Mention(template, text) for template in templates for text in known)
