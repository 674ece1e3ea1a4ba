"""Erase concepts from the text path in closed form: one matrix for all keys and values."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import ConfigDict, Field

from ..compiler.contract import Erasure, Observer, Pass, Stage
from ..compiler.encode import text_width, tokenizer_of
from ..compiler.ir import Pipeline, Selection
from ..compiler.tensors import Array, Shared
from ..runtime.statistics import decimal
from ..specs.errors import Fault, InputError, SpecError, raise_all
from ..specs.manifest import Decimal, Evidence
from ._closed_form import Floats, Grams, Moments
from ._text_states import TextStates, Tokens, fill, vocabulary_prompts

Text = Annotated[str, Field(min_length=1, max_length=500)]

TEMPLATES = ("{}", "a photo of {}", "a picture of {}", "{} on a blue background")
HELD_OUT = ("a drawing of {}", "{} on a white background")
# The unconditional half of guidance reads these states in every image: they count ten prompts.
EMPTY_WEIGHT = 10.0


@dataclass(frozen=True)
class Concept:
    """A concept, what its prompts shall mean instead, and other names that it goes by."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: Text
    towards: Text
    synonyms: tuple[Text, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class EraseConcepts(Pass):
    """Make prompts for a concept mean another: text states are mapped, in every key and value matrix.

    For each name of a concept in each template, the rows from its last token on (`tokens`) are moved
    to those of `towards` in the same template, while all rows of the empty prompt, the guides and the
    prompts in `preserve` are kept. So are, for everything that nobody named, `vocabulary` words of the
    tokenizer (`a WORD`, each in one template in turn): without them a map that is right for the few
    prompts of a spec moves all others. One [D, D] matrix A solves it by least squares; each matrix W
    that reads text becomes W A. `ridge` is a fraction of the mean squared norm of the text states;
    `preserve_weight` and `vocabulary_weight` are what all those prompts weigh together, a concept
    weighing one.

    Source: Gandikota et al., Unified Concept Editing, 2308.14761, eq. (7), in text space.
    Limits: prompts are led elsewhere, knowledge in the image path is not removed; textual inversion,
    adapters merged later and prompts far from the templates can bring a concept back.
    """

    stage = Stage.ERASE

    concepts: Annotated[tuple[Concept, ...], Field(min_length=1)]
    preserve: tuple[Text, ...] = ()
    solver: Literal["linear"] = "linear"
    templates: Annotated[tuple[Text, ...], Field(min_length=1)] = TEMPLATES
    held_out: tuple[Text, ...] = HELD_OUT
    tokens: Tokens = "subject_to_end"
    ridge: Annotated[float, Field(gt=0, le=1)] = 1e-4
    preserve_weight: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    vocabulary: Annotated[int, Field(ge=0, le=100_000)] = 400
    vocabulary_weight: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    output: Literal["fused"] = "fused"
    residual_at_most: Decimal | None = None
    drift_at_most: Decimal | None = None

    def run(self, pipeline: Pipeline) -> Pipeline:
        raise_all(SpecError, self._faults(pipeline))
        width = text_width(pipeline)
        text_map = Shared(lambda: self._solve(pipeline), np.dtype(np.float64), (width, width))
        edited = pipeline
        for text_input in pipeline.family.text_inputs:
            selection = pipeline.select("denoiser", text_input.pattern)
            raise_all(InputError, _shape_faults(selection, width))
            edited = edited.with_tensors(selection.map(_times, self.name, text_map).tensors)
        return edited

    def observers(self, before: Pipeline, after: Pipeline) -> Iterable[Observer]:
        del after
        return [_Residuals(self, before)]

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        del after
        text_map = self._solve(before)
        width = len(text_map)
        change = float(np.linalg.norm(text_map - np.eye(width)) / np.sqrt(width))
        return [
            self._statement("erase.condition", float(np.linalg.cond(text_map)), "condition number of A"),
            self._statement("erase.change", change, "||A - I|| / sqrt(D)"),
        ]

    def erasures(self) -> Iterable[Erasure]:
        return [Erasure(concept.names, concept.towards) for concept in self.concepts]

    @property
    def preserved(self) -> tuple[str, ...]:
        """What is kept: the prompts named and every guide, each once."""
        return tuple(dict.fromkeys([*self.preserve, *(concept.towards for concept in self.concepts)]))

    def _solve(self, pipeline: Pipeline) -> Floats:
        states = TextStates(pipeline, self._prompts(pipeline), self.tokens)
        moments = Moments(states.width)
        for concept in self.concepts:
            pairs = [(t, name) for t in self.templates for name in concept.names]
            for template, name in pairs:
                rows, guides = states.moved(template, name, concept.towards)
                moments.move(rows, guides, 1 / (len(pairs) * len(rows)))
        kept = [(t, prompt) for t in self.templates for prompt in self.preserved]
        for template, prompt in kept:
            rows = states.kept(template, prompt)
            moments.keep(rows, self.preserve_weight / (len(kept) * len(rows)))
        words = self._words(pipeline)
        for template, prompt in words:
            rows = states.kept(template, prompt)
            moments.keep(rows, self.vocabulary_weight / (len(words) * len(rows)))
        empty = states.all_rows("")
        moments.keep(empty, EMPTY_WEIGHT / len(empty))
        return moments.solve(self.ridge * moments.mean_square).matrix

    def _words(self, pipeline: Pipeline) -> list[tuple[str, str]]:
        """The words preserved for everything that nobody named, each with its template."""
        spoken = (*(name for concept in self.concepts for name in concept.names), *self.preserved)
        prompts = vocabulary_prompts(pipeline, self.vocabulary, without=spoken)
        return [(self.templates[i % len(self.templates)], prompt) for i, prompt in enumerate(prompts)]

    def _prompts(self, pipeline: Pipeline) -> tuple[str, ...]:
        """Every prompt that solver or observer reads; one call encodes them all."""
        names = [name for concept in self.concepts for name in concept.names]
        filled = [
            fill(template, name)
            for template in (*self.templates, *self.held_out)
            for name in (*names, *self.preserved)
        ]
        filled += [fill(template, prompt) for template, prompt in self._words(pipeline)]
        return tuple(dict.fromkeys(["", *filled]))

    def _statement(self, claim: str, value: float, meaning: str) -> Evidence:
        return Evidence(
            kind="static",
            claim=claim,
            subject="text map",
            value=decimal(value),
            produced_by=self.name,
            details={"meaning": meaning},
        )

    def _faults(self, pipeline: Pipeline) -> Iterator[Fault]:
        yield from self._template_faults()
        yield from self._concept_faults()
        tokenizer = tokenizer_of(pipeline)
        for place, text in self._texts():
            for template in (*self.templates, *self.held_out):
                prompt = fill(template, text)
                spelling, most = tokenizer.spelling(prompt), tokenizer.length
                length = len(spelling.ids) + spelling.cut
                if length > most:
                    hint = "shorten the concept or the template"
                    yield Fault(
                        "E_ERASE_TOKENS", f"`{prompt}` is {length} tokens, at most {most}", place, hint
                    )
                elif not (span := tokenizer.spelled(prompt, text)):
                    yield Fault("E_ERASE_TOKENS", f"`{text}` is no token of its own in `{prompt}`", place)
                elif any(spelling.ids[position] == tokenizer.unknown for position in span):
                    yield Fault("E_ERASE_TOKENS", f"the tokenizer does not know all of `{text}`", place)
                else:
                    continue
                break

    def _template_faults(self) -> Iterator[Fault]:
        for field, templates in (("templates", self.templates), ("held_out", self.held_out)):
            for i, template in enumerate(templates):
                if template.count("{}") != 1:
                    place = f"{self.name}.{field}.{i}"
                    yield Fault("E_ERASE_TEMPLATE", f"`{template}` must hold `{{}}` once", place)

    def _concept_faults(self) -> Iterator[Fault]:
        erased: dict[str, str] = {}
        for place, name in self._names():
            if _same(name) in erased:
                first = erased[_same(name)]
                yield Fault("E_ERASE_TWICE", f"`{name}` is erased twice, first as {first}", place)
            erased.setdefault(_same(name), place)
        for i, prompt in enumerate(self.preserve):
            if _same(prompt) in erased:
                message = f"`{prompt}` is erased as well, by {erased[_same(prompt)]}"
                yield Fault(
                    "E_ERASE_PRESERVED", message, f"{self.name}.preserve.{i}", "choose one of the two"
                )
        for i, concept in enumerate(self.concepts):
            if _same(concept.towards) in erased:
                message = f"`{concept.name}` is led towards `{concept.towards}`, which is erased"
                hint = "name something that stays, close to the concept in kind"
                yield Fault("E_ERASE_GUIDE", message, f"{self.name}.concepts.{i}.towards", hint)

    def _names(self) -> Iterator[tuple[str, str]]:
        for i, concept in enumerate(self.concepts):
            yield f"{self.name}.concepts.{i}.name", concept.name
            for k, synonym in enumerate(concept.synonyms):
                yield f"{self.name}.concepts.{i}.synonyms.{k}", synonym

    def _texts(self) -> Iterator[tuple[str, str]]:
        yield from self._names()
        for i, concept in enumerate(self.concepts):
            yield f"{self.name}.concepts.{i}.towards", concept.towards
        for i, prompt in enumerate(self.preserve):
            yield f"{self.name}.preserve.{i}", prompt


class _Residuals:
    """Measures, on the written matrices, how far erased concepts still are and how far others moved.

    residual = ||W' c - W g|| / ||W c - W g||, drift = ||W' p - W p|| / ||W p||; the norms run over all
    rewritten matrices and over the rows that the solver reads.
    """

    def __init__(self, edit: EraseConcepts, before: Pipeline) -> None:
        self._edit, self._before = edit, before
        patterns = [text_input.pattern for text_input in before.family.text_inputs]
        self._names = frozenset(name for p in patterns for name in before.select("denoiser", p).names)
        self._grams = Grams(text_width(before))

    @property
    def names(self) -> frozenset[str]:
        return self._names

    def see(self, name: str, before: Array, written: Array) -> None:
        del name
        self._grams.add(before.astype(np.float64), written.astype(np.float64))

    def evidence(self) -> list[Evidence]:
        edit = self._edit
        states = TextStates(self._before, edit._prompts(self._before), edit.tokens)
        found = [
            self._residual(states, concept, claim, templates)
            for concept in edit.concepts
            for claim, templates in (("erase.residual", edit.templates), ("erase.held_out", edit.held_out))
            if templates
        ]
        return [*found, *self._drifts(states)]

    def _residual(
        self, states: TextStates, concept: Concept, claim: str, templates: Sequence[str]
    ) -> Evidence:
        """The largest residual over all names of a concept in some templates."""
        pairs = [(template, name) for template in templates for name in concept.names]
        values = []
        for template, name in pairs:
            rows, guides = states.moved(template, name, concept.towards)
            values.append(self._grams.distance(rows, guides) / self._grams.before(rows, guides))
        worst = int(np.argmax(values))
        details = {"worst": fill(*pairs[worst]), "mean": decimal(float(np.mean(values)))}
        return self._judged(
            claim, concept.name, values[worst], self._edit.residual_at_most, len(pairs), details
        )

    def _drifts(self, states: TextStates) -> list[Evidence]:
        """The largest drift of each preserved prompt over the templates, and 95th percentiles of all."""
        values = {
            prompt: max(self._drift(states.kept(template, prompt)) for template in self._edit.templates)
            for prompt in self._edit.preserved
        }
        limit, count = self._edit.drift_at_most, len(self._edit.templates)
        high = float(np.quantile(list(values.values()), 0.95))
        each = [
            self._judged("keep.drift", prompt, value, None, count, {}) for prompt, value in values.items()
        ]
        empty = self._drift(states.all_rows(""))
        return [
            *each,
            self._judged("keep.drift", "the empty prompt", empty, limit, 1, {}),
            self._judged("keep.drift_p95", "all preserved prompts", high, limit, len(values), {}),
            *self._vocabulary_drift(states),
        ]

    def _vocabulary_drift(self, states: TextStates) -> list[Evidence]:
        words = self._edit._words(self._before)
        if not words:
            return []
        drifts = [self._drift(states.kept(template, prompt)) for template, prompt in words]
        high = float(np.quantile(drifts, 0.95))
        subject = f"{len(words)} words of the vocabulary"
        return [self._judged("keep.drift_p95", subject, high, self._edit.drift_at_most, len(words), {})]

    def _drift(self, rows: Floats) -> float:
        return self._grams.distance(rows, rows) / self._grams.before(rows)

    def _judged(
        self, claim: str, subject: str, value: float, limit: str | None, count: int, details: dict[str, str]
    ) -> Evidence:
        return Evidence(
            kind="static",
            claim=claim,
            subject=subject,
            value=decimal(value),
            comparator=None if limit is None else "at_most",
            limit=limit,
            passed=None if limit is None else value <= float(limit),
            count=count,
            produced_by=self._edit.name,
            details=details,
        )


def _times(weight: Floats, text_map: Floats) -> Floats:
    return weight.astype(np.float64) @ text_map


def _same(text: str) -> str:
    """Two spellings that no CLIP tokenizer tells apart are one concept."""
    return " ".join(text.lower().split())


def _shape_faults(selection: Selection, width: int) -> Iterator[Fault]:
    for name, tensor in selection:
        if len(tensor.shape) != 2 or tensor.shape[1] != width:
            yield Fault("E_SHAPE", f"shape {tensor.shape}, expected [out, {width}]", name)
