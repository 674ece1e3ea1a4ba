"""What a pass is, what it claims, and how one is found: the folder is the registry.

`passes/erase_concepts.py` *is* the spec key `erase_concepts`. The file holds one final subclass of
`Pass`; its dataclass fields are the block of the spec. Importing it imports no torch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, ClassVar, Protocol

from pydantic import ConfigDict

from ..runtime.statistics import decimal
from ..specs.manifest import Evidence
from .ir import Pipeline
from .tensors import Array
from .work import Work


class Stage(IntEnum):
    """When a pass runs; passes of one stage run in the order of the spec."""

    MERGE = 1
    ERASE = 2
    DEBIAS = 3
    STRUCTURE = 4
    GUIDE = 5
    QUANTIZE = 6


@dataclass(frozen=True)
class Erasure:
    """A concept that a pass erases: every prompt that names it, the first one its own name, and its guide."""

    prompts: tuple[str, ...]
    towards: str

    @property
    def name(self) -> str:
        """The concept as the spec names it."""
        return self.prompts[0]


@dataclass(frozen=True)
class Balancing:
    """A concept that a pass balances: prompts that it was not tuned on, and those that ask for a value.

    `question` and `answers` are a judge's; `explicit` has one prompt for each answer, where there are any.
    """

    concept: str
    question: str
    answers: tuple[str, ...]
    prompts: tuple[str, ...]
    explicit: Mapping[str, str]


class Observer(Protocol):
    """Judges a claim on the tensors as they were written, while they stream past.

    One observer lives for one written target. `names` are the tensors that it asks for; `see` gets each of
    them once, as the pass found it and as it was written (on-disk orientation), and returns what it tells:
    several are looked at side by side, so it changes nothing. `add` takes that in, in the order of the file.
    """

    @property
    def names(self) -> frozenset[str]: ...

    def see(self, name: str, before: Array, written: Array) -> Any: ...

    def add(self, told: Any) -> None: ...

    def evidence(self) -> list[Evidence]: ...


@dataclass(frozen=True)
class Pass(ABC):
    """A transformation of a pipeline. Its fields are its parameters, as written in the spec."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)
    stage: ClassVar[Stage]

    @abstractmethod
    def run(self, pipeline: Pipeline) -> Pipeline:
        """Return the edited pipeline. Read headers only: elements are computed when they are written."""

    def observers(self, before: Pipeline, after: Pipeline) -> Iterable[Observer]:
        """Return fresh observers that will measure what the pass claims on one written target."""
        del before, after
        return ()

    def statements(self, before: Pipeline, after: Pipeline) -> list[Evidence]:
        """Return evidence that needs no written tensor, such as a table of guidance weights."""
        del before, after
        return []

    def work(self, targets: int = 1) -> Work:
        """Return the most that the pass asks of the model, before anything is read.

        That is while its tensors are computed, which happens once, and while its claims are measured on so
        many written targets. A pass that solves equations asks nothing.
        """
        del targets
        return Work()

    def erasures(self) -> Iterable[Erasure]:
        """Return the concepts that the pass erases, for the gates that look for them."""
        return ()

    def balancings(self) -> Iterable[Balancing]:
        """Return the concepts that the pass balances, for the gates that count their values."""
        return ()

    def measured(
        self,
        claim: str,
        subject: str,
        value: float,
        count: int | None = None,
        *,
        at_most: str | None = None,
        unit: str = "",
        digits: int = 6,
        details: Mapping[str, Any] | None = None,
    ) -> Evidence:
        """Return evidence of the pass about tensors, with a verdict where the spec sets a limit."""
        return Evidence(
            kind="static",
            claim=claim,
            subject=subject,
            value=decimal(value, digits),
            unit=unit,
            comparator=None if at_most is None else "at_most",
            limit=at_most,
            count=count,
            passed=None if at_most is None else value <= float(at_most),
            produced_by=self.name,
            details=dict(details or {}),
        )

    @property
    def name(self) -> str:
        """The key in the spec: the name of the file that holds the class."""
        return type(self).__module__.rpartition(".")[2]
