"""edit.lock: the digest of every file that a spec reads, so that a build can refuse what has changed.

It knows no model: whoever opened the inputs hands in their roles, labels and paths. A label is the
path as the spec writes it, or relative to the source, so a lock means the same on every machine.
"""

from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from .canonical import digest_file
from .errors import Fault, InputError, SpecError, raise_all
from .manifest import InputRecord, Sha256
from .sampling import Document, Name
from .strict_yaml import dump, parse, read_bytes

SCHEMA = 1
HEADER = "# Written by retouch; `retouch build --locked` refuses inputs that differ from these.\n"


class Lock(Document):
    """The whole of edit.lock: the spec's own digest and one record an input, sorted by role and label."""

    schema_version: Annotated[Literal[1], Field(alias="schema")] = SCHEMA
    retouch: Name
    spec: Annotated[Sha256, Field(description="SHA-256 of the spec file")]
    inputs: list[InputRecord]

    model_config = ConfigDict(**{**Document.model_config, "populate_by_name": True})


def make_lock(
    spec: Path,
    inputs: Iterable[tuple[str, str, Path]],
    digest: Callable[[Path], str] = digest_file,
) -> Lock:
    """Return the lock of a spec and the (role, label, file) of each input; `digest` gives a file's SHA-256.

    Raises:
        InputError: naming every file that cannot be read, and every label that stands for two files.
    """
    faults, records = [], {}
    for role, label, file in sorted(set(inputs)):
        try:
            record = {"role": role, "path": label, "size": file.stat().st_size, "sha256": digest(file)}
        except OSError as error:
            faults.append(Fault("E_INPUT_FILE", f"{role} file cannot be read: {error.strerror}", label))
            continue
        if (role, label) in records:
            faults.append(Fault("E_LOCK_LABEL", f"two {role} files have this name in the lock", label))
        records[role, label] = InputRecord.model_validate(record)
    raise_all(InputError, faults)
    return Lock(retouch=version("retouch"), spec=digest_file(spec), inputs=list(records.values()))


def write_lock(lock: Lock, file: Path) -> None:
    """Write a lock; equal locks give equal bytes."""
    value: dict[str, Any] = lock.model_dump(mode="json", by_alias=True)
    file.write_text(HEADER + dump(value), encoding="utf-8", newline="\n")


def read_lock(file: Path) -> Lock:
    """Read a lock.

    Raises:
        SpecError: there is none, or it is not what `write_lock` writes.
    """
    if not file.is_file():
        hint = "`retouch build` without `--locked` writes one"
        raise SpecError(Fault("E_LOCK", "there is no lock beside the spec", str(file), hint))
    value = parse(read_bytes(file), str(file)).value
    try:
        return Lock.model_validate(value)
    except ValidationError as error:
        places = sorted({".".join(map(str, details["loc"])) or "the whole" for details in error.errors()})
        message = f"is no lock of this version: see {', '.join(places)}"
        raise SpecError(Fault("E_LOCK", message, str(file), "write it anew with `retouch build`")) from error


def check_lock(lock: Lock, now: Lock) -> None:
    """Refuse inputs that are not the ones of the lock.

    Raises:
        SpecError: naming everything that differs.
    """
    faults = []
    if lock.retouch != now.retouch:
        faults.append(_drift(f"locked with retouch {lock.retouch}, this is {now.retouch}", "retouch"))
    if lock.spec != now.spec:
        faults.append(_drift("the spec has changed", "spec"))
    then = {(record.role, record.path): record for record in lock.inputs}
    today = {(record.role, record.path): record for record in now.inputs}
    for role, label in sorted({*then, *today}):
        before, after = then.get((role, label)), today.get((role, label))
        if before != after:
            faults.append(_drift(_what_drifted(role, before, after), label))
    raise_all(SpecError, faults)


def _what_drifted(role: str, before: InputRecord | None, after: InputRecord | None) -> str:
    if before is None:
        return f"new {role} file, not in the lock"
    if after is None:
        return f"missing {role} file, it is in the lock"
    return f"changed {role} file: was {_identity(before)}, is {_identity(after)}"


def _identity(record: InputRecord) -> str:
    return f"{record.sha256[:12]} ({record.size} bytes)"


def _drift(message: str, where: str) -> Fault:
    return Fault("E_LOCK_DRIFT", message, where, "build without `--locked` to accept it and write a new lock")
