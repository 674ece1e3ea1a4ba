"""ComfyUI's checkpoint and graph: the graph computes what diffusers' form of it does, under other names."""

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from emitting import emit, load
from tiny import make_tiny, make_tiny_xl

from retouch.compiler.emit.comfy import Comfy, renamed
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.emit.single_file import FILE, SingleFile
from retouch.compiler.engines import building as engines
from retouch.compiler.ir import Pipeline
from retouch.runtime.sessions import Placement, Session, load_session
from retouch.specs.errors import InputError

MAKERS = {"sd": make_tiny, "xl": make_tiny_xl}
STATES, TIMES, BATCH = 16, (981.0, 21.0), 2


@pytest.fixture(scope="module", params=sorted(MAKERS))
def pipeline(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return load(MAKERS[request.param](tmp_path_factory.mktemp(request.param) / "model"))


def session(file: Path) -> Session:
    inputs = [value.name for value in onnx.load(file, load_external_data=False).graph.input]
    return load_session(file.read_bytes(), file.name, inputs, [], Placement(threads=1), str(file.parent))


def sizes_embedded(ids: np.ndarray, width: int) -> np.ndarray:
    """Return the sinusoids of time ids [B, N] as SDXL has them, [B, N * width]: cosines, then sines."""
    rates = np.exp(-math.log(10000) * np.arange(width // 2) / (width // 2))
    angles = ids[..., None] * rates
    return np.concatenate([np.cos(angles), np.sin(angles)], -1).reshape(len(ids), -1)


def test_the_graph_computes_the_same_under_comfy_s_names(
    pipeline: Pipeline, tmp_path: Path, skeletons: Path
) -> None:
    """One timestep an image there, one for all here: so images of two timesteps are two calls here."""
    emit(Comfy(precision="float32"), pipeline, tmp_path / "comfy", skeletons)
    emit(Onnx(profile="tensorrt", parity=False), pipeline, tmp_path / "onnx", skeletons)
    theirs = session(tmp_path / "comfy" / "comfy" / "unet" / "model.onnx")
    ours = session(tmp_path / "onnx" / "unet" / "model.onnx")
    random = np.random.default_rng(5)
    config = pipeline.components["unet"].config
    sample = random.normal(size=(BATCH, 4, 8, 8)).astype(np.float32)
    states = random.normal(size=(BATCH, STATES, config["cross_attention_dim"])).astype(np.float32)
    added: dict[str, Any] = {}
    y: dict[str, Any] = {}
    if "time_ids" in ours.inputs:
        ids = np.array([[64, 32, 0, 0, 64, 32], [32, 32, 4, 0, 32, 32]], np.float32)
        pooled = random.normal(size=(BATCH, ours.inputs["text_embeds"].shape[1] or 0)).astype(np.float32)
        embedded = sizes_embedded(ids, config["addition_time_embed_dim"])
        added = {"text_embeds": pooled, "time_ids": ids}
        y = {"y": np.concatenate([pooled, embedded.astype(np.float32)], -1)}
    together = theirs(x=sample, timesteps=np.array(TIMES), context=states, **y)["h"]
    for image, time in enumerate(TIMES):
        own = {name: value[image : image + 1] for name, value in added.items()}
        one = ours(
            sample=sample[image : image + 1],
            timestep=np.array(time),
            encoder_hidden_states=states[image : image + 1],
            **own,
        )["out_sample"]
        np.testing.assert_allclose(together[image : image + 1], one, rtol=1e-4, atol=1e-5)


def test_names_and_their_order_are_comfy_s(pipeline: Pipeline, tmp_path: Path, skeletons: Path) -> None:
    emit(Comfy(), pipeline, tmp_path / "out", skeletons)
    graph = onnx.load(tmp_path / "out/comfy/unet/model.onnx", load_external_data=False).graph
    added = ["y"] if pipeline.components["unet"].config["addition_embed_type"] else []
    assert [value.name for value in graph.input] == ["x", "timesteps", "context", *added]
    assert [value.name for value in graph.output] == ["h"]
    line = shlex.split((tmp_path / "out/comfy/build.sh").read_text().split("set -eu\n")[1])
    largest = next(part for part in line if part.startswith("--maxShapes="))
    assert largest.startswith("--maxShapes=context:8x16x")
    assert "timesteps:8,x:8x4x" in largest


def test_the_checkpoint_is_the_single_file(pipeline: Pipeline, tmp_path: Path, skeletons: Path) -> None:
    emitted = emit(Comfy(graph=False), pipeline, tmp_path / "comfy", skeletons)
    emit(SingleFile(), pipeline, tmp_path / "single", skeletons)
    file = tmp_path / "comfy" / "comfy" / "checkpoints" / "model.safetensors"
    assert file.read_bytes() == (tmp_path / "single" / FILE).read_bytes()
    assert [record.weights for record in emitted.components] == ["comfy/checkpoints/model.safetensors"]
    assert not (tmp_path / "comfy" / "comfy" / "unet").exists()


def test_tensorrt_reads_the_graph(pipeline: Pipeline, tmp_path: Path, skeletons: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="the extra `rtx` is not installed")
    emit(Comfy(), pipeline, tmp_path / "out", skeletons)
    assert engines.parse(tmp_path / "out/comfy/unet/model.onnx").layers > 100


def test_a_graph_of_another_form_is_refused() -> None:
    shape = onnx.helper.make_tensor_value_info("sample", onnx.TensorProto.FLOAT, ["batch"])
    out = onnx.helper.make_tensor_value_info("out_sample", onnx.TensorProto.FLOAT, ["batch"])
    node = onnx.helper.make_node("Relu", ["sample"], ["out_sample"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "unet", [shape], [out]))
    with pytest.raises(InputError, match="0 operators `Reshape` read `timestep`"):
        renamed(model.SerializeToString(), 0)
