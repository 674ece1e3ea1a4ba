"""Every folder of modules and every tracked data file reaches the wheel (an editable install hides gaps)."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PARTS = ("compiler", "passes", "runtime", "specs")


def tracked() -> list[str]:
    listing = subprocess.run(
        ["git", "ls-files", *PARTS], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [path for path in listing.stdout.splitlines() if (ROOT / path).exists()]


def test_packages_match_tree() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(("retouch", *Path(path).parent.parts)) for path in tracked() if path.endswith(".py")}
    assert set(table["packages"]) == found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel of the tracked files, built without touching the checkout."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for path in [*tracked(), "pyproject.toml", "README.md", "LICENSE", "NOTICE"]:
        copy = source / path
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / path).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob("*.whl")))


def test_wheel_holds_every_tracked_file(wheel: zipfile.ZipFile) -> None:
    held = {name for name in wheel.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert held == {f"retouch/{path}" for path in tracked()}


def test_wheel_files_are_byte_equal(wheel: zipfile.ZipFile) -> None:
    assert all(wheel.read(f"retouch/{path}") == (ROOT / path).read_bytes() for path in tracked())
