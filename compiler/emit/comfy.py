"""For ComfyUI: one checkpoint file that it loads, and the denoiser's graph under the names that it uses.

ComfyUI calls a denoiser as LDM does: `x`, one timestep an image, `context`, and for SDXL `y`, which is
the pooled text state with the sizes already embedded. Its TensorRT nodes take an engine of that form.
Source: ComfyUI, `comfy/ldm/modules/diffusionmodules/openaimodel.py`; ComfyUI_TensorRT.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ...specs.errors import Fault, InputError
from ...specs.manifest import ComponentRecord
from ..engines.building import Shapes
from ..engines.profiles import own_size, profiles_of
from ..graphs.capture import skeleton_of
from ..graphs.interfaces import interfaces
from ..graphs.skeleton import DATA, Form
from ..ir import Pipeline
from ..text.text_map import fuse_text_map
from ..write import WritePass
from . import Emitted, Emitter, Job
from .onnx import bind
from .single_file import write_single_file
from .tensorrt import SCRIPT, append_command, trtexec

if TYPE_CHECKING:
    import onnx

FOLDER = "comfy"
CHECKPOINT = Path(FOLDER, "checkpoints", "model.safetensors")
NAMES: Mapping[str, str] = {"sample": "x", "encoder_hidden_states": "context", "out_sample": "h"}
TIMESTEPS, ADDED = "timesteps", "y"
IMAGES = (1, 1, 4)  # fewest, usual, most images of the engine that build.sh makes


@dataclass(frozen=True)
class Comfy(Emitter):
    """Writes `comfy/`: `checkpoints/model.safetensors`, and the denoiser as `unet/model.onnx`.

    `precision` is that of the checkpoint, the graph is float16 unless it is float32. With `graph: false`
    there is only the checkpoint. Baked guidance is no part of it: ComfyUI takes guidance from its user.
    """

    precision: Literal["source", "float32", "float16"] = "source"
    graph: bool = True

    @property
    def captures(self) -> Collection[str]:
        return ("denoiser",) if self.graph else ()

    def emit(self, pipeline: Pipeline, folder: Path, job: Job) -> Emitted:
        pipeline = fuse_text_map(pipeline, self.name)
        (folder / CHECKPOINT).parent.mkdir(parents=True)
        writing = WritePass(pipeline, job)
        records = [write_single_file(writing, folder / CHECKPOINT, folder, self.precision)]
        if self.graph:
            records.append(self._write_graph(writing, folder))
        writing.finish()
        return Emitted(tuple(records))

    def _write_graph(self, writing: WritePass, folder: Path) -> ComponentRecord:
        pipeline = writing.pipeline
        (interface,) = (each for each in interfaces(pipeline) if each.component.role == "denoiser")
        form = Form("tensorrt", "float32" if self.precision == "float32" else "float16")
        skeleton = skeleton_of(interface, pipeline.graph_edits, writing.job.cache, form)
        width = int(interface.component.config.get("projection_class_embeddings_input_dim") or 0)
        place = folder / FOLDER / interface.folder
        place.mkdir()
        (place / "model.onnx").write_bytes(renamed(skeleton.graph, width))
        profile = profiles_of(pipeline, IMAGES, (own_size(pipeline),))[interface.folder]
        command = trtexec(interface.folder, _profile(profile, width))
        append_command(folder / FOLDER / SCRIPT, command)
        entries = bind(pipeline, interface, skeleton)
        return writing.write(f"{FOLDER}/{interface.folder}", place / DATA, folder, entries)


def renamed(graph: bytes, added_width: int) -> bytes:
    """Return a denoiser's graph with ComfyUI's inputs and output; weights stay where they are.

    `added_width` is the width of `y`, where the denoiser has one.

    Raises:
        InputError: the graph does not take its timestep, or its added states, as diffusers' does.
    """
    import onnx

    model = onnx.load_from_string(graph)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    inputs = {value.name: value for value in model.graph.input}
    _cut(model.graph, _spread(model.graph), TIMESTEPS)
    added = [onnx.helper.make_tensor_value_info(TIMESTEPS, onnx.TensorProto.FLOAT, [batch])]
    if "text_embeds" in inputs:
        joined = _reader(model.graph, "text_embeds", "Concat")
        _cut(model.graph, joined, ADDED)
        shape = [batch, added_width]
        added.append(onnx.helper.make_tensor_value_info(ADDED, onnx.TensorProto.FLOAT, shape))
    kept = [inputs["sample"], added[0], inputs["encoder_hidden_states"], *added[1:]]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    _rename(model.graph)
    _prune(model.graph)
    return model.SerializeToString(deterministic=True)


def _spread(graph: "onnx.GraphProto") -> str:
    """Return the value that holds one timestep an image: the scalar, spread over the batch."""
    flat = _reader(graph, "timestep", "Reshape")
    return _reader(graph, flat, "Expand")


def _reader(graph: "onnx.GraphProto", value: str, operator: str) -> str:
    """Return the output of the one node of a kind that reads a value."""
    found = [node.output[0] for node in graph.node if value in node.input and node.op_type == operator]
    if len(found) != 1:
        message = f"{len(found)} operators `{operator}` read `{value}` in the denoiser's graph, expected one"
        raise InputError(Fault("E_GRAPH", message, graph.name))
    return found[0]


def _cut(graph: "onnx.GraphProto", value: str, name: str) -> None:
    """Let an input take the place of a computed value."""
    for node in graph.node:
        for place, read in enumerate(node.input):
            if read == value:
                node.input[place] = name


def _rename(graph: "onnx.GraphProto") -> None:
    for node in graph.node:
        for values in (node.input, node.output):
            for place, name in enumerate(values):
                values[place] = NAMES.get(name, name)
    for value in (*graph.input, *graph.output):
        value.name = NAMES.get(value.name, value.name)


def _prune(graph: "onnx.GraphProto") -> None:
    """Drop what no output needs any more."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & {*node.output}:
            needed |= {*node.input}
            kept.append(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    constants = [value for value in graph.initializer if value.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(constants)


def _profile(profile: Mapping[str, Shapes], added_width: int) -> dict[str, Shapes]:
    """Return a profile of diffusers' inputs as one of ComfyUI's, from a batch of one on."""
    sample = profile["sample"]
    rest = {NAMES[name]: shapes.usual[1:] for name, shapes in profile.items() if name in NAMES}
    rest |= {TIMESTEPS: (), **({ADDED: (added_width,)} if added_width else {})}
    return {
        name: Shapes((1, *sizes), (sample.usual[0], *sizes), (sample.largest[0], *sizes))
        for name, sizes in rest.items()
    }
