"""What does a YAML text say, and on which line? A small, strict YAML in which nothing has two meanings.

Scalars follow the core schema of YAML 1.2, narrowed to what JSON can say: `no` is a text and not
false, `010` and `1_000` are texts and not numbers, `1e-3` is a number. Refused outright: duplicate
keys, anchors, aliases, tags, merge keys, several documents, keys that are no text, control
characters, text that is not UTF-8, more than 1 MiB, more than 32 levels.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, cast

import yaml
from yaml.composer import ComposerError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from yaml.reader import Reader

from .errors import Fault, SpecError, quoted, shortened

Key = tuple[str | int, ...]

MOST_BYTES = 1 << 20
MOST_LEVELS = 32
MOST_FAULTS = 100
# Whole numbers beyond this are not the same in every JSON reader. Source: RFC 8785, 3.2.2.3.
MOST_WHOLE = 2**53 - 1

_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), None),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")


class Finding(NamedTuple):
    """A fault on its way to a message: sorted by line, then by key."""

    line: int
    key: Key
    code: str
    what: str
    hint: str = ""

    def fault(self, file: str) -> Fault:
        """Return the fault as `file:line: key: what`."""
        key = ".".join(map(shortened, self.key))
        return Fault(self.code, f"{key}: {self.what}" if key else self.what, f"{file}:{self.line}", self.hint)


@dataclass(frozen=True)
class Text:
    """What a text says: plain values, and the line of each key and list item."""

    value: Any
    lines: Mapping[Key, int]

    def line_of(self, key: Key) -> int:
        """Return the line of a key, or of the nearest key around it."""
        while key not in self.lines:
            key = key[:-1]
        return self.lines[key]


def spec_error(file: str, findings: Iterable[Finding]) -> SpecError:
    """Return one error with all findings, each once, in the order of their lines."""
    found = sorted(
        set(findings), key=lambda finding: (finding.line, [str(part) for part in finding.key], finding[2:])
    )
    faults = [finding.fault(file) for finding in found[:MOST_FAULTS]]
    if len(found) > MOST_FAULTS:
        faults.append(Fault("E_MORE", f"and {len(found) - MOST_FAULTS} faults more", file))
    return SpecError(*faults)


def read_bytes(file: Path) -> bytes:
    """Return the bytes of a file that may be text of ours.

    Raises:
        SpecError: it cannot be opened or is too large; no more than 1 MiB is read.
    """
    try:
        with file.open("rb") as stream:
            data = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise SpecError(Fault("E_FILE", f"cannot be read: {error.strerror}", str(file))) from error
    return data


def parse(data: bytes, file: str) -> Text:
    """Return what the bytes of `file` say.

    Raises:
        SpecError: with every fault that the text has as YAML.
    """
    loader = _Loader(_decode(data, file))
    try:
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise spec_error(file, [*loader.findings, _syntax(error)]) from error
    except (ValueError, OverflowError) as error:
        # PyYAML lets these pass where an escape or a version is no number that Python can hold.
        what = f"is no YAML: {error}"
        raise spec_error(
            file, [*loader.findings, Finding(loader.line + 1, (), "E_YAML_SYNTAX", what)]
        ) from error
    reader = _Values(loader.findings)
    value = reader.value(root, ()) if root is not None else None
    if reader.findings:
        raise spec_error(file, reader.findings)
    return Text(value, {(): 1, **reader.lines})


def _decode(data: bytes, file: str) -> str:
    if len(data) > MOST_BYTES:
        hint = "a spec holds names of files and numbers, not their contents"
        raise SpecError(Fault("E_YAML_SIZE", f"is larger than {MOST_BYTES} bytes", file, hint))
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise SpecError(
            Fault("E_YAML_UTF8", "is not UTF-8", f"{file}:{line}", "save the file as UTF-8")
        ) from error
    found = [
        _control(text.count("\n", 0, at.start()) + 1, (), at[0])
        for at in islice(_controls(text), MOST_FAULTS)
    ]
    if found:
        raise spec_error(file, found)
    return text


def _controls(text: str) -> Iterable[re.Match[str]]:
    return Reader.NON_PRINTABLE.finditer(text)


def _control(line: int, key: Key, character: str) -> Finding:
    return Finding(line, key, "E_YAML_CHARACTER", f"control character U+{ord(character):04X}", "remove it")


def _syntax(error: yaml.YAMLError) -> Finding:
    """Return PyYAML's own finding in our words."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error)
    line = mark.line + 1 if mark else 1
    if isinstance(error, _TooDeep):
        return Finding(
            line, (), "E_YAML_DEPTH", f"more than {MOST_LEVELS} levels", "a spec needs fewer than ten"
        )
    if isinstance(error, ComposerError):
        return Finding(line, (), "E_YAML_DOCUMENTS", "a second document starts here", "write one file a spec")
    return Finding(line, (), "E_YAML_SYNTAX", f"is no YAML: {problem}")


class _TooDeep(yaml.MarkedYAMLError):
    """Raised before recursion goes too far."""


class _Loader(yaml.SafeLoader):
    """Composes nodes and notes what strict YAML has no use for; it constructs nothing."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.findings: list[Finding] = []
        self._level = 0

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self.get_event()
            self._refuse(line, "E_YAML_ALIAS", f"alias `*{event.anchor}`", "write the value out")
            return ScalarNode("", "", cast(Any, event.start_mark), cast(Any, event.end_mark))
        if event.anchor is not None:
            self._refuse(
                line, "E_YAML_ANCHOR", f"anchor `&{event.anchor}`", "write the value out where it is used"
            )
            event.anchor = None
        if event.tag is not None:
            self._refuse(line, "E_YAML_TAG", f"tag {quoted(event.tag)}", "put quotes around a text")
            event.tag = None
        return self._nested(parent, index, event.start_mark)

    def _nested(self, parent: Node | None, index: Any, mark: yaml.Mark) -> Node | None:
        if self._level == MOST_LEVELS:
            raise _TooDeep(problem_mark=mark)
        self._level += 1
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def _refuse(self, line: int, code: str, what: str, hint: str) -> None:
        self.findings.append(Finding(line, (), code, f"{what} is not allowed", hint))


class _Values:
    """Turns nodes into plain values; keeps the line of each key, and what it had to refuse."""

    def __init__(self, findings: list[Finding]) -> None:
        self.findings = findings
        self.lines: dict[Key, int] = {}

    def value(self, node: Node, key: Key) -> Any:
        """Return the plain value of a node that stands at `key`."""
        self.lines.setdefault(key, node.start_mark.line + 1)
        if isinstance(node, MappingNode):
            return self._mapping(node, key)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*key, index)) for index, item in enumerate(node.value)]
        return self._scalar(cast(ScalarNode, node), key)

    def _mapping(self, node: MappingNode, key: Key) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for name_node, value_node in node.value:
            name = self._name(name_node, key)
            if name is None:
                continue
            inner, line = (*key, name), name_node.start_mark.line + 1
            if name in values:
                what = f"key {quoted(name)} is already on line {self.lines[inner]}"
                self._find(line, inner, "E_YAML_DUPLICATE_KEY", what, "keep one of the two")
                continue
            self.lines[inner] = line
            values[name] = self.value(value_node, inner)
        return values

    def _name(self, node: Node, key: Key) -> str | None:
        """Return a mapping's key, or nothing when it is none that a spec can have."""
        line = node.start_mark.line + 1
        if not isinstance(node, ScalarNode):
            self._find(line, key, "E_YAML_KEY", "a key is no text", "put the text in quotes")
            return None
        if node.style is None and node.value == "<<":
            self._find(line, key, "E_YAML_MERGE", "merge key `<<` is not allowed", "write the keys out")
            return None
        name = self._scalar(node, key)
        if not isinstance(name, str):
            self._find(line, key, "E_YAML_KEY", f"key {quoted(node.value)} is no text", "put it in quotes")
            return None
        return name

    def _scalar(self, node: ScalarNode, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.findings.extend(_control(line, key, at[0]) for at in _controls(node.value))
        if node.style is not None:
            return node.value
        value = plain(node.value)
        if value is TOO_LARGE:
            what = f"number {quoted(node.value)} is too large"
            self._find(line, key, "E_YAML_NUMBER", what, f"whole numbers end at {MOST_WHOLE}")
        return value

    def _find(self, line: int, key: Key, code: str, what: str, hint: str) -> None:
        self.findings.append(Finding(line, key, code, what, hint))


TOO_LARGE = object()


def plain(text: str) -> Any:
    """Return what a scalar without quotes means: nothing, true, false, a number or the text itself.

    A number that not every reader can hold gives `TOO_LARGE`.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _WHOLE.fullmatch(text):
        whole = int(text) if len(text) < 20 else MOST_WHOLE + 1
        return whole if abs(whole) <= MOST_WHOLE else TOO_LARGE
    if _NUMBER.fullmatch(text):
        return float(text) if isfinite(float(text)) else TOO_LARGE
    return text


class _Dumper(yaml.SafeDumper):
    """Writes texts in quotes wherever this YAML or another would take them for something else."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> ScalarNode:
    style = None if isinstance(plain(text), str) else "'"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def dump(value: Any) -> str:
    """Return the YAML text of plain values; keys stay in their order, and `parse` gives them back."""
    return yaml.dump(value, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=110)


def scalar(text: str) -> str:
    """Return one text as a YAML scalar on one line, fit for block and flow collections alike."""
    style = '"' if text and text.splitlines() != [text] else None
    flow = yaml.dump(
        [text],
        Dumper=_Dumper,
        allow_unicode=True,
        default_style=style,
        default_flow_style=True,
        width=1 << 20,
    )
    return flow.strip()[1:-1]
