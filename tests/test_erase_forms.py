"""One erasure of the built-in model in three forms: fused weights, a map in the graph, an adapter file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from emitting import emit
from numpy.typing import NDArray

from retouch.compiler.emit.adapter import FILES, FOLDER, Adapter
from retouch.compiler.evidence.trial import pipeline_drawer
from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.load import load_pipeline
from retouch.compiler.tensors import Array, Edited, Tensor, widen
from retouch.compiler.text.encode import encode_prompts
from retouch.compiler.text.text_map import graph_map
from retouch.passes._closed_form import Moments
from retouch.specs.fields import DEMO

from .passes import make

READERS = "*.attn2.to_[kv].weight"
ERASURE: dict[str, Any] = {
    "concepts": [
        {"name": "the nike logo", "towards": "a heart"},
        {"name": "a pistol", "towards": "a carrot"},
    ],
    "templates": ["{}", "{} in noto style"],
    "held_out": [],
}
PROMPTS = ["the nike logo", "a pistol", "a shoe", "the github logo"]


@pytest.fixture(scope="module")
def demo() -> Pipeline:
    """The built-in model with single-precision matrices: rounding to half hides what forms differ in."""
    base = load_pipeline(DEMO / "model", "dpmpp_2m", 4, 2.0)
    readers = base.select("denoiser", READERS)
    return base.with_tensors(
        {name: Edited((t,), widen, np.dtype(np.float32), t.shape, "test") for name, t in readers}
    )


@pytest.fixture(scope="module")
def fused(demo: Pipeline) -> Pipeline:
    return make("erase_concepts", ERASURE).run(demo)


@pytest.fixture(scope="module")
def states(demo: Pipeline) -> NDArray[np.float64]:
    """Every row of some prompts' text states, [N, D]."""
    return np.concatenate(list(encode_prompts(demo, PROMPTS).states)).astype(np.float64)


def floats(tensor: Tensor) -> NDArray[np.float64]:
    return np.asarray(tensor.read(), np.float64)


def worst(pipeline: Pipeline, other: Pipeline, source: Pipeline) -> float:
    """Return how far two pipelines' matrices are apart, as a share of the change; the worst matrix's."""
    pairs = [
        tuple(floats(p.tensors[name]) for p in (pipeline, other, source))
        for name in changed_tensors(source, pipeline)
    ]
    return max(float(np.linalg.norm(a - b) / np.linalg.norm(a - c)) for a, b, c in pairs)


def test_matrices_read_through_the_map_what_fused_ones_read(
    demo: Pipeline, fused: Pipeline, states: NDArray[np.float64]
) -> None:
    mapped = make("erase_concepts", {**ERASURE, "output": "text_map"}).run(demo)
    found = graph_map(mapped)
    assert found is not None
    through = states @ floats(found.sequence).T
    for name in demo.select("denoiser", READERS).names:
        before, after = (states @ floats(pipeline.tensors[name]).T for pipeline in (demo, fused))
        assert mapped.tensors[name] is demo.tensors[name]
        assert np.linalg.norm(through @ floats(demo.tensors[name]).T - after) < 1e-6 * np.linalg.norm(before)
        assert np.linalg.norm(after - before) > 1e-2 * np.linalg.norm(before)


def test_images_are_those_of_the_fused_weights(demo: Pipeline, fused: Pipeline, skeletons: Path) -> None:
    mapped = make("erase_concepts", {**ERASURE, "output": "text_map"}).run(demo)
    images = []
    for pipeline in (demo, fused, mapped):
        with pipeline_drawer(pipeline, skeletons) as draw:
            images.append(draw(PROMPTS, range(len(PROMPTS))).astype(int))
    base, one, other = images
    assert np.abs(one - other).max() <= 1
    assert np.abs(base - one).max() > 50


@pytest.mark.parametrize("more", [{}, {"adversarial_rounds": 1}, {"solver": "nullspace"}])
def test_an_adapter_is_the_erasure(
    more: dict[str, Any], demo: Pipeline, tmp_path: Path, skeletons: Path
) -> None:
    edited = make("erase_concepts", {**ERASURE, **more}).run(demo)
    (evidence,) = emit(Adapter(), edited, tmp_path / "out", skeletons, source=demo).evidence
    assert evidence.passed
    for file in FILES.values():
        block = {"adapters": [{"path": str(tmp_path / "out" / FOLDER / file), "weight": 1.0}]}
        assert worst(edited, make("merge_adapters", block).run(demo), demo) < float(evidence.limit or 0)


def test_diffusers_reads_the_adapter_as_the_fused_weights(
    demo: Pipeline, fused: Pipeline, tmp_path: Path, skeletons: Path
) -> None:
    emit(Adapter(), fused, tmp_path / "out", skeletons, source=demo)
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        DEMO / "model", safety_checker=None, local_files_only=True
    )
    pipe.unet.float()
    text = torch.from_numpy(encode_prompts(demo, PROMPTS).states)
    given = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor(500), text
    with torch.inference_mode():
        plain = pipe.unet(*given).sample
        pipe.load_lora_weights(tmp_path / "out" / FOLDER, weight_name=FILES["peft"])
        found = pipe.unet(*given).sample
        pipe.unload_lora_weights()
        weights = {
            name: torch.from_numpy(widen(t.read()).copy()) for name, t in fused.tensors_of("unet").items()
        }
        pipe.unet.load_state_dict(weights)
        expected = pipe.unet(*given).sample
    assert (expected - plain).norm() > 1e-2 * plain.norm()
    assert (found - expected).norm() < 1e-4 * (expected - plain).norm()


@pytest.mark.parametrize("width", [768, 1280, 2048])
def test_both_forms_agree_in_true_widths(width: int) -> None:
    """SD 1.x and 2.x read 768 and 1,024 wide states, SDXL 2,048 and pooled ones of 1,280."""
    random = np.random.default_rng(width)
    moments = Moments(width)
    moments.keep(random.normal(size=(400, width)), 0.1)
    moments.move(random.normal(size=(40, width)), random.normal(size=(40, width)), 1.0)
    change = moments.solve(1e-3 * moments.mean_square)
    weight: Array = random.normal(size=(640, width)).astype(np.float32)
    states = random.normal(size=(20, width))
    fused = states @ change.edit(weight).astype(np.float64).T
    mapped = (states @ change.matrix.T) @ weight.T.astype(np.float64)
    assert np.linalg.norm(fused - mapped) < 1e-6 * np.linalg.norm(mapped)
