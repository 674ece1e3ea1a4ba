"""No change to an artefact goes unseen, and each is named."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runtime_artefact import make_artefact, seal

from retouch.runtime.artefact import Artefact, open_artefact, verify
from retouch.runtime.sessions import open_session
from retouch.specs.canonical import canonical, digest_file, digest_of, sealed
from retouch.specs.errors import InputError, IntegrityError, UndecidedError


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("made") / "artefact")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "artefact"))


def faults_of(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(IntegrityError) as caught:
        verify(folder)
    assert caught.value.exit_code == 3
    return [(fault.code, fault.where) for fault in caught.value.faults]


def reseal(folder: Path, change: Callable[[dict], None]) -> None:
    """Change the manifest and make its own digest right again, as a careful forger would."""
    value = json.loads((folder / "manifest.json").read_bytes())
    change(value)
    value["digest"] = digest_of({key: item for key, item in value.items() if key != "digest"})
    (folder / "manifest.json").write_bytes(canonical(value) + b"\n")


def test_a_whole_artefact_is_intact(original: Path) -> None:
    verified = verify(original)
    assert verified.statement == "intact, not signed"
    assert (
        verified.size
        == sum(f.stat().st_size for f in original.rglob("*") if f.is_file())
        - (original / "manifest.json").stat().st_size
    )
    assert verified.table is not None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_seen_and_its_file_named(original: Path, data: st.DataObject) -> None:
    files = sorted(str(file.relative_to(original)) for file in original.rglob("*") if file.is_file())
    name = data.draw(st.sampled_from(files))
    file = original / name
    content = file.read_bytes()
    position = data.draw(st.integers(0, 8 * len(content) - 1))
    flipped = bytearray(content)
    flipped[position // 8] ^= 1 << position % 8
    file.write_bytes(flipped)
    try:
        assert [where for _, where in faults_of(original)] == [name]
    finally:
        file.write_bytes(content)


def test_each_region_of_the_manifest_counts(original: Path) -> None:
    file = original / "manifest.json"
    content = file.read_bytes()
    for position in range(0, 8 * len(content), 53):  # a sample in which each bit of a byte comes up
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        file.write_bytes(flipped)
        try:
            assert [where for _, where in faults_of(original)] == ["manifest.json"]
        finally:
            file.write_bytes(content)


def test_all_faults_are_named_at_once(folder: Path) -> None:
    (folder / "unet/model.onnx_data").unlink()
    (folder / "unet/extra.bin").write_bytes(b"x")
    (folder / ".hidden").write_bytes(b"x")
    (folder / "sampling.json").write_bytes(b"{}")
    (folder / "empty").mkdir()
    (folder / "link").symlink_to(folder / "unet/config.json")
    (folder / "linked").symlink_to(folder / "unet")
    os.link(folder / "unet/config.json", folder / "unet/twin.json")
    os.mkfifo(folder / "pipe")
    assert faults_of(folder) == [
        ("E_EXTRA", ".hidden"),
        ("E_EMPTY_FOLDER", "empty"),
        ("E_SYMLINK", "link"),
        ("E_SYMLINK", "linked"),
        ("E_SPECIAL_FILE", "pipe"),
        ("E_CHANGED", "sampling.json"),
        ("E_HARD_LINK", "unet/config.json"),
        ("E_EXTRA", "unet/extra.bin"),
        ("E_MISSING", "unet/model.onnx_data"),
        ("E_HARD_LINK", "unet/twin.json"),
    ]


def test_names_that_fall_together_elsewhere_are_refused(folder: Path) -> None:
    (folder / "unet/CONFIG.json").write_bytes(b"{}\n")
    (folder / "unet/caf\u00e9").write_bytes(b"1")
    (folder / "unet/cafe\u0301").write_bytes(b"2")
    seal(folder)
    assert faults_of(folder) == [
        ("E_NAME_COLLISION", "unet/caf\u00e9"),
        ("E_NAME_COLLISION", "unet/config.json"),
    ]


def test_what_is_attached_after_the_build_is_allowed(folder: Path) -> None:
    (folder / "attestations/2026").mkdir(parents=True)
    energy = {"joules": 5, "manifest_sha256": digest_file(folder / "manifest.json")}
    (folder / "attestations/2026/energy.json").write_bytes(sealed(energy))
    (folder / "model.sig").write_text("{}")
    verify(folder)
    (folder / "attestations/link").symlink_to("2026")
    assert faults_of(folder) == [("E_SYMLINK", "attestations/link")]


def test_an_attestation_is_whole_and_speaks_of_this_manifest(folder: Path) -> None:
    (folder / "attestations").mkdir()
    text = sealed({"joules": 5, "manifest_sha256": digest_file(folder / "manifest.json")})
    attached = folder / "attestations/energy.json"
    for bit in range(8 * len(text)):
        flipped = bytearray(text)
        flipped[bit // 8] ^= 1 << bit % 8
        attached.write_bytes(flipped)
        assert faults_of(folder) == [("E_INVALID", "attestations/energy.json")]
    attached.write_bytes(sealed({"joules": 5, "manifest_sha256": "0" * 64}))
    assert faults_of(folder) == [("E_ATTESTATION", "attestations/energy.json")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "Expecting value"),
        (b"[]\n", "canonical form"),
        (b"\xff\xfe", "decode"),
        (b"[" * 100_000, "recursion|canonical"),
        (b'{"schema": NaN}\n', "canonical form|NaN|nan"),
        (b'{"a":1,"a":1}\n', "canonical form"),
        (b'{"a":1}\n', "its own digest"),
    ],
)
def test_a_broken_manifest_is_a_fault_not_a_crash(folder: Path, text: bytes, message: str) -> None:
    (folder / "manifest.json").write_bytes(text)
    with pytest.raises(IntegrityError, match=message) as caught:
        verify(folder)
    assert [fault.where for fault in caught.value.faults] == ["manifest.json"]


def test_a_missing_manifest_is_named(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    assert ("E_MISSING", "manifest.json") in faults_of(folder)


def test_a_forged_manifest_contradicts_itself(folder: Path) -> None:
    reseal(folder, lambda value: value.update(merkle_root="0" * 64))
    assert faults_of(folder) == [("E_MANIFEST", "manifest.json")]
    reseal(folder, lambda value: value["files"].reverse())
    assert ("E_MANIFEST", "manifest.json") in faults_of(folder)


def test_a_listed_path_outside_the_folder_is_never_opened(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"x")
    for path in ("../secret", str(folder.parent / "secret")):
        record = {"path": path, "size": 1, "sha256": "0" * 64}
        reseal(folder, lambda value, record=record: value["files"].insert(0, record))
        assert ("E_MISSING", path) in faults_of(folder)


def test_a_newer_intact_manifest_cannot_be_decided(folder: Path) -> None:
    reseal(folder, lambda value: value.update(schema=2, new_field="x"))
    with pytest.raises(UndecidedError, match="schema 2, this retouch reads up to 1") as caught:
        verify(folder)
    assert caught.value.exit_code == 4


def test_an_intact_manifest_of_the_wrong_shape_is_a_fault(folder: Path) -> None:
    reseal(folder, lambda value: value.update(surprise=1))
    with pytest.raises(IntegrityError, match="surprise: Extra inputs"):
        verify(folder)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ('{"schema": 3}', UndecidedError),
        ('{"schema": 2}', IntegrityError),
        ('{"schema": 1}', IntegrityError),
        ("[]", IntegrityError),
    ],
)
def test_a_sealed_but_unreadable_table_is_told(folder: Path, text: str, error: type[Exception]) -> None:
    (folder / "sampling.json").write_text(text)
    seal(folder)
    with pytest.raises(error, match=r"sampling\.json"):
        verify(folder)


def test_the_table_of_a_target_is_read_as_strictly(folder: Path) -> None:
    (folder / "half").mkdir()
    (folder / "half" / "sampling.json").write_text('{"schema": 3}')
    seal(folder)
    with pytest.raises(UndecidedError, match=r"half/sampling\.json"):
        _ = open_artefact(folder).within("half").table


def test_an_artefact_without_a_runnable_target_verifies_and_does_not_run(folder: Path) -> None:
    (folder / "sampling.json").unlink()
    seal(folder)
    artefact = open_artefact(folder)
    assert artefact.verified.table is None
    with pytest.raises(InputError, match=r"sampling\.json: the artefact has no such file"):
        _ = artefact.table


def test_no_folder_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder"):
        verify(tmp_path / "nowhere")


def change_content(file: Path) -> None:
    file.write_bytes(b"y" * file.stat().st_size)


def replace_by_link(file: Path) -> None:
    aside = file.with_name("aside")
    file.rename(aside)
    file.symlink_to(aside)


def load_denoiser(artefact: Artefact) -> None:
    inputs = ["sample", "timestep", "encoder_hidden_states"]
    open_session(artefact, "unet/model.onnx", inputs, ["out_sample"])


@pytest.mark.parametrize("change", [change_content, replace_by_link, Path.unlink])
@pytest.mark.parametrize("name", ["unet/model.onnx", "unet/model.onnx_data"])
def test_a_swap_between_verification_and_loading_is_seen(folder: Path, change, name: str) -> None:
    artefact = open_artefact(folder)
    load_denoiser(artefact)
    time.sleep(0.02)  # past the granularity of a file system's change time
    change(folder / name)
    with pytest.raises(IntegrityError, match=f"{name}: was changed while"):
        load_denoiser(artefact)
