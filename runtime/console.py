"""What verbs print: results on stdout, progress and faults on stderr, nothing that steers a terminal.

Text that others wrote (prompts, names in a manifest) passes through `printable` on its way out.
"""

import json
import os
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import zip_longest
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

from ..specs.errors import Fault

# Control, format (bidirectional and zero-width marks among them), surrogate, private, unassigned.
UNSAFE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn"})
REPLACEMENT = "\ufffd"

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")


def printable(text: str) -> str:
    """Return a text without characters that steer a terminal or reorder a line; newlines stay.

    >>> printable("red \\x1b[31m alert")
    'red �[31m alert'
    """
    return "".join(c if c == "\n" or unicodedata.category(c) not in UNSAFE else REPLACEMENT for c in text)


def one_line(text: str) -> str:
    """Return a text as one printable line, its white space made single spaces.

    >>> one_line("  a\\ncat ")
    'a cat'
    """
    return printable(" ".join(text.split()))


def print_result(value: Mapping[str, Any], text: str, as_json: bool, faults: Iterable[Fault] = ()) -> None:
    """Print what a verb found: as an object with `ok` and `faults`, or as text.

    Faults are for a verb that has a result and fails all the same; others raise.
    """
    found = tuple(faults)
    if as_json:
        click.echo(_object(found, value))
        return
    click.echo(printable(text))
    print_faults(found, as_json=False)


def print_faults(faults: Iterable[Fault], as_json: bool) -> None:
    """Print what went wrong: lines on stderr, or an object on stdout."""
    found = tuple(faults)
    if as_json:
        click.echo(_object(found, {}))
        return
    for fault, following in zip_longest(found, found[1:]):
        place = f"{fault.where}: " if fault.where else ""
        click.echo(printable(f"error: {place}{fault.message}"), err=True)
        # What helps against several is said once, after the last of them.
        if fault.hint and (following is None or following.hint != fault.hint):
            click.echo(printable(f"hint: {fault.hint}"), err=True)


def warn(message: str) -> None:
    """Print a warning on stderr."""
    click.echo(printable(f"warning: {message}"), err=True)


class Bars:
    """Progress bars on stderr; `task` opens one and returns what advances it."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def task(self, label: str, total: int) -> Callable[[int], None]:
        number = self._progress.add_task(one_line(label), total=total)
        return lambda amount: self._progress.advance(number, amount)


@contextmanager
def reporter(quiet: bool = False) -> Iterator[Bars]:
    """Show progress while the block runs; nothing where nobody watches (a pipe, CI, `--json`)."""
    console = Console(stderr=True)
    hidden = quiet or not console.is_terminal or os.environ.get("CI", "") not in ("", "0", "false")
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=hidden) as progress:
        yield Bars(progress)


def _object(faults: tuple[Fault, ...], value: Mapping[str, Any]) -> str:
    listed = [
        {"code": fault.code, "message": fault.message, "where": fault.where, "hint": fault.hint}
        for fault in faults
    ]
    return json.dumps({"ok": not faults, **value, **({"faults": listed} if faults else {})}, indent=2)
