"""The text path of a published model at its true size, with random weights: all that an erasure reads.

    python -m benchmarks._text_path stable-diffusion-v1-5 FILE

writes the matrices that read text, half precision; that needs torch, and nothing after it does.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from retouch.compiler.families.published import published_folder
from retouch.compiler.graphs.prebuild import config_pipeline
from retouch.compiler.headers import header_bytes, read_header
from retouch.compiler.ir import Component, Pipeline
from retouch.compiler.sources.tokenizers import clip_folder
from retouch.compiler.tensors import Shared, Tensor
from retouch.compiler.text.text_encoder import LAYER

HALF = np.dtype(np.float16)


def write_matrices(model: str, file: Path) -> None:
    """Write a denoiser's matrices that read text, random, one at a time."""
    from benchmarks._hollow import hollow_pipeline

    pipeline = hollow_pipeline(model)
    patterns = [text_input.pattern for text_input in pipeline.family.text_inputs]
    found = [item for pattern in patterns for item in pipeline.select("denoiser", pattern)]
    rows = [(name.partition(".")[2], HALF, tensor.shape) for name, tensor in found]
    random = np.random.default_rng(0)
    with file.open("wb") as written:
        written.write(header_bytes(rows, {}))
        for _, _, shape in rows:
            values = random.standard_normal(shape, np.float32) * np.float32(shape[-1] ** -0.5)
            written.write(values.astype(HALF).data)


def text_path(model: str, file: Path, encoders: bool = True) -> Pipeline:
    """Return a model of which there are tokenizers, random text encoders and the matrices of a file."""
    pipeline = config_pipeline(published_folder(model))
    (denoiser,) = pipeline.of_role("denoiser")
    tensors: dict[str, Tensor] = {
        f"{denoiser.name}.{name}": tensor for name, tensor in read_header(file).tensors.items()
    }
    for encoder in pipeline.family.text_encoders if encoders else ():
        drawn = _random_encoder(pipeline.components[encoder.component].config)
        tensors |= {f"{encoder.component}.{name}": tensor for name, tensor in drawn.items()}
    components = {name: _with_tokenizer(component) for name, component in pipeline.components.items()}
    return replace(pipeline, components=components).with_tensors(tensors)


def _with_tokenizer(component: Component) -> Component:
    if component.role != "tokenizer":
        return component
    return replace(component, folder=clip_folder(component.folder))


def _random_encoder(config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a text encoder's tensors, the same in every layer: bigG's 32 would be 1.4 GB."""
    random = np.random.default_rng(0)
    width, wide = config["hidden_size"], config["intermediate_size"]

    def tensor(*shape: int) -> Shared:
        values = (random.standard_normal(shape, np.float32) * np.float32(width**-0.5)).astype(HALF)
        return Shared(lambda: values, HALF, shape)

    def shape(name: str) -> tuple[int, ...]:
        out, into = {"mlp.fc1": (wide, width), "mlp.fc2": (width, wide)}.get(
            name.rpartition(".")[0], (width, width)
        )
        return (out,) if name.endswith("bias") or "norm" in name else (out, into)

    layer = {name: tensor(*shape(name)) for name in LAYER}
    tensors: dict[str, Tensor] = {
        f"encoder.layers.{number}.{name}": part
        for number in range(config["num_hidden_layers"])
        for name, part in layer.items()
    }
    return tensors | {
        "embeddings.token_embedding.weight": tensor(config["vocab_size"], width),
        "embeddings.position_embedding.weight": tensor(config["max_position_embeddings"], width),
        "final_layer_norm.weight": tensor(width),
        "final_layer_norm.bias": tensor(width),
        "text_projection.weight": tensor(config.get("projection_dim", width), width),
    }


if __name__ == "__main__":
    write_matrices(sys.argv[1], Path(sys.argv[2]))
