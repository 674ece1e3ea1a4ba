"""Both TensorRT targets: real engines where the builder is installed, and what it takes where it is not."""

import json
import shlex
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx
import pytest
from emitting import emit, load
from pydantic import TypeAdapter, ValidationError

from retouch.compiler.emit import tensorrt
from retouch.compiler.emit.tensorrt import Tensorrt, trtexec
from retouch.compiler.emit.tensorrt_rtx import TensorrtRtx
from retouch.compiler.engines import building as engines
from retouch.compiler.engines.building import Engine, Shapes
from retouch.compiler.engines.profiles import as_numbers, profiles_of
from retouch.compiler.sampling import Guidance
from retouch.specs.errors import SpecError, UndecidedError
from retouch.specs.fields import DEMO

GRAPHS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]


def pretend(monkeypatch: pytest.MonkeyPatch, *digests: str) -> None:
    """Let every build write a few bytes and call them by the digests in turn."""
    turns = iter(digests)

    def build(order: engines.Order, file: Path, advance: Any) -> Engine:
        file.write_bytes(b"engine")
        return Engine("1.7", 3, (), next(turns), 6, 1, True)

    monkeypatch.setattr("retouch.compiler.emit.tensorrt_rtx.check_installed", lambda module: None)
    monkeypatch.setattr("retouch.compiler.emit.tensorrt_rtx.build", build)


def test_profiles_follow_from_images_and_pixels(tiny: Path) -> None:
    profiles = profiles_of(load(tiny), (1, 2, 4), ("16x16", "32x16", "16x64"))
    assert list(profiles) == GRAPHS
    assert as_numbers(profiles["unet"]) == {
        "encoder_hidden_states": [[2, 16, 32], [4, 16, 32], [8, 16, 32]],
        "sample": [[2, 4, 8, 8], [4, 4, 8, 8], [8, 4, 16, 32]],
    }
    assert as_numbers(profiles["vae_decoder"]) == {
        "latent_sample": [[1, 4, 8, 8], [2, 4, 8, 8], [4, 4, 16, 32]]
    }
    assert as_numbers(profiles["vae_encoder"])["sample"][2] == [4, 3, 32, 64]
    assert as_numbers(profiles["text_encoder"]) == {"input_ids": [[1, 16], [2, 16], [4, 16]]}


def test_unguided_steps_need_no_second_half(tiny: Path) -> None:
    profile = profiles_of(load(tiny, guidance_scale=1.0), (1, 1, 4), ())["unet"]
    assert profile["sample"].largest == (4, 4, 8, 8)
    pipeline = load(tiny)
    partly = Guidance(weights=(1.0, 4.0, 4.0, 4.0, 1.0))
    some = replace(pipeline, sampling=replace(pipeline.sampling, guidance=partly))
    profile = profiles_of(some, (1, 1, 1), ())["unet"]
    assert (profile["sample"].smallest[0], profile["sample"].largest[0]) == (1, 2)


def test_all_that_is_wrong_with_shapes_is_told_at_once(tiny: Path) -> None:
    with pytest.raises(SpecError) as caught:
        profiles_of(load(tiny), (2, 1, 4), ("16x16", "18x16", "16x17"))
    assert [fault.where for fault in caught.value.faults] == ["batch", "sizes", "sizes"]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"compute_capabilities": ["8.6", "8.6"]}, "names a compute capability twice"),
        ({"compute_capabilities": ["7.5", "8.6"]}, "needs an engine of its own"),
        ({"compute_capabilities": []}, "at least 1 item"),
        ({"compute_capabilities": ["6.1"]}, "Input should be"),
        ({"sizes": ["512"]}, "should match pattern"),
        ({"batch": [0, 1, 4]}, "greater than or equal to 1"),
    ],
)
def test_a_block_is_checked(block: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TypeAdapter(TensorrtRtx).validate_json(json.dumps(block))


def test_the_order_of_capabilities_means_nothing() -> None:
    block = '{"compute_capabilities": ["12.0", "8.6"]}'
    assert TypeAdapter(TensorrtRtx).validate_json(block).compute_capabilities == ("8.6", "12.0")


def test_without_the_builder_the_extra_is_named_and_nothing_written(
    tiny: Path, tmp_path: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(UndecidedError, match=r"TensorRT-RTX is not installed\n.*retouch\[rtx\]") as caught:
        emit(TensorrtRtx(), load(tiny), tmp_path / "out", skeletons)
    assert caught.value.exit_code == 4
    assert list((tmp_path / "out").iterdir()) == []


def test_the_folder_is_a_pipeline_of_engines(
    tiny: Path, tmp_path: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *"abcd")
    emitted = emit(TensorrtRtx(parity=False), load(tiny), tmp_path / "out", skeletons)
    place = tmp_path / "out" / "tensorrt_rtx"
    for name in GRAPHS:
        files = {file.name for file in (place / name).iterdir()}
        assert files == {"config.json", "model.engine", "model.onnx"} | (
            {"combine.onnx"} if name == "unet" else set()
        )
    assert (place / "sampling.json").is_file()
    assert (place / "tokenizer" / "tokenizer.json").is_file()
    assert [record.weights for record in emitted.components] == [
        f"tensorrt_rtx/{name}/model.engine" for name in GRAPHS
    ]
    unverified = [evidence for evidence in emitted.evidence if evidence.claim == "run on a GPU"]
    assert [evidence.subject for evidence in unverified] == [f"tensorrt_rtx/{name}" for name in GRAPHS]
    assert all(evidence.value == "0" and not evidence.details["verified"] for evidence in unverified)


def test_the_graph_beside_an_engine_takes_and_gives_the_same(
    tiny: Path, tmp_path: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *"abcd")
    emit(TensorrtRtx(parity=False, sizes=("16x16", "32x32")), load(tiny), tmp_path / "out", skeletons)
    graph = onnx.load(tmp_path / "out" / "tensorrt_rtx" / "unet" / "model.onnx").graph
    (node,) = graph.node
    assert (node.domain, node.op_type) == ("com.microsoft", "EPContext")
    assert (
        list(node.input) == ["sample", "timestep", "encoder_hidden_states"] == [v.name for v in graph.input]
    )
    assert list(node.output) == ["out_sample"] == [value.name for value in graph.output]
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert attributes["ep_cache_context"] == b"model.engine"
    assert attributes["embed_mode"] == 0
    assert attributes["source"] == b"NvTensorRTRTXExecutionProvider"
    assert attributes["hardware_architecture"] == b"sm86,sm89,sm120"


def test_a_second_build_that_differs_fails_the_evidence(
    tiny: Path, tmp_path: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, *"aabcddee")
    emitted = emit(TensorrtRtx(parity=False, twice=True), load(tiny), tmp_path / "out", skeletons)
    again = {e.subject: e for e in emitted.evidence if e.claim == "same bytes when built again"}
    assert [again[f"tensorrt_rtx/{name}"].passed for name in GRAPHS] == [True, False, True, True]
    assert again["tensorrt_rtx/unet"].value == "2"
    assert not list((tmp_path / "out").rglob("*.again"))


@pytest.mark.parametrize("model", ["tiny", "demo"])
def test_real_engines_are_built_for_whole_models(
    model: str, tiny: Path, tmp_path: Path, skeletons: Path
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    pipeline = load(tiny if model == "tiny" else DEMO / "model")
    # Guided throughout, one image, one size: no shape is free, so bytes must be equal.
    emitter = TensorrtRtx(parity=False, compute_capabilities=("8.6",), twice=model == "tiny")
    emitted = emit(emitter, pipeline, tmp_path / "out", skeletons)
    built = {e.subject: e for e in emitted.evidence if e.claim == "engine built ahead of time"}
    assert list(built) == [f"tensorrt_rtx/{name}" for name in GRAPHS]
    for subject, evidence in built.items():
        engine = (tmp_path / "out" / subject / "model.engine").read_bytes()
        assert evidence.details["sha256"] == sha256(engine).hexdigest()
        assert int(evidence.value) > 50
    assert all(evidence.passed is not False for evidence in emitted.evidence)


def test_trtexec_gets_types_and_shapes() -> None:
    profile = {
        "sample": Shapes((1, 4, 8, 8), (2, 4, 8, 8), (8, 4, 16, 16)),
        "encoder_hidden_states": Shapes((1, 77, 768), (2, 77, 768), (8, 77, 768)),
    }
    assert trtexec("unet", profile) == [
        "trtexec",
        "--onnx=unet/model.onnx",
        "--saveEngine=unet/model.plan",
        "--stronglyTyped",
        "--decomposableAttentions=*",
        "--minShapes=encoder_hidden_states:1x77x768,sample:1x4x8x8",
        "--optShapes=encoder_hidden_states:2x77x768,sample:2x4x8x8",
        "--maxShapes=encoder_hidden_states:8x77x768,sample:8x4x16x16",
        "--skipInference",
    ]


def test_plain_tensorrt_holds_what_a_build_takes(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    emitted = emit(Tensorrt(), load(tiny), tmp_path / "out", skeletons)
    assert {each.subject for each in emitted.evidence if each.claim == "parity"} == {*GRAPHS, "unet/guided"}
    place = tmp_path / "out" / "tensorrt"
    head, *commands = (place / "build.sh").read_text().split("set -eu\n")
    assert head.startswith("#!/bin/sh\n")
    lines = [shlex.split(line) for line in commands[0].splitlines()]
    assert [line[1] for line in lines] == [f"--onnx={name}/model.onnx" for name in GRAPHS]
    assert all((place / name / "model.onnx_data").is_file() for name in GRAPHS)
    checked = [evidence for evidence in emitted.evidence if "parser" in evidence.claim]
    assert [evidence.details["command"] for evidence in checked] == lines
    installed = engines.find_spec(engines.RTX) is not None
    assert {evidence.value for evidence in checked} == {"1" if installed else "0"}


def test_an_engine_of_plain_tensorrt_needs_package_and_driver(
    tiny: Path, tmp_path: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UndecidedError, match=r"TensorRT is not installed\n.*retouch\[tensorrt\]"):
        emit(Tensorrt(engines=True), load(tiny), tmp_path / "a", skeletons)
    monkeypatch.setattr(tensorrt, "check_installed", lambda module: None)
    monkeypatch.setattr(tensorrt, "has_driver", lambda: False)
    with pytest.raises(UndecidedError, match=r"no NVIDIA driver here\n.*tensorrt/build\.sh"):
        emit(Tensorrt(engines=True), load(tiny), tmp_path / "b", skeletons)
