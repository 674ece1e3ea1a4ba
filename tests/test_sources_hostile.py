"""Broken and hostile sources: one typed error each, nothing written, no code run, no traceback."""

import json
import pickle
import re
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emitting import emit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny import make_tiny

from retouch.compiler.emit.single_file import FILE, SingleFile
from retouch.compiler.headers import PICKLE_SUFFIXES
from retouch.compiler.load import load_pipeline, open_source
from retouch.specs.errors import InputError, RetouchError, SpecError
from retouch.specs.fields import InputFile
from retouch.specs.schema import Source


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("hostile") / "model")


@pytest.fixture(scope="session")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hostile-file")
    emit(SingleFile(), load_pipeline(folder, "ddim", 5), root / "out", root / "cache")
    return root / "out" / FILE


def open_file(file: Path, config: Path | None = None) -> Any:
    given: Any = {} if config is None else {"config": InputFile(str(config), config)}
    return open_source(Source(str(file), **given), file.parent, "ddim", 5)


class Bomb:
    """Raises an alarm when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("import sys; sys.modules['retouch_bomb'] = sys",)


def pickled(place: Path, protocol: int) -> Path:
    place.write_bytes(pickle.dumps(Bomb(), protocol=protocol))
    return place


def archived(place: Path) -> Path:
    """Write what torch.save writes: a ZIP archive with a pickle in it."""
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    return place


@pytest.mark.parametrize("suffix", sorted(PICKLE_SUFFIXES))
def test_a_pickle_is_refused_by_its_name(suffix: str, tmp_path: Path) -> None:
    place = pickled(tmp_path / f"model{suffix}", 4)
    with pytest.raises(InputError, match="pickles can run code") as caught:
        open_file(place)
    assert caught.value.faults[0].code == "E_PICKLE"
    assert "retouch_bomb" not in sys.modules


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_renamed_pickle_is_refused_by_its_content(protocol: int, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        open_file(pickled(tmp_path / "model.safetensors", protocol))
    # The first two protocols have no mark of their own: there is just no header.
    assert caught.value.faults[0].code == ("E_PICKLE" if protocol >= 2 else "E_SAFETENSORS")
    assert "retouch_bomb" not in sys.modules


def test_a_renamed_archive_is_refused_by_its_content(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="archive"):
        open_file(archived(tmp_path / "model.safetensors"))
    assert "retouch_bomb" not in sys.modules


def test_a_pickle_for_a_part_is_refused(file: Path, folder: Path, tmp_path: Path) -> None:
    bomb = pickled(tmp_path / "vae.pt", 4)
    source = Source(str(folder), components={"vae": InputFile(str(bomb), bomb)})
    with pytest.raises(InputError, match="pickles can run code"):
        open_source(source, tmp_path, "ddim", 5)


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1, -1000])
def test_a_truncated_file_is_refused(kept: int, file: Path, folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "x.safetensors"
    broken.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InputError, match="is the file complete") as caught:
        open_file(broken, folder)
    assert caught.value.faults[0].code == "E_SAFETENSORS"


def header_of(file: Path) -> tuple[dict[str, Any], bytes]:
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_text(text: bytes, data: bytes, target: Path) -> Path:
    target.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return target


FIRST = "model.diffusion_model.conv"
KEY = "model.diffusion_model.out.2.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda h: h[KEY].update(data_offsets=[0, h[KEY]["data_offsets"][1] - h[KEY]["data_offsets"][0]]),
            "start at",
        ),
        (lambda h: h.update({"../../etc/passwd": h.pop(KEY)}), "not a plain dotted name"),
        (lambda h: h.update({"C:\\model": h.pop(KEY)}), "not a plain dotted name"),
        (lambda h: h[KEY].update(shape=[1 << 40, 1 << 40]), "bytes for F32"),
        (lambda h: h[KEY].update(dtype="OBJECT"), "is not supported"),
    ],
    ids=["overlap", "path", "drive", "huge", "dtype"],
)
def test_a_malicious_header_is_refused(
    change: Any, message: str, file: Path, folder: Path, tmp_path: Path
) -> None:
    header, data = header_of(file)
    change(header)
    with pytest.raises(InputError, match=message):
        open_file(with_text(json.dumps(header).encode(), data, tmp_path / "x.safetensors"), folder)


def test_a_key_that_stands_twice_is_refused(file: Path, folder: Path, tmp_path: Path) -> None:
    header, data = header_of(file)
    text = json.dumps(header)[:-1] + f', "{KEY}": {json.dumps(header[KEY])}}}'
    with pytest.raises(InputError, match="stands there twice"):
        open_file(with_text(text.encode(), data, tmp_path / "x.safetensors"), folder)


def test_a_file_of_another_family_than_its_configs_is_refused(file: Path, tmp_path: Path) -> None:
    from retouch.compiler.families.published import published_folder

    for model in ("stable-diffusion-v1-5", "stable-diffusion-xl-base-1.0"):
        with pytest.raises(InputError, match=r"lacks a tensor|holds no"):
            open_file(file, published_folder(model))


def test_what_a_model_index_names_is_looked_up_and_never_imported(
    folder: Path, file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    shutil.copytree(folder, config)
    index = json.loads((config / "model_index.json").read_text())
    index["unet"] = ["os", "system"]
    (config / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="`unet` is a `system`, supported is"):
        open_file(file, config)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("nowhere", "no file or folder"),
        ("nowhere.safetensors", "no file or folder"),
        ("owner/name", "add `revision:`"),
        ("/", "model_index.json"),
    ],
)
def test_a_source_that_is_none(model: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((SpecError, InputError), match=message):
        open_source(Source(model), tmp_path, "ddim", 5)


def test_a_revision_is_for_hubs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no hub model"):
        open_source(Source("../model", revision="0" * 40), tmp_path, "ddim", 5)


def test_the_errors_that_the_documentation_explains_exist() -> None:
    root = Path(__file__).parents[1]
    explained = set(re.findall(r"`(E_[A-Z_]+)`", (root / "docs" / "sources.md").read_text()))
    raised = "".join(file.read_text() for file in sorted((root / "compiler").rglob("*.py")))
    assert len(explained) > 10
    assert not [code for code in sorted(explained) if f'"{code}"' not in raised]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_not_written(
    value: float, file: Path, folder: Path, tmp_path: Path
) -> None:
    tensors = load_file(file)
    tensors[KEY].flat[3] = value
    save_file(tensors, tmp_path / "x.safetensors")
    pipeline = open_file(tmp_path / "x.safetensors", folder)
    with pytest.raises(InputError, match=r"not finite") as caught:
        emit(SingleFile(), pipeline, tmp_path / "out", tmp_path / "cache")
    assert caught.value.faults[0].where == "unet.conv_out.weight"


def values() -> st.SearchStrategy[Any]:
    """Values that a header may not hold where they are put, or may."""
    numbers = st.integers(-2, 1 << 64) | st.floats()
    return st.one_of(
        numbers, st.none(), st.booleans(), st.text(max_size=8), st.lists(numbers, max_size=5),
        st.sampled_from(["F16", "F32", "BF16", "I64", "U8"]),
    )  # fmt: skip


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_change_of_a_header_opens_or_is_one_of_our_errors(
    data: st.DataObject, file: Path, folder: Path, tmp_path: Path
) -> None:
    header, rest = header_of(file)
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(header)))
        match data.draw(st.sampled_from(["drop", "rename", "entry", "field"])):
            case "drop":
                del header[name]
            case "rename":
                header[data.draw(st.text(max_size=20) | st.sampled_from(sorted(header)))] = header.pop(name)
            case "entry":
                header[name] = data.draw(values())
            case "field" if isinstance(header[name], dict):
                header[name][data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))] = data.draw(
                    values()
                )
    text = json.dumps(header).encode()
    place = tmp_path / "mutated.safetensors"
    place.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    before = sorted(tmp_path.rglob("*"))
    try:
        open_file(place, folder)
    except RetouchError as error:
        assert error.faults
    assert sorted(tmp_path.rglob("*")) == before


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_change_of_bytes_opens_or_is_one_of_our_errors(
    data: st.DataObject, file: Path, folder: Path, tmp_path: Path
) -> None:
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 7 + length))] = data.draw(st.integers(0, 255))
    place = tmp_path / "mutated.safetensors"
    place.write_bytes(content)
    try:
        open_file(place, folder)
    except RetouchError as error:
        assert error.faults
