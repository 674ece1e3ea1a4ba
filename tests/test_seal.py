"""An artefact appears whole under its name, or not at all."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retouch.compiler.seal import records, transaction
from retouch.specs.errors import SpecError


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_block_that_ends_well_is_renamed(tmp_path: Path) -> None:
    with transaction(tmp_path / "out", force=False) as folder:
        (folder / "manifest.json").write_text("{}")
        assert not (tmp_path / "out").exists()
    assert leftovers(tmp_path) == ["out"]


def test_a_block_that_raises_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), transaction(tmp_path / "out", force=False) as folder:
        (folder / "half").write_text("written")
        raise ZeroDivisionError
    assert leftovers(tmp_path) == []


def test_an_existing_artefact_needs_force(tmp_path: Path) -> None:
    for content in ("old", "new"):
        if content == "new":
            with pytest.raises(SpecError, match="exists"), transaction(tmp_path / "out", force=False):
                pytest.fail("the block must not run")
        with transaction(tmp_path / "out", force=True) as folder:
            (folder / "manifest.json").write_text(content)
    assert (tmp_path / "out" / "manifest.json").read_text() == "new"
    assert leftovers(tmp_path) == ["out"]


def test_force_never_replaces_what_is_no_artefact(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match="not an artefact"), transaction(tmp_path / "home", force=True):
        pytest.fail("the block must not run")
    assert leftovers(tmp_path / "home") == ["thesis.tex"]


KILLED = """
import sys, time
from pathlib import Path
from retouch.compiler.seal import transaction
with transaction(Path(sys.argv[1]), force=False) as folder:
    (folder / "manifest.json").write_text("{}")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_killed_process_leaves_no_folder_under_the_name(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.retouch-") for name in leftovers(tmp_path))


def test_records_list_everything_but_what_comes_after_the_seal(tmp_path: Path) -> None:
    for name in ("b.txt", "a/c.txt", "manifest.json", "model.sig", "attestations/build.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    assert [record.path for record in records(tmp_path)] == ["a/c.txt", "b.txt"]


def test_folders_made_for_an_output_that_failed_are_gone(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: '.*out'"),
        transaction(tmp_path / "a/b/out", force=False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not [*tmp_path.iterdir()]
    with transaction(tmp_path / "a/b/out", force=False) as folder:
        (folder / "manifest.json").write_text("{}")
    assert (tmp_path / "a/b/out/manifest.json").is_file()
