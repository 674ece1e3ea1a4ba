"""Is this folder the artefact that its manifest describes? Every byte is hashed before it is used.

    verify(folder)         the exact set of files, each one's size and SHA-256, the manifest's own digest,
                           and that of every document attached to it later
    open_artefact(folder)  the same, and then reads through the manifest

Without a signature this proves that the folder is whole, not who made it: `intact, not signed`.
"""

import hashlib
import io
import json
import os
import stat
import unicodedata
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from ..specs.canonical import digest_file, intact, merkle_root
from ..specs.errors import Fault, InputError, IntegrityError, UndecidedError, raise_all
from ..specs.manifest import SCHEMA, FileRecord, Manifest
from ..specs.probes import SCHEMA as PROBES_SCHEMA
from ..specs.probes import ProbeReport
from ..specs.sampling import SCHEMA as SAMPLING_SCHEMA
from ..specs.sampling import SamplingTable

MANIFEST = "manifest.json"
SAMPLING = "sampling.json"
# Added after the manifest was sealed, so it cannot list them. A JSON document there is sealed by a
# digest of its own and names the manifest that it speaks of.
ATTACHED_FOLDER, ATTACHED_FILES = "attestations", ("model.sig",)
PROBES = "probes-*.json"  # reports of `retouch probe` among what was attached
LARGEST_DOCUMENT = 64 << 20  # bytes of a manifest or a table; a larger one is an attack, not a document
READERS = 4  # files hashed at a time; hashing is faster than most disks from there on

# Device, inode, size and both times of a file: equal means nobody replaced or wrote it.
Identity = tuple[int, int, int, int, int]


@dataclass(frozen=True)
class Verified:
    """An intact artefact; `table` is None where no runnable target was built."""

    folder: Path
    manifest: Manifest
    table: SamplingTable | None
    identities: Mapping[str, Identity]

    @property
    def statement(self) -> str:
        """What verification showed, in words."""
        return "intact, not signed"

    @property
    def size(self) -> int:
        """Bytes of all listed files."""
        return sum(record.size for record in self.manifest.files)


class Artefact:
    """Reads the files of a verified artefact, and only bytes that have the listed SHA-256.

    ONNX keeps weights in a file of their own, which onnxruntime opens by path. For those the window
    between hashing and loading is closed from both ends by `check_unchanged`, before and after the
    load: a replaced or rewritten file has another inode or change time. What remains is a writer
    who can set change times, or who writes to a file while a session has it mapped.
    """

    def __init__(self, verified: Verified, target: str = "") -> None:
        self.verified = verified
        self.folder, self.manifest = verified.folder / target, verified.manifest
        self.target, self._prefix = target, f"{target}/" if target else ""
        self._records = {
            record.path.removeprefix(self._prefix): record
            for record in verified.manifest.files
            if record.path.startswith(self._prefix)
        }

    @property
    def targets(self) -> tuple[str, ...]:
        """The folders that are pipelines by themselves, sorted; the artefact itself is the empty one."""
        tables = [path for path in sorted(self._records) if PurePosixPath(path).name == SAMPLING]
        return tuple(path.removesuffix(SAMPLING).rstrip("/") for path in tables)

    def within(self, target: str) -> "Artefact":
        """Return the pipeline that a target's folder is by itself; paths are relative to that folder."""
        return Artefact(self.verified, target)

    @cached_property
    def table(self) -> SamplingTable:
        """The sampling table. Raises InputError where there is none, as `verify` where it is invalid."""
        if self._prefix:
            return _parse_table(self.read(SAMPLING), self._prefix + SAMPLING)
        if self.verified.table is None:
            raise InputError(_not_runnable(SAMPLING))
        return self.verified.table

    def __contains__(self, path: str) -> bool:
        return path in self._records

    def read(self, path: str) -> bytes:
        """Return the bytes of a listed file, hashed again as they were read.

        Raises:
            InputError: the manifest lists no such file.
            IntegrityError: the file changed since it was verified.
        """
        if path not in self._records:
            raise InputError(_not_runnable(self._prefix + path))
        try:
            with _open_regular(self.verified.folder, self._prefix + path) as stream:
                content = stream.read()
        except OSError as error:
            raise IntegrityError(self._changed(path)) from error
        if hashlib.sha256(content).hexdigest() != self._records[path].sha256:
            raise IntegrityError(self._changed(path))
        return content

    def check_unchanged(self, folder: str) -> None:
        """Raise IntegrityError when a listed file directly in `folder` is not the one that was hashed."""
        changed = (self._changed(path) for path in self.inside(folder) if not self._is_same(path))
        raise_all(IntegrityError, changed)

    def inside(self, folder: str) -> list[str]:
        """Return the paths of the listed files directly in `folder`, sorted."""
        return [path for path in sorted(self._records) if str(PurePosixPath(path).parent) == folder]

    def _changed(self, path: str) -> Fault:
        return _changed_since(self._prefix + path)

    def _is_same(self, path: str) -> bool:
        try:
            identity = self.verified.identities[self._prefix + path]
            return _identity((self.folder / path).lstat()) == identity
        except OSError:
            return False


def open_artefact(folder: Path) -> Artefact:
    """Verify an artefact and open it for reading. Raises what `verify` raises."""
    return Artefact(verify(folder))


def verify(folder: Path) -> Verified:
    """Hash every file of an artefact and compare the folder with its manifest, exactly.

    Raises:
        InputError: `folder` is not a folder.
        IntegrityError: anything differs; holds every fault, each with the file's path.
        UndecidedError: the manifest is intact, but of a version that this retouch cannot read.
    """
    if not folder.is_dir():
        raise InputError(Fault("E_NO_FOLDER", "not a folder", str(folder)))
    present, faults = _survey(folder)
    manifest = _read_manifest(folder, present, faults)
    faults += _compare_sets(manifest.files, present, {fault.where for fault in faults})
    faults += _check_attestations(folder, present)
    listed = [record for record in manifest.files if record.path in present]
    with ThreadPoolExecutor(READERS) as pool:
        checked = list(pool.map(lambda record: _check_file(folder, record), listed))
    faults += [outcome for outcome in checked if isinstance(outcome, Fault)]
    raise_all(IntegrityError, sorted(faults, key=lambda fault: (fault.where, fault.code)))
    identities = {r.path: i for r, i in zip(listed, checked, strict=True) if not isinstance(i, Fault)}
    table = _read_table(folder) if SAMPLING in present else None
    return Verified(folder, manifest, table, identities)


def probe_reports(folder: Path) -> dict[str, ProbeReport]:
    """Return the probe reports attached to a verified artefact, by path, checked again as they are read.

    Raises:
        IntegrityError: a document of that name is no such report, or changed; all of them.
        UndecidedError: one is of a version that this retouch cannot read.
    """
    found, faults = {}, []
    for file in sorted((folder / ATTACHED_FOLDER).glob(PROBES)):
        path = f"{ATTACHED_FOLDER}/{file.name}"
        try:
            value = intact(_read_document(folder, path))
            _refuse_unknown(path, value, PROBES_SCHEMA)
            report = {key: entry for key, entry in value.items() if key != "digest"}
            found[path] = ProbeReport.model_validate_json(json.dumps(report))
        except (ValueError, RecursionError) as error:
            faults.append(_invalid(path, error))
    raise_all(IntegrityError, faults)
    return found


def _survey(folder: Path) -> tuple[list[str], list[Fault]]:
    """Return the regular files below `folder`, sorted, and what else lies there."""
    present: list[str] = []
    faults: list[Fault] = []
    for path, entry in _walk(folder, ""):
        fault = _strange(path, entry)
        if fault:
            faults.append(fault)
        elif not entry.is_dir(follow_symlinks=False):
            present.append(path)
    return sorted(present), [*faults, *_collisions(present)]


def _walk(folder: Path, prefix: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder / prefix) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = prefix + entry.name
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(folder, path + "/")


def _strange(path: str, entry: os.DirEntry[str]) -> Fault | None:
    status = os.lstat(entry.path)
    if stat.S_ISLNK(status.st_mode):
        return Fault("E_SYMLINK", "a symbolic link", path, "an artefact holds regular files only")
    if stat.S_ISDIR(status.st_mode):
        holds_any = os.listdir(entry.path)  # noqa: PTH208 # names only, the fastest way to ask
        return None if holds_any else Fault("E_EMPTY_FOLDER", "an empty folder that no build writes", path)
    if not stat.S_ISREG(status.st_mode):
        return Fault("E_SPECIAL_FILE", "neither a file nor a folder", path)
    if status.st_nlink > 1:
        return Fault(
            "E_HARD_LINK", "has more than one name (hard link)", path, "copy the folder without links"
        )
    return None


def _collisions(paths: list[str]) -> list[Fault]:
    """Names that fall together on a file system which ignores case or normalizes Unicode."""
    seen: dict[str, str] = {}
    faults = []
    for path in sorted(paths):
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())
        if key in seen:
            faults.append(Fault("E_NAME_COLLISION", f"is the same name as {seen[key]} on some systems", path))
        seen.setdefault(key, path)
    return faults


def _read_manifest(folder: Path, present: list[str], faults: list[Fault]) -> Manifest:
    """Return the manifest, or raise its fault together with those found before."""
    if MANIFEST not in present:
        missing = Fault(
            "E_MISSING", "missing", MANIFEST, "is this folder an artefact that `retouch build` wrote?"
        )
        raise IntegrityError(*faults, missing)
    try:
        value = intact(_read_document(folder, MANIFEST))
        _refuse_unknown(MANIFEST, value, SCHEMA)
        manifest = Manifest.model_validate_json(json.dumps(value))
    except (ValueError, RecursionError) as error:
        raise IntegrityError(*faults, _invalid(MANIFEST, error)) from error
    faults += _inner_faults(manifest)
    return manifest


def _inner_faults(manifest: Manifest) -> list[Fault]:
    paths = [record.path for record in manifest.files]
    faults = []
    if paths != sorted(set(paths)):
        faults.append(Fault("E_MANIFEST", "lists files twice or out of order", MANIFEST))
    root = merkle_root(sorted((record.path, record.sha256) for record in manifest.files))
    if root != manifest.merkle_root:
        faults.append(Fault("E_MANIFEST", f"Merkle root {root}, expected {manifest.merkle_root}", MANIFEST))
    return faults


def _compare_sets(files: list[FileRecord], present: list[str], named: set[str]) -> list[Fault]:
    """Return what is missing or extra, apart from the paths that a fault already `named`."""
    listed = {record.path for record in files}
    missing = [Fault("E_MISSING", "missing", path) for path in sorted(listed - {*present, *named})]
    extra = [path for path in present if path not in listed and not _may_be_attached(path)]
    return [*missing, *(Fault("E_EXTRA", "not listed in the manifest", path) for path in extra)]


def _may_be_attached(path: str) -> bool:
    return path == MANIFEST or path in ATTACHED_FILES or path.startswith(ATTACHED_FOLDER + "/")


def _check_attestations(folder: Path, present: list[str]) -> list[Fault]:
    """Check the documents that were added after the seal: each is whole, and speaks of this manifest."""
    faults = []
    for path in present:
        if path.startswith(ATTACHED_FOLDER + "/") and path.endswith(".json"):
            try:
                about = intact(_read_document(folder, path)).get("manifest_sha256")
            except (ValueError, RecursionError) as error:
                faults.append(_invalid(path, error))
                continue
            if about != digest_file(folder / MANIFEST):
                faults.append(Fault("E_ATTESTATION", "speaks of another manifest than the one here", path))
    return faults


def _check_file(folder: Path, record: FileRecord) -> Identity | Fault:
    """Hash one listed file; its identity is that of the very file that was hashed."""
    try:
        with _open_regular(folder, record.path) as stream:
            status = os.fstat(stream.fileno())
            if status.st_size != record.size:
                message = f"{status.st_size} bytes, expected {record.size}"
                return Fault("E_CHANGED", message, record.path)
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        return Fault("E_UNREADABLE", f"cannot be read: {error.strerror}", record.path)
    if digest != record.sha256:
        return Fault("E_CHANGED", f"SHA-256 is {digest}, expected {record.sha256}", record.path)
    return _identity(status)


def _read_table(folder: Path) -> SamplingTable:
    try:
        text = _read_document(folder, SAMPLING)
    except ValueError as error:
        raise IntegrityError(_invalid(SAMPLING, error)) from error
    return _parse_table(text, SAMPLING)


def _parse_table(text: bytes, path: str) -> SamplingTable:
    try:
        _refuse_unknown(path, json.loads(text), SAMPLING_SCHEMA)
        return SamplingTable.model_validate_json(text)
    except (ValueError, RecursionError) as error:
        raise IntegrityError(_invalid(path, error)) from error


def _refuse_unknown(path: str, value: Any, newest: int) -> None:
    """Raise UndecidedError for a document that is intact but newer than this program."""
    found = value.get("schema") if isinstance(value, dict) else None
    if isinstance(found, int) and found > newest:
        message = f"schema {found}, this retouch reads up to {newest}"
        raise UndecidedError(
            Fault("E_SCHEMA_VERSION", message, path, "use the retouch that built it, or a newer one")
        )


def _read_document(folder: Path, path: str) -> bytes:
    try:
        with _open_regular(folder, path) as stream:
            text = stream.read(LARGEST_DOCUMENT + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if len(text) > LARGEST_DOCUMENT:
        raise ValueError(f"larger than {LARGEST_DOCUMENT} bytes")
    return text


def _open_regular(folder: Path, path: str) -> io.BufferedReader:
    """Open a file that is regular and has one name; a link raises OSError."""
    flags = (
        os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    )
    stream = os.fdopen(os.open(folder / path, flags), "rb")
    status = os.fstat(stream.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        stream.close()
        raise OSError(0, "not a regular file with one name")
    return stream


def _identity(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _invalid(path: str, error: Exception) -> Fault:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return Fault("E_INVALID", f"{'.'.join(map(str, first['loc']))}: {first['msg']}", path)
    return Fault("E_INVALID", str(error), path)


def _changed_since(path: str) -> Fault:
    return Fault("E_CHANGED", "was changed while the artefact was in use", path, "verify the folder again")


def _not_runnable(path: str) -> Fault:
    hint = "only an artefact with an `onnx` target can be run"
    return Fault("E_NOT_RUNNABLE", "the artefact has no such file", path, hint)
