"""One debiasing written three ways, fused, in the graph and as an adapter, is one model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from emitting import emit
from tiny import make_tiny_xl

from retouch.compiler.emit.adapter import FILES, FOLDER, Adapter
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.evidence.parity import example_inputs, run_graph
from retouch.compiler.graphs.interfaces import interfaces
from retouch.compiler.ir import Pipeline, changed_tensors
from retouch.compiler.load import load_pipeline
from retouch.compiler.tensors import Edited
from retouch.compiler.text.encode import pooled_width, text_width
from retouch.compiler.torch_models.modules import load_module
from retouch.passes._attributes import States
from retouch.passes._balance import Round, Subject, weights_after
from retouch.passes._preserving import EMPTY_WEIGHT
from retouch.passes.debias_concepts import DebiasConcepts
from retouch.specs.fields import DEMO

from .passes import make

DEMO_BLOCK: Mapping[str, Any] = {
    "concepts": ["a doctor", "a police officer"],
    "attributes": {"gender": {"male": "a male {}", "female": "a female {}"}},
    "templates": ["{}", "{} in noto style"],
    "held_out": [],
    "vocabulary": 20,
}
TINY_BLOCK: Mapping[str, Any] = {
    **DEMO_BLOCK,
    "concepts": ["a doctor", "a cat"],
    "attributes": {"gender": {"male": "a man {}", "female": "a woman {}"}},
    "templates": ["{}", "on {}"],
    "vocabulary": 3,
}


@pytest.fixture(scope="module")
def tiny_xl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_xl(tmp_path_factory.mktemp("xl") / "model")


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[Round]:
    """Let the loop have drawn one round, in which nearly all were of the first value."""
    drawn = [Round((0.0, 0.0), (60, 4))]
    monkeypatch.setattr(DebiasConcepts, "_balance", lambda self, *_: dict.fromkeys(self.subjects, drawn))
    return drawn


def _base(model: str, tiny_xl: Path) -> tuple[Pipeline, Mapping[str, Any]]:
    folder, block = {"demo": (DEMO / "model", DEMO_BLOCK), "xl": (tiny_xl, TINY_BLOCK)}[model]
    return _single(load_pipeline(folder, "ddim", 5, 4.0)), block


def _single(pipeline: Pipeline) -> Pipeline:
    """Return a pipeline in single precision: the demo's weights are halves, and what is fused is rounded."""
    wide = {
        name: Edited((tensor,), lambda values: values, np.dtype(np.float32), tensor.shape, "test")
        for name, tensor in pipeline.tensors.items()
        if tensor.dtype == np.float16
    }
    return pipeline.with_tensors(wide)


def _given(pipeline: Pipeline) -> dict[str, Any]:
    """Return what a denoiser reads for two images."""
    generator = torch.Generator().manual_seed(0)
    given: dict[str, Any] = {
        "sample": torch.randn(2, 4, 8, 8, generator=generator),
        "timestep": torch.tensor(7),
        "encoder_hidden_states": torch.randn(2, 5, text_width(pipeline), generator=generator),
    }
    if width := pooled_width(pipeline):
        pooled = torch.randn(2, width, generator=generator)
        given["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.full((2, 6), 64.0)}
    return given


@pytest.mark.parametrize("model", ["demo", "xl"])
def test_three_forms_denoise_alike(
    model: str, rounds: list[Round], tiny_xl: Path, tmp_path: Path, skeletons: Path
) -> None:
    base, block = _base(model, tiny_xl)
    fused, mapped = (
        make("debias_concepts", {**block, "output": output}).run(base) for output in ("fused", "text_map")
    )
    emitted = emit(Adapter(), mapped, tmp_path / "out", skeletons, source=base)
    file = tmp_path / "out" / FOLDER / FILES["peft"]
    merged = make("merge_adapters", {"adapters": [{"path": str(file), "weight": 1.0}]}).run(base)
    assert changed_tensors(base, merged) == changed_tensors(base, fused)
    assert all(evidence.passed for evidence in emitted.evidence)

    given = _given(base)
    with torch.inference_mode():
        plain, expected, *others = (
            load_module(pipeline, "unet")(**given).sample for pipeline in (base, fused, mapped, merged)
        )
    moved = (expected - plain).norm()
    assert moved > 1e-2 * plain.norm()
    for found in others:
        assert (found - expected).norm() < 1e-4 * moved


def test_the_demos_graph_with_the_map_is_the_graph_with_fused_weights(
    rounds: list[Round], tiny_xl: Path, tmp_path: Path, skeletons: Path
) -> None:
    base, block = _base("demo", tiny_xl)
    found = {}
    for output in ("fused", "text_map"):
        pipeline = make("debias_concepts", {**block, "output": output}).run(base)
        emit(Onnx(parity=False), pipeline, tmp_path / output, skeletons)
        (interface,) = [one for one in interfaces(pipeline) if one.component.role == "denoiser"]
        graph = tmp_path / output / interface.folder / "model.onnx"
        found[output] = run_graph(graph, interface, example_inputs(interface))["out_sample"]
    scale = np.abs(found["fused"]).max()
    assert np.abs(found["text_map"] - found["fused"]).max() < 1e-5 * scale


@pytest.mark.parametrize("reads", ["sequence", "pooled"])
@pytest.mark.parametrize("following", [0.0, 0.5])
def test_the_pass_solves_uces_formula(
    reads: Any, following: float, rounds: list[Round], tiny_xl: Path
) -> None:
    """2308.14761, eq. (7) for one layer, v* = W (c + sum w a); what follows moves by a part of it."""
    base, block = _base("xl", tiny_xl)
    edit = make("debias_concepts", {**block, "following": following})
    states = States(base, edit.mentions(base), reads)
    solved = edit._solve(base).maps[reads]
    weight = np.random.default_rng(0).normal(size=(7, states.width))
    subject = Subject("a doctor", "gender", ("male", "female"))
    male, female = weights_after(subject, rounds, edit.step)
    assert male < 0 < female

    moved, kept = [], [(row, EMPTY_WEIGHT / len(states.empty)) for row in states.empty]

    def keep(prompts: list[tuple[str, str]], total: float) -> None:
        for template, text in prompts:
            first, *rest = states.rows(template, text)
            kept.append((first, total / len(prompts)))
            kept.extend((row, total / len(prompts) / len(rest)) for row in rest)

    templates = block["templates"]
    for concept in block["concepts"]:
        for t in templates:
            words = male * states.word(t, "a man") + female * states.word(t, "a woman")
            first, *rest = states.rows(t, concept)
            moved.append((first, first + words[0], 1 / len(templates)))
            moved.extend((row, row + following * words[0], 1 / len(templates) / len(rest)) for row in rest)
        bare = concept.removeprefix("a ")
        said = [(t, f"{value} {bare}") for t in templates for value in ("a man", "a woman")]
        keep(said, edit.explicit_weight)
    keep([(t, value) for t in templates for value in ("a man", "a woman")], 1.0)
    keep(edit.words(base), edit.vocabulary_weight)
    squares = [row @ row for row, *_ in (*moved, *kept)]
    lam = edit.ridge * np.mean(squares)
    left, right = lam * weight, lam * np.eye(states.width)
    for c, v, w in (*moved, *((row, row, w) for row, w in kept)):
        left, right = left + w * np.outer(weight @ v, c), right + w * np.outer(c, c)
    published = left @ np.linalg.inv(right)
    assert np.abs(weight @ solved - published).max() < 1e-9 * max(1.0, np.abs(published).max())
