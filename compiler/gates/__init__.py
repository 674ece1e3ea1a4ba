"""Gates: one file each, the file's name is the key in the spec.

A gate draws images from the shipped bytes, has a judge look at them, and compares the bound of a
confidence interval with the threshold of the spec. What a gate cannot afford or decide is
`UndecidedError`, never a smaller sample.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict

from ...specs.manifest import Evidence
from ..contract import Balancing, Erasure
from ..ir import GraphEdit, Pipeline
from ..work import Work

Images = NDArray[np.uint8]


# Draws one image a (prompt, seed) pair: `[N, height, width, 3]`, 0 to 255.
Draw = Callable[[Sequence[str], Sequence[int]], Images]


@dataclass(frozen=True)
class Trial:
    """What a gate judges: the shipped artefact, the base it was made from, and what the spec edited.

    Both draw from the same noise for the same seed. `record` keeps raw results, one row an image,
    in `evidence/NAME.jsonl`; `advance` counts drawn images for the progress bar. Gates that look inside
    are given the sealed folder, the source as loaded and the graph edits of the artefact.
    """

    edited: Draw
    base: Draw
    erased: tuple[Erasure, ...]
    record: Callable[[str, list[dict[str, Any]]], None]
    advance: Callable[[int], None]
    artefact: Path | None = None
    source: Pipeline | None = None
    graph_edits: tuple[GraphEdit, ...] = ()
    balanced: tuple[Balancing, ...] = ()


@dataclass(frozen=True)
class Gate(ABC):
    """A threshold on behavior. Its fields are its parameters, as written in the spec."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    @abstractmethod
    def decide(self, trial: Trial) -> list[Evidence]:
        """Draw, judge and compare; each returned evidence has `passed` set."""

    @abstractmethod
    def work(self, erased: int, balanced: Sequence[Balancing] = ()) -> Work:
        """Return what the gate will ask of the models for a spec that erases so many concepts."""

    @property
    def name(self) -> str:
        """The key in the spec: the name of the file that holds the class."""
        return type(self).__module__.rpartition(".")[2]
