"""Run by compile.py, each verb in a process of its own: what is found of a U-Net's graph.

capture MODEL PROFILE PRECISION CACHE FILE   write its graph, captured from the model's configs alone
count FILE                                   say its opset, nodes and free dimensions
optimize FILE                                say how many nodes onnxruntime makes of it on a CPU
compare MODEL ARTEFACT                       say how far it is from torch, in an artefact of MODEL
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from retouch.compiler.graphs.capture import skeleton_of
from retouch.compiler.graphs.interfaces import Interface, interfaces
from retouch.compiler.graphs.prebuild import config_pipeline
from retouch.compiler.graphs.skeleton import DATA, Form, Precision, ProfileName
from retouch.compiler.ir import Pipeline


def capture(model: str, profile: ProfileName, precision: Precision, cache: str, file: str) -> None:
    """Write the U-Net's graph in one form, from configs: the program comes from the cache if it is there."""
    interface = denoiser(config_pipeline(Path(model)))
    Path(file).write_bytes(skeleton_of(interface, (), Path(cache), Form(profile, precision)).graph)


def count(file: str) -> dict[str, Any]:
    """Return what a graph's file says of it."""
    import onnx

    model = onnx.load(file, load_external_data=False)
    free = {
        dimension.dim_param
        for value in model.graph.input
        for dimension in value.type.tensor_type.shape.dim
        if dimension.dim_param
    }
    opset = next(entry.version for entry in model.opset_import if not entry.domain)
    return {"opset": opset, "nodes": len(model.graph.node), "free": sorted(free)}


def optimize(file: str) -> dict[str, Any]:
    """Return the number of nodes after onnxruntime's own optimization; the weights are a hole."""
    import onnx
    import onnxruntime

    weights = onnx.load(file, load_external_data=False).graph.initializer
    places = [{entry.key: entry.value for entry in weight.external_data} for weight in weights]
    with (Path(file).parent / DATA).open("wb") as stream:
        stream.truncate(max(int(place["offset"]) + int(place["length"]) for place in places if place))
    with tempfile.TemporaryDirectory(dir=Path(file).parent) as name:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(name) / "optimized.onnx")
        options.log_severity_level = 3  # errors
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "data")
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return {"nodes_in_onnxruntime": count(options.optimized_model_filepath)["nodes"]}


def compare(model: str, artefact: str) -> dict[str, Any]:
    """Return the relative difference between a float32 artefact's U-Net and torch, as a norm."""
    from retouch.compiler.evidence import parity
    from retouch.compiler.load import load_pipeline
    from retouch.compiler.threads import single_threaded

    pipeline = load_pipeline(Path(model), "euler", 20)
    interface = denoiser(pipeline)
    with tempfile.TemporaryDirectory() as cache, single_threaded():
        skeleton = skeleton_of(interface, (), Path(cache))
        graph = parity.Emission(interface, skeleton, Path(artefact) / interface.folder)
        inputs = parity.example_inputs(interface)
        expected, _ = parity.run_reference(pipeline, graph, inputs)
        found = parity.run_graph(graph.file("model"), interface, inputs)
        error = parity.relative_error(found, expected)
    return {"parity": float(f"{error:.2g}")}


def denoiser(pipeline: Pipeline) -> Interface:
    return next(each for each in interfaces(pipeline) if each.component.role == "denoiser")


VERBS = {"capture": capture, "count": count, "optimize": optimize, "compare": compare}

if __name__ == "__main__":
    print("FACTS", json.dumps(VERBS[sys.argv[1]](*sys.argv[2:]) or {}))
