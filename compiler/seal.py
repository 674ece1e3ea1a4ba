"""Writing an artefact as one transaction: a sibling folder, synced, sealed, then renamed.

Whatever kills a build, no folder stands under the final name until it is whole.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

from ..specs.canonical import digest_file
from ..specs.errors import Fault, SpecError
from ..specs.manifest import FileRecord

UNLISTED = ("manifest.json", "model.sig")
ATTESTATIONS = "attestations"


@contextmanager
def transaction(target: Path, force: bool) -> Iterator[Path]:
    """Give a fresh folder beside `target`; rename it to `target` when the block ends well.

    A block that raises leaves nothing behind; a killed process may leave a folder called
    `.NAME.retouch-*`, never `target`.

    Raises:
        SpecError: `target` exists and `force` is not given, or its parent cannot be written.
    """
    _refuse(target, force)
    folder = target.parent / f".{target.name}.retouch-{secrets.token_hex(4)}"
    made = [parent for parent in target.parents if not parent.exists()]
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise SpecError(Fault("E_OUTPUT", f"cannot be made: {error.strerror}", str(target))) from error
    try:
        yield folder
        sync(folder)
        _replace(folder, target, force)
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        # A full disk does not say which file.
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # not empty: it holds the artefact
                parent.rmdir()


def records(folder: Path, known: Mapping[Path, tuple[str, int]] = MappingProxyType({})) -> list[FileRecord]:
    """Return one record for every file that a manifest lists, sorted by path.

    `known` are digests that were taken while files were written, with the files' times since then.
    """
    files = sorted(
        (file.relative_to(folder).as_posix(), file) for file in folder.rglob("*") if file.is_file()
    )
    return [
        FileRecord(path=path, size=file.stat().st_size, sha256=_digest(file, known))
        for path, file in files
        if path not in UNLISTED and not path.startswith(f"{ATTESTATIONS}/")
    ]


def _digest(file: Path, known: Mapping[Path, tuple[str, int]]) -> str:
    digest, time = known.get(file, ("", 0))
    return digest if digest and file.stat().st_mtime_ns == time else digest_file(file)


def sync(folder: Path) -> None:
    """Flush every file and folder to the disk, so that a rename cannot outlive its content."""
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _refuse(target: Path, force: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise SpecError(Fault("E_OUTPUT", "is not a folder", str(target), "choose another output"))
    if target.exists() and not force:
        raise SpecError(Fault("E_OUTPUT", "exists", str(target), "choose another output, or give --force"))
    if target.exists() and any(target.iterdir()) and not (target / "manifest.json").is_file():
        message = (
            "holds no manifest.json, so it is not an artefact and is not replaced, not even with --force"
        )
        raise SpecError(Fault("E_OUTPUT", message, str(target), "choose another output"))


def _replace(folder: Path, target: Path, force: bool) -> None:
    """Rename `folder` to `target`; with `force`, what stood there moves aside first."""
    if not target.exists():
        folder.rename(target)
        return
    _refuse(target, force)
    aside = folder.with_name(folder.name + ".old")
    target.rename(aside)
    folder.rename(target)
    shutil.rmtree(aside)
