"""The write pass: order, digests, what counts as changed, and what observers see."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emitting import KEY, Recorder, edited, load, renamed

from retouch.compiler import write
from retouch.compiler.emit import Job, Watch
from retouch.compiler.ir import Pipeline
from retouch.compiler.write import Entry, WritePass
from retouch.specs.canonical import merkle_root
from retouch.specs.errors import InputError
from retouch.specs.manifest import ComponentRecord

FLOAT32, FLOAT16 = np.dtype(np.float32), np.dtype(np.float16)


def entries(pipeline: Pipeline, dtype: np.dtype = FLOAT32, transposed: bool = False) -> list[Entry]:
    """Return the two-dimensional tensors of the U-Net."""
    return [
        Entry(f"unet.{name}", tensor, dtype, transposed)
        for name, tensor in pipeline.tensors_of("unet").items()
        if len(tensor.shape) == 2
    ]


def run(
    pipeline: Pipeline,
    file: Path,
    source: Pipeline | None = None,
    watches: tuple[Watch, ...] = (),
    dtype: np.dtype = FLOAT32,
    transposed: bool = False,
) -> ComponentRecord:
    writing = WritePass(pipeline, Job(source or pipeline, watches, lambda label, count: None, file.parent))
    record = writing.write("unet", file, file.parent, entries(pipeline, dtype, transposed))
    writing.finish()
    return record


def test_tensors_lie_dense_and_in_order(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    run(pipeline, tmp_path / "data")
    expected = b"".join(entry.tensor.read().tobytes() for entry in entries(pipeline))
    assert (tmp_path / "data").read_bytes() == expected


def test_transposed_tensors_are_written_transposed(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    run(pipeline, tmp_path / "data", transposed=True)
    expected = b"".join(entry.tensor.read().T.tobytes() for entry in entries(pipeline))
    assert (tmp_path / "data").read_bytes() == expected


def test_the_record_proves_each_tensor(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    record = run(pipeline, tmp_path / "data")
    leaves = [
        (entry.name, hashlib.sha256(entry.tensor.read().tobytes()).hexdigest()) for entry in entries(pipeline)
    ]
    assert record.merkle_root == merkle_root(leaves)
    assert record.tensors == len(leaves)
    assert record.weights == "data"
    assert record.changed == []


def test_one_edited_tensor_is_one_change(tiny: Path, tmp_path: Path) -> None:
    source = load(tiny)
    before = run(source, tmp_path / "before")
    after = run(edited(source, KEY, lambda array: array * 2), tmp_path / "after", source)
    assert after.changed == [KEY]
    assert after.merkle_root != before.merkle_root


def test_another_object_with_the_same_elements_is_no_change(tiny: Path, tmp_path: Path) -> None:
    source = load(tiny)
    assert run(renamed(source, KEY), tmp_path / "data", source).changed == []


def test_a_change_that_the_written_type_rounds_away_is_no_change(tiny: Path, tmp_path: Path) -> None:
    # The nearest float32 to a half-precision number rounds back to it.
    source = edited(load(tiny), KEY, lambda array: array.astype(np.float16).astype(np.float32))
    nudged = edited(source, KEY, lambda array: np.nextafter(array, np.float32(1)))
    assert run(nudged, tmp_path / "single", source).changed == [KEY]
    assert run(nudged, tmp_path / "half", source, dtype=FLOAT16).changed == []


def test_bytes_do_not_depend_on_the_workers(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = edited(load(tiny), KEY, lambda array: array @ np.full((32, 32), 0.1, np.float32))
    records = []
    for workers in (1, 3):
        monkeypatch.setattr(write, "WORKERS", workers)
        records.append(run(pipeline, tmp_path / f"data{workers}"))
    assert (tmp_path / "data1").read_bytes() == (tmp_path / "data3").read_bytes()
    assert records[0].merkle_root == records[1].merkle_root


def test_an_observer_sees_what_was_there_and_what_is_written(tiny: Path, tmp_path: Path) -> None:
    source = load(tiny)
    first = edited(source, KEY, lambda array: array * 2)
    second = edited(first, KEY, lambda array: array + 1)
    early, late = Recorder(KEY), Recorder(KEY)
    watches = (Watch(early, source), Watch(late, first))
    run(second, tmp_path / "data", source, watches, FLOAT16, transposed=True)
    original: Any = source.tensors[KEY].read()
    for recorder, before in ((early, original), (late, original * 2)):
        ((name, seen_before, seen_written),) = recorder.seen
        assert name == KEY
        np.testing.assert_array_equal(seen_before, before)
        np.testing.assert_array_equal(seen_written, (original * 2 + 1).astype(np.float16))


def test_what_no_graph_holds_is_shown_once_at_the_end(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    name = "unet.conv_in.weight"  # four dimensions: not among the entries
    recorder = Recorder(name, KEY)
    run(pipeline, tmp_path / "data", watches=(Watch(recorder, pipeline),))
    assert [seen for seen, _, _ in recorder.seen] == [KEY, name]


def test_an_observer_of_nothing_is_refused(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    watch = Watch(Recorder("unet.no_such", "vae.nor_this"), pipeline)
    with pytest.raises(InputError, match=r"unet\.no_such") as caught:
        run(pipeline, tmp_path / "data", watches=(watch,))
    assert len(caught.value.faults) == 2


def test_an_existing_file_is_not_overwritten(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        run(load(tiny), tmp_path / "data")


def test_progress_counts_the_bytes_of_the_pipeline(tiny: Path, tmp_path: Path) -> None:
    pipeline, counted = load(tiny), []
    job = Job(pipeline, (), lambda label, count: counted.append((label, count)), tmp_path)
    found = entries(pipeline, FLOAT16)
    WritePass(pipeline, job).write("unet", tmp_path / "data", tmp_path, found)
    assert {label for label, _ in counted} == {"unet"}
    assert sum(count for _, count in counted) == sum(entry.tensor.read().nbytes for entry in found)


def test_a_disk_that_fails_while_a_file_is_written_stops_the_build(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr(write, "FLUSHED", 1)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        run(load(tiny), tmp_path / "data")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a disk that is always full")
def test_a_full_disk_stops_the_build() -> None:
    with (
        Path("/dev/full").open("wb", buffering=0) as stream,
        pytest.raises(OSError, match="No space left"),
        write._Output(stream) as output,
    ):
        for _ in range(3):
            output.put(b"data")
