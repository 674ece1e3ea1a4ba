"""Balance what concepts imply: projected out of text states, or moved until images are at parity."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from ..compiler.contract import Balancing, Observer, Pass, Stage
from ..compiler.gates._judging import DEMO_JUDGE, JudgeName, open_judge
from ..compiler.ir import Pipeline
from ..compiler.once import Once
from ..compiler.studio import Studio
from ..compiler.tensors import Tensor
from ..compiler.text.conditioning import check_draws
from ..compiler.text.encode import pooled_width, text_width
from ..compiler.text.low_rank import Floats
from ..compiler.text.text_map import Output, TextMap, with_text_map
from ..compiler.work import Work
from ..runtime.judges import CONCEPT
from ..specs.errors import SpecError, UndecidedError, raise_all
from ..specs.manifest import Decimal, Evidence
from ._attributes import States, Value, aligned, values_of
from ._balance import Course, Move, Round, Subject, balance, images_for, move_after
from ._closed_form import Moments
from ._debias_evidence import DebiasEvidence, statements_of
from ._debias_faults import faults_of, judge_faults
from ._preserving import EMPTY_WEIGHT, vocabulary_prompts
from ._projection import fair_pca_map, ridge_map
from ._solution import Solved, SolvedMap, solution_of
from ._templates import HELD_OUT, TEMPLATES, Text, fill
from ._text_states import Mention, Reads, mentions_of

if TYPE_CHECKING:
    from ._crossed import Solve

Wordings = Annotated[dict[Text, Text], Field(min_length=2)]


@dataclass(frozen=True)
class DebiasConcepts(Pass):
    """Make concepts imply no value of an attribute, as a profession implies a gender, by one text map.

    `attributes` names each attribute and, for each of its values, how a prompt says it: `gender:
    {male: "a male {}", female: "a female {}"}`, `{}` being the concept without its article. For
    `method: balance` these names are a judge's question and its answers.

    `balance` draws each concept, counts values, moves the state of the concept's last token by a weighted
    sum of the values' words, and those behind it by `following` of that, and solves one map A anew from the
    model as it was, round after round, until shares are within `half_width` of parity or `rounds` are over.
    Templates are drawn with a map that was solved on the others, so that what is at parity is a template
    that the map does not know; the map that stays is solved on all. A concept that the judge names less
    often than at first has less of what follows it moved. The empty prompt, prompts that say a value
    (`a female doctor`), the values' words, `preserve` and `vocabulary` words of the tokenizer are held, with
    what they weigh beside a concept's one. A round draws `images` a concept, by default as many as make the
    95 % interval of a share `half_width` to either side; `step` is how far a weight moves for a factor e in
    the odds. With `following: 0` what follows the concept is kept as well, which is UCE's choice.

    `project` draws nothing: it takes the differences between values out of the rows of every concept
    and template: `estimator: ridge` all of them by `strength`, `fair_pca` their mean and wholly. The empty
    prompt is held exactly; how far `preserve` moved is measured.

    Source: Gandikota et al., 2308.14761, sections 3.2 and 4.3 (balance); Chuang et al., 2302.00070,
    eq. (6) and Kleindessner et al., 2302.13319, algorithm 1 (project).
    Limits: parity holds for prompts like the templates and for the values that a judge tells apart, no
    others; a bias that is not in the text, but in how the image path reads it, is beyond `project`,
    which also makes prompts that say a value less obeyed.
    """

    stage = Stage.DEBIAS

    concepts: Annotated[tuple[Text, ...], Field(min_length=1)]
    attributes: Annotated[dict[Text, Wordings], Field(min_length=1)]
    method: Literal["project", "balance"] = "balance"
    preserve: tuple[Text, ...] = ()
    templates: Annotated[tuple[Text, ...], Field(min_length=1)] = TEMPLATES
    held_out: tuple[Text, ...] = HELD_OUT
    output: Output = "fused"
    attribute_at_most: Decimal | None = None
    drift_at_most: Decimal | None = None

    estimator: Literal["ridge", "fair_pca"] = "ridge"
    strength: Annotated[float, Field(gt=0, le=1e9)] = 500.0

    judge: JudgeName = DEMO_JUDGE
    rounds: Annotated[int, Field(ge=1, le=100)] = 5
    half_width: Annotated[float, Field(gt=0, lt=0.5)] = 0.1225
    images: Annotated[int | None, Field(ge=1, le=100_000, description="a concept and round")] = None
    step: Annotated[float, Field(gt=0, le=10)] = 0.5
    following: Annotated[float, Field(ge=0, le=1)] = 0.8
    # A map that fits its own prompts more closely falls short on others by more, and unevenly.
    ridge: Annotated[float, Field(gt=0, le=1)] = 1e-3
    # Held as lightly as a concept moves, `a male doctor` moves along with `a doctor`.
    explicit_weight: Annotated[float, Field(ge=0, le=1e6)] = 3.0
    preserve_weight: Annotated[float, Field(gt=0, le=1e6)] = 10.0
    vocabulary: Annotated[int, Field(ge=0, le=100_000)] = 400
    vocabulary_weight: Annotated[float, Field(gt=0, le=1e6)] = 10.0

    def run(self, pipeline: Pipeline) -> Pipeline:
        raise_all(SpecError, list(faults_of(self, pipeline)))
        if self.method == "balance":
            check_draws(pipeline.family, self.name)
        solution = Once(lambda: self._solve(pipeline))
        sequence = SolvedMap(solution, "sequence", text_width(pipeline))
        width = pooled_width(pipeline)
        pooled = SolvedMap(solution, "pooled", width) if width else None
        return with_text_map(pipeline, TextMap(sequence, pooled), self.output, self.name)

    def work(self, targets: int = 1) -> Work:
        del targets
        images = self.course.rounds * self.course.images * len(self.concepts)
        return Work(drawn=images * (self.method == "balance"))

    def balancings(self) -> Iterable[Balancing]:
        prompts = self.held_out or self.templates
        for concept in self.concepts:
            for name, values in self.values.items():
                said = {value.answer: value.of(concept) for value in values}
                yield Balancing(
                    concept,
                    name,
                    tuple(value.answer for value in values),
                    tuple(fill(template, concept) for template in prompts),
                    {answer: prompt for answer, prompt in said.items() if prompt is not None},
                )

    def observers(self, before: Pipeline, after: Pipeline) -> Iterable[Observer]:
        return [DebiasEvidence(self, before, after)]

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        return statements_of(self, solution_of(after, self.name) or self._solve(before))

    @property
    def course(self) -> Course:
        """How the loop of `balance` runs."""
        images = images_for(self.half_width) if self.images is None else self.images
        return Course(self.rounds, images, self.step, self.half_width, self.following)

    @property
    def values(self) -> dict[str, tuple[Value, ...]]:
        """The values of each attribute."""
        return values_of(self.attributes)

    # -- solving -----------------------------------------------------------------------------------------

    def _solve(self, pipeline: Pipeline) -> "Solved":
        states = {kind: States(pipeline, self.mentions(pipeline), kind) for kind in _kinds(pipeline)}
        if self.method == "project":
            return Solved({kind: self._projection(rows) for kind, rows in states.items()}, {})
        words = self.words(pipeline)

        def solve(moves: Mapping[Subject, Move], templates: Sequence[str]) -> dict[str, Floats]:
            said = [(template, word) for template, word in words if template in templates]
            return {kind: self._map(rows, templates, said, moves) for kind, rows in states.items()}

        history = self._balance(pipeline, lambda moves, templates: _as_map(solve(moves, templates)))
        moves = {subject: move_after(subject, rounds, self.course) for subject, rounds in history.items()}
        return Solved(solve(moves, self.templates), history)

    def _projection(self, states: States) -> Floats:
        fixed = states.empty
        groups = [
            [states.rows(template, said) for said in explicit]
            for explicit in self.explicit().values()
            for template in self.templates
        ]
        scale = np.sqrt(np.mean([np.sum(rows * rows, axis=1).mean() for group in groups for rows in group]))
        if self.estimator == "ridge":
            differences = [rows - group[0] for group in aligned(groups) for rows in group[1:]]
            return ridge_map(np.concatenate(differences) / scale, fixed, self.strength)
        rows, indicators = _grouped(self._by_attribute(states))
        return fair_pca_map(rows / scale, indicators, fixed)

    def _by_attribute(self, states: States) -> list[list[Floats]]:
        """Return, for each attribute, the rows of each value, over concepts and templates."""
        return [
            [
                np.concatenate(
                    [
                        states.rows(template, _said(value, concept))
                        for concept in self.concepts
                        for template in self.templates
                    ]
                )
                for value in values
            ]
            for values in self.values.values()
        ]

    def _balance(self, pipeline: Pipeline, solve: "Solve") -> dict[Subject, list[Round]]:
        from ..compiler.evidence.survey import Survey
        from ._crossed import Crossed

        studio = pipeline.studio or Studio(pipeline.sampling)
        judge = open_judge(self.judge)
        raise_all(UndecidedError, list(judge_faults(self, judge)))
        advance = studio.report.task("draw to balance", self.work().images)
        # A judge that tells no concepts apart cannot say whether this one is lost.
        named = (CONCEPT,) if CONCEPT in judge.answers else ()
        questions = tuple(dict.fromkeys((*self.attributes, *named)))
        with Survey(pipeline.with_sampling(studio.sampling), judge, studio.cache) as survey:
            draws = Crossed(survey, solve, self.templates, questions, advance)
            return balance(self.subjects, self.course, draws.measure)

    @property
    def subjects(self) -> list[Subject]:
        """Every concept with every attribute."""
        return [
            Subject(concept, name, tuple(value.answer for value in values))
            for concept in self.concepts
            for name, values in self.values.items()
        ]

    def _map(
        self,
        states: States,
        templates: Sequence[str],
        words: Sequence[tuple[str, str]],
        moves: Mapping[Subject, Move],
    ) -> Floats:
        """Solve for the map that moves a concept's last token c to c + sum w_v a_v, what follows less.

        A prompt's last token weighs as much as all that follows it, in what moves and in what stays.
        """
        moments = Moments(states.width)
        share = 1 / len(templates)
        for concept in self.concepts:
            for template in templates:
                rows = states.rows(template, concept)
                shift, after = self._shifts(states, template, concept, moves)
                moments.move(rows[:1], rows[:1] + shift, share)
                # What follows says what the concept is, too: moved as far, it is drawn as another.
                moments.move(rows[1:], rows[1:] + after, share / max(len(rows) - 1, 1))
        for prompts, weight in self._kept(templates, words):
            for template, prompt in prompts:
                rows = states.rows(template, prompt)
                moments.keep(rows[:1], weight / len(prompts))
                moments.keep(rows[1:], weight / (len(prompts) * max(len(rows) - 1, 1)))
        empty = states.empty
        moments.keep(empty, EMPTY_WEIGHT / len(empty))
        return moments.solve(self.ridge * moments.mean_square).matrix

    def _shifts(
        self, states: States, template: str, concept: str, moves: Mapping[Subject, Move]
    ) -> tuple[Floats, Floats]:
        """Return by how much a concept's last token moves, and what follows it; [1, D] each."""
        shift, after = np.zeros((1, states.width)), np.zeros((1, states.width))
        for subject, move in moves.items():
            if subject.concept == concept:
                for value, weight in zip(self.values[subject.question], move.weights, strict=True):
                    words = weight * states.word(template, value.words)
                    shift, after = shift + words, after + move.following * words
        return shift, after

    def _kept(
        self, templates: Sequence[str], words: Sequence[tuple[str, str]]
    ) -> Iterator[tuple[list[tuple[str, str]], float]]:
        """Yield prompts that stay, each with its template, and what they weigh beside a concept's one."""
        for explicit in self.explicit().values():
            if explicit and self.explicit_weight:
                yield [(t, said) for t in templates for said in explicit], self.explicit_weight
        said = [value.words for values in self.values.values() for value in values]
        yield [(t, text) for t in templates for text in said], 1.0
        if self.preserve:
            yield [(t, text) for t in templates for text in self.preserve], self.preserve_weight
        if words:
            yield list(words), self.vocabulary_weight

    # -- words -------------------------------------------------------------------------------------------

    def mentions(self, pipeline: Pipeline) -> list[Mention]:
        """Every text in a template whose text states are read; one call encodes them all."""
        said = (text for _, text in self.texts())
        words = (Mention(template, text) for template, text in self.words(pipeline))
        return [*mentions_of(self.all_templates, said), *words]

    @property
    def all_templates(self) -> tuple[str, ...]:
        return (*self.templates, *self.held_out)

    def explicit(self) -> dict[tuple[str, str], list[str]]:
        """The prompts that say a value, for each concept and attribute."""
        return {
            (concept, name): [_said(value, concept) for value in values]
            for concept in self.concepts
            for name, values in self.values.items()
        }

    def words(self, pipeline: Pipeline) -> list[tuple[str, str]]:
        """The words preserved for everything that nobody named, each with its template."""
        if self.method == "project":
            return []
        said = tuple(text for _, text in self.texts())
        prompts = vocabulary_prompts(pipeline, self.vocabulary, without=said)
        return [(self.templates[i % len(self.templates)], prompt) for i, prompt in enumerate(prompts)]

    def texts(self) -> Iterator[tuple[str, str]]:
        """Every text of the spec that prompts are made of, with its place."""
        for i, concept in enumerate(self.concepts):
            yield f"{self.name}.concepts.{i}", concept
        for name, values in self.values.items():
            for value in values:
                place = f"{self.name}.attributes.{name}.{value.answer}"
                yield place, value.words
                yield from ((place, _said(value, concept)) for concept in self.concepts)
        for i, text in enumerate(self.preserve):
            yield f"{self.name}.preserve.{i}", text


def _kinds(pipeline: Pipeline) -> tuple[Reads, ...]:
    return ("sequence", "pooled") if pooled_width(pipeline) else ("sequence",)


def _said(value: Value, concept: str) -> str:
    """A prompt for a concept with a value; the value's own words where the wording has no place for one."""
    return value.of(concept) or value.words


def _as_map(maps: Mapping[str, Floats]) -> TextMap:
    found: dict[str, Tensor] = {
        kind: SolvedMap(Once(lambda: Solved(maps, {})), kind, len(matrix)) for kind, matrix in maps.items()
    }
    return TextMap(found["sequence"], found.get("pooled"))


def _grouped(attributes: Sequence[Sequence[Floats]]) -> tuple[Floats, Floats]:
    """Return all rows [n, D] and the indicators [n, g] of the value that each belongs to.

    A row that says nothing of an attribute tells nothing about it: it has that attribute's mean indicator.
    """
    rows = np.concatenate([value for values in attributes for value in values])
    columns = []
    start = 0
    for values in attributes:
        sizes = [len(value) for value in values]
        own = np.repeat(np.eye(len(values)), sizes, axis=0)
        indicator = np.tile(own.mean(axis=0), (len(rows), 1))
        indicator[start : start + sum(sizes)] = own
        columns.append(indicator)
        start += sum(sizes)
    return rows, np.concatenate(columns, axis=1)
