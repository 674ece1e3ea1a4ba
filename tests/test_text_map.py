"""One matrix of text states, written three ways, computes the same thing; order and refusals."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emitting import emit, load
from numpy.typing import NDArray
from tiny import make_tiny_refiner, make_tiny_xl

from retouch.compiler.emit.diffusers import Diffusers
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.evidence.parity import example_inputs, run_graph
from retouch.compiler.evidence.trial import pipeline_drawer
from retouch.compiler.graphs.interfaces import interfaces
from retouch.compiler.ir import Pipeline
from retouch.compiler.load import load_pipeline
from retouch.compiler.tensors import Shared, Tensor
from retouch.compiler.text.encode import pooled_width, text_width
from retouch.compiler.text.text_map import TextMap, fuse_text_map, graph_map, with_text_map
from retouch.compiler.torch_models.modules import load_module
from retouch.specs.errors import InputError, SpecError

KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_xl(tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture(scope="module")
def tiny_refiner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_refiner(tmp_path_factory.mktemp("refiner") / "model")


def _map(width: int, seed: int) -> Shared:
    matrix = np.eye(width) + 0.2 * np.random.default_rng(seed).normal(size=(width, width))
    return Shared(lambda: matrix, np.dtype(np.float64), (width, width))


def _floats(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.read(), np.float64)


def _width(pipeline: Pipeline) -> int:
    return pipeline.tensors[KEY].shape[1]


def _edited(pipeline: Pipeline, output: str, seed: int = 0) -> Pipeline:
    return with_text_map(pipeline, TextMap(_map(_width(pipeline), seed)), output, "test")  # type: ignore[arg-type]


def _denoised(pipeline: Pipeline, folder: Path, skeletons: Path) -> np.ndarray:
    emit(Onnx(parity=False), pipeline, folder, skeletons)
    (interface,) = [found for found in interfaces(pipeline) if found.component.role == "denoiser"]
    inputs = example_inputs(interface)
    return run_graph(folder / interface.folder / "model.onnx", interface, inputs)["out_sample"]


def test_the_graph_computes_what_the_fused_weights_do(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    base = load(tiny)
    plain, fused, mapped = (
        _denoised(pipeline, tmp_path / name, skeletons)
        for name, pipeline in (
            ("plain", base),
            ("fused", _edited(base, "fused")),
            ("mapped", _edited(base, "text_map")),
        )
    )
    scale = np.abs(plain).max()
    assert np.abs(fused - plain).max() > 1e-3 * scale
    assert np.abs(mapped - fused).max() < 1e-5 * scale


def test_numbers_of_the_map_never_reach_the_graph(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    graphs = []
    for seed in (1, 2):
        emit(Onnx(parity=False), _edited(load(tiny), "text_map", seed), tmp_path / f"{seed}", skeletons)
        graphs.append((tmp_path / f"{seed}" / "unet" / "model.onnx").read_bytes())
    assert graphs[0] == graphs[1]


def test_parity_holds_with_a_map_in_the_graph(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    emitted = emit(Onnx(), _edited(load(tiny), "text_map"), tmp_path / "out", skeletons)
    assert [evidence.passed for evidence in emitted.evidence] == [True] * len(emitted.evidence)


def test_two_maps_compose_in_the_order_declared(tiny: Path) -> None:
    base = load(tiny)
    fused = _edited(_edited(base, "fused", 1), "fused", 2)
    mapped = graph_map(_edited(_edited(base, "text_map", 1), "text_map", 2))
    assert mapped is not None
    before, matrix, after = (_floats(t) for t in (base.tensors[KEY], mapped.sequence, fused.tensors[KEY]))
    np.testing.assert_allclose(after, before @ matrix, rtol=1e-5, atol=1e-6)


def test_weights_behind_a_map_are_not_rewritten(tiny: Path) -> None:
    with pytest.raises(SpecError, match="mapped text states in the graph"):
        _edited(_edited(load(tiny), "text_map"), "fused")


def test_a_map_of_another_width_is_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match="expected 7 columns that read text"):
        with_text_map(load(tiny), TextMap(_map(7, 0)), "fused", "test")


def test_diffusers_gets_the_map_in_its_weights(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    base = load(tiny)
    emit(Diffusers(), _edited(base, "text_map"), tmp_path / "out", skeletons)
    emit(Diffusers(), _edited(base, "fused"), tmp_path / "fused", skeletons)
    file = Path("diffusers", "unet", "diffusion_pytorch_model.safetensors")
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "fused" / file).read_bytes()


def test_observers_of_a_fused_map_see_it_once(tiny: Path) -> None:
    base = load(tiny)
    fused = fuse_text_map(_edited(base, "text_map"), "test")
    assert graph_map(fused) is None
    assert (fused.tensors["unet.retouch.text_map"].read() == np.eye(_width(base))).all()


def test_drawing_through_a_map_is_drawing_with_its_weights(tiny: Path, skeletons: Path) -> None:
    base = replace(load(tiny))
    text_map = TextMap(_map(_width(base), 3))
    prompts, seeds = ["a cat", "a dog"], [5, 6]
    with pipeline_drawer(base, skeletons) as draw:
        plain, mapped = draw(prompts, seeds), draw.through(text_map)(prompts, seeds)
    with pipeline_drawer(with_text_map(base, text_map, "fused", "test"), skeletons) as draw:
        fused = draw(prompts, seeds)
    assert np.abs(mapped.astype(int) - fused).max() <= 1
    assert np.abs(mapped.astype(int) - plain).max() > 1


@pytest.mark.parametrize(("model", "ids"), [("tiny", 0), ("tiny_xl", 6), ("tiny_refiner", 5)])
def test_the_module_computes_what_the_fused_weights_do(
    model: str, ids: int, request: pytest.FixtureRequest
) -> None:
    base = load_pipeline(request.getfixturevalue(model), "ddim", 5, 4.0)
    pooled = pooled_width(base)
    text_map = TextMap(_map(text_width(base), 0), _map(pooled, 1) if pooled else None)
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(2, 5, text_width(base), generator=generator),
    }
    if pooled:
        given["added_cond_kwargs"] = {
            "text_embeds": torch.randn(2, pooled, generator=generator),
            "time_ids": torch.full((2, ids), 64.0),
        }
    with torch.inference_mode():
        plain, fused, mapped = (
            load_module(pipeline, "unet")(**given).sample
            for pipeline in (
                base,
                with_text_map(base, text_map, "fused", "test"),
                with_text_map(base, text_map, "text_map", "test"),
            )
        )
    assert (fused - plain).norm() > 1e-2 * plain.norm()
    assert (mapped - fused).norm() < 1e-5 * plain.norm()
