"""What of a file's tensors belongs to a component, by the tables of names.

A tensor of a single file is one of ours in another arrangement, or several of ours at once: views
say which, and no element is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from ...specs.errors import Fault, InputError
from ..headers import read_header
from ..ir import Component
from ..tensors import Array, Stored, Tensor, View
from .names import Match, Part, layouts, matches

SHOWN = 8  # faults of one kind that are spelled out


def component_tensors(file: Path, component: Component) -> dict[str, Tensor]:
    """Return the tensors of one component from a file of its own, under the names of any layout.

    Raises:
        InputError: the file is broken, or holds something else.
    """
    stored = read_header(file).tensors
    if stored.keys() <= _ours(component):
        return {f"{component.name}.{name}": tensor for name, tensor in stored.items()}
    for part in _parts(component):
        for prefix in (*part.prefixes, ""):
            reading = Reading(file, stored)
            reading.take(component, part, prefix)
            if reading.tensors and not reading.faults:
                return reading.tensors
    hint = "give a file in LDM's layout, or a folder with config.json and safetensors"
    message = f"the tensors are not those of a whole `{component.name}`"
    raise InputError(Fault("E_SINGLE_FILE", message, str(file), hint))


@dataclass
class Reading:
    """What has been found in a file so far: tensors under our names, faults, and names accounted for."""

    file: Path
    stored: Mapping[str, Stored]
    tensors: dict[str, Tensor] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def leave(self, *patterns: str) -> int:
        """Leave behind what the patterns match, and return how many tensors that is."""
        names = [name for name in self.stored if any(fnmatchcase(name, pattern) for pattern in patterns)]
        self.seen.update(names)
        return len(names)

    def prefix(self, part: Part) -> str:
        """Return the prefix under which a part lies here; empty where it is absent."""
        rest = [name for name in self.stored if name not in self.seen]
        return next((prefix for prefix in part.prefixes if any(n.startswith(prefix) for n in rest)), "")

    def take(self, component: Component, part: Part, prefix: str) -> None:
        """Find every tensor of a component; each one that is missing or misshapen is a fault."""
        names = self._names(part, prefix)
        missing = []
        for match in matches(part.table, component):
            if match.theirs in names:
                self._view(names[match.theirs], match, component.name)
            elif not match.optional:
                missing.append(prefix + match.theirs)
        for match in matches(part.unused, component) if part.unused else ():
            self.seen.update({names[match.theirs]} if match.theirs in names else ())
        self.faults += _listed("E_TENSOR_MISSING", f"`{component.name}` lacks a tensor", missing, self.file)

    def leftovers(self) -> list[Fault]:
        """Return a fault for each tensor that nothing has accounted for."""
        names = sorted(name for name in self.stored if name not in self.seen)
        return _listed("E_TENSOR_UNKNOWN", "a tensor that is no part of the model", names, self.file)

    def _names(self, part: Part, prefix: str) -> dict[str, str]:
        """Return the names under a prefix: without it and spelled as the table does -> as stored."""
        start = layouts().optional_beginnings.get(part.table, "")
        rests = {name: name.removeprefix(prefix) for name in self.stored if name.startswith(prefix)}
        return {start + rest.removeprefix(start): name for name, rest in rests.items()}

    def _view(self, name: str, match: Match, component: str) -> None:
        """Take one tensor of the file, apart into as many as it is here."""
        self.seen.add(name)
        try:
            views = arranged(self.stored[name], match)
        except ValueError as problem:
            self.faults.append(Fault("E_SHAPE", str(problem), f"{self.file}: {name}"))
            return
        self.tensors |= {f"{component}.{ours}": view for ours, view in zip(match.ours, views, strict=True)}


def arranged(stored: Tensor, match: Match) -> list[Tensor]:
    """Return a stored tensor as those that it stands for here; no element is read.

    Raises ValueError where the shape is not one that the form can have.
    """
    shape = stored.shape
    match match.form:
        case "pointwise" if len(shape) == 4 and shape[2:] == (1, 1):
            return [View(stored, _flat, shape[:2])]
        case "transposed" if len(shape) == 2:
            return [View(stored, np.transpose, shape[::-1])]
        case "stacked" if shape and shape[0] % len(match.ours) == 0:
            rows = shape[0] // len(match.ours)
            return [View(stored, Rows(i * rows, (i + 1) * rows), (rows, *shape[1:]))
                    for i in range(len(match.ours))]  # fmt: skip
        case "pointwise" if len(shape) == 2:  # as some writers keep it
            return [stored]
        case "same":
            return [stored]
    raise ValueError(f"shape {list(shape)} is none of a {match.form} tensor")


@dataclass(frozen=True)
class Rows:
    """Takes some rows: a value, so that equal views are equal."""

    first: int
    end: int

    def __call__(self, array: Array) -> Array:
        return array[self.first : self.end]


def _flat(array: Array) -> Array:
    """Take a 1x1 convolution for the linear map that it is."""
    return array[:, :, 0, 0]


def _ours(component: Component) -> frozenset[str]:
    """Return the names of a component's tensors in diffusers' layout."""
    tables = sorted({part.table for part in _parts(component)})
    return frozenset(name for table in tables for match in matches(table, component) for name in match.ours)


def _parts(component: Component) -> list[Part]:
    """Return where layouts hold a component, once each."""
    known = layouts().layouts.values()
    return list(dict.fromkeys(one.parts[component.name] for one in known if component.name in one.parts))


def _listed(code: str, message: str, names: Sequence[str], file: Path) -> list[Fault]:
    """Return a fault for each of the first names, and one that counts the others."""
    faults = [Fault(code, message, f"{file}: {name}") for name in names[:SHOWN]]
    if len(names) > SHOWN:
        faults.append(Fault(code, f"and {len(names) - SHOWN} more like these", str(file)))
    return faults
