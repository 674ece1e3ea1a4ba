"""From the block of an erasure and a pipeline to the linear maps that carry it out, solved when used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..compiler.ir import Itself, Pipeline
from ..compiler.once import Once
from ..compiler.tensors import widen
from ..compiler.text.encode import pooled_width, text_width, tokenizer_of
from ..compiler.text.low_rank import Change, LazyMap
from ..compiler.text.text_map import columns_of
from ._closed_form import Floats, Grams, Moments, NullSpace, independent
from ._neighbors import namesakes, neighbor_prompts
from ._preserving import EMPTY_WEIGHT, read_captions, vocabulary_prompts
from ._text_states import Mention, Reads, TextStates, mentions_of

if TYPE_CHECKING:
    from .erase_concepts import EraseConcepts

# RECE's regularizer is 0.1 for most concepts where sum W^T W has a mean eigenvalue of 10 to 100.
ADVERSARY_RIDGE = 1e-3
# An adversary that stays this far from an erased concept's outputs, as a share of the way to the guide's,
# revives nothing: no round is spent on it.
STUBBORN = 0.5


class LayerMaps(Protocol):
    """The maps of all layers that read one kind of text state."""

    def for_layer(self, weight: NDArray[Any]) -> Change:
        """Return A - I of the layer W [out, D] = `weight`."""
        ...


@dataclass(frozen=True)
class Moved:
    """Rows [N, D] of one prompt that become those of its guide, each with the same weight."""

    rows: Floats
    guides: Floats
    weight: float


class Erasing:
    """One erasure of one pipeline: which rows are moved and kept, and the maps that do it."""

    def __init__(self, edit: EraseConcepts, pipeline: Pipeline) -> None:
        self.edit, self.pipeline = edit, pipeline

    @cached_property
    def maps(self) -> dict[Reads, LayerMaps]:
        """The maps by what they read; nothing is solved before one is used."""
        if self.edit.solver == "linear":
            return {reads: _Linear(self, reads) for reads in self.widths}
        return {reads: _Layered(self, reads) for reads in self.widths}

    @cached_property
    def widths(self) -> dict[Reads, int]:
        """What the denoiser reads, and how wide it is."""
        known: dict[Reads, int] = {
            "sequence": text_width(self.pipeline),
            "pooled": pooled_width(self.pipeline),
        }
        read = {text_input.reads for text_input in self.pipeline.family.text_inputs}
        return {reads: width for reads, width in known.items() if reads in read}

    @cached_property
    def states(self) -> TextStates:
        """Text states of every prompt that a solver or an observer reads: one call encodes them all."""
        edit = self.edit
        named = mentions_of((*edit.templates, *edit.held_out), (*self.names, *self.preserved))
        mentions = [*named, *self.neighbors, *self.words]
        return TextStates(self.pipeline, mentions, edit.tokens, self.captions)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every name of every concept."""
        return tuple(name for concept in self.edit.concepts for name in concept.names)

    @property
    def _concepts(self) -> list[str]:
        return [concept.name for concept in self.edit.concepts]

    @cached_property
    def preserved(self) -> tuple[str, ...]:
        """What is kept in every template: the texts named, every guide, and namesakes, each once."""
        found = namesakes(self._concepts, self.names) if self.edit.neighbors else ()
        return tuple(dict.fromkeys([*self.edit.preserve, *self.edit.guides.values(), *found]))

    @cached_property
    def neighbors(self) -> tuple[Mention, ...]:
        """What is close to the concepts."""
        found = neighbor_prompts(self.pipeline, self._concepts, self.edit.neighbors, self.names)
        return self._in_turn(found)

    @cached_property
    def words(self) -> tuple[Mention, ...]:
        """Words for everything that nobody named."""
        spoken = (*self.names, *self.preserved)
        return self._in_turn(vocabulary_prompts(self.pipeline, self.edit.vocabulary, without=spoken))

    @cached_property
    def captions(self) -> tuple[str, ...]:
        return () if self.edit.captions is None else read_captions(self.edit.captions)

    def _in_turn(self, texts: Iterable[str]) -> tuple[Mention, ...]:
        """Put each text into one template in turn, and leave out what would be cut: nobody wrote it."""
        templates, tokenizer = self.edit.templates, tokenizer_of(self.pipeline)
        turns = (Mention(templates[i % len(templates)], text) for i, text in enumerate(texts))
        return tuple(mention for mention in turns if not tokenizer.spelling(mention.prompt).cut)

    def moved(self, reads: Reads) -> Iterator[Moved]:
        """Yield what each prompt of a concept becomes; a concept weighs one, over all its prompts."""
        for concept in self.edit.concepts:
            mentions = list(mentions_of(self.edit.templates, concept.names))
            for mention in mentions:
                rows, guides = self.states.moved(reads, mention, self.edit.guides[concept.name])
                yield Moved(rows, guides, 1 / (len(mentions) * len(rows)))

    def kept(self, reads: Reads) -> Iterator[tuple[Floats, float]]:
        """Yield the rows of everything that stays, with the weight of each row; the empty prompt apart."""
        preserved = list(mentions_of(self.edit.templates, self.preserved))
        groups: list[tuple[float, Sequence[Any], Callable[[Reads, Any], Floats]]] = [
            (self.edit.preserve_weight, preserved, self.states.kept),
            (self.edit.preserve_weight, self.neighbors, self.states.kept),
            (self.edit.vocabulary_weight, self.words, self.states.kept),
            (self.edit.vocabulary_weight, self.captions, self.states.caption),
        ]
        for weight, prompts, rows_of in groups:
            for prompt in prompts:
                rows = rows_of(reads, prompt)
                yield rows, weight / (len(prompts) * len(rows))

    def layers(self, reads: Reads) -> Iterator[NDArray[Any]]:
        """Yield the columns [out, D] that read text of every matrix, one matrix at a time."""
        for text_input in self.pipeline.family.text_inputs:
            if text_input.reads == reads:
                for _, tensor in self.pipeline.select("denoiser", text_input.pattern):
                    yield widen(tensor.read())[:, columns_of(text_input, tensor)]


class _Linear(LazyMap):
    """One map for all layers: least squares over everything at once, then rounds against adversaries."""

    def __init__(self, erasing: Erasing, reads: Reads) -> None:
        super().__init__(lambda: _solve_linear(erasing, reads), erasing.widths[reads])


def _solve_linear(erasing: Erasing, reads: Reads) -> Change:
    kept, prompts = _kept_moments(erasing, reads), list(erasing.moved(reads))
    first = _with_moved(kept, prompts)
    ridge = erasing.edit.ridge_share * first.mean_square
    change = first.solve(ridge)
    rounds = erasing.edit.adversarial_rounds
    found = _found(erasing, reads) if rounds else np.zeros((0, 0))
    for _ in range(rounds):
        adversaries = _adversaries(Grams.of(found, change), prompts)
        if not adversaries:
            break
        # The concepts themselves go on to their guides: what is only kept would come back a little.
        change = _with_moved(kept, [*prompts, *adversaries]).solve(ridge).after(change)
    return change


def _kept_moments(erasing: Erasing, reads: Reads) -> Moments:
    moments = Moments(erasing.widths[reads])
    for rows, weight in erasing.kept(reads):
        moments.keep(rows, weight)
    empty = erasing.states.empty(reads)
    moments.keep(empty, EMPTY_WEIGHT / len(empty))
    return moments


def _with_moved(kept: Moments, prompts: Sequence[Moved]) -> Moments:
    moments = kept.copy()
    for moved in prompts:
        moments.move(moved.rows, moved.guides, moved.weight)
    return moments


def _found(erasing: Erasing, reads: Reads) -> Floats:
    """Return sum W^T W over the layers."""
    total = np.zeros((erasing.widths[reads], erasing.widths[reads]))
    for weight in erasing.layers(reads):
        total += weight.T @ weight
    return total


class _Layered:
    """A map for each layer: what is retained and fixed stays exactly, the rest of the rows are moved.

    Rounds against adversaries are steps on the layer as the steps before left it.
    """

    def __init__(self, erasing: Erasing, reads: Reads) -> None:
        self._erasing = erasing
        self._reads: Reads = reads
        self._spaces = Once(self._solved)

    def for_layer(self, weight: NDArray[Any]) -> Change:
        """Return A - I of the layer W [out, D] = `weight`."""
        return _through(self._spaces(), weight)

    def _solved(self) -> list[NullSpace]:
        """Return what the first solution is made of, and each round."""
        prompts = list(self._erasing.moved(self._reads))
        spaces = [self._space(prompts)]
        for _ in range(self._erasing.edit.adversarial_rounds):
            grams = Grams(self._erasing.widths[self._reads])
            for weight in self._erasing.layers(self._reads):
                grams.add(grams.of_matrix(weight, _through(spaces, weight).edit(weight)))
            adversaries = _adversaries(grams, prompts)
            if not adversaries:
                break
            spaces.append(self._space([*prompts, *adversaries]))
        return spaces

    def _space(self, prompts: Sequence[Moved]) -> NullSpace:
        edit, states = self._erasing.edit, self._erasing.states
        kept = [rows for rows, _ in self._erasing.kept(self._reads)]
        retained = np.concatenate(kept)
        weights = np.concatenate([np.full(len(moved.rows), moved.weight) for moved in prompts])
        return NullSpace.of(
            np.concatenate([moved.rows for moved in prompts]),
            np.concatenate([moved.guides for moved in prompts]),
            weights / weights.sum(),
            retained,
            independent(states.empty(self._reads)),
            threshold=edit.threshold * float(np.mean(np.sum(retained * retained, axis=1))),
            ridge=edit.ridge_share * self._scale,
            filtered=edit.influence,
        )

    @cached_property
    def _scale(self) -> float:
        """Mean squared norm of the rows of concepts."""
        rows = np.concatenate([moved.rows for moved in self._erasing.moved(self._reads)])
        return float(np.mean(np.sum(rows * rows, axis=1)))


def _through(spaces: Sequence[NullSpace], weight: NDArray[Any]) -> Change:
    """Return A - I of a layer, where each space takes it as those before have left it."""
    first, *rounds = spaces
    weight = weight.astype(np.float64)
    change = first.solve(weight)
    for space in rounds:
        change = space.solve(change.edit(weight)).after(change)
    return change


def _adversaries(grams: Grams, prompts: Sequence[Moved]) -> list[Moved]:
    """Return the states that come closest to erased concepts' old outputs, where they come close at all."""
    search = grams.adversary(ADVERSARY_RIDGE)
    found = [replace(moved, rows=moved.rows @ search.T) for moved in prompts]
    ends = np.cumsum([len(moved.rows) for moved in prompts])[:-1]
    originals = np.concatenate([moved.rows for moved in prompts])
    gaps = grams.squares(np.concatenate([moved.rows for moved in found]), originals)
    ways = grams.squares_before(np.concatenate([moved.guides for moved in prompts]) - originals)
    shares = [
        float(np.sqrt(gap.sum() / max(way.sum(), np.finfo(float).tiny)))
        for gap, way in zip(np.split(gaps, ends), np.split(ways, ends), strict=True)
    ]
    return [moved for moved, share in zip(found, shares, strict=True) if share < STUBBORN]


def erasing_of(edit: EraseConcepts, pipeline: Pipeline) -> Erasing:
    """Return what an erasure is for a pipeline; run, observers and statements share it and its solution."""
    return _known(edit, Itself(pipeline))


@lru_cache(maxsize=2)
def _known(edit: EraseConcepts, pipeline: Itself[Pipeline]) -> Erasing:
    return Erasing(edit, pipeline.value)
