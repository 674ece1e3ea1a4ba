"""What a pass that draws or trains needs beyond its pipeline: the final sampling, a cache, someone to tell.

Most passes solve equations. One whose result depends on images does its work when its tensors are first
read, from `pipeline.studio`; results that took long belong into the cache, under a digest of everything
that they depend on, so that a second build repeats the bytes without the work.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from .cache import default_cache
from .sampling import Sampling


class Reporter(Protocol):
    """Shows progress: `task` opens a bar and returns what advances it."""

    def task(self, label: str, total: int) -> Callable[[int], None]: ...


class Quiet:
    """A reporter that shows nothing."""

    def task(self, label: str, total: int) -> Callable[[int], None]:
        del label, total
        return lambda _: None


@dataclass(frozen=True)
class Studio:
    """How a pass works with images; `sampling` is what the whole spec produces, guidance included."""

    sampling: Sampling
    cache: Path = field(default_factory=default_cache)
    report: Reporter = field(default_factory=Quiet)
