"""What does an adapter file change in a pipeline? All of it is found, or every fault of the file is told.

A key that no spelling leads to is a fault, and so is a change without its other half, a shape that does
not fit, and all that is another kind of adapter. Headers and alphas say so, one number a module; what only
the factors can say, that a number is not finite, is told when they are read.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import numpy as np

from ...specs.errors import Fault, InputError, quoted, raise_all
from ..headers import Header, read_header
from ..ir import Pipeline
from ..tensors import Array, Stored, Tensor, is_finite, widen
from .kinds import Floats, Form, form_of, refusal, title
from .scaling import Settings, Strength, read_settings
from .spellings import Place, Table, dotted, split, table_of


@dataclass(frozen=True)
class Factor:
    """One tensor of an adapter file; what headers cannot tell of it is checked when it is read.

    `twins` are other keys of the file for the same part: some files hold each module twice, under both of
    its kohya names.
    """

    key: str
    stored: Stored
    twins: tuple["Factor", ...] = ()

    @property
    def dtype(self) -> np.dtype:
        return self.stored.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    def read(self) -> Array:
        """Return the elements.

        Raises:
            InputError: one is not finite, or a twin holds others.
        """
        found = self.stored.read()
        if not is_finite(found):
            message = "not finite: the adapter holds NaN or infinity"
            hint = "get another copy: its training may have failed"
            raise InputError(Fault("E_NOT_FINITE", message, f"{self.stored.file}: {self.key}", hint))
        other = [twin for twin in self.twins if twin.stored.read().tobytes() != found.tobytes()]
        raise_all(InputError, [_twice(f"{twin.stored.file}: {twin.key}") for twin in other])
        return found


Parts = dict[str, Factor]


@dataclass(frozen=True)
class Change:
    """What an adapter does to one weight: scale times the form's change, made of `parts`."""

    place: Place
    layout: str
    form: Form
    parts: tuple[Factor, ...]
    strength: Strength

    def delta(self, times: float = 1.0) -> Floats:
        """Read the parts and return the change in the weight's shape, as the file means it, `times` over.

        Raises:
            InputError: a factor holds what is no finite number, or two keys for it differ.
        """
        read = [widen(part.read()) for part in self.parts]
        return self.form.delta(self.place.shape, read, times * self.strength.scale)


def read_adapter(
    file: Path, config: Path | None, pipeline: Pipeline, component: str | None = None
) -> tuple[Change, ...]:
    """Return what an adapter file changes, in the order of the places.

    `config` is PEFT's adapter_config.json; `component` says whose modules a PEFT file means where two
    models of the pipeline have the same names.

    Raises:
        InputError: with every fault of the file that headers and alphas tell.
    """
    header = read_header(file)
    if component is not None and component not in pipeline.components:
        message = f"`component`: the model has no part {quoted(component)}"
        hint = f"there are: {', '.join(sorted(pipeline.components))}"
        raise InputError(Fault("E_ADAPTER_COMPONENT", message, str(file), hint))
    found = _grouped(header, table_of(pipeline, component))
    faults = list(_key_faults(found, pipeline, str(file)))
    if not header.tensors:
        faults.append(Fault("E_ADAPTER_EMPTY", "the file holds no tensor", str(file)))
    try:
        settings = read_settings(header, file, config, "PEFT" in found.layouts.values())
    except InputError as error:
        raise InputError(*faults, *error.faults) from error
    changes = []
    for place, parts in sorted(found.parts.items(), key=lambda item: item[0]):
        where = f"{file}: {place}"
        faults += _number_faults(parts, where)
        try:
            changes.append(
                _change(place, found.layouts[place], parts, settings, dotted(place, pipeline), where)
            )
        except InputError as error:
            faults += error.faults
    raise_all(InputError, faults)
    return tuple(changes)


@dataclass
class _Grouped:
    """The keys of a file by what they lead to; what is no part of a change stands by its reason."""

    parts: dict[Place, Parts]
    layouts: dict[Place, str]
    refused: dict[str, list[str]]
    unknown: dict[str, list[str]]
    ambiguous: dict[tuple[Place, ...], list[str]]
    twice: list[str]


def _grouped(header: Header, table: Table) -> _Grouped:
    found = _Grouped({}, {}, {}, {}, {}, [])
    for key, tensor in sorted(header.tensors.items()):
        name, part = split(key)
        spelling = table.get(name)
        if reason := refusal(key):
            found.refused.setdefault(reason, []).append(key)
        elif spelling is None:
            found.unknown.setdefault(name or key, []).append(key)
        elif len(spelling.places) > 1:
            found.ambiguous.setdefault(spelling.places, []).append(key)
        else:
            place = next(iter(spelling.places))
            found.layouts[place] = spelling.layout
            parts = found.parts.setdefault(place, {})
            factor = Factor(key, tensor)
            first = parts.setdefault(part, factor)
            if (first.dtype, first.shape) != (factor.dtype, factor.shape):
                found.twice.append(key)
            elif first is not factor:
                parts[part] = replace(first, twins=(*first.twins, factor))
    return found


def _twice(where: str) -> Fault:
    return Fault("E_ADAPTER_TWICE", "another key gives the same part other values", where)


def _key_faults(found: _Grouped, pipeline: Pipeline, file: str) -> Iterator[Fault]:
    for reason, keys in found.refused.items():
        yield Fault("E_ADAPTER_KIND", reason, f"{file}: {_some(keys)}")
    for places, keys in found.ambiguous.items():
        meant = " or ".join(map(str, places))
        hint = "say whose modules the file means: `component: " + places[0].component + "`"
        yield Fault("E_ADAPTER_AMBIGUOUS", f"the name may mean {meant}", f"{file}: {_some(keys)}", hint)
    for key in found.twice:
        yield _twice(f"{file}: {key}")
    if found.unknown and not found.parts and not found.ambiguous:
        names = [key for keys in found.unknown.values() for key in keys]
        message = f"no key of the file names a module of this model ({pipeline.family.title})"
        yield Fault(
            "E_ADAPTER_UNMATCHED", message, f"{file}: {_some(names)}", "was it trained for another one?"
        )
        return
    for keys in found.unknown.values():
        message = "the model has no such module" if split(keys[0])[1] else "the key is of no known layout"
        hint = f"`retouch inspect {file}` says what the file is and which models it fits"
        yield Fault("E_ADAPTER_UNMATCHED", message, f"{file}: {_some(keys)}", hint)


def _some(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{keys[0]} and {len(keys) - 1} more"


def _change(
    place: Place, layout: str, parts: Parts, settings: Settings, names: tuple[str, ...], where: str
) -> Change:
    with _fault("E_ADAPTER_UNPAIRED", where):
        form = form_of([part for part in parts if part != "alpha"])
    held = tuple(parts[part] for part in form.parts)
    with _fault("E_ADAPTER_SHAPE", where):
        rank = form.rank(place.shape, [tensor.shape for tensor in held])
    with _fault("E_ADAPTER_CONFIG", where):
        strength = settings.strength(place.component, names, rank, stored_alpha(parts))
    return Change(place, layout, form, held, strength)


@contextmanager
def _fault(code: str, where: str) -> Iterator[None]:
    """Raise what is wrong inside as a fault of the file."""
    try:
        yield
    except ValueError as problem:
        raise InputError(Fault(code, str(problem), where)) from problem


def stored_alpha(parts: Mapping[str, Tensor]) -> float | None:
    """Return the alpha that stands beside the factors. Raises ValueError where it is not one number."""
    if "alpha" not in parts:
        return None
    held = parts["alpha"]
    if prod(held.shape) != 1:
        raise ValueError(f"alpha is no number but an array {list(held.shape)}")
    value = np.asarray(widen(held.read()), np.float64)
    if not np.isfinite(value).all():
        raise ValueError("alpha is no finite number")
    return value.item()


def _number_faults(parts: Parts, where: str) -> Iterator[Fault]:
    for part, factor in parts.items():
        if part != "alpha" and factor.dtype.kind in "iub":
            yield Fault("E_ADAPTER_NUMBER", f"{title(part)} holds {factor.dtype.name}, no fractions", where)
