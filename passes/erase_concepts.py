"""Erase concepts from the text path in closed form: prompts for them come to mean something else."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ..compiler.contract import Erasure, Observer, Pass, Stage
from ..compiler.ir import Pipeline
from ..compiler.text.low_rank import LazyMap
from ..compiler.text.text_map import Output, TextMap, with_layer_maps, with_text_map
from ..specs.errors import SpecError, raise_all
from ..specs.fields import CaptionsFile
from ..specs.manifest import Decimal, Evidence
from ._erase_evidence import TextEvidence, map_statements
from ._erase_faults import faults_of
from ._erasing import erasing_of
from ._nouns import bare, load_nouns
from ._templates import HELD_OUT, TEMPLATES, Text
from ._text_states import Tokens

Share = Annotated[float, Field(gt=0, le=1)]
Weight = Annotated[float, Field(gt=0, le=1e6)]

RIDGES = {"linear": 1e-4, "nullspace": 1e-5}


@dataclass(frozen=True)
class Concept:
    """A concept, what its prompts shall mean instead, and other names that it goes by, in any language.

    Without `towards` that is the nearest wide super-category of its last word in WordNet.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    name: Text
    towards: Text | None = None
    synonyms: tuple[Text, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.synonyms)


@dataclass(frozen=True)
class EraseConcepts(Pass):
    """Make prompts for a concept mean another: text states are mapped, in every matrix that reads them.

    For each name of a concept in each template, the rows that `tokens` chooses are moved to those of
    `towards` in the same template. Kept are the empty prompt; in every template the guides, the prompts in
    `preserve`, and nouns that a concept is named after (the fruit, for the apple logo); each in one template
    in turn the siblings of each concept by the `neighbors` words closest to each of its words, and for
    everything that nobody named `vocabulary` words that the tokenizer knows; and the lines of the file
    `captions`.

    `solver: linear` weighs all that in one least-squares problem, whose solution is one matrix for all
    layers. `solver: nullspace` keeps the empty prompt exactly, and the others exactly up to directions in
    which they hardly vary (`threshold`, a share of their mean squared norm); with `influence` only those of
    them that a layer's free solution would move more than the average. Each of `adversarial_rounds` looks
    for states that still reach an erased concept's outputs, and moves them as well.

    `ridge` is a share of the mean squared norm of text states. For the linear solver a concept weighs one;
    `preserve_weight` is what preserved prompts weigh together, and neighbors again, `vocabulary_weight`
    what the words do, and captions again.

    Source: Gandikota et al., Unified Concept Editing, 2308.14761, eq. (7), in text space; Li et al., SPEED,
    2503.07392; Gong et al., RECE, 2407.12383.
    Limits: prompts are led elsewhere, knowledge in the image path is not removed; textual inversion,
    adapters merged later and prompts far from the templates can bring a concept back.
    """

    stage = Stage.ERASE

    concepts: Annotated[tuple[Concept, ...], Field(min_length=1)]
    preserve: tuple[Text, ...] = ()
    solver: Literal["linear", "nullspace"] = "linear"
    adversarial_rounds: Annotated[int, Field(ge=0, le=10)] = 0
    templates: Annotated[tuple[Text, ...], Field(min_length=1)] = TEMPLATES
    held_out: tuple[Text, ...] = HELD_OUT
    tokens: Tokens = "subject_and_eot"
    ridge: Share | None = None
    preserve_weight: Weight = 20.0
    neighbors: Annotated[int, Field(ge=0, le=1000)] = 10
    vocabulary: Annotated[int, Field(ge=0, le=100_000)] = 400
    vocabulary_weight: Weight = 20.0
    captions: CaptionsFile | None = None
    threshold: Share = 1e-5
    influence: bool = False
    output: Output = "fused"
    residual_at_most: Decimal | None = None
    drift_at_most: Decimal | None = None

    def run(self, pipeline: Pipeline) -> Pipeline:
        raise_all(SpecError, list(faults_of(self, pipeline)))
        erasing = erasing_of(self, pipeline)
        one_for_all = {reads: maps for reads, maps in erasing.maps.items() if isinstance(maps, LazyMap)}
        if one_for_all:
            return with_text_map(pipeline, TextMap(**one_for_all), self.output, self.name)
        rules = {reads: maps.for_layer for reads, maps in erasing.maps.items()}
        return with_layer_maps(pipeline, rules, erasing.widths, self.name)

    def observers(self, before: Pipeline, after: Pipeline) -> Iterable[Observer]:
        del after
        erasing = erasing_of(self, before)
        return [TextEvidence(erasing, reads) for reads in erasing.widths]

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        del after
        return list(map_statements(erasing_of(self, before)))

    def erasures(self) -> Iterable[Erasure]:
        return [Erasure(concept.names, self.guides[concept.name]) for concept in self.concepts]

    @cached_property
    def guides(self) -> dict[str, str]:
        """What each concept is led towards, by its name."""
        erased = frozenset(bare(name) for concept in self.concepts for name in concept.names)
        return {
            concept.name: concept.towards or load_nouns().super_category(concept.name, without=erased)
            for concept in self.concepts
        }

    @property
    def ridge_share(self) -> float:
        """The ridge, by default the solver's own."""
        return RIDGES[self.solver] if self.ridge is None else self.ridge
