"""An adapter file is the edit: read by us, by diffusers, and in true shapes, it gives the fused weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from emitting import KEY, edited, emit, load
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tiny import make_tiny_xl

from retouch.compiler.adapters.spellings import Place
from retouch.compiler.emit.adapter import FILES, FOLDER, Adapter, decompose, factor
from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.load import load_pipeline
from retouch.compiler.tensors import Edited, Shared, Tensor
from retouch.compiler.text.encode import pooled_width, text_width
from retouch.compiler.text.text_map import TextMap, with_text_map
from retouch.specs.errors import InputError

from .passes import make

RANK = 3


def low_rank_map(width: int, rank: int = RANK, seed: int = 0) -> Shared:
    random = np.random.default_rng(seed)
    matrix = np.eye(width) + random.normal(size=(width, rank)) @ random.normal(size=(rank, width)) / width
    return Shared(lambda: matrix, np.dtype(np.float64), (width, width))


def floats(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.read(), np.float64)


def mapped(pipeline: Pipeline, output: str = "fused") -> Pipeline:
    pooled = pooled_width(pipeline)
    text_map = TextMap(low_rank_map(text_width(pipeline)), low_rank_map(pooled, seed=1) if pooled else None)
    return with_text_map(pipeline, text_map, output, "test")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_xl(tmp_path_factory.mktemp("xl") / "model")


def merged(base: Pipeline, file: Path) -> Pipeline:
    return make("merge_adapters", {"adapters": [{"path": str(file), "weight": 1.0}]}).run(base)


@pytest.mark.parametrize("layout", ["peft", "kohya"])
@pytest.mark.parametrize("model", ["tiny", "tiny_xl"])
def test_merging_the_file_gives_the_fused_weights(
    model: str, layout: str, request: pytest.FixtureRequest, tmp_path: Path, skeletons: Path
) -> None:
    base = load_pipeline(request.getfixturevalue(model), "ddim", 5, 4.0)
    fused = mapped(base)
    emitted = emit(Adapter(), fused, tmp_path / "out", skeletons, source=base)
    again = merged(base, tmp_path / "out" / FOLDER / FILES[layout])
    names = changed_tensors(base, fused)
    assert changed_tensors(base, again) == names
    for name in names:
        before, wanted, found = (floats(pipeline.tensors[name]) for pipeline in (base, fused, again))
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted - before)
    (evidence,) = emitted.evidence
    assert evidence.passed
    assert set(evidence.details["rank"].values()) == {RANK}


def test_both_outputs_of_an_edit_give_one_adapter(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    base = load(tiny)
    for output in ("fused", "text_map"):
        emit(Adapter(), mapped(base, output), tmp_path / output, skeletons, source=base)
    for name in FILES.values():
        fused, graph = (tmp_path / output / FOLDER / name for output in ("fused", "text_map"))
        assert fused.read_bytes() == graph.read_bytes()


def test_diffusers_draws_with_it_as_with_the_fused_weights(
    tiny: Path, tmp_path: Path, skeletons: Path
) -> None:
    base = load(tiny)
    fused = mapped(base)
    emit(Adapter(), fused, tmp_path / "out", skeletons, source=base)
    pipe: Any = StableDiffusionPipeline.from_pretrained(tiny, safety_checker=None, local_files_only=True)
    plain: Any = UNet2DConditionModel.from_pretrained(tiny, subfolder="unet", local_files_only=True)
    given = torch.randn(2, 4, 8, 8), torch.tensor(7), torch.randn(2, 5, text_width(base))
    with torch.inference_mode():
        before = plain(*given).sample
        weights = {name: torch.from_numpy(t.read().copy()) for name, t in fused.tensors_of("unet").items()}
        plain.load_state_dict(weights)
        expected = plain(*given).sample
        for name in FILES.values():
            pipe.load_lora_weights(tmp_path / "out" / FOLDER, weight_name=name)
            found = pipe.unet(*given).sample
            pipe.unload_lora_weights()
            assert (found - expected).norm() < 1e-4 * (expected - before).norm()


def test_a_merged_style_is_an_adapter_again(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    from .passes import open_tiny

    base = open_tiny()
    styled = make("merge_adapters", {"adapters": [{"path": "style.safetensors", "weight": 0.7}]}).run(base)
    emit(Adapter(layouts=("kohya",)), styled, tmp_path / "out", skeletons, source=base)
    again = merged(base, tmp_path / "out" / FOLDER / FILES["kohya"])
    assert not (tmp_path / "out" / FOLDER / FILES["peft"]).exists()
    for name in changed_tensors(base, styled):
        np.testing.assert_allclose(floats(again.tensors[name]), floats(styled.tensors[name]), atol=1e-5)


@pytest.mark.parametrize("shape", [(1280, 2048), (1280, 2816), (320, 768)])
def test_true_shapes_are_factored_to_float_precision(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(2)
    weight = random.normal(size=shape).astype(np.float32) * 0.05
    width = 1280 if shape[1] == 2816 else shape[1]
    text_map = floats(low_rank_map(width, 24))
    changed = weight.astype(np.float64)
    changed[:, :width] = changed[:, :width] @ text_map
    before, after = (_held(values) for values in (weight, changed))
    found = factor(Place("unet", "m", "unet.m.weight", shape), before, after, Adapter())
    assert found.rank == 24
    assert found.error < 1e-6


def test_a_sketch_that_misses_is_seen() -> None:
    delta = np.random.default_rng(3).normal(size=(300, 400))
    left, values, right = decompose(delta, 1e-9)
    assert np.abs((left * values) @ right - delta).max() < 1e-9


def test_half_precision_says_what_it_costs(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    base = load(tiny)
    emitted = emit(Adapter(precision="float16"), mapped(base), tmp_path / "out", skeletons, source=base)
    (evidence,) = emitted.evidence
    assert evidence.passed is False
    assert 1e-5 < float(evidence.value) < 1e-2
    stored = load_file(tmp_path / "out" / FOLDER / FILES["peft"])
    assert {values.dtype for values in stored.values()} == {np.dtype(np.float16)}


@pytest.mark.parametrize(
    ("name", "message"),
    [("unet.conv_in.bias", "no adapter can hold"), (KEY, "larger than it")],
)
def test_what_is_no_adapter_is_refused(
    name: str, message: str, tiny: Path, tmp_path: Path, skeletons: Path
) -> None:
    base = load(tiny)
    random = np.random.default_rng(4)
    changed = edited(base, name, lambda weight: weight + random.normal(size=weight.shape))
    with pytest.raises(InputError, match=message):
        emit(Adapter(), changed, tmp_path / "out", skeletons, source=base)
    assert not (tmp_path / "out" / FOLDER).exists()


def test_no_change_is_refused(tiny: Path, tmp_path: Path, skeletons: Path) -> None:
    base = load(tiny)
    with pytest.raises(InputError, match="change no weight"):
        emit(Adapter(), base, tmp_path / "out", skeletons, source=base)


def _held(values: np.ndarray) -> Edited:
    held = Shared(lambda: values, values.dtype, values.shape)
    return Edited((held,), lambda array: array, values.dtype, values.shape, "test")
