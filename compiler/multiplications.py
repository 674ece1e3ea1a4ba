"""What does one run of a network take? From the shapes of its weights, and where they stand.

Each weight of a convolution or of a linear layer is used once a cell, at the resolution of its block:
denoisers and image encoders halve an image from block to block, decoders double it. Self-attention adds
what grows with the square of the cells.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from math import prod

from .graphs.interfaces import Interface
from .ir import Component, Pipeline

# Layers that see one row an image: they embed the timestep, and what SDXL is told of an image.
ONE_ROW = re.compile(r"\.(time_emb_proj|time_embedding|add_embedding)\.")
BLOCK = re.compile(r"\b(down|up)_blocks\.(\d+)\.")
SELF_ATTENTION = re.compile(r"\.(attn1|attentions\.\d+)\.to_q\.weight$")


@dataclass(frozen=True)
class Run:
    """One run of a network on one row of inputs.

    `widest` is how many numbers the layer gives that gives most, `values` how many all layers give together.
    """

    multiplications: int
    widest: int
    values: int


def of_image(pipeline: Pipeline, cells: int | None = None) -> tuple[Run, Run]:
    """Return a denoiser's evaluation and a decoding, for an image of so many latent cells.

    Without `cells` it is the model's own size.
    """
    latent = pipeline.sampling.table().latent
    seen = latent.height * latent.width if cells is None else cells
    denoisers = [_network(pipeline, each, "", seen) for each in pipeline.of_role("denoiser")]
    decoders = [_network(pipeline, each, "decoder.", seen) for each in pipeline.of_role("vae")]
    return _together(denoisers), _together(decoders)


def of_graph(pipeline: Pipeline, interface: Interface, shapes: Mapping[str, Sequence[int]]) -> Run:
    """Return a run of a graph whose inputs have these shapes [B, ...], by name."""
    component = interface.component
    if component.role == "text":
        return _encoder(pipeline, component, shapes["input_ids"][1])
    first = interface.inputs[0].name
    part = {"latent_sample": "decoder."}.get(first, "encoder.") if component.role == "vae" else ""
    return _network(pipeline, component, part, prod(shapes[first][2:]))


def _encoder(pipeline: Pipeline, component: Component, tokens: int) -> Run:
    """Return a run of a text encoder: matrices see each token, embeddings are looked up."""
    layers = [
        (name, tensor.shape, tokens)
        for name, tensor in pipeline.tensors_of(component.name).items()
        if len(tensor.shape) == 2 and "embedding" not in name
    ]
    return _run(layers, lambda name: "q_proj" in name)


def _network(pipeline: Pipeline, component: Component, part: str, cells: int) -> Run:
    """Return a run of the part of a component whose input has so many cells, or pixels."""
    prefix = f"{component.name}.{part}"
    blocks = [BLOCK.search(name) for name in pipeline.tensors if name.startswith(prefix)]
    levels = 1 + max((int(block.group(2)) for block in blocks if block), default=0)
    layers = [
        (name, tensor.shape, cells * _scale(name, levels, part))
        for name, tensor in pipeline.tensors.items()
        if name.startswith(prefix) and len(tensor.shape) > 1 and not _reads_other(name, pipeline)
    ]
    return _run(layers, lambda name: bool(SELF_ATTENTION.search(name)))


def _run(layers: Sequence[tuple[str, Sequence[int], float]], begins_attention: Callable[[str], bool]) -> Run:
    """Return a run of layers, each with its weight's shape and the cells or tokens that it sees."""
    attention = sum(2 * seen**2 * shape[0] for name, shape, seen in layers if begins_attention(name))
    given = [seen * shape[0] for _, shape, seen in layers]
    multiplied = sum(seen * prod(shape) for _, shape, seen in layers) + attention
    return Run(int(multiplied), int(max(given, default=0)), int(sum(given)))


def _together(runs: Sequence[Run]) -> Run:
    return Run(
        sum(run.multiplications for run in runs),
        max((run.widest for run in runs), default=0),
        sum(run.values for run in runs),
    )


def _reads_other(name: str, pipeline: Pipeline) -> bool:
    """Whether a layer reads the few rows of text or timestep, and not the cells of an image."""
    patterns = (text_input.pattern for text_input in pipeline.family.text_inputs)
    return bool(ONE_ROW.search(name)) or any(fnmatchcase(name, pattern) for pattern in patterns)


def _scale(name: str, levels: int, part: str) -> float:
    """Return how many cells a layer sees for each of its network's input."""
    # What makes an image larger or smaller is the last layer of its block, and sees the new size.
    step = 4.0 if ".upsamplers." in name else 0.25 if ".downsamplers." in name else 1.0
    block = BLOCK.search(name)
    change = 4.0 if part == "decoder." else 0.25
    if block is None:
        # Only a denoiser ends in the size that it begins with.
        last = part and ".conv_out." in name
        middle = part != "decoder." and ".mid_block." in name
        return change ** (levels - 1 if last or middle else 0)
    number = int(block.group(2))
    raised = levels - 1 - number if part != "decoder." and block.group(1) == "up" else number
    return step * change**raised
