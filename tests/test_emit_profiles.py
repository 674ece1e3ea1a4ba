"""Forms of one captured program: profiles, precisions, packed weights, sizes, two targets in a build."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from emitting import edited, emit, load

from retouch.compiler.emit import Emitted, Job, Ledger
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.evidence.claims import not_claimed
from retouch.compiler.evidence.manifest import DRAWN_FROM, target_names
from retouch.compiler.graphs.capture import skeleton_of
from retouch.compiler.graphs.interfaces import interfaces
from retouch.compiler.graphs.packing import pack, packed_bytes, unpack, unpacked
from retouch.compiler.graphs.prebuild import config_folder, config_pipeline
from retouch.compiler.graphs.skeleton import Form, ProfileName
from retouch.compiler.ir import Pipeline
from retouch.specs.canonical import digest_file
from retouch.specs.errors import SpecError
from retouch.specs.manifest import TargetRecord

FOLDERS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
CONTRIB = "com.microsoft"


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Pipeline:
    return load(tiny)


def graph(folder: Path, name: str = "unet/model.onnx") -> onnx.ModelProto:
    return onnx.load(str(folder / name), load_external_data=False)


def kinds(model: onnx.ModelProto) -> set[str]:
    return {f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node}


def values(emitted: Emitted, claim: str) -> dict[str, float]:
    return {each.subject: float(each.value) for each in emitted.evidence if each.claim == claim}


def test_tensorrt_reads_standard_layers(pipeline: Pipeline, skeletons: Path, tmp_path: Path) -> None:
    emitted = emit(Onnx(profile="tensorrt"), pipeline, tmp_path / "out", skeletons)
    model = graph(tmp_path / "out")
    assert {"Attention", "GroupNormalization", "LayerNormalization", "Gelu"} <= kinds(model)
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 23)]
    assert max(values(emitted, "parity").values()) < 1e-5
    onnx.checker.check_model(str(tmp_path / "out" / "unet" / "model.onnx"), full_check=True)


def test_half_precision_keeps_ports_and_the_autoencoder_in_float32(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    emitted = emit(Onnx(profile="cuda", precision="float16"), pipeline, tmp_path / "out", skeletons)
    for name in FOLDERS:
        model = graph(tmp_path / "out", f"{name}/model.onnx")
        held = {each.data_type for each in model.graph.initializer if each.external_data}
        wanted = onnx.TensorProto.FLOAT if name.startswith("vae") else onnx.TensorProto.FLOAT16
        assert held == {wanted}
        ports = [*model.graph.input, *model.graph.output]
        assert onnx.TensorProto.FLOAT16 not in {port.type.tensor_type.elem_type for port in ports}
        onnx.checker.check_model(str(tmp_path / "out" / name / "model.onnx"), full_check=True)
    errors = values(emitted, "parity")
    assert 1e-5 < errors["unet"] < 1e-2
    assert errors["vae_decoder"] < 1e-5
    assert 0 < values(emitted, "largest activation")["unet"] < 65504


def test_activations_that_float16_cannot_hold_fail_the_build(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    """The weights themselves fit: only what they compute does not. A reproducer says so, without infinity."""
    large = edited(pipeline, "unet.conv_in.weight", lambda array: array * 1e5)
    emitted = emit(Onnx(profile="cuda", precision="float16"), large, tmp_path / "out", skeletons)
    (found,) = (
        each for each in emitted.evidence if (each.claim, each.subject) == ("largest activation", "unet")
    )
    assert found.passed is False
    assert float(found.value) > 65504
    kept = sorted((skeletons / "failures").glob("unet-*.json"))
    assert "inf" in {json.loads(file.read_text())["happened"]["error"] for file in kept}


def test_bfloat16_is_written_and_nothing_is_claimed(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    emitted = emit(Onnx(profile="tensorrt", precision="bfloat16"), pipeline, tmp_path / "out", skeletons)
    held = {each.data_type for each in graph(tmp_path / "out").graph.initializer if each.external_data}
    assert held == {onnx.TensorProto.BFLOAT16}
    assert set(values(emitted, "parity")) == {"vae_decoder", "vae_encoder"}
    onnx.checker.check_model(str(tmp_path / "out" / "unet" / "model.onnx"), full_check=True)


def test_packed_weights_are_smaller_and_their_loss_is_measured(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    plain = emit(Onnx(), pipeline, tmp_path / "plain", skeletons)
    packed = emit(Onnx(weights="int8"), pipeline, tmp_path / "packed", skeletons)
    assert f"{CONTRIB}.MatMulNBits" in kinds(graph(tmp_path / "packed", "text_encoder/model.onnx"))
    sizes = [
        (tmp_path / name / "text_encoder" / "model.onnx_data").stat().st_size for name in ("plain", "packed")
    ]
    assert sizes[1] < sizes[0]
    assert values(plain, "8-bit weights") == {}
    assert 0 < values(packed, "8-bit weights")["text_encoder"] < 0.02
    assert values(plain, "parity")["text_encoder"] < 1e-5 < values(packed, "parity")["text_encoder"] < 0.05


def test_tensorrt_has_no_packed_weights(pipeline: Pipeline, skeletons: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="8-bit weights"):
        emit(Onnx(profile="tensorrt", weights="int8"), pipeline, tmp_path / "out", skeletons)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_packing_is_undone_within_half_a_step(dtype: Any) -> None:
    weight = np.random.default_rng(0).standard_normal((6, 64)).astype(np.float32)
    weight[2] = 0
    numbers, scales = pack(weight, 32, np.dtype(dtype))
    restored = unpack(numbers, scales)
    step: Any = np.repeat(np.float32(scales), 32, axis=1)
    assert np.all(np.abs(restored - weight) <= step * 0.51)
    data, meant = packed_bytes(weight, 32, np.dtype(dtype))
    np.testing.assert_array_equal(meant, restored)
    np.testing.assert_array_equal(unpacked(data, (6, 64), 32, np.dtype(dtype)), restored)


def together(pipeline: Pipeline, folder: Path, cache: Path, *targets: Onnx) -> list[Emitted]:
    """Emit several targets of one build."""
    folder.mkdir()
    ledger = Ledger()
    job = Job(pipeline, (), lambda label, count: None, cache, ledger=ledger)
    return [target.emit(pipeline, folder, job) for target in targets]


def test_targets_of_equal_weights_share_one_file(pipeline: Pipeline, skeletons: Path, tmp_path: Path) -> None:
    targets = Onnx(), Onnx(profile="tensorrt")
    first, second = together(pipeline, tmp_path / "out", skeletons, *targets)
    assert first.components == second.components
    assert {file.name for file in (tmp_path / "out" / "unet").iterdir()} == {
        *("config.json", "combine.onnx", "model.onnx_data"),
        *("model.onnx", "guided.onnx", "model.tensorrt.onnx", "guided.tensorrt.onnx"),
    }
    assert set(values(second, "parity")) == {f"tensorrt-float32/{name}" for name in (*FOLDERS, "unet/guided")}
    assert max(values(second, "parity").values()) < 1e-5


def test_a_target_of_other_weights_has_a_folder_of_its_own(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    targets = Onnx(parity=False), Onnx(profile="cuda", precision="float16", parity=False)
    _, second = together(pipeline, tmp_path / "out", skeletons, *targets)
    assert [record.weights for record in second.components] == [
        f"cuda-float16/{name}/model.onnx_data" for name in FOLDERS
    ]
    assert (tmp_path / "out" / "cuda-float16" / "model_index.json").is_file()
    together(pipeline, tmp_path / "alone", skeletons, targets[0])
    top = {file.name for file in (tmp_path / "out").iterdir()}
    assert top - {file.name for file in (tmp_path / "alone").iterdir()} == {"cuda-float16"}


def test_two_targets_alike_are_refused(pipeline: Pipeline, skeletons: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="alike"):
        together(pipeline, tmp_path / "out", skeletons, Onnx(parity=False), Onnx(parity=False))


def test_digests_taken_while_writing_are_those_of_the_files(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    ledger = Ledger()
    job = Job(pipeline, (), lambda label, count: None, skeletons, ledger=ledger)
    Onnx(parity=False).emit(pipeline, tmp_path / "out", job)
    assert len(ledger.digests) == len(FOLDERS)
    assert all(digest_file(file) == digest for file, (digest, _) in ledger.digests.items())


@pytest.mark.parametrize("profile", ["cpu", "tensorrt"])
def test_a_published_denoiser_is_few_nodes(skeletons: Path, profile: ProfileName) -> None:
    """Exporters give 1,600 to 4,700 for this one."""
    (unet,) = (each for each in interfaces(config_pipeline(config_folder("sd15"))) if each.folder == "unet")
    model = onnx.load_model_from_string(skeleton_of(unet, (), skeletons, Form(profile)).graph)
    assert len(model.graph.node) <= 1200
    assert sum(node.op_type in ("Attention", "MultiHeadAttention") for node in model.graph.node) == 32


def shapes(model: onnx.ModelProto) -> list[Any]:
    (sample,) = (port for port in model.graph.input if port.name == "sample")
    return [dim.dim_value or dim.dim_param for dim in sample.type.tensor_type.shape.dim]


def test_a_size_is_fixed_and_listed_ones_are_graphs_beside(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    cell = pipeline.sampling.table().latent.downscale
    sizes = [f"{8 * cell}x{12 * cell}", f"{16 * cell}x{8 * cell}"]
    emitted = emit(Onnx(size=sizes[0], sizes=(sizes[1],)), pipeline, tmp_path / "out", skeletons)
    others = {f"{sizes[1]}/{name}" for name in FOLDERS[1:]}
    assert set(values(emitted, "parity")) == {*FOLDERS, "unet/guided", *others}
    assert max(values(emitted, "parity").values()) < 1e-5
    assert shapes(graph(tmp_path / "out")) == ["batch", 4, 8, 12]
    beside = tmp_path / "out" / "unet" / f"model.{sizes[1]}.onnx"
    assert shapes(onnx.load(str(beside), load_external_data=False)) == ["batch", 4, 16, 8]
    onnx.checker.check_model(str(beside), full_check=True)
    with pytest.raises(SpecError, match="multiples"):
        emit(replace(Onnx(), size="9x9"), pipeline, tmp_path / "odd", skeletons)


def test_a_further_target_is_named_where_nothing_is_claimed() -> None:
    records = [
        TargetRecord(
            emitter="onnx",
            parameters={"profile": profile, "precision": "float16"},
            components=[],
            evidence=[],
        )
        for profile in ("cpu", "cuda")
    ]
    assert target_names(records) == ["onnx", "onnx (cuda, float16)"]
    assert any(
        "onnx (cuda, float16)" in line for line in not_claimed(DRAWN_FROM, target_names(records), True)
    )
