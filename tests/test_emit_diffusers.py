"""The diffusers target: opens in diffusers, and what was not edited is byte-equal to the source."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from emitting import KEY, Recorder, edited, emit, load
from safetensors import safe_open
from safetensors.numpy import load_file

from retouch.compiler.emit import Watch
from retouch.compiler.emit.diffusers import Diffusers
from retouch.compiler.headers import read_header
from retouch.compiler.tensors import Edited

WEIGHTS = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}


def test_diffusers_opens_it_with_equal_tensors(tiny: Path, tmp_path: Path) -> None:
    pipeline = edited(load(tiny), KEY, lambda array: array * 2)
    emit(Diffusers(), pipeline, tmp_path / "out", tmp_path)
    theirs = DiffusionPipeline.from_pretrained(tiny)
    ours = DiffusionPipeline.from_pretrained(tmp_path / "out" / "diffusers")
    for name in WEIGHTS:
        before, after = getattr(theirs, name).state_dict(), getattr(ours, name).state_dict()
        assert before.keys() == after.keys()
        differing = [key for key in before if not torch.equal(before[key], after[key])]
        assert differing == ([KEY.removeprefix("unet.")] if name == "unet" else [])
    assert ours.tokenizer("a cat").input_ids == theirs.tokenizer("a cat").input_ids


@pytest.mark.parametrize("component", sorted(WEIGHTS))
def test_untouched_tensors_keep_their_bytes(tiny: Path, tmp_path: Path, component: str) -> None:
    emit(Diffusers(), load(tiny), tmp_path / "out", tmp_path)
    before = load_file(tiny / component / WEIGHTS[component])
    after = load_file(tmp_path / "out" / "diffusers" / component / WEIGHTS[component])
    assert {name: array.tobytes() for name, array in before.items()} == {
        name: array.tobytes() for name, array in after.items()
    }


def test_our_own_reader_and_theirs_agree_on_the_header(tiny: Path, tmp_path: Path) -> None:
    emit(Diffusers(), load(tiny), tmp_path / "out", tmp_path)
    file = tmp_path / "out" / "diffusers" / "unet" / WEIGHTS["unet"]
    assert dict(read_header(file).metadata) == {"format": "pt"}
    with safe_open(file, "np") as theirs:
        assert sorted(read_header(file).tensors) == sorted(theirs.keys())


def test_the_record_lists_what_changed(tiny: Path, tmp_path: Path) -> None:
    source = load(tiny)
    pipeline = edited(source, KEY, lambda array: array * 2)
    emitted = emit(Diffusers(), pipeline, tmp_path / "out", tmp_path, source)
    assert {record.name: record.changed for record in emitted.components if record.changed} == {"unet": [KEY]}
    assert [record.weights for record in emitted.components] == [
        f"diffusers/{name}/{file}" for name, file in sorted(WEIGHTS.items())
    ]


def test_half_precision_is_rounded_once_and_seen_rounded(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    recorder = Recorder(KEY)
    emit(
        Diffusers(precision="float16"),
        pipeline,
        tmp_path / "out",
        tmp_path,
        watches=(Watch(recorder, pipeline),),
    )
    after = load_file(tmp_path / "out" / "diffusers" / "unet" / WEIGHTS["unet"])
    expected = pipeline.tensors[KEY].read().astype(np.float16)
    np.testing.assert_array_equal(after[KEY.removeprefix("unet.")], expected)
    ((_, _, seen),) = recorder.seen
    np.testing.assert_array_equal(seen, expected)


def test_wide_types_come_first(tiny: Path, tmp_path: Path) -> None:
    """Torch maps a tensor only at a multiple of its element size."""
    pipeline = load(tiny)
    odd = edited(pipeline, KEY, lambda array: array)
    tensors = dict(odd.tensors)
    tensors["unet.aaa"] = _stored(np.ones(3, np.float16))
    tensors["unet.zzz"] = _stored(np.ones(3, np.int64))
    emit(Diffusers(), pipeline.with_tensors(tensors), tmp_path / "out", tmp_path)
    file = tmp_path / "out" / "diffusers" / "unet" / WEIGHTS["unet"]
    for tensor in read_header(file).tensors.values():
        assert tensor.offset % tensor.dtype.itemsize == 0


def _stored(array: np.ndarray) -> Edited:
    return Edited((), lambda: array, array.dtype, array.shape, "test")


def test_a_sharded_source_becomes_one_file(tiny: Path, tmp_path: Path) -> None:
    theirs = DiffusionPipeline.from_pretrained(tiny)
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / "sharded" / "tokenizer" / name).write_bytes((tiny / "tokenizer" / name).read_bytes())
    shards = json.loads(
        (tmp_path / "sharded" / "unet" / "diffusion_pytorch_model.safetensors.index.json").read_text()
    )
    assert len(set(shards["weight_map"].values())) > 1
    emit(Diffusers(), load(tmp_path / "sharded"), tmp_path / "out", tmp_path)
    folder = tmp_path / "out" / "diffusers" / "unet"
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", WEIGHTS["unet"]]
    before = load_file(tiny / "unet" / WEIGHTS["unet"])
    after = load_file(folder / WEIGHTS["unet"])
    assert {name: array.tobytes() for name, array in before.items()} == {
        name: array.tobytes() for name, array in after.items()
    }
