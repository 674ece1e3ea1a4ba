"""Engines are built without a GPU, within a memory limit, to the same bytes everywhere, or not at all."""

import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from retouch.compiler.engines import building as engines
from retouch.compiler.engines.building import STEPS, Order, Shapes, build, parse
from retouch.compiler.engines.worker import Progress
from retouch.runtime import memory
from retouch.specs.errors import InputError, UndecidedError

pytest.importorskip("tensorrt_rtx_bindings", reason="`tensorrt-rtx` is not installed")
PROFILE = {"sample": Shapes((1, 4, 8, 8), (2, 4, 8, 8), (4, 4, 16, 16))}


def write_graph(folder: Path, operator: str = "Relu", domain: str = "") -> Path:
    """Write a small convolutional graph with free batch, height and width, its weights beside it."""
    folder.mkdir(parents=True)
    weight = np.random.default_rng(3).normal(size=(4, 4, 3, 3)).astype(np.float32)
    shape = ["batch", 4, "height", "width"]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["sample", "weight"], ["convolved"], pads=[1, 1, 1, 1]),
            helper.make_node(operator, ["convolved"], ["out"], name="last", domain=domain),
        ],
        "graph",
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "weight")],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("elsewhere", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    file = folder / "model.onnx"
    onnx.save(model, file, save_as_external_data=True, location="model.onnx_data", size_threshold=0)
    return file


@pytest.fixture
def order(tmp_path: Path) -> Order:
    return Order(write_graph(tmp_path / "graph"), PROFILE, ("8.6",))


def test_the_parser_reads_a_graph_and_builds_nothing(order: Order) -> None:
    parsed = parse(order.graph)
    assert parsed.layers >= 2
    assert parsed.version.startswith("1.")
    assert sorted(file.name for file in order.graph.parent.iterdir()) == ["model.onnx", "model.onnx_data"]


def test_an_engine_is_what_its_record_says_and_progress_reaches_the_end(order: Order) -> None:
    steps: list[int] = []
    file = order.graph.with_name("model.engine")
    engine = build(order, file, steps.append)
    assert engine.sha256 == sha256(file.read_bytes()).hexdigest()
    assert engine.size == file.stat().st_size > 0
    assert sum(steps) == STEPS
    assert min(steps) >= 0
    assert len(set(steps)) > 2


def test_bytes_depend_on_neither_place_nor_environment(
    order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one shape: where shapes are free, the builder's own threads may change some bytes."""
    usual = PROFILE["sample"].usual
    order = replace(order, profile={"sample": Shapes(usual, usual, usual)})
    first = build(order, order.graph.with_name("model.engine"))
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    monkeypatch.setenv("SOMETHING", "x" * 5000)
    elsewhere = replace(order, graph=write_graph(tmp_path / ("other" * 20)))
    affinity = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(affinity)})
    try:
        second = build(elsewhere, elsewhere.graph.with_name("model.engine"))
    finally:
        os.sched_setaffinity(0, affinity)
    assert first.sha256 == second.sha256


def test_other_gpus_and_other_shapes_are_other_engines(order: Order) -> None:
    digests = {
        build(variant, order.graph.with_name(f"{number}.engine")).sha256
        for number, variant in enumerate(
            [
                order,
                replace(order, capabilities=("8.9",)),
                replace(order, profile={"sample": Shapes((1, 4, 8, 8), (1, 4, 8, 8), (2, 4, 8, 8))}),
            ]
        )
    }
    assert len(digests) == 3


def test_an_operator_that_is_unknown_is_named(tmp_path: Path) -> None:
    graph = write_graph(tmp_path / "graph", "Strange", "elsewhere")
    with pytest.raises(InputError, match="cannot read operator `Strange` of node `last`"):
        parse(graph)
    with pytest.raises(InputError, match="`Strange`"):
        build(Order(graph, PROFILE, ("8.6",)), graph.with_name("model.engine"))
    assert not graph.with_name("model.engine").exists()


def test_shapes_that_the_graph_refuses_build_nothing(order: Order) -> None:
    wrong = replace(order, profile={"sample": Shapes((1, 5, 8, 8), (1, 5, 8, 8), (1, 5, 8, 8))})
    with pytest.raises(InputError, match="built nothing: "):
        build(wrong, order.graph.with_name("model.engine"))
    assert not order.graph.with_name("model.engine").exists()


def test_a_build_that_cannot_fit_is_refused_before_it_starts(order: Order) -> None:
    with pytest.raises(UndecidedError, match=r"needs about 0\.6 GB of memory, 0\.3 GB are available"):
        build(order, order.graph.with_name("model.engine"), memory_limit=300_000_000)


def test_a_build_that_takes_more_than_was_thought_is_ended(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "BASE", 0)
    with pytest.raises(UndecidedError, match=r"needs more than \d\.\d GB of memory, 0\.1 GB are available"):
        build(order, order.graph.with_name("model.engine"), memory_limit=100_000_000)
    assert not order.graph.with_name("model.engine").exists()


def test_the_package_that_is_missing_is_named(order: Order) -> None:
    with pytest.raises(UndecidedError, match=r"TensorRT is not installed\n.*retouch\[tensorrt\]") as caught:
        parse(order.graph, module="tensorrt")
    assert caught.value.exit_code == 4


def test_a_worker_that_is_killed_is_told_from_one_that_fails(order: Order) -> None:
    for signal, expected in (("KILL", "was killed, most likely for want of memory"), ("ABRT", "exit code")):
        worker = subprocess.Popen(
            [sys.executable, "-c", f"import os, signal; os.kill(0 or os.getpid(), signal.SIG{signal})"]
        )
        with tempfile.TemporaryFile() as noise:
            assert expected in str(engines._ended(order, worker, [], noise))


def test_progress_never_falls() -> None:
    progress = Progress()
    shares = []
    progress.start("outer", 2)
    for _ in range(2):
        progress.start("inner", 4)
        for _ in range(4):
            progress.step("inner")
            shares.append(progress.share)
        progress.finish("inner")
    progress.step("outer")
    assert shares == [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_a_container_s_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    without = memory.available_memory()
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 200\n")
    assert without > 1000
    assert memory.available_memory() == 500
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory() > 1000
