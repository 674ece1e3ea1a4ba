"""Everything that can be wrong with the block of a debiasing edit, told at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..compiler.gates._judging import answer_faults
from ..compiler.ir import Pipeline
from ..runtime.judges import Judge
from ..specs.errors import Fault, quoted
from ._attributes import wording_faults
from ._templates import template_faults

if TYPE_CHECKING:
    from .debias_concepts import DebiasConcepts


def faults_of(edit: DebiasConcepts, pipeline: Pipeline) -> Iterator[Fault]:
    """Yield every fault of the block; only configs and tokenizers are read."""
    fields = {"templates": edit.templates, "held_out": edit.held_out}
    broken = list(template_faults(edit.name, "E_DEBIAS_TEMPLATE", fields))
    yield from broken
    twice = sorted(concept for concept in set(edit.concepts) if edit.concepts.count(concept) > 1)
    for concept in twice:
        yield Fault("E_DEBIAS_TWICE", f"{quoted(concept)} is named twice", f"{edit.name}.concepts")
    for name, values in edit.values.items():
        for value in values:
            if value.wording.count("{}") > 1 or not value.words:
                place = f"{edit.name}.attributes.{name}.{value.answer}"
                message = f"{quoted(value.wording)} must hold words, and `{{}}` at most once"
                yield Fault("E_DEBIAS_WORDING", message, place)
    if not broken:
        yield from wording_faults(pipeline, list(edit.texts()), edit.all_templates)


def judge_faults(edit: DebiasConcepts, judge: Judge) -> Iterator[Fault]:
    """Yield each value that the judge cannot name."""
    for name, values in edit.values.items():
        yield from answer_faults(judge, name, (value.answer for value in values))
