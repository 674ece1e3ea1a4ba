"""Which rows of text states an edit of the text path moves and keeps: positions are the tokenizer's."""

from collections.abc import Sequence
from typing import Literal

from ..compiler.encode import encode_prompts, tokenizer_of
from ..compiler.ir import Pipeline
from ._closed_form import Floats

Tokens = Literal["subject", "subject_and_eot", "subject_to_end"]
SHORTEST_WORD = 3
# One word in so many of the most frequent ones is taken, so that not all are function words.
STRIDE = 4


def fill(template: str, text: str) -> str:
    """Return a template with its `{}` filled."""
    return template.replace("{}", text)


def vocabulary_prompts(pipeline: Pipeline, count: int, without: Sequence[str]) -> tuple[str, ...]:
    """Return `a WORD` for up to `count` words of the tokenizer's vocabulary, in the order of their ids.

    Byte-pair ids rise as words get rarer. Words that stand in the texts `without` are left out.
    """
    words = tokenizer_of(pipeline).words()
    banned = {word for text in without for word in text.lower().split()}
    plain = [word for word in words if word.isalpha() and len(word) >= SHORTEST_WORD and word not in banned]
    stride = max(1, min(STRIDE, len(plain) // max(count, 1)))
    return tuple(f"a {word}" for word in plain[::stride][:count])


class TextStates:
    """Rows of text states of some prompts, float64 [N, D], chosen from a prompt's last subject token on."""

    def __init__(self, pipeline: Pipeline, prompts: Sequence[str], tokens: Tokens = "subject_to_end") -> None:
        encoded = encode_prompts(pipeline, prompts)
        self._tokenizer = tokenizer_of(pipeline)
        self._tokens = tokens
        self._states = {prompt: encoded.rows(prompt) for prompt in encoded.prompts}
        self._lengths = dict(zip(encoded.prompts, encoded.lengths.tolist(), strict=True))
        self.width = encoded.width

    def all_rows(self, prompt: str) -> Floats:
        """Return every row of a prompt, padding included."""
        return self._states[prompt].astype("float64")

    def moved(self, template: str, name: str, towards: str) -> tuple[Floats, Floats]:
        """Return the rows of a concept and, aligned at its last token, those of its guide.

        Rows past the end of the guide take its last one, which is padding.
        """
        prompt, guide = fill(template, name), fill(template, towards)
        positions = self._positions(prompt, name)
        shift = self._subject(guide, towards)[-1] - positions[0]
        aligned = [min(position + shift, len(self._states[guide]) - 1) for position in positions]
        return self.all_rows(prompt)[positions], self.all_rows(guide)[aligned]

    def kept(self, template: str, prompt: str) -> Floats:
        """Return the rows of a preserved prompt: from its last token to the end, whatever is moved."""
        filled = fill(template, prompt)
        return self.all_rows(filled)[self._subject(filled, prompt)[-1] :]

    def _positions(self, prompt: str, name: str) -> list[int]:
        last, end = self._subject(prompt, name)[-1], self._lengths[prompt] - 1
        match self._tokens:
            case "subject":
                return [last]
            case "subject_and_eot":
                return [last, end]
        return list(range(last, len(self._states[prompt])))

    def _subject(self, prompt: str, name: str) -> range:
        return self._tokenizer.spelled(prompt, name)
