"""The lock: same inputs, same bytes; every kind of drift is named."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from retouch.specs.errors import InputError, SpecError
from retouch.specs.lock import Lock, check_lock, make_lock, read_lock, write_lock


@dataclass(frozen=True)
class Project:
    """A spec and two inputs on disk."""

    spec: Path
    model: Path
    adapter: Path

    def lock(self) -> Lock:
        return make_lock(
            self.spec,
            [("source", "unet/model.safetensors", self.model), ("adapter", "style.bin", self.adapter)],
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path / "edit.yaml", tmp_path / "model", tmp_path / "adapter")
    for file in (project.spec, project.model, project.adapter):
        file.write_text(file.name)
    return project


def drift(before: Lock, after: Lock) -> list[str]:
    with pytest.raises(SpecError) as raised:
        check_lock(before, after)
    assert {fault.code for fault in raised.value.faults} == {"E_LOCK_DRIFT"}
    return [f"{fault.where}: {fault.message}" for fault in raised.value.faults]


def test_records_are_sorted_and_measured(project: Project) -> None:
    lock = project.lock()
    assert [(record.role, record.path) for record in lock.inputs] == [
        ("adapter", "style.bin"),
        ("source", "unet/model.safetensors"),
    ]
    assert lock.inputs[0].size == len("adapter")
    assert lock.inputs[0].sha256 == hashlib.sha256(b"adapter").hexdigest()
    assert lock.spec == hashlib.sha256(b"edit.yaml").hexdigest()


def test_written_and_read_back(project: Project, tmp_path: Path) -> None:
    lock, file, again = project.lock(), tmp_path / "edit.lock", tmp_path / "again.lock"
    write_lock(lock, file)
    assert read_lock(file) == lock
    write_lock(read_lock(file), again)
    assert again.read_bytes() == file.read_bytes()
    check_lock(read_lock(file), lock)


def test_changed_file(project: Project) -> None:
    before = project.lock()
    project.model.write_text("other")
    was, now = (hashlib.sha256(text).hexdigest()[:12] for text in (b"model", b"other"))
    assert drift(before, project.lock()) == [
        f"unet/model.safetensors: changed source file: was {was} (5 bytes), is {now} (5 bytes)"
    ]


def test_new_and_missing_files(project: Project) -> None:
    one = make_lock(project.spec, [("source", "a", project.model)])
    two = make_lock(project.spec, [("adapter", "b", project.adapter)])
    assert drift(one, two) == [
        "b: new adapter file, not in the lock",
        "a: missing source file, it is in the lock",
    ]


def test_changed_spec_and_version(project: Project) -> None:
    before = project.lock().model_copy(update={"retouch": "0.0.1"})
    project.spec.write_text("other")
    now = project.lock()
    assert drift(before, now) == [
        f"retouch: locked with retouch 0.0.1, this is {now.retouch}",
        "spec: the spec has changed",
    ]


def test_unreadable_inputs_are_all_named(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError) as raised:
        make_lock(project.spec, [("source", "a", tmp_path / "absent"), ("judge", "b", tmp_path)])
    assert str(raised.value).splitlines() == [
        "b: judge file cannot be read: Is a directory",
        "a: source file cannot be read: No such file or directory",
    ]


def test_a_label_stands_for_one_file(project: Project) -> None:
    twice = [("adapter", "same", project.model), ("adapter", "same", project.adapter)]
    with pytest.raises(InputError, match="same: two adapter files have this name in the lock"):
        make_lock(project.spec, twice)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("schema: 1\n", "is no lock of this version: see inputs, retouch, spec"),
        ("schema: 1\nretouch: 0.1.0\nspec: abc\ninputs: []\n", "is no lock of this version: see spec"),
        ("[]", "is no lock of this version: see the whole"),
        ("a: 1\na: 2\n", "key `a` is already on line 1"),
    ],
)
def test_what_is_no_lock(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "edit.lock"
    file.write_text(text)
    with pytest.raises(SpecError, match=message):
        read_lock(file)


def test_an_absent_lock(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no lock"):
        read_lock(tmp_path / "edit.lock")
