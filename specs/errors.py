"""Every error that retouch raises on purpose, and the exit code that each one means.

    RetouchError                70  a bug of ours unless a subclass says otherwise
    ├── SpecError                2  the spec (or a command line) cannot be carried out as written
    ├── InputError               2  a model, adapter or judge file is not what the spec needs
    ├── IntegrityError           3  an artefact differs from what its manifest says
    ├── GateError                1  the build is whole, its evidence is not good enough
    └── UndecidedError           4  nothing is wrong, but the question cannot be answered here

A message says what was found, what was expected, where, and what to do next. Several faults found
together are raised together, as the lines of one error.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

LONGEST_QUOTE = 60  # characters


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, in words that a user can act on.

    `code` is stable (`E_UNKNOWN_KEY`); `where` is `file:line`, a file, a tensor or a key.
    """

    code: str
    message: str
    where: str = ""
    hint: str = ""

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{place}{self.message}{hint}"


class RetouchError(Exception):
    """Base of all errors raised on purpose; holds at least one fault."""

    exit_code = 70

    def __init__(self, *faults: Fault) -> None:
        super().__init__(*faults)
        self.faults = faults

    def __str__(self) -> str:
        return "\n".join(str(fault) for fault in self.faults)


class SpecError(RetouchError):
    """The spec or the command line cannot be carried out as written."""

    exit_code = 2


class InputError(RetouchError):
    """A model, adapter or judge file is not what the spec needs."""

    exit_code = 2


class IntegrityError(RetouchError):
    """An artefact differs from what its manifest says."""

    exit_code = 3


class GateError(RetouchError):
    """The artefact is whole, but its evidence does not meet the thresholds of the spec."""

    exit_code = 1


class UndecidedError(RetouchError):
    """The question cannot be answered here: something is missing, too new or too dear."""

    exit_code = 4


def quoted(text: object) -> str:
    """Return what somebody wrote as a message quotes it: its beginning, where it is long.

    >>> quoted("a cat"), len(quoted("a cat " * 1000))
    ('`a cat`', 62)
    """
    return f"`{shortened(text)}`"


def shortened(text: object) -> str:
    """Return a text, or its beginning where it is long."""
    shown = str(text)
    return shown if len(shown) <= LONGEST_QUOTE else shown[: LONGEST_QUOTE - 3] + "..."


def collected(checks: Iterable[Callable[[], object]]) -> list[Fault]:
    """Run checks that raise, and return the faults of all of them."""
    faults: list[Fault] = []
    for check in checks:
        try:
            check()
        except RetouchError as error:
            faults += error.faults
    return faults


def raise_all(kind: type[RetouchError], faults: Iterable[Fault]) -> None:
    """Raise one `kind` that holds all `faults`, or return when there are none."""
    found = tuple(faults)
    if found:
        raise kind(*found)
