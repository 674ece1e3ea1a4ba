"""Everything that can be wrong with the block of an erasure, for a pipeline, told at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..compiler.ir import Pipeline
from ..compiler.text.encode import tokenizer_of
from ..compiler.text.tokenizer import SourceTokenizer
from ..specs.errors import Fault, quoted
from ._templates import template_faults
from ._text_states import Mention

if TYPE_CHECKING:
    from .erase_concepts import EraseConcepts


def faults_of(edit: EraseConcepts, pipeline: Pipeline) -> Iterator[Fault]:
    """Yield every fault of an erasure; only configs and tokenizers are read."""
    fields = {"templates": edit.templates, "held_out": edit.held_out}
    yield from template_faults(edit.name, "E_ERASE_TEMPLATE", fields)
    yield from _concept_faults(edit)
    yield from _solver_faults(edit)
    tokenizer = tokenizer_of(pipeline)
    for place, text in _texts(edit):
        mentions = (Mention(template, text) for template in (*edit.templates, *edit.held_out))
        faults = (_spelling_fault(tokenizer, mention, place) for mention in mentions)
        yield from [fault for fault in faults if fault][:1]


def _concept_faults(edit: EraseConcepts) -> Iterator[Fault]:
    erased: dict[str, str] = {}
    for place, name in _names(edit):
        if _same(name) in erased:
            yield Fault(
                "E_ERASE_TWICE", f"{quoted(name)} is erased twice, first as {erased[_same(name)]}", place
            )
        erased.setdefault(_same(name), place)
    for i, prompt in enumerate(edit.preserve):
        if _same(prompt) in erased:
            message = f"{quoted(prompt)} is erased as well, by {erased[_same(prompt)]}"
            yield Fault("E_ERASE_PRESERVED", message, f"{edit.name}.preserve.{i}", "choose one of the two")
    for i, concept in enumerate(edit.concepts):
        guide = edit.guides[concept.name]
        if _same(guide) in erased:
            message = f"{quoted(concept.name)} is led towards {quoted(guide)}, which is erased"
            hint = "name something that stays, close to the concept in kind"
            yield Fault("E_ERASE_GUIDE", message, f"{edit.name}.concepts.{i}.towards", hint)


def _solver_faults(edit: EraseConcepts) -> Iterator[Fault]:
    if edit.solver == "nullspace" and edit.output == "text_map":
        message = "the null-space solver has a map for each layer, and a graph holds one for all"
        hint = "write `output: fused`, or `solver: linear`"
        yield Fault("E_ERASE_OUTPUT", message, f"{edit.name}.output", hint)
    if edit.solver == "nullspace" and not (edit.vocabulary or edit.captions):
        message = "the null-space solver moves everything that it is not told to retain"
        hint = "give `vocabulary` or `captions`"
        yield Fault("E_ERASE_RETAINED", message, f"{edit.name}.vocabulary", hint)


def _spelling_fault(tokenizer: SourceTokenizer, mention: Mention, place: str) -> Fault | None:
    spelling = tokenizer.spelling(mention.prompt)
    if spelling.cut:
        length = len(spelling.ids) + spelling.cut
        message = f"{quoted(mention.prompt)} is {length} tokens, at most {tokenizer.length}"
        return Fault("E_ERASE_TOKENS", message, place, "shorten the concept or the template")
    span = tokenizer.spelled(mention.prompt, mention.text)
    if not span:
        message = f"{quoted(mention.text)} is no token of its own in {quoted(mention.prompt)}"
        return Fault("E_ERASE_TOKENS", message, place)
    if any(spelling.ids[position] == tokenizer.unknown for position in span):
        return Fault("E_ERASE_TOKENS", f"the tokenizer does not know all of {quoted(mention.text)}", place)
    return None


def _names(edit: EraseConcepts) -> Iterator[tuple[str, str]]:
    for i, concept in enumerate(edit.concepts):
        yield f"{edit.name}.concepts.{i}.name", concept.name
        for k, synonym in enumerate(concept.synonyms):
            yield f"{edit.name}.concepts.{i}.synonyms.{k}", synonym


def _texts(edit: EraseConcepts) -> Iterator[tuple[str, str]]:
    yield from _names(edit)
    for i, concept in enumerate(edit.concepts):
        yield f"{edit.name}.concepts.{i}.towards", edit.guides[concept.name]
    for i, prompt in enumerate(edit.preserve):
        yield f"{edit.name}.preserve.{i}", prompt


def _same(text: str) -> str:
    """Two spellings that no CLIP tokenizer tells apart are one concept."""
    return " ".join(text.lower().split())
