"""What a debiasing edit did: what its rounds saw, and how far states moved in the matrices as written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..compiler.ir import Pipeline
from ..compiler.tensors import Array
from ..compiler.text.low_rank import Floats
from ..compiler.text.text_map import map_names
from ..runtime.statistics import decimal, wilson
from ..specs.manifest import Evidence
from ._attributes import States, aligned
from ._balance import Round, Subject, weights_after
from ._closed_form import Grams
from ._matrices import MatrixSums
from ._solution import Solved

if TYPE_CHECKING:
    from .debias_concepts import DebiasConcepts


def statements_of(edit: DebiasConcepts, solved: Solved) -> list[Evidence]:
    """Return how far the map is from the identity, and every round that led to it."""
    text_map = solved.maps["sequence"]
    change = float(np.linalg.norm(text_map - np.eye(len(text_map))) / np.sqrt(len(text_map)))
    meaning = {"meaning": "||A - I|| / sqrt(D)"}
    found = [edit.measured("debias.change", "text map", change, details=meaning)]
    return found + [
        evidence for subject, rounds in solved.history.items() for evidence in _rounds(edit, subject, rounds)
    ]


def _rounds(edit: DebiasConcepts, subject: Subject, rounds: Sequence[Round]) -> Iterator[Evidence]:
    """Say how far a concept was moved towards each value, and what every round saw."""
    weights = weights_after(subject, rounds, edit.step)
    for i, answer in enumerate(subject.answers):
        drawn = [
            {
                "weight": decimal(one.weights[i]),
                "share": decimal(one.shares[i]),
                "interval": [decimal(bound) for bound in wilson(one.counts[i], one.images)],
                "following": decimal(one.following),
                "recognized": decimal(one.recognized),
                "images": one.images,
            }
            for one in rounds
        ]
        details = {"meaning": "weight of the value's words in the concept's states", "rounds": drawn}
        name = f"{subject.concept}: {subject.question} {answer}"
        yield edit.measured("debias.weight", name, float(weights[i]), details=details)


class DebiasEvidence(MatrixSums):
    """Measures, on the written matrices, what is left of an attribute and how far other states moved.

    attribute = ||W' d|| / ||W d|| over differences d of two values, for `project`;
    drift = ||W' p - W p|| / ||W p||, for the empty prompt, values' words and what is preserved.
    """

    def __init__(self, edit: DebiasConcepts, before: Pipeline, after: Pipeline) -> None:
        has_map = map_names(before)["sequence"] in after.tensors
        # In float64: what is left of an attribute is a small difference of large sums.
        super().__init__(before, "sequence", maps=has_map, read=_float64)
        self._edit, self._before = edit, before

    def evidence(self) -> list[Evidence]:
        states, grams = States(self._before, self._edit.mentions(self._before)), self.grams
        return [*self._attributes(states, grams), *self._drifts(states, grams)]

    def _attributes(self, states: States, grams: Grams) -> Iterator[Evidence]:
        """What is left of each attribute in the prompts that say its values, templates apart and held out."""
        if self._edit.method != "project":
            return
        sets = {"debias.attribute": self._edit.templates, "debias.held_out": self._edit.held_out}
        for (concept, name), explicit in self._edit.explicit().items():
            for claim, templates in sets.items():
                groups = [[states.rows(t, said) for said in explicit] for t in templates]
                gaps = [rows - group[0] for group in aligned(groups) for rows in group[1:]]
                if gaps:
                    left = _left(grams, np.concatenate(gaps))
                    limit = self._edit.attribute_at_most if claim == "debias.attribute" else None
                    subject = f"{concept}: {name}"
                    yield self._edit.measured(claim, subject, left, len(gaps), at_most=limit)

    def _drifts(self, states: States, grams: Grams) -> Iterator[Evidence]:
        edit, limit = self._edit, self._edit.drift_at_most
        empty = _drift(grams, states.empty)
        yield edit.measured("keep.drift", "the empty prompt", empty, 1, at_most=limit)
        for text in edit.preserve:
            value = max(_drift(grams, states.rows(t, text)) for t in edit.templates)
            yield edit.measured("keep.drift", text, value, len(edit.templates), at_most=limit)
        if edit.method == "balance":
            drifts = [_drift(grams, states.rows(t, w)) for t, w in edit.words(self._before)]
            if drifts:
                high, subject = float(np.quantile(drifts, 0.95)), f"{len(drifts)} words of the vocabulary"
                yield edit.measured("keep.drift_p95", subject, high, len(drifts), at_most=limit)


def _drift(grams: Grams, rows: Floats) -> float:
    return float(np.sqrt(grams.squares(rows, rows).sum() / grams.squares_before(rows).sum()))


def _left(grams: Grams, gaps: Floats) -> float:
    zero = np.zeros_like(gaps)
    return float(np.sqrt(grams.squares(gaps, zero).sum() / grams.squares_before(gaps).sum()))


def _float64(array: Array) -> NDArray[np.float64]:
    return array.astype(np.float64)
