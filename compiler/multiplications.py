"""How many multiplications is one run of a network? From the shapes of its weights, and where they stand.

Each weight of a convolution or of a linear layer is used once a cell, at the resolution of its block:
denoisers halve an image from block to block, decoders double it. Self-attention adds what grows with the
square of the cells.
"""

import re
from fnmatch import fnmatchcase
from math import prod

from .ir import Component, Pipeline

# Layers that see one row an image: they embed the timestep, and what SDXL is told of an image.
ONE_ROW = re.compile(r"\.(time_emb_proj|time_embedding|add_embedding)\.")
BLOCK = re.compile(r"\b(down|up)_blocks\.(\d+)\.")
SELF_ATTENTION = re.compile(r"\.(attn1|attentions\.\d+)\.to_q\.weight$")


def of_image(pipeline: Pipeline) -> tuple[float, float]:
    """Return those of a denoiser evaluation and of decoding, for an image of the model's own size."""
    latent = pipeline.sampling.table().latent
    cells = latent.height * latent.width
    denoisers = sum(_network(pipeline, each, "", cells) for each in pipeline.of_role("denoiser"))
    decoders = sum(_network(pipeline, each, "decoder.", cells) for each in pipeline.of_role("vae"))
    return denoisers, decoders


def _network(pipeline: Pipeline, component: Component, part: str, cells: int) -> float:
    """Return the multiplications of the part of a component that takes `cells` latent cells."""
    prefix = f"{component.name}.{part}"
    blocks = [BLOCK.search(name) for name in pipeline.tensors if name.startswith(prefix)]
    levels = 1 + max((int(block.group(2)) for block in blocks if block), default=0)
    total = 0.0
    for name, tensor in pipeline.tensors.items():
        if name.startswith(prefix) and len(tensor.shape) > 1 and not _reads_other(name, pipeline):
            here = cells * _scale(name, levels, doubling=bool(part))
            total += here * prod(tensor.shape)
            if SELF_ATTENTION.search(name):
                total += 2 * here**2 * tensor.shape[0]
    return total


def _reads_other(name: str, pipeline: Pipeline) -> bool:
    """Whether a layer reads the few rows of text or timestep, and not the cells of an image."""
    patterns = (text_input.pattern for text_input in pipeline.family.text_inputs)
    return bool(ONE_ROW.search(name)) or any(fnmatchcase(name, pattern) for pattern in patterns)


def _scale(name: str, levels: int, doubling: bool) -> float:
    """Return how many cells a layer sees for each of the latent."""
    # What makes an image larger or smaller is the last layer of its block, and sees the new size.
    step = 4.0 if ".upsamplers." in name else 0.25 if ".downsamplers." in name else 1.0
    block = BLOCK.search(name)
    if doubling:
        return step * 4.0 ** (int(block.group(2)) if block else levels - 1 if ".conv_out." in name else 0)
    halved = (
        {"down": int(block.group(2)), "up": levels - 1 - int(block.group(2))}[block.group(1)] if block else 0
    )
    return step * 0.25 ** (levels - 1 if ".mid_block." in name else halved)
