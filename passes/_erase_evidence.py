"""How far erased concepts still are and how far others moved, measured on the matrices as written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.statistics import decimal
from ..specs.manifest import Evidence
from ._closed_form import Floats, Grams
from ._erasing import ADVERSARY_RIDGE, Erasing
from ._matrices import MatrixSums
from ._text_states import Reads, mentions_of

# Rows measured at once.
ROWS = 2048


class TextEvidence(MatrixSums):
    """Measures the matrices that read one kind of text state, and the map before them where one is written.

        residual = ||W' c - W g|| / ||W c - W g||    of erased c, led towards g
        drift    = ||W' p - W p|| / ||W p||          of preserved p
        revival  = ||c'|| / ||c||                    c' comes closest to W c through W', at a small norm

    Norms run over all rewritten matrices and over the rows that the solver reads. Where these span less than
    half of the space, that is all of it that is looked at, the reviving state included.
    """

    def __init__(self, erasing: Erasing, reads: Reads) -> None:
        # A map before the matrices leads out of what the rows span.
        maps = erasing.edit.output == "text_map"
        super().__init__(erasing.pipeline, reads, maps, basis=lambda: None if maps else self._basis)
        self._erasing = erasing
        self._reads: Reads = reads

    @property
    def _basis(self) -> Floats | None:
        return span(_rows(self._erasing, self._reads), self._erasing.widths[self._reads])

    def evidence(self) -> list[Evidence]:
        measured = _Measured(self._erasing, self._reads, self.grams)
        return [*measured.erased(), *measured.kept()]


def _rows(erasing: Erasing, reads: Reads) -> Iterator[Floats]:
    """Yield all rows that claims are about."""
    yield from chain.from_iterable(_moved(erasing, reads, (*erasing.edit.templates, *erasing.edit.held_out)))
    yield from (rows for rows, _ in erasing.kept(reads))
    yield erasing.states.empty(reads)


def _moved(erasing: Erasing, reads: Reads, templates: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
    """Yield rows and guides of every concept's every name in every template."""
    for concept in erasing.edit.concepts:
        for mention in mentions_of(templates, concept.names):
            yield erasing.states.moved(reads, mention, erasing.edit.guides[concept.name])


def span(rows: Iterable[Floats], width: int) -> Floats | None:
    """Return orthonormal rows [k, D] that span `rows`, or None where that is half of the space or more."""
    found: dict[bytes, Floats] = {}
    for row in chain.from_iterable(rows):
        found.setdefault(row.tobytes(), row)
        if 2 * len(found) >= width:
            return None
    return np.ascontiguousarray(np.linalg.qr(np.stack(list(found.values()), axis=1))[0].T)


@dataclass(frozen=True)
class _Measured:
    """Claims about one kind of text state, from the sums over the matrices that read it."""

    erasing: Erasing
    reads: Reads
    grams: Grams

    def erased(self) -> Iterator[Evidence]:
        """Yield residuals in the spec's templates and in held-out ones, and what it takes to revive."""
        edit = self.erasing.edit
        for claim, templates in (("erase.residual", edit.templates), ("erase.held_out", edit.held_out)):
            for concept, values in zip(edit.concepts, self._residuals(templates), strict=True):
                if values:
                    limit = edit.residual_at_most
                    yield self._worst(claim, concept.name, values, limit)
        yield from self._revivals()

    def kept(self) -> Iterator[Evidence]:
        """Yield the drift of what is preserved by name, and 95th percentiles of everything preserved."""
        erasing, limit = self.erasing, self.erasing.edit.drift_at_most
        mentions = list(mentions_of(erasing.edit.templates, erasing.preserved))
        drifts = self._drifts([erasing.states.kept(self.reads, mention) for mention in mentions])
        high = dict.fromkeys(erasing.preserved, 0.0)
        for mention, drift in zip(mentions, drifts, strict=True):
            high[mention.text] = max(high[mention.text], drift)
        for text, value in high.items():
            yield self._claim("keep.drift", text, value, None, len(erasing.edit.templates))
        (empty,) = self._drifts([erasing.states.empty(self.reads)])
        yield self._claim("keep.drift", "the empty prompt", empty, limit, 1)
        yield self._high("all preserved prompts", list(high.values()))
        for kind, mentions in (("neighbors", erasing.neighbors), ("words of the vocabulary", erasing.words)):
            if mentions:
                rows = (erasing.states.kept(self.reads, mention) for mention in mentions)
                yield self._high(f"{len(mentions)} {kind}", self._drifts(rows))
        captions = [erasing.states.caption(self.reads, text) for text in erasing.captions]
        if captions:
            yield self._high(f"{len(captions)} captions", self._drifts(captions))

    def _residuals(self, templates: Sequence[str]) -> list[dict[str, float]]:
        """Return each concept's residual by prompt."""
        shares = iter(_shares(self._moved(templates), self._residual))
        concepts = self.erasing.edit.concepts
        mentions = [list(mentions_of(templates, concept.names)) for concept in concepts]
        return [{mention.prompt: next(shares) for mention in some} for some in mentions]

    def _drifts(self, prompts: Iterable[Floats]) -> list[float]:
        looked = map(self.grams.coordinates, prompts)
        return _shares(((rows, rows) for rows in looked), self._drift)

    def _revivals(self) -> Iterator[Evidence]:
        """Yield, for each concept, the smallest norm at which some state comes closest to its old outputs."""
        edit, search = self.erasing.edit, self.grams.adversary(ADVERSARY_RIDGE).T
        pairs = list(self._moved(edit.templates))
        lefts = iter(_shares(pairs, lambda rows, guides: self._left(rows @ search, rows, guides)))
        norms = iter(_shares(pairs, lambda rows, _: (_squares(rows @ search), _squares(rows))))
        for concept in edit.concepts:
            count = len(edit.templates) * len(concept.names)
            tried = [(next(norms), next(lefts)) for _ in range(count)]
            norm, left = min(tried)
            details = {"left": decimal(left), "meaning": "norm of the reviving state over the concept's"}
            yield self._claim("erase.revival", concept.name, norm, None, count, details)

    def _moved(self, templates: Sequence[str]) -> Iterator[tuple[Floats, Floats]]:
        """Yield the coordinates of what is moved and of where to."""
        for rows, guides in _moved(self.erasing, self.reads, templates):
            yield self.grams.coordinates(rows), self.grams.coordinates(guides)

    def _residual(self, rows: Floats, guides: Floats) -> tuple[Floats, Floats]:
        return self.grams.squares(rows, guides), self.grams.squares_before(rows - guides)

    def _drift(self, rows: Floats, _: Floats) -> tuple[Floats, Floats]:
        return self.grams.squares(rows, rows), self.grams.squares_before(rows)

    def _left(self, found: Floats, rows: Floats, guides: Floats) -> tuple[Floats, Floats]:
        return self.grams.squares(found, rows), self.grams.squares_before(rows - guides)

    def _worst(self, claim: str, subject: str, values: dict[str, float], limit: str | None) -> Evidence:
        worst = max(values, key=lambda prompt: values[prompt])
        details = {"worst": worst, "mean": decimal(float(np.mean(list(values.values()))))}
        return self._claim(claim, subject, values[worst], limit, len(values), details)

    def _high(self, subject: str, drifts: Sequence[float]) -> Evidence:
        value = float(np.quantile(drifts, 0.95))
        return self._claim("keep.drift_p95", subject, value, self.erasing.edit.drift_at_most, len(drifts))

    def _claim(
        self,
        claim: str,
        subject: str,
        value: float,
        limit: str | None,
        count: int,
        details: dict[str, str] | None = None,
    ) -> Evidence:
        named = subject if self.reads == "sequence" else f"{subject} ({self.reads})"
        return self.erasing.edit.measured(claim, named, value, count, at_most=limit, details=details)


def map_statements(erasing: Erasing) -> Iterator[Evidence]:
    """Yield the condition number of the maps and how far they are from the identity; the worst layer's."""
    for reads, maps in erasing.maps.items():
        changes = [maps.for_layer(weight) for weight in _distinct_layers(erasing, reads)]
        subject = "text map" if reads == "sequence" else f"text map ({reads})"
        values = {
            "erase.condition": (max(change.condition for change in changes), "condition number of A"),
            "erase.change": (max(change.size for change in changes), "||A - I|| / sqrt(D)"),
        }
        for claim, (value, meaning) in values.items():
            yield erasing.edit.measured(claim, subject, value, len(changes), details={"meaning": meaning})


def _distinct_layers(erasing: Erasing, reads: Reads) -> Iterator[NDArray[Any]]:
    """Yield a layer for each map that differs: the linear solver has one for all."""
    if erasing.edit.solver == "linear":
        return iter([np.zeros((0, erasing.widths[reads]))])
    return erasing.layers(reads)


def _shares(
    pairs: Iterable[tuple[Floats, Floats]], measure: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> list[float]:
    """Return sqrt(sum a / sum b) for each pair of rows, where `measure` gives a and b of every row.

    Pairs are measured many at a time: a product of a few rows would read the [D, D] sums for nothing.
    """
    found: list[float] = []
    waiting: list[tuple[Floats, Floats]] = []
    count = 0
    for pair in pairs:
        waiting.append(pair)
        count += len(pair[0])
        if count >= ROWS:
            found += _together(waiting, measure)
            waiting, count = [], 0
    return found + (_together(waiting, measure) if waiting else [])


def _together(
    pairs: Sequence[tuple[Floats, Floats]], measure: Callable[[Floats, Floats], tuple[Floats, Floats]]
) -> list[float]:
    starts = np.cumsum([0, *(len(rows) for rows, _ in pairs[:-1])])
    above, below = measure(*(np.concatenate(part) for part in zip(*pairs, strict=True)))
    sums = np.add.reduceat(above, starts), np.add.reduceat(below, starts)
    return [float(np.sqrt(one / other)) if other else 0.0 for one, other in zip(*sums, strict=True)]


def _squares(rows: Floats) -> Floats:
    return np.sum(rows * rows, axis=1)
