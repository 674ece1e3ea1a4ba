"""Emitters: one file each, the file's name is the key in the spec.

An emitter writes one target of the edited pipeline into the artefact's folder. It streams: each
tensor is read, cast, shown to the observers, hashed, written and freed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict

from ...specs.manifest import ComponentRecord, Evidence
from ..contract import Observer
from ..ir import Pipeline
from ..tensors import bytes_of
from ..work import Work


@dataclass(frozen=True)
class Watch:
    """An observer and the pipeline that its pass was given: where `before` values are read from."""

    observer: Observer
    before: Pipeline


def _no_task(label: str, total: int) -> Callable[[int], None]:
    """Show nothing."""
    del label, total
    return lambda steps: None


@dataclass(frozen=True)
class Written:
    """A data file: what its bytes depend on beside the tensors, and its record."""

    layout: object
    record: ComponentRecord


@dataclass(frozen=True)
class Ledger:
    """What the targets of one build have written: data files that graphs may share, digests of files.

    A digest was taken while its file was written, and holds for that modification time, in ns.
    """

    files: dict[Path, Written] = field(default_factory=dict)
    digests: dict[Path, tuple[str, int]] = field(default_factory=dict)

    def remember(self, file: Path, digest: str) -> None:
        """Keep the digest of a file that has just been written."""
        self.digests[file] = digest, file.stat().st_mtime_ns


@dataclass(frozen=True)
class Job:
    """What an emitter needs beside the pipeline.

    `source` is the pipeline as loaded, to tell which tensors changed; `advance` reports bytes written
    to the progress bar; `cache` is a folder for captured graphs; `task` opens a progress bar of its own.
    `ledger` is what the targets of one build have written.
    """

    source: Pipeline
    watches: Sequence[Watch]
    advance: Callable[[str, int], None]
    cache: Path
    task: Callable[[str, int], Callable[[int], None]] = _no_task
    ledger: Ledger = field(default_factory=Ledger)


@dataclass(frozen=True)
class Emitted:
    """What an emitter wrote: one record a component, and parity evidence where it measured any."""

    components: tuple[ComponentRecord, ...]
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True)
class Emitter(ABC):
    """A target. Its fields are its parameters, as written in the spec."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    # Whether images can be drawn from it on any machine, as gates do.
    drawn_from: ClassVar[bool] = False

    @property
    def captures(self) -> Collection[str]:
        """Roles whose graphs are written: those that the cache lacks are captured first, with torch."""
        return ()

    @abstractmethod
    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        """Write this target into `folder`, the root of the artefact."""

    def check(self, pipeline: Pipeline) -> None:
        """Refuse what this target cannot be made of; planning asks, so that no build fails late.

        Raises:
            SpecError, InputError: with all faults.
        """
        del pipeline

    def check_machine(self) -> None:  # noqa: B027 # most targets need nothing of a machine
        """Refuse a machine that lacks what this target is made with. Raises UndecidedError."""

    def written_bytes(self, pipeline: Pipeline) -> int:
        """Return about how many bytes of weights this target writes: as many as there are, unless it says."""
        return sum(map(bytes_of, pipeline.tensors.values()))

    def cells(self, pipeline: Pipeline) -> int | None:
        """Return how many latent cells an image has that is drawn from it; None is the model's own number."""
        del pipeline
        return None

    def work(self, pipeline: Pipeline) -> Work:
        """Return what this target asks of a model beside writing it, such as to be compared with torch."""
        del pipeline
        return Work()

    def engine_memory(self, pipeline: Pipeline) -> int:
        """Return about how many bytes a process beside the build takes: none, unless engines are built."""
        del pipeline
        return 0

    @property
    def name(self) -> str:
        """The key in the spec: the name of the file that holds the class."""
        return type(self).__module__.rpartition(".")[2]
