"""edit.yaml -> Spec, or every fault at once as `file:line: key: what`.

It knows no pass: the compiler hands in registries, whose classes say what a block may hold. A block
is validated as JSON, which is strict about types (`"3"` is no number) yet takes a list for a tuple.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from .errors import RetouchError, quoted
from .schema import SCHEMA, Draft, Head, Spec
from .strict_yaml import Finding, Key, Text, dump, parse, read_bytes, spec_error


class Registry(Protocol):
    """The classes of one kind, by name."""

    def names(self) -> list[str]: ...

    def load(self, name: str) -> type: ...


@dataclass(frozen=True)
class Registries:
    """What the names in a spec stand for: what the compiler hands in."""

    passes: Registry
    emitters: Registry
    gates: Registry

    def of(self, section: str) -> Registry:
        """Return the registry of the section `edits`, `emit` or `gates`."""
        return {"edits": self.passes, "emit": self.emitters, "gates": self.gates}[section]


SECTIONS = ("edits", "emit", "gates")


def read_spec(file: Path, registries: Registries) -> Spec:
    """Read a spec file.

    Raises:
        SpecError: with every fault, in the order of the lines.
    """
    return parse_spec(read_bytes(file), file, registries)


def parse_spec(data: bytes, file: Path, registries: Registries) -> Spec:
    """Read a spec from the bytes that stand, or will stand, in `file`; nothing is opened.

    Raises:
        SpecError: with every fault, in the order of the lines.
    """
    text = parse(data, str(file))
    _refuse_other_schema(text, str(file))
    folder = file.parent.resolve()
    draft, findings = _validate(Draft, text, (), folder)
    blocks: dict[str, list[Any]] = {section: [] for section in SECTIONS}
    for section, key, name in _named_blocks(text.value):
        block, faults = _block(registries.of(section), name, text, key, folder)
        blocks[section].append(block)
        findings += faults
    if findings:
        raise spec_error(str(file), findings)
    head = {field.name: getattr(draft, field.name) for field in fields(Head)}
    return Spec(
        **head, edits=tuple(blocks["edits"]), emit=tuple(blocks["emit"]), gates=tuple(blocks["gates"])
    )


def spec_value(spec: Spec) -> dict[str, Any]:
    """Return the plain value of a spec, with every default filled in."""
    head = _adapter(Head).dump_python(spec, mode="json")
    blocks = {section: [_block_value(block) for block in getattr(spec, section)] for section in SECTIONS}
    return {**head, **blocks}


def write_spec(spec: Spec) -> str:
    """Return the canonical YAML text of a spec, with every default filled in. Reading gives the spec back."""
    return dump(spec_value(spec))


def _block_value(block: Any) -> dict[str, Any]:
    return {block.name: _adapter(type(block)).dump_python(block, mode="json")}


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _refuse_other_schema(text: Text, file: str) -> None:
    """Refuse a spec of another generation before its keys are called unknown."""
    written = text.value.get("schema") if isinstance(text.value, dict) else None
    if type(written) is int and written != SCHEMA:
        what = f"found {written}, this retouch reads {SCHEMA}"
        raise spec_error(
            file, [Finding(text.line_of(("schema",)), ("schema",), "E_SCHEMA", what, "update retouch")]
        )


def _named_blocks(value: Any) -> Iterator[tuple[str, Key, str]]:
    """Yield (section, key, name) of each entry that is a mapping with one key, as it should be."""
    for section in SECTIONS if isinstance(value, dict) else ():
        entries = value.get(section)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            if isinstance(entry, dict) and len(entry) == 1:
                name = next(iter(entry))
                yield section, (section, index, name), name


def _block(registry: Registry, name: str, text: Text, key: Key, folder: Path) -> tuple[Any, list[Finding]]:
    """Return the instance that a block stands for, or what is wrong with its name or its keys."""
    try:
        kind = registry.load(name)
        return _validate(kind, text, key, folder)
    except RetouchError as error:
        line = text.line_of(key)
        return None, [Finding(line, key, fault.code, fault.message, fault.hint) for fault in error.faults]


def _validate(kind: type, text: Text, key: Key, folder: Path) -> tuple[Any, list[Finding]]:
    """Return the instance of a class that the value at `key` describes, or every fault in it."""
    value = _at(text.value, key)
    if key and not isinstance(value, dict):
        return None, []  # told by the draft, which expects a mapping here
    try:
        return _adapter(kind).validate_json(json.dumps(value), context={"folder": folder}), []
    except ValidationError as error:
        faults = [_Complaint.of(details, value, key) for details in error.errors(include_url=False)]
        return None, [fault.finding(text, kind) for fault in _without_lost_branches(faults)]


def _at(value: Any, key: Key) -> Any:
    for part in key:
        value = value[part]
    return value


# What pydantic's error types call what they expected.
_EXPECTED = {
    "bool_type": "true or false",
    "dataclass_exact_type": "a mapping",
    "dataclass_type": "a mapping",
    "dict_type": "a mapping",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_type": "a mapping",
    "none_required": "nothing",
    "string_type": "a text",
    "tuple_type": "a list",
}
_MISSING = (
    "missing",
    "missing_argument",
    "missing_keyword_only_argument",
    "missing_positional_only_argument",
)
_UNKNOWN = ("unexpected_keyword_argument", "extra_forbidden")


@dataclass(frozen=True)
class _Complaint:
    """One error of pydantic's, placed in the spec. `inner` is its key within the block at `outer`."""

    details: ErrorDetails
    outer: Key
    inner: Key
    found: Any
    expected: tuple[str, ...] = ()

    @classmethod
    def of(cls, details: ErrorDetails, value: Any, outer: Key) -> "_Complaint":
        """Place an error: names of branches of a union, which the value does not have, are dropped."""
        inner: list[str | int] = []
        for part in details["loc"]:
            if _has(value, part):
                value = value[part]
                inner.append(part)
        if details["type"] in _MISSING:
            inner.append(details["loc"][-1])
        expected = _EXPECTED.get(details["type"])
        return cls(details, outer, tuple(inner), value, (expected,) if expected else ())

    def finding(self, text: Text, kind: type) -> Finding:
        """Return the error in our words."""
        key = (*self.outer, *self.inner)
        line = text.line_of(key)
        kind_of_error = self.details["type"]
        if kind_of_error in _MISSING:
            return Finding(line, key[:-1], "E_MISSING", f"{quoted(key[-1])} is missing")
        if kind_of_error in _UNKNOWN:
            names = _names_at(kind, self.inner[:-1])
            return Finding(
                line,
                key[:-1],
                "E_UNKNOWN_KEY",
                f"unknown key {quoted(key[-1])}",
                _nearest(str(key[-1]), names),
            )
        if self.expected:
            what = f"found {_show(self.found)}, expected {' or '.join(self.expected)}"
            return Finding(line, key, "E_TYPE", what, _type_hint(self.found, self.expected) if key else "")
        if kind_of_error in ("literal_error", "enum"):
            return self._no_choice(line, key)
        return Finding(line, key, "E_VALUE", self._wrong_value())

    @property
    def counts(self) -> bool:
        """Whether the error is a number of items, which leaves out those that have errors of their own."""
        return self.details["type"] == "too_short"

    def _no_choice(self, line: int, key: Key) -> Finding:
        expected = self.details.get("ctx", {})["expected"]
        near = get_close_matches(str(self.found), re.findall(r"'([^']*)'", expected), n=1)
        hint = f"did you mean `{near[0]}`?" if near else ""
        return Finding(line, key, "E_VALUE", f"found {_show(self.found)}, expected {expected}", hint)

    def _wrong_value(self) -> str:
        if self.details["type"] in ("value_error", "assertion_error"):
            return str(self.details.get("ctx", {}).get("error", self.details["msg"]))
        expected = re.sub(r"^.+? should (be|have|match) ", "expected ", self.details["msg"])
        return f"found {_show(self.found)}, {expected.partition(' after validation')[0]}"


def _has(value: Any, part: str | int) -> bool:
    if isinstance(value, list):
        return isinstance(part, int) and part < len(value)
    return isinstance(value, dict) and part in value


def _without_lost_branches(complaints: list[_Complaint]) -> list[_Complaint]:
    """Say once what a union expected, and only where no branch of it got further into the value."""
    by_place: dict[Key, list[_Complaint]] = {}
    for complaint in complaints:
        by_place.setdefault(complaint.inner, []).append(complaint)
    deeper = {place[:size] for place in by_place for size in range(len(place))}
    kept: list[_Complaint] = []
    for place, here in by_place.items():
        kept += [
            complaint
            for complaint in here
            if not (complaint.expected or (complaint.counts and place in deeper))
        ]
        types = [complaint for complaint in here if complaint.expected]
        if types and place not in deeper:
            expected = tuple(dict.fromkeys(name for complaint in types for name in complaint.expected))
            kept.append(_Complaint(types[0].details, types[0].outer, place, types[0].found, expected))
    return kept


def _show(value: Any) -> str:
    """Return a value as it may stand in a message."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    shown = json.dumps(value, ensure_ascii=False)
    return quoted(shown)


def _type_hint(found: Any, expected: tuple[str, ...]) -> str:
    if "a text" in expected and isinstance(found, bool | int | float):
        return "put it in quotes"
    if "a mapping" in expected and found is None:
        return "write `{}` for a block without keys"
    return ""


def _nearest(name: str, names: list[str]) -> str:
    near = get_close_matches(name, names, n=1)
    if near:
        return f"did you mean `{near[0]}`?"
    return f"there are: {', '.join(sorted(names))}" if names else ""


def _names_at(kind: type, inner: Key) -> list[str]:
    """Return the keys that a class allows at a place within its block, as its JSON Schema lists them."""
    schema = _json_schema(kind)
    places = [schema]
    for part in inner:
        places = [deeper for place in places for deeper in _step(_branches(place, schema), part)]
    return sorted(
        {
            name
            for place in places
            for branch in _branches(place, schema)
            for name in branch.get("properties", ())
        }
    )


@cache
def _json_schema(kind: type) -> dict[str, Any]:
    return _adapter(kind).json_schema()


def _branches(place: Mapping[str, Any], schema: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a schema node stands for, references followed and alternatives side by side."""
    if "$ref" in place:
        place = schema["$defs"][place["$ref"].rpartition("/")[2]]
    inner = [*place.get("anyOf", ()), *place.get("oneOf", ()), *place.get("allOf", ())]
    return [place, *(branch for alternative in inner for branch in _branches(alternative, schema))]


def _step(branches: list[Mapping[str, Any]], part: str | int) -> list[Mapping[str, Any]]:
    """Return the schema nodes one key or list index deeper."""
    if isinstance(part, int):
        ordered = [
            branch["prefixItems"][part] for branch in branches if part < len(branch.get("prefixItems", ()))
        ]
        return ordered or [branch["items"] for branch in branches if isinstance(branch.get("items"), Mapping)]
    named = [branch["properties"][part] for branch in branches if part in branch.get("properties", ())]
    return named or [
        b["additionalProperties"] for b in branches if isinstance(b.get("additionalProperties"), Mapping)
    ]
