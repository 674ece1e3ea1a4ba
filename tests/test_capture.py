"""Programs and skeletons: what they hold, what keys depend on, and that equal structures give equal bytes."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import pytest
from emitting import graphs, load

from retouch.compiler.graphs import aside, capture
from retouch.compiler.graphs.capture import program_key, program_of, skeleton_of, structure_of
from retouch.compiler.graphs.interfaces import Interface, interfaces
from retouch.compiler.graphs.lower import lower
from retouch.compiler.graphs.program import Op, Program, Ref
from retouch.compiler.graphs.skeleton import Form
from retouch.compiler.ir import GraphEdit, Pipeline
from retouch.compiler.reproducer import FOLDER
from retouch.compiler.sources import MODEL_ROLES
from retouch.compiler.store import Store
from retouch.specs.canonical import digest_of
from retouch.specs.errors import InputError

FOLDERS = ["text_encoder", "unet", "vae_decoder", "vae_encoder"]
ADDED = Op("sum", "aten.add.Tensor", (Ref("x"), 2.5), {"alpha": 1}, ((3, "n0"),), "float32")
MADE = Program((("x", "float32", (3, "n0")),), (("w", (2, 3)),), (("ids", 4),), (ADDED,), ("sum",))


def interface(tiny: Path, folder: str = "unet", **config: Any) -> Interface:
    """Return a graph of the tiny pipeline, with some keys of its config changed."""
    (found,) = (each for each in interfaces(load(tiny)) if each.folder == folder)
    component = found.component
    changed = MappingProxyType({**component.config, **config})
    return replace(found, component=replace(component, config=changed))


def key(found: Interface, *edits: GraphEdit) -> str:
    return digest_of(structure_of(found, edits))


@pytest.mark.parametrize("change", [{"norm_eps": 1e-6}, {"flip_sin_to_cos": False}, {"act_fn": "gelu"}])
def test_one_config_value_changes_the_key(tiny: Path, change: dict[str, Any]) -> None:
    assert key(interface(tiny, **change)) != key(interface(tiny))


def test_where_a_config_came_from_does_not_change_the_key(tiny: Path) -> None:
    assert key(interface(tiny, _name_or_path="elsewhere", _diffusers_version="0.0")) == key(interface(tiny))


def test_a_graph_edit_changes_the_key_of_its_component_only(tiny: Path) -> None:
    edit = GraphEdit("unet", "text_map", {"sequence": 32})
    assert key(interface(tiny), edit) != key(interface(tiny))
    assert key(interface(tiny, "vae_decoder"), edit) == key(interface(tiny, "vae_decoder"))


def test_an_edit_around_a_graph_keeps_its_key(tiny: Path) -> None:
    assert key(interface(tiny), GraphEdit("unet", "baked_negative")) == key(interface(tiny))


def test_the_key_names_the_capturing_code_and_libraries(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key(interface(tiny))
    monkeypatch.setattr(capture, "installed", lambda name: "0.0")
    assert key(interface(tiny)) != before


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_skeleton_is_a_valid_graph_without_weights(tiny: Path, skeletons: Path, folder: str) -> None:
    found, skeleton = graphs(load(tiny), skeletons)[folder]
    model = onnx.load_model_from_string(skeleton.graph)
    external = {
        each.name for each in model.graph.initializer if each.data_location == onnx.TensorProto.EXTERNAL
    }
    assert external == {binding.name for binding in skeleton.weights}
    inline = sum(each.ByteSize() for each in model.graph.initializer if each.name not in external)
    assert inline < 4096
    assert [port.name for port in model.graph.input] == [port.name for port in found.inputs]
    assert [port.name for port in model.graph.output] == [port.name for port in found.outputs]


@pytest.mark.parametrize("folder", FOLDERS)
def test_weights_lie_dense_and_in_order(tiny: Path, skeletons: Path, folder: str) -> None:
    _, skeleton = graphs(load(tiny), skeletons)[folder]
    model = onnx.load_model_from_string(skeleton.graph)
    places = {
        each.name: {entry.key: entry.value for entry in each.external_data}
        for each in model.graph.initializer
        if each.data_location == onnx.TensorProto.EXTERNAL
    }
    offset = 0
    for binding in skeleton.weights:
        place = places[binding.name]
        assert (place["location"], int(place["offset"])) == ("model.onnx_data", offset)
        assert int(place["length"]) == binding.size
        offset += binding.size
    assert offset == skeleton.size


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_node_only_rearranges_a_weight(tiny: Path, skeletons: Path, folder: str) -> None:
    _, skeleton = graphs(load(tiny), skeletons)[folder]
    model = onnx.load_model_from_string(skeleton.graph)
    weights = {binding.name for binding in skeleton.weights}
    idle = {"Transpose", "Unsqueeze", "Identity", "Cast", "CastLike"}
    assert not [node.name for node in model.graph.node if node.op_type in idle and weights & {*node.input}]


@pytest.mark.parametrize("folder", FOLDERS)
def test_nothing_tells_where_a_graph_was_made(tiny: Path, skeletons: Path, folder: str) -> None:
    _, skeleton = graphs(load(tiny), skeletons)[folder]
    model = onnx.load_model_from_string(skeleton.graph)
    assert not model.producer_version
    assert not model.doc_string
    assert b"site-packages" not in skeleton.graph
    assert b"pkg.torch" not in skeleton.graph
    assert [node for node in model.graph.node if node.metadata_props or node.doc_string] == []


CODE = """
import hashlib, sys
from pathlib import Path
from retouch.compiler.graphs.capture import skeleton_of
from retouch.compiler.graphs.interfaces import interfaces
from retouch.compiler.load import load_pipeline

for interface in interfaces(load_pipeline(Path(sys.argv[1]), "ddim", 5)):
    if interface.folder in sys.argv[3:]:
        skeleton = skeleton_of(interface, (), Path(sys.argv[2]))
        print(interface.folder, hashlib.sha256(skeleton.graph).hexdigest(), "torch" in sys.modules)
"""


def in_process(model: Path, cache: Path, folder: Path, seed: str, *graphs: str) -> str:
    """Return the digests of graphs that another interpreter makes, in another folder."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-c", CODE, str(model), str(cache), *graphs]
    environment = {**os.environ, "PYTHONHASHSEED": seed}
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return ran.stdout


def test_another_process_makes_the_same_bytes(tiny: Path, skeletons: Path, tmp_path: Path) -> None:
    """Another hash seed, another working folder, an empty cache: the graph that this process knows."""
    _, known = graphs(load(tiny), skeletons)["unet"]
    made = in_process(tiny, tmp_path / "cache", tmp_path / "elsewhere", "1", "unet").split()
    assert made == ["unet", hashlib.sha256(known.graph).hexdigest(), "True"]


def test_a_warm_cache_needs_no_torch(tiny: Path, skeletons: Path, tmp_path: Path) -> None:
    known = {
        name: hashlib.sha256(skeleton.graph) for name, (_, skeleton) in graphs(load(tiny), skeletons).items()
    }
    lines = in_process(tiny, skeletons, tmp_path, "0", *FOLDERS).splitlines()
    assert sorted(lines) == sorted(f"{name} {digest.hexdigest()} False" for name, digest in known.items())


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make capturing free; return the folders that were captured."""
    calls: list[str] = []

    def made(found: Interface, edits: Any, cache: Path) -> Program:
        calls.append(found.folder)
        return MADE

    monkeypatch.setattr(capture, "_capture", made)
    return calls


def test_a_whole_entry_is_captured_once(tiny: Path, tmp_path: Path, captured: list[str]) -> None:
    assert program_of(interface(tiny), (), tmp_path) == MADE
    assert program_of(interface(tiny), (), tmp_path) == MADE
    assert captured == ["unet"]


def test_a_program_is_read_back_as_it_was() -> None:
    last = replace(ADDED, args=([Ref("x"), None], float("-inf"), 2**63 - 1, "n0*8"), options={"dim": -1})
    program = replace(MADE, ops=(ADDED, last))
    assert Program.load(program.dump()) == program


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_form_is_written_from_one_program(tiny: Path, skeletons: Path, folder: str) -> None:
    found = interface(tiny, folder)
    forms = Form(), Form("cuda", "float16"), Form("tensorrt", "bfloat16")
    made = [skeleton_of(found, (), skeletons, form) for form in forms]
    assert len({skeleton.key for skeleton in made}) == 3
    assert made[0].program == made[1].program == made[2].program
    assert len({len(skeleton.weights) for skeleton in made}) == 1
    assert made[0].size == 2 * made[1].size == 2 * made[2].size


def test_an_operation_that_nobody_knows_is_named(tiny: Path, tmp_path: Path, captured: list[str]) -> None:
    unknown = replace(MADE, ops=(replace(ADDED, kind="aten.frobnicate.default"),))
    with pytest.raises(InputError, match="frobnicate"):
        lower(unknown, interface(tiny), Form())


def test_a_config_that_describes_no_module_is_refused(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be traced") as caught:
        skeleton_of(interface(tiny, down_block_types=["NoSuchBlock"]), (), tmp_path)
    (kept,) = (tmp_path / FOLDER).iterdir()
    assert str(kept) in caught.value.faults[0].hint
    record = json.loads(kept.read_bytes())
    assert record["config"]["down_block_types"] == ["NoSuchBlock"]
    assert "NoSuchBlock" in record["happened"]["error"]
    assert [entry.name for entry in tmp_path.iterdir()] == [FOLDER]


def keys(pipeline: Pipeline) -> dict[str, str]:
    return {each.folder: program_key(each, pipeline.graph_edits) for each in interfaces(pipeline)}


def capture_cold(pipeline: Pipeline, cache: Path, heard: Callable[[int], None] = lambda count: None) -> None:
    aside.capture_aside(
        pipeline, aside.shares_of(aside.cold_graphs(pipeline, MODEL_ROLES, cache)), cache, heard
    )


def test_processes_of_their_own_capture_the_same(
    tiny: Path, skeletons: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "WORTH", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    pipeline, heard = load(tiny), list[int]()
    capture_cold(pipeline, tmp_path, heard.append)
    assert len(heard) == 2
    assert sum(heard) == len(FOLDERS)
    graphs(pipeline, skeletons)
    found = {
        folder: (Store(tmp_path).get(key), Store(skeletons).get(key))
        for folder, key in keys(pipeline).items()
    }
    assert all(made is not None and made == known for made, known in found.values()), found
    capture_cold(pipeline, tmp_path, heard.append)
    assert len(heard) == 2  # nothing was left to do


def test_what_a_process_cannot_capture_is_told_where_it_is_needed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aside, "WORTH", 0)
    pipeline = load(tiny)
    broken = interface(tiny, down_block_types=["NoSuchBlock"]).component
    pipeline = replace(pipeline, components={**pipeline.components, "unet": broken})
    capture_cold(pipeline, tmp_path)
    captured = {folder for folder, key in keys(pipeline).items() if Store(tmp_path).has(key)}
    assert "unet" not in captured
    with pytest.raises(InputError, match="NoSuchBlock"):
        program_of(next(each for each in interfaces(pipeline) if each.folder == "unet"), (), tmp_path)


def test_a_small_model_is_worth_no_process(tiny: Path, tmp_path: Path) -> None:
    capture_cold(load(tiny), tmp_path)
    assert not list(tmp_path.iterdir())
