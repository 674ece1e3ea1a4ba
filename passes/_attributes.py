"""The words of a debiasing edit, and their text states: concepts, values of attributes, both together."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..compiler.gates._judging import bare
from ..compiler.ir import Pipeline
from ..compiler.text.encode import encode_prompts, pooled_width, text_width, tokenizer_of
from ..compiler.text.low_rank import Floats
from ..specs.errors import Fault
from ._templates import fill


@dataclass(frozen=True)
class Value:
    """One value of an attribute: the judge's answer, and how prompts say it (`a female {}`, `a woman`)."""

    answer: str
    wording: str

    @property
    def words(self) -> str:
        """The words alone, `a female`."""
        return " ".join(self.wording.replace("{}", " ").split())

    def of(self, concept: str) -> str | None:
        """Return the prompt that says concept and value, None where the wording has no place for one.

        >>> Value("female", "a female {}").of("a doctor")
        'a female doctor'
        """
        return self.wording.replace("{}", bare(concept)) if "{}" in self.wording else None


def values_of(attributes: Mapping[str, Mapping[str, str]]) -> dict[str, tuple[Value, ...]]:
    """Return the values of each attribute, in the order written."""
    return {
        name: tuple(Value(answer, wording) for answer, wording in values.items())
        for name, values in attributes.items()
    }


class States:
    """Text states of the edit's prompts, float64: of the sequence, or of the pooled state."""

    def __init__(self, pipeline: Pipeline, prompts: Sequence[str], kind: str = "sequence") -> None:
        self._encoded = encode_prompts(pipeline, prompts)
        self._tokenizer = tokenizer_of(pipeline)
        self._pooled = kind == "pooled"
        self.width = pooled_width(pipeline) if self._pooled else text_width(pipeline)

    def rows(self, template: str, text: str) -> Floats:
        """Return the rows from the last token of a text to the end, [n, D]; the pooled state is one row."""
        prompt = fill(template, text)
        if self._pooled:
            return self._encoded.pooled_row(prompt).astype("float64")
        return self.whole(prompt)[self._tokenizer.spelled(prompt, text)[-1] :]

    def word(self, template: str, text: str) -> Floats:
        """Return the row of the last token of a text, [1, D]: no token before it knows what follows."""
        return self.rows(template, text)[:1]

    def whole(self, prompt: str) -> Floats:
        """Return every row of a prompt, padding included."""
        found = self._encoded.pooled_row(prompt) if self._pooled else self._encoded.rows(prompt)
        return found.astype("float64")


def wording_faults(
    pipeline: Pipeline, texts: Sequence[tuple[str, str]], templates: Sequence[str]
) -> Iterator[Fault]:
    """Yield texts that a template cannot say, each with its place: cut off, or no word of their own."""
    tokenizer = tokenizer_of(pipeline)
    for place, text in texts:
        for template in templates:
            prompt = fill(template, text)
            if tokenizer.tokens(prompt).cut:
                hint = "shorten the text or the template"
                yield Fault("E_DEBIAS_TOKENS", f"`{prompt}` has too many tokens", place, hint)
                break
            if not tokenizer.spelled(prompt, text):
                yield Fault("E_DEBIAS_TOKENS", f"`{text}` is no token of its own in `{prompt}`", place)
                break


def aligned(groups: Sequence[Sequence[Floats]]) -> Iterator[list[Floats]]:
    """Yield the rows of each group's values cut to the shortest: they end in the same padding."""
    for group in groups:
        shortest = min(len(rows) for rows in group)
        yield [rows[:shortest] for rows in group]
