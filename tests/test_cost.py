"""What a build is expected to take, what is refused before it starts, and what is captured ahead."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from emitting import load
from pydantic import TypeAdapter
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel

from retouch.compiler import cost, digests
from retouch.compiler.build import Options, build
from retouch.compiler.commands.build import command as build_command
from retouch.compiler.commands.plan import command as plan_command
from retouch.compiler.commands.prebuild import command as prebuild_command
from retouch.compiler.cost import Cost, Pace, check_room, estimate, graphs_to_capture
from retouch.compiler.digests import remembering
from retouch.compiler.emit import Job
from retouch.compiler.emit.onnx import Onnx
from retouch.compiler.emit.tensorrt import Tensorrt
from retouch.compiler.emit.tensorrt_rtx import TensorrtRtx
from retouch.compiler.engines.building import memory_needed
from retouch.compiler.graphs import capture, prebuild
from retouch.compiler.graphs.capture import program_of
from retouch.compiler.graphs.interfaces import Interface, interfaces
from retouch.compiler.graphs.prebuild import config_folder, config_pipeline
from retouch.compiler.graphs.program import Program
from retouch.compiler.multiplications import of_graph, of_image
from retouch.compiler.plan import make_plan
from retouch.compiler.registry import emitters
from retouch.compiler.work import Step, Work
from retouch.specs.canonical import digest_file
from retouch.specs.errors import Fault, InputError, SpecError, UndecidedError

FOLDERS = ("text_encoder", "unet", "vae_decoder", "vae_encoder")
SPEC = """schema: 1
name: tiny
version: "1"
source: {{model: {model}}}
edits:
  - bake_guidance: {{scale: 3.0}}
sampling: {{sampler: ddim, steps: 5}}
emit:
  - onnx: {{parity: false}}
"""


@pytest.fixture
def spec(tiny: Path, tmp_path: Path) -> Path:
    file = tmp_path / "edit.yaml"
    file.write_text(SPEC.format(model=tiny))
    return file


def test_what_is_not_captured_costs_time_and_memory(tiny: Path, skeletons: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    for interface in interfaces(pipeline):
        program_of(interface, (), skeletons)
    cold, warm = (estimate(pipeline, [Onnx()], cache) for cache in (tmp_path, skeletons))
    assert (tuple(cold.cold), tuple(warm.cold)) == (FOLDERS, ())
    assert cold.seconds > warm.seconds
    assert cold.memory > warm.memory


def test_half_precision_and_packing_take_less_disk(tiny: Path, tmp_path: Path) -> None:
    pipeline = load(tiny)
    targets = Onnx(), Onnx(weights="int8"), Onnx(precision="float16", vae_precision="float16")
    single, packed, half = (target.written_bytes(pipeline) for target in targets)
    assert single == 2 * half
    assert packed < single


def test_both_shortages_are_named(tmp_path: Path) -> None:
    with pytest.raises(UndecidedError) as caught:
        check_room(Cost(1.0, 1 << 60, 1 << 60, {}), tmp_path / "not" / "there")
    assert [fault.code for fault in caught.value.faults] == ["E_DISK", "E_MEMORY"]
    check_room(Cost(1.0, 1, 1, {}), tmp_path)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without memory."""
    monkeypatch.setattr(cost, "available_memory", lambda: 1 << 20)
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (
            "sampling:",
            "  - merge_adapters: {adapters: [{path: no.safetensors}]}\n"
            "gates:\n  - kept: {within: '0.1', judge: gone.onnx}\nsampling:",
            ["no.safetensors", "gone.onnx", "gone.onnx (labels)"],
        ),
        ("onnx: {parity: false}", "diffusers: {}\ngates:\n  - kept: {within: '0.1'}", ["gates"]),
        (
            "{parity: false}",
            "{parity: false, size: 15x16}\n  - tensorrt_rtx: {sizes: [9x9]}",
            ["size", "sizes"],
        ),
    ],
)
def test_what_would_stop_a_build_late_is_told_by_the_plan(
    spec: Path, before: str, after: str, told: list[str]
) -> None:
    spec.write_text(spec.read_text().replace(before, after))
    with pytest.raises((InputError, SpecError)) as caught:
        make_plan(spec)
    assert [fault.where for fault in caught.value.faults] == told


def test_a_machine_that_lacks_a_builder_is_told_before_anything_is_written(
    spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lack(_: object) -> None:
        raise UndecidedError(Fault("E_EXTRA", "not installed"))

    monkeypatch.setattr(TensorrtRtx, "check_machine", lack)
    monkeypatch.setattr(Onnx, "emit", lambda *_: pytest.fail("another target was written first"))
    spec.write_text(spec.read_text() + "  - tensorrt_rtx: {}\n")
    with pytest.raises(UndecidedError, match="not installed"):
        build(make_plan(spec), tmp_path / "out", Options(cache=tmp_path / "cache"))
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small")
def test_a_build_that_does_not_fit_does_not_start(spec: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(build_command, [str(spec), "-o", str(tmp_path / "out")])
    assert isinstance(result.exception, UndecidedError)
    assert result.exception.exit_code == 4
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("small")
def test_a_plan_shows_the_cost_and_then_refuses(spec: Path) -> None:
    refused = CliRunner().invoke(plan_command, [str(spec), "--json"])
    assert isinstance(refused.exception, UndecidedError)
    shown = CliRunner().invoke(plan_command, [str(spec), "--json", "--regardless"])
    assert shown.exit_code == 0
    found = json.loads(shown.stdout)["plan"]["cost"]
    assert found["captures"] == list(FOLDERS)
    assert found["memory_bytes"] > 0 < found["seconds"]
    assert (found["steps"], found["engine_memory_bytes"]) == ([], 0)
    assert found["total_seconds"] == found["seconds"]


def test_multiplications_are_those_that_torch_counts(tiny: Path) -> None:
    """Without the projections of time and text, which see a few rows: 1 % of a published denoiser."""
    folder = config_folder("sd15")
    with torch.device("meta"):
        parts = {
            "unet": UNet2DConditionModel.from_config(json.loads((folder / "unet/config.json").read_text())),
            "vae": AutoencoderKL.from_config(json.loads((folder / "vae/config.json").read_text())),
        }
        sample, states = torch.zeros(1, 4, 64, 64), torch.zeros(1, 77, 768)
        counted = [
            multiplied(lambda: parts["unet"](sample, torch.zeros(1), states)),
            multiplied(lambda: parts["vae"].decode(sample)),
        ]
    tensors = {f"{part}.{name}": t for part in parts for name, t in parts[part].state_dict().items()}
    shapes: Any = replace(config_pipeline(folder), tensors=tensors)
    for found, wanted in zip(of_image(shapes), counted, strict=True):
        assert found.multiplications == pytest.approx(wanted, rel=0.01)
    encoder = multiplied(lambda: parts["vae"].encode(torch.zeros(1, 3, 512, 512, device="meta")))
    graphs = {graph.folder: graph for graph in interfaces(shapes)}
    found = of_graph(shapes, graphs["vae_encoder"], {"sample": [1, 3, 512, 512]})
    assert found.multiplications == pytest.approx(encoder, rel=0.01)


def test_those_of_a_text_encoder_are_too() -> None:
    folder = config_folder("sd15")
    with torch.device("meta"):
        text = CLIPTextModel(CLIPTextConfig.from_pretrained(folder / "text_encoder"))
        counted = multiplied(lambda: text(torch.zeros(1, 77, dtype=torch.int64)))
    tensors = {f"text_encoder.{name}": t for name, t in text.state_dict().items()}
    shapes: Any = replace(config_pipeline(folder), tensors=tensors)
    (graph,) = (graph for graph in interfaces(shapes) if graph.folder == "text_encoder")
    run = of_graph(shapes, graph, {"input_ids": [1, 77]})
    assert run.multiplications == pytest.approx(counted, rel=0.01)


def multiplied(run: Callable[[], Any]) -> float:
    """Return the multiplications of a call as torch counts them: half of its operations."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2


def test_gates_are_timed_with_half_of_their_images_from_the_base(spec: Path) -> None:
    gates = 'gates: [kept: {within: "0.1", concepts: 3, images: 5}]\n'
    spec.write_text(spec.read_text().replace("{scale: 3.0}", "{scale: 3.0, interval: [0.5, 2.0]}") + gates)
    plan = make_plan(spec)
    edited, base = (each.sampling.table().evaluations for each in (plan.pipeline, plan.source))
    assert 5 < edited < base == 10
    (step,) = plan.steps()
    assert (step.name, step.work) == ("gates/kept", Work(drawn=15, drawn_before=15))
    assert Pace.of(plan.pipeline, plan.source).evaluated(step.work) == 15 * (base + edited)
    shown = CliRunner().invoke(plan_command, [str(spec), "--regardless"]).output
    assert f"< 1 s  gates/kept: 30 images, {15 * (base + edited)} denoiser evaluations" in shown


def test_gates_draw_images_of_the_size_that_the_target_is_fixed_to(spec: Path) -> None:
    gates = 'gates: [kept: {within: "0.1", concepts: 3, images: 5}]\n'
    spec.write_text(spec.read_text().replace("parity: false", "parity: false, size: 32x64") + gates)
    plan = make_plan(spec)
    (step,) = plan.steps()
    latent = plan.pipeline.sampling.latent
    cells = 32 * 64 // latent.downscale**2
    assert step.cells == cells
    assert Pace.of(plan.pipeline, cells=cells).denoiser < Pace.of(plan.pipeline, cells=2 * cells).denoiser


TRAINING = """  - erase_by_training:
      {concepts: [{name: an apple, towards: a dog}], templates: ["{}"], steps: 10, batch: 2}
"""


def test_the_plan_times_trainings_comparisons_and_engines(spec: Path) -> None:
    text = spec.read_text().replace("edits:\n", f"edits:\n{TRAINING}")
    text = text.replace("- onnx: {parity: false}", "- onnx: {size: 32x32}\n  - tensorrt_rtx: {twice: true}")
    spec.write_text(text)
    shown = CliRunner().invoke(plan_command, [str(spec), "--json", "--regardless"])
    cost = json.loads(shown.stdout)["plan"]["cost"]
    training, graphs, engines = cost["steps"]
    assert (training["name"], training["gradients"]) == ("erase_by_training", 2 * 10 * 2 * 2 + 60 * 4)
    assert (graphs["name"], graphs["multiplications"] > 0, graphs["engines"]) == ("emit/onnx", True, 0)
    assert (engines["name"], engines["engines"]) == ("emit/tensorrt_rtx", 2 * len(FOLDERS))
    assert cost["total_seconds"] == pytest.approx(
        cost["seconds"] + sum(step["seconds"] for step in cost["steps"]), abs=0.1
    )
    text = CliRunner().invoke(plan_command, [str(spec), "--regardless"]).output
    for words in ("with a gradient", "graphs compared with torch", "8 engines built", "in all"):
        assert words in text


def test_a_comparison_at_a_larger_size_takes_longer(tiny: Path) -> None:
    pipeline = load(tiny)
    free, small, large, both = (
        Onnx(size=size, sizes=sizes).work(pipeline).multiplied
        for size, sizes in ((None, ()), ("32x32", ()), ("64x64", ()), ("32x32", ("64x64",)))
    )
    assert 0 < free < small < large
    assert small < both < small + large  # a further size has neither text encoders nor guidance
    assert Onnx(precision="bfloat16", vae_precision="bfloat16").work(pipeline) == Work()


def test_steps_take_the_memory_of_what_they_hold_at_once(tiny: Path, skeletons: Path) -> None:
    pipeline = load(tiny)

    def memory(work: Work, cells: int | None = None) -> int:
        return estimate(pipeline, [Onnx()], skeletons, [Step("any", work, cells)]).memory

    learning = [memory(Work(differentiated=1, at_once=count)) for count in (1, 1000, 2000)]
    assert learning == sorted(set(learning))
    assert memory(Work(differentiated=9, at_once=1)) == learning[0]
    drawing = [memory(Work(drawn=1), cells) for cells in (None, 10_000, 20_000)]
    assert drawing == sorted(set(drawing))
    assert memory(Work(drawn=1, drawn_before=1), 10_000) > drawing[1]
    comparing = [memory(Onnx(size=size).work(pipeline)) for size in ("512x512", "1024x1024")]
    assert comparing == sorted(set(comparing))


def test_what_is_drawn_beside_the_artefact_takes_disk(tiny: Path, skeletons: Path) -> None:
    pipeline = load(tiny)
    steps = [Step("gates/kept", Work(drawn=1, drawn_before=1)), Step("gates/erased", Work(drawn=1))]
    none, one, both = (estimate(pipeline, [Onnx()], skeletons, steps[:count]).disk for count in range(3))
    assert none < one == both


def test_work_adds_up_apart_from_what_is_held_at_once() -> None:
    one, other = Work(drawn=1, at_once=4), Work(drawn=2, predicted=3, at_once=2)
    assert one + other == Work(drawn=3, predicted=3, at_once=4)
    assert other * 3 == Work(drawn=6, predicted=9, at_once=2)


def test_work_is_timed_at_the_pace_of_what_does_it() -> None:
    pace = Pace(denoiser=10**9, decoder=10**9, evaluations=10, before=20)
    seconds = [
        pace.seconds(work)
        for work in (Work(drawn=8), Work(drawn_before=8), Work(sampled=16), Work(sampled=32))
    ]
    assert seconds == sorted(seconds)
    assert pace.seconds(Work(differentiated=10)) > pace.seconds(Work(predicted=10)) > 0
    assert pace.seconds(Work(engines=2, engine_bytes=1 << 30)) > pace.seconds(Work(engines=2)) > 0
    assert pace.evaluated(Work(drawn=1, drawn_before=1, sampled=1, predicted=1, differentiated=1)) == 42


def test_engines_take_memory_beside_the_build(tiny: Path, skeletons: Path) -> None:
    pipeline = load(tiny)
    engines, graphs = TensorrtRtx(precision="float32"), Onnx()
    plain, built = (estimate(pipeline, [each], skeletons) for each in (graphs, engines))
    largest = max(graphs.bytes_of(pipeline, name) for name in pipeline.components)
    assert (plain.engine_memory, built.engine_memory) == (0, memory_needed(largest))
    assert built.memory > built.engine_memory
    assert built.disk - plain.disk == largest
    assert estimate(pipeline, [Tensorrt(precision="float32")], skeletons).engine_memory == 0


def test_models_are_captured_from_configs_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    captured: list[str] = []

    def capture(interface: Any, edits: Any, cache: Path) -> Program:
        captured.append(interface.folder)
        return Program((), (), (), (), ())

    monkeypatch.setattr(prebuild, "program_of", capture)
    monkeypatch.setenv("RETOUCH_CACHE", str(tmp_path))
    result = CliRunner().invoke(prebuild_command, ["sd15", "sdxl", "--json"])
    assert result.exit_code == 0, result.output
    assert captured == [*FOLDERS, "text_encoder", "text_encoder_2", *FOLDERS[1:]]
    with pytest.raises(SpecError, match="no model"):
        prebuild.prebuild("no-such-model", tmp_path)


def test_a_digest_is_remembered_until_the_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, digest, read = tmp_path / "weights", remembering(tmp_path / "cache"), []
    monkeypatch.setattr(digests, "digest_file", lambda path: read.append(path) or digest_file(path))
    file.write_bytes(bytes(2 << 20))
    assert digest(file) == digest(file) == digest_file(file)
    assert len(read) == 2  # just written: a second write could go unseen
    monkeypatch.setattr(digests, "TICK", 0.0)
    assert digest(file) == digest(file) == digest_file(file)
    assert len(read) == 3
    file.write_bytes(b"\1" * (2 << 20))
    assert digest(file) == digest_file(file)


WARM = """
import sys
from pathlib import Path
from retouch.compiler.build import Options, build
from retouch.compiler.plan import make_plan
from retouch.compiler.registry import emitters

build(make_plan(Path(sys.argv[1])), Path(sys.argv[2]), Options(cache=Path(sys.argv[3])))
print("torch" in sys.modules, "transformers" in sys.modules)
"""


def test_a_warm_build_imports_no_torch(tiny: Path, skeletons: Path, spec: Path, tmp_path: Path) -> None:
    for interface in interfaces(load(tiny)):
        program_of(interface, (), skeletons)
    command = [sys.executable, "-c", WARM, str(spec), str(tmp_path / "out"), str(skeletons)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stdout == "False False\n"
    assert (tmp_path / "out" / "manifest.json").is_file()


class Captured(Exception):
    """A graph was asked for."""


@pytest.mark.parametrize(
    "block",
    [
        {"onnx": {}},
        {"diffusers": {}},
        {"single_file": {}},
        {"comfy": {}},
        {"comfy": {"graph": False}},
        {"tensorrt": {}},
    ],
    ids=str,
)
def test_a_target_says_whose_graphs_it_captures(
    tiny: Path, tmp_path: Path, block: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ((name, parameters),) = block.items()
    emitter = TypeAdapter[Any](emitters.load(name)).validate_json(json.dumps(parameters))
    pipeline = load(tiny)
    assert set(graphs_to_capture(pipeline, [emitter], tmp_path)) <= set(FOLDERS)
    asked, out = list[str](), tmp_path / "out"
    out.mkdir()

    def note(interface: Interface, *_: Any) -> None:
        asked.append(interface.component.role)
        raise Captured

    monkeypatch.setattr(capture, "program_of", note)
    with pytest.raises(Captured) if emitter.captures else nullcontext():
        emitter.emit(pipeline, out, Job(pipeline, (), lambda *_: None, tmp_path))
    assert set(asked) <= set(emitter.captures)
    assert bool(asked) == bool(emitter.captures)
