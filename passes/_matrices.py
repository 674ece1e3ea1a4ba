"""What became of the matrices that read text, as written: the sums that say how far any text state moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..compiler.ir import Pipeline
from ..compiler.once import Once
from ..compiler.tensors import Array, widen
from ..compiler.text.encode import pooled_width, text_width
from ..compiler.text.text_map import columns_of, map_names
from ._closed_form import Floats, Grams, Products
from ._text_states import Reads


@dataclass(frozen=True)
class Maps:
    """The map before all matrices, [D, D], as found and as written."""

    found: Floats
    written: Floats


class MatrixSums:
    """Sums the matrices that read one kind of text state, and the map before them where one is written.

    The observer of an edit of the text path is one of these, with what it has to say as `evidence`.

    Args:
        maps: whether the edit stands in the graph.
        read: the type that products are taken in.
        basis: gives orthonormal rows [k, D] in whose span all text states lie that will be asked about, or
            None for all of them. Asked for when the first matrix is seen.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        reads: Reads,
        maps: bool,
        read: Callable[[Array], NDArray[Any]] = widen,
        basis: Callable[[], Floats | None] = lambda: None,
    ) -> None:
        self._read = read
        self._columns = {
            name: columns_of(text_input, tensor)
            for text_input in pipeline.family.text_inputs
            if text_input.reads == reads
            for name, tensor in pipeline.select("denoiser", text_input.pattern)
        }
        self._map = map_names(pipeline)[reads] if maps else None
        width = pooled_width(pipeline) if reads == "pooled" else text_width(pipeline)
        self._found_map = self._written_map = np.eye(width)
        self._grams = Once(lambda: Grams(width, basis()))

    @property
    def names(self) -> frozenset[str]:
        return frozenset([*self._columns, *([self._map] if self._map else [])])

    def see(self, name: str, before: Array, written: Array) -> Products | Maps:
        if name == self._map:
            found = before.astype(np.float64) if before.size else self._found_map
            return Maps(found, written.astype(np.float64))
        columns = self._columns[name]
        return self._grams().of_matrix(self._read(before)[:, columns], self._read(written)[:, columns])

    def add(self, told: Products | Maps) -> None:
        if isinstance(told, Maps):
            self._found_map, self._written_map = told.found, told.written
        else:
            self._grams().add(told)

    @property
    def grams(self) -> Grams:
        """The sums over all matrices seen, each with the map before it."""
        grams = self._grams()
        return grams.through(self._found_map, self._written_map) if self._map else grams
