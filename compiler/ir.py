"""The pipeline: the one value that loaders make, passes transform and emitters write.

It is frozen. A pass returns a new pipeline that shares every tensor it did not touch, so what
changed between two pipelines is what is not the same object.
"""

import fnmatch
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from ..specs.errors import Fault, InputError
from .families import Family
from .sampling import Sampling
from .studio import Studio
from .tensors import Edited, Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Component:
    """One part of a pipeline: a model with tensors, or a folder of files (tokenizer, scheduler).

    `role` is what passes select by: `denoiser`, `text`, `vae`, `tokenizer` or `scheduler`.
    """

    name: str
    role: str
    library: str
    class_name: str
    config: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class GraphEdit:
    """A structural change to a component's graph; its numbers are tensors, bound later.

    `name` says which change; `parameters` hold structure only (which output, how many), so that two
    edits that differ in numbers share one captured graph.
    """

    component: str
    name: str
    parameters: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline:
    """A text-to-image model on its way through the passes.

    `tensors` are keyed `component.name`, `name` being the one on disk in diffusers' layout. `studio` is
    what passes draw with; None where nobody builds yet.
    """

    family: Family
    components: Mapping[str, Component] = field(repr=False)
    tensors: Mapping[str, Tensor] = field(repr=False)
    sampling: Sampling
    graph_edits: tuple[GraphEdit, ...] = ()
    # of the source: what a build may read, as (label in the lock, path), and what opening it left behind
    files: tuple[tuple[str, Path], ...] = field(default=(), repr=False)
    notes: tuple[str, ...] = ()
    # the source's values of the family's settings
    settings: Mapping[str, bool] = field(default_factory=dict)
    studio: Studio | None = field(default=None, compare=False, repr=False)

    def of_role(self, role: str) -> tuple[Component, ...]:
        """Return the components of a role, in name order."""
        return tuple(
            self.components[name] for name in sorted(self.components) if self.components[name].role == role
        )

    def tensors_of(self, component: str) -> dict[str, Tensor]:
        """Return a component's tensors under their on-disk names, sorted."""
        start = component + "."
        return {
            name[len(start) :]: self.tensors[name] for name in sorted(self.tensors) if name.startswith(start)
        }

    def select(self, role: str, pattern: str, expect: int | None = None) -> "Selection":
        """Choose the tensors of a role whose on-disk name matches a shell pattern.

        Raises:
            InputError: no tensor matches, or not as many as `expect`.
        """
        prefixes = [component.name for component in self.of_role(role)]
        names = tuple(
            name
            for name in sorted(self.tensors)
            for prefix in prefixes
            if name.startswith(prefix + ".") and fnmatch.fnmatchcase(name[len(prefix) + 1 :], pattern)
        )
        if not names or (expect is not None and len(names) != expect):
            near = get_close_matches(pattern, [name.split(".", 1)[1] for name in self.tensors], n=1)
            wanted = "at least one tensor" if expect is None else f"{expect} tensors"
            raise InputError(
                Fault(
                    "E_SELECT",
                    f"`{pattern}` matches {len(names)} tensors of role `{role}`, expected {wanted}",
                    where=self.family.name,
                    hint=f"the nearest name is `{near[0]}`" if near else "",
                )
            )
        return Selection(self, names)

    def with_tensors(self, changed: Mapping[str, Tensor]) -> "Pipeline":
        """Return this pipeline with some tensors exchanged or added."""
        return replace(self, tensors=MappingProxyType({**self.tensors, **changed}))

    def with_sampling(self, sampling: Sampling) -> "Pipeline":
        """Return this pipeline with another sampling."""
        return replace(self, sampling=sampling)


@dataclass(frozen=True)
class Selection:
    """Some tensors of a pipeline, chosen by name: where an edit is made, apart from what it does."""

    pipeline: Pipeline = field(repr=False)
    names: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.pipeline.tensors[name]) for name in self.names)

    def __len__(self) -> int:
        return len(self.names)

    def map(self, rule: Callable[..., Any], by: str, *others: Tensor) -> Pipeline:
        """Return the pipeline with each selected tensor `t` exchanged for `rule(t, *others)`, lazily."""
        changed = {
            name: Edited((tensor, *others), rule, tensor.dtype, tensor.shape, by) for name, tensor in self
        }
        return self.pipeline.with_tensors(changed)


class Itself(Generic[T]):
    """A value that equals only itself, to key a cache by: what a pass learns of one pipeline is kept so.

    Where only a part of it counts, such as a pipeline's tensors, values with the very same part are equal.
    """

    def __init__(self, value: T, part: object = None) -> None:
        self.value, self._part = value, value if part is None else part

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Itself) and other._part is self._part

    def __hash__(self) -> int:
        return id(self._part)


def changed_tensors(before: Pipeline, after: Pipeline) -> tuple[str, ...]:
    """Return the names whose tensors are not the same object, sorted; nothing is read."""
    names = sorted({*before.tensors, *after.tensors})
    return tuple(name for name in names if before.tensors.get(name) is not after.tensors.get(name))


NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,255}")


def verify(pipeline: Pipeline, author: str) -> None:
    """Check what holds between any two passes: safe names, and each name under a known component.

    Raises:
        InputError: naming `author`, with all faults.
    """
    faults = [
        Fault("E_TENSOR_NAME", f"`{author}` left a tensor name that is not allowed", where=repr(name[:80]))
        for name in sorted(pipeline.tensors)
        if not NAME.fullmatch(name) or name.split(".", 1)[0] not in pipeline.components
    ]
    if faults:
        raise InputError(*faults)
