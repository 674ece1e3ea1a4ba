"""The ONNX target: every graph computes what its torch module computes, on the bytes as written."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import onnx
import pytest
from emitting import KEY, Recorder, added, edited, emissions, emit, graphs, load, written

from retouch.compiler.emit import Emitted, Watch
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.evidence import parity
from retouch.compiler.evidence.parity import (
    Emission,
    example_inputs,
    measure_parity,
    relative_error,
    rounded_up,
    run_graph,
    run_module,
)
from retouch.compiler.graphs.interfaces import NEGATIVE, Interface
from retouch.compiler.ir import GraphEdit, Pipeline
from retouch.compiler.tensors import Edited
from retouch.compiler.torch_models.modules import load_module
from retouch.specs.errors import InputError
from retouch.specs.sampling import SamplingTable

FOLDERS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
FILES = {
    *("model_index.json", "sampling.json", "scheduler/scheduler_config.json"),
    *(f"tokenizer/{name}" for name in ("vocab.json", "merges.txt", "tokenizer.json")),
    *(f"tokenizer/{name}" for name in ("tokenizer_config.json", "special_tokens_map.json")),
    *(f"{folder}/{name}" for folder in FOLDERS for name in ("model.onnx", "model.onnx_data", "config.json")),
    *("unet/combine.onnx", "unet/guided.onnx"),
}


@pytest.fixture(scope="module")
def pipeline(tiny: Path) -> Pipeline:
    """The tiny pipeline with one attention key edited."""
    return edited(load(tiny), KEY, lambda array: array * 1.5 + 0.1)


@pytest.fixture(scope="module")
def artefact(pipeline: Pipeline, skeletons: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("emitted") / "artefact"
    emit(Onnx(parity=False), pipeline, folder, skeletons)
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }


def test_the_layout_is_that_of_a_diffusers_onnx_pipeline(artefact: Path) -> None:
    assert set(files(artefact)) == FILES
    index = json.loads((artefact / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert index["safety_checker"] == [None, None]
    assert "time_cond_proj_dim" in json.loads((artefact / "unet" / "config.json").read_text())
    assert "scaling_factor" in json.loads((artefact / "vae_decoder" / "config.json").read_text())


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize(("batch", "scale"), [(1, 1), (3, 2)])
def test_parity_with_torch(
    pipeline: Pipeline, artefact: Path, skeletons: Path, folder: str, batch: int, scale: int
) -> None:
    interface, _ = graphs(pipeline, skeletons)[folder]
    inputs = example_inputs(interface, batch, scale)
    measured = run_graph(artefact / folder / "model.onnx", interface, inputs)
    expected = run_module(load_module(pipeline, interface.component.name), interface, inputs)
    assert relative_error(measured, expected) < 1e-5
    for port in interface.outputs:
        assert measured[port.name].shape == expected[port.name].shape
        assert measured[port.name].std() > 0


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.endswith(".onnx")))
def test_the_checker_of_onnx_accepts_every_graph(artefact: Path, name: str) -> None:
    onnx.checker.check_model(str(artefact / name), full_check=True)


def test_the_edited_tensor_is_in_the_data_file(pipeline: Pipeline, artefact: Path, skeletons: Path) -> None:
    _, skeleton = graphs(pipeline, skeletons)["unet"]
    name = KEY.removeprefix("unet.")
    np.testing.assert_array_equal(written(artefact / "unet", skeleton, name), pipeline.tensors[KEY].read())


def guided_inputs(interface: Interface, timestep: float, batch: int = 2) -> dict[str, Any]:
    both = example_inputs(interface, 2 * batch)
    return {
        "sample": both["sample"][:batch],
        "timestep": np.asarray(timestep, np.float32),
        "encoder_hidden_states": both["encoder_hidden_states"],
    }


def combined(artefact: Path, interface: Interface, inputs: dict[str, Any], weight: float) -> Any:
    """Return what model.onnx and combine.onnx make of the inputs of guided.onnx."""
    doubled = {**inputs, "sample": np.concatenate([inputs["sample"]] * 2)}
    predicted = run_graph(artefact / "unet" / "model.onnx", interface, doubled)["out_sample"]
    unconditional, conditional = np.split(predicted, 2)
    feeds = {
        "unconditional": unconditional,
        "conditional": conditional,
        "guidance_weight": np.asarray([weight], np.float32),
    }
    combine = replace(interface, outputs=(replace(interface.outputs[0], name="guided"),))
    return run_graph(artefact / "unet" / "combine.onnx", combine, feeds)["guided"]


@pytest.mark.parametrize("step", [0, 2, 4])
@pytest.mark.parametrize("offset", [0.0, 0.4])
def test_one_guided_call_is_model_and_combine(
    pipeline: Pipeline, artefact: Path, skeletons: Path, tmp_path: Path, step: int, offset: float
) -> None:
    interface, skeleton = graphs(pipeline, skeletons)["unet"]
    guidance = replace(pipeline.sampling.guidance, weights=(1.0, 2.0, 3.0, 4.0, 5.0))
    ramp = pipeline.with_sampling(pipeline.sampling.with_guidance(guidance))
    emit(Onnx(parity=False), ramp, tmp_path / "ramp", skeletons)
    row = ramp.sampling.table().steps[step]
    inputs = guided_inputs(interface, row.timestep + offset)
    measured = run_graph(tmp_path / "ramp" / "unet" / "guided.onnx", interface, inputs)["out_sample"]
    expected = combined(artefact, interface, inputs, row.guidance_weight)
    assert relative_error({"out": measured}, {"out": expected}) < 1e-6
    assert row.guidance_weight == step + 1
    assert skeleton.graph == (tmp_path / "ramp" / "unet" / "model.onnx").read_bytes()


def with_baked_negative(pipeline: Pipeline) -> Pipeline:
    name = f"unet.{NEGATIVE}"
    generator = np.random.Generator(np.random.PCG64(5))
    states = generator.standard_normal((1, 16, 32), np.float32)
    tensor = Edited((), lambda: states, np.dtype(np.float32), states.shape, "test")
    return replace(added(pipeline, name, tensor), graph_edits=(GraphEdit("unet", "baked_negative"),))


def test_a_baked_negative_prompt_takes_the_other_half(
    pipeline: Pipeline, artefact: Path, skeletons: Path, tmp_path: Path
) -> None:
    baked = with_baked_negative(pipeline)
    recorder = Recorder(f"unet.{NEGATIVE}")
    watches = (Watch(recorder, pipeline),)
    emitted = emit(Onnx(), baked, tmp_path / "baked", skeletons, pipeline, watches)
    assert all(evidence.passed for evidence in emitted.evidence)
    (record,) = (record for record in emitted.components if record.name == "unet")
    assert record.changed == [f"unet.{NEGATIVE}"]
    assert len(recorder.seen) == 1

    interface, _ = graphs(baked, skeletons)["unet"]
    row = baked.sampling.table().steps[1]
    inputs = guided_inputs(interface, row.timestep)
    given = np.resize(inputs["encoder_hidden_states"], (2, 16, 32))
    negative = np.repeat(baked.tensors[f"unet.{NEGATIVE}"].read(), 2, axis=0)
    both = {**inputs, "encoder_hidden_states": np.concatenate([negative, given])}
    expected = combined(artefact, interface, both, row.guidance_weight)
    half = {**inputs, "encoder_hidden_states": given}
    measured = run_graph(tmp_path / "baked" / "unet" / "guided.onnx", interface, half)["out_sample"]
    assert relative_error({"out": measured}, {"out": expected}) < 1e-6
    onnx.checker.check_model(str(tmp_path / "baked" / "unet" / "guided.onnx"), full_check=True)


def test_a_graph_edit_that_is_not_known_is_refused(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    strange = replace(pipeline, graph_edits=(GraphEdit("unet", "no_such_edit"),))
    with pytest.raises(InputError, match="no_such_edit"):
        emit(Onnx(parity=False), strange, tmp_path / "out", skeletons)


def test_two_emissions_are_the_same_bytes(
    pipeline: Pipeline, artefact: Path, skeletons: Path, tmp_path: Path
) -> None:
    emit(Onnx(parity=False), pipeline, tmp_path / "again", skeletons)
    assert files(tmp_path / "again") == files(artefact)


def test_one_edit_changes_one_file(tiny: Path, artefact: Path, skeletons: Path, tmp_path: Path) -> None:
    source = load(tiny)
    emitted = emit(Onnx(parity=False), source, tmp_path / "source", skeletons)
    before, after = files(tmp_path / "source"), files(artefact)
    assert [name for name in sorted(after) if before[name] != after[name]] == ["unet/model.onnx_data"]
    assert [record.changed for record in emitted.components] == [[]] * len(FOLDERS)


def test_changed_tensors_are_listed_under_their_component(
    tiny: Path, pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    emitted = emit(Onnx(parity=False), pipeline, tmp_path / "out", skeletons, source=load(tiny))
    assert {record.name: record.changed for record in emitted.components if record.changed} == {"unet": [KEY]}


def test_observers_see_each_tensor_of_the_pipeline_once(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    recorder = Recorder(*pipeline.tensors)
    emit(Onnx(parity=False), pipeline, tmp_path / "out", skeletons, watches=(Watch(recorder, pipeline),))
    assert sorted(name for name, _, _ in recorder.seen) == sorted(pipeline.tensors)


def test_the_sampling_table_is_the_pipelines(pipeline: Pipeline, artefact: Path) -> None:
    assert SamplingTable.load(artefact / "sampling.json") == pipeline.sampling.table()
    assert b'"schema":' in (artefact / "sampling.json").read_bytes()


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", "euler"])
def test_the_scheduler_steps_where_the_sampler_steps(
    tiny: Path, skeletons: Path, tmp_path: Path, sampler: str
) -> None:
    pipeline = load(tiny, sampler)
    emit(Onnx(parity=False), pipeline, tmp_path / "out", skeletons)
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    scheduler = getattr(diffusers, index["scheduler"][1]).from_pretrained(tmp_path / "out" / "scheduler")
    scheduler.set_timesteps(5)
    steps = pipeline.sampling.table().steps
    np.testing.assert_allclose(scheduler.timesteps.numpy(), [step.timestep for step in steps], rtol=1e-6)


def test_older_spellings_of_tensor_names_are_bound_alike(
    pipeline: Pipeline, artefact: Path, skeletons: Path, tmp_path: Path
) -> None:
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = {}
    for name, tensor in pipeline.tensors.items():
        component, _, rest = name.partition(".")
        if component == "vae":
            for new, old in older.items():
                rest = rest.replace(f".{new}.", f".{old}.")
        if component == "text_encoder":
            rest = f"text_model.{rest}"
        tensors[f"{component}.{rest}"] = tensor
    assert tensors.keys() != pipeline.tensors.keys()
    emit(Onnx(parity=False), replace(pipeline, tensors=tensors), tmp_path / "out", skeletons)
    assert files(tmp_path / "out") == files(artefact)


def test_a_config_without_a_size_is_refused(pipeline: Pipeline, skeletons: Path, tmp_path: Path) -> None:
    unet = pipeline.components["unet"]
    config = {key: value for key, value in unet.config.items() if key != "cross_attention_dim"}
    broken = replace(pipeline, components={**pipeline.components, "unet": replace(unet, config=config)})
    with pytest.raises(InputError, match="cross_attention_dim"):
        emit(Onnx(parity=False), broken, tmp_path / "out", skeletons)


def test_missing_and_misshapen_tensors_are_named_together(
    pipeline: Pipeline, skeletons: Path, tmp_path: Path
) -> None:
    tensors = dict(pipeline.tensors)
    del tensors["unet.conv_in.bias"]
    tensors[KEY] = tensors["unet.conv_in.weight"]
    broken = replace(pipeline, tensors=tensors)
    with pytest.raises(InputError) as caught:
        emit(Onnx(parity=False), broken, tmp_path / "out", skeletons)
    assert {(fault.code, fault.where) for fault in caught.value.faults} == {
        ("E_TENSOR_MISSING", "unet.conv_in.bias"),
        ("E_TENSOR_SHAPE", KEY),
    }


def measured(pipeline: Pipeline, found: list[Emission]) -> dict[str, bool]:
    return {each.subject: bool(each.passed) for each in measure_parity(pipeline, found, "onnx")}


def test_parity_is_measured_for_every_graph(pipeline: Pipeline, artefact: Path, skeletons: Path) -> None:
    found = emissions(pipeline, skeletons, artefact)
    assert measured(pipeline, found) == dict.fromkeys([*FOLDERS, "unet/guided"], True)


def test_parity_of_weights_too_large_to_hold_twice_is_measured_from_the_mapped_file(
    pipeline: Pipeline, artefact: Path, skeletons: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a size on, sessions read the data file themselves; here that size is nothing."""
    opened: list[str] = []

    def open_mapped(file: Path) -> Any:
        opened.append(file.parent.name)
        return open_session(file)

    open_session = parity._mapped_session
    monkeypatch.setattr(parity, "MAPPED_ONLY", 0)
    monkeypatch.setattr(parity, "_mapped_session", open_mapped)
    found = emissions(pipeline, skeletons, artefact)
    assert measured(pipeline, found) == dict.fromkeys([*FOLDERS, "unet/guided"], True)
    assert sorted(opened) == sorted([*FOLDERS, "unet"])


def test_parity_fails_when_two_weights_were_exchanged(
    pipeline: Pipeline, artefact: Path, skeletons: Path
) -> None:
    scale, shift = (f"unet.conv_norm_out.{name}" for name in ("weight", "bias"))
    tensors = {scale: pipeline.tensors[shift], shift: pipeline.tensors[scale]}
    (found,) = (each for each in emissions(pipeline, skeletons, artefact) if each.folder.name == "unet")
    assert measured(pipeline.with_tensors(tensors), [found]) == {"unet": False, "unet/guided": False}


def test_the_emission_says_what_it_measured(pipeline: Pipeline, skeletons: Path, tmp_path: Path) -> None:
    emitted: Emitted = emit(Onnx(), pipeline, tmp_path / "out", skeletons)
    assert {evidence.subject for evidence in emitted.evidence} == {*FOLDERS, "unet/guided"}
    assert all(evidence.passed and float(evidence.value) < 1e-5 for evidence in emitted.evidence)
    assert [record.weights for record in emitted.components] == [
        f"{name}/model.onnx_data" for name in FOLDERS
    ]


@pytest.mark.parametrize(
    ("value", "text"), [(4.1e-7, "5e-7"), (5e-7, "5e-7"), (9.7e-5, "1e-4"), (0.0, "0"), (0.25, "3e-1")]
)
def test_errors_are_rounded_up(value: float, text: str) -> None:
    assert rounded_up(value) == text
    assert float(text) >= value


def test_a_nan_is_no_parity() -> None:
    assert relative_error({"a": np.array([np.nan])}, {"a": np.array([1.0])}) == float("inf")
    assert float(rounded_up(float("inf"))) > sys.float_info.max / 10
