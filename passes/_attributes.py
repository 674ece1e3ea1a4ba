"""The words of a debiasing edit, and their text states: concepts, values of attributes, both together."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..compiler.gates._judging import bare
from ..compiler.ir import Pipeline
from ..compiler.text.encode import pooled_width, text_width, tokenizer_of
from ..compiler.text.low_rank import Floats
from ..specs.errors import Fault, quoted
from ._templates import fill
from ._text_states import Mention, Reads, TextStates


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
    """Text states of the edit's mentions, float64: of the sequence, or of the pooled state."""

    def __init__(self, pipeline: Pipeline, mentions: Iterable[Mention], reads: Reads = "sequence") -> None:
        self._states = TextStates(pipeline, mentions, "subject_to_end")
        self._reads: Reads = reads
        self.width = pooled_width(pipeline) if reads == "pooled" else text_width(pipeline)

    def rows(self, template: str, text: str) -> Floats:
        """Return the rows from the last token of a text to the end, [n, D]; the pooled state is one row."""
        return self._states.kept(self._reads, Mention(template, text))

    def word(self, template: str, text: str) -> Floats:
        """Return the row of the last token of a text, [1, D]: no token before it knows what follows."""
        return self.rows(template, text)[:1]

    @property
    def empty(self) -> Floats:
        """Every row of the empty prompt, padding included."""
        return self._states.empty(self._reads)


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
                yield Fault("E_DEBIAS_TOKENS", f"{quoted(prompt)} has too many tokens", place, hint)
                break
            if not tokenizer.spelled(prompt, text):
                yield Fault(
                    "E_DEBIAS_TOKENS", f"{quoted(text)} is no token of its own in {quoted(prompt)}", place
                )
                break


def aligned(groups: Sequence[Sequence[Floats]]) -> Iterator[list[Floats]]:
    """Yield the rows of each group's values cut to the shortest: they end in the same padding."""
    for group in groups:
        shortest = min(len(rows) for rows in group)
        yield [rows[:shortest] for rows in group]
