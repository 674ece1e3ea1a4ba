"""What tests of a whole build start from: a spec beside the tiny model that it edits, and a judge."""

import json
import shutil
from pathlib import Path

import onnx
from onnx import TensorProto, helper

CHANNELS = 3


def spec_folder(folder: Path, tiny: Path, spec: str, **judged: tuple[str, ...]) -> Path:
    """Write `model/`, `edit.yaml` and, where anything is `judged`, `judge.onnx` into a folder; return it."""
    shutil.copytree(tiny, folder / "model")
    (folder / "edit.yaml").write_text(spec)
    if judged:
        write_judge(folder / "judge.onnx", judged)
    return folder


def write_judge(file: Path, judged: dict[str, tuple[str, ...]]) -> None:
    """Write a judge whose answer to each question is the label whose color channel is the brightest."""
    numbers = {"axes": [2, 3], **{f"{name} channels": [*range(len(judged[name]))] for name in judged}}
    constants = [helper.make_tensor(name, TensorProto.INT64, [len(n)], n) for name, n in numbers.items()]
    mean = helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0)
    chosen = [helper.make_node("Gather", ["mean", f"{name} channels"], [name], axis=1) for name in judged]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", CHANNELS, "h", "w"])
    logits = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", len(labels)])
        for name, labels in judged.items()
    ]
    graph = helper.make_graph([mean, *chosen], "judge", [image], logits, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    file.write_bytes(model.SerializeToString())
    file.with_suffix(".json").write_text(json.dumps({"labels": judged}))
