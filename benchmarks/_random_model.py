"""A published model's folder with random weights of true size: what a benchmark of exporters works on.

    python -m benchmarks._random_model stable-diffusion-v1-5 FOLDER

Shapes come from the modules that the published configs describe; elements are normal, seeded by name, and
scaled so that activations neither vanish nor grow: gains are near 1, and a row of a matrix has norm 1.
"""

import json
import shutil
import sys
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from benchmarks._hollow import hollow_pipeline
from retouch.compiler.families.published import published_folder
from retouch.compiler.headers import header_bytes, read_header
from retouch.compiler.sources import MODEL_ROLES
from retouch.compiler.sources.tokenizers import clip_folder

PIECE = 1 << 20  # elements drawn at a time, and then repeated: bytes are what is measured, not values
SCALE = 0.02  # of biases, of gains around 1, and of the adapter


def write_random(model: str, folder: Path) -> None:
    """Write a model in diffusers layout, float16."""
    shutil.copytree(published_folder(model), folder)
    pipeline = hollow_pipeline(model)
    for component in pipeline.components.values():
        place = folder / component.name
        if component.role in MODEL_ROLES:
            stem = "model" if component.library == "transformers" else "diffusion_pytorch_model"
            tensors = pipeline.tensors_of(component.name)
            # Published files have the prefix that later versions of transformers leave out.
            prefix = pipeline.family.optional_prefixes.get(component.name, "")
            prefix = "" if any(name.startswith(prefix) for name in tensors) else prefix
            rows = [(f"{prefix}{name}", tensor.dtype, tensor.shape) for name, tensor in tensors.items()]
            with (place / f"{stem}.safetensors").open("xb") as stream:
                stream.write(header_bytes(rows, {"format": "pt"}))
                for row in rows:
                    _write_tensor(stream, *row)
        elif component.role == "tokenizer":
            shutil.copytree(clip_folder(published_folder(model) / component.name), place, dirs_exist_ok=True)


def _write_tensor(stream: BinaryIO, name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    count = int(np.prod(shape))
    scale = SCALE if len(shape) == 1 else float(np.prod(shape[1:])) ** -0.5
    mean = 1.0 if len(shape) == 1 and name.endswith(".weight") else 0.0
    piece = (mean + scale * generator.standard_normal(min(count, PIECE), np.float32)).astype(dtype)
    for start in range(0, count, PIECE):
        stream.write(piece[: min(PIECE, count - start)].tobytes())


def write_adapter(folder: Path, file: Path, rank: int = 8) -> None:
    """Write a LoRA for every attention matrix of a model's denoiser, random, in PEFT's names."""
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    generator = np.random.Generator(np.random.PCG64(1))
    rows, data = [], []
    for name, stored in sorted(read_header(weights).tensors.items()):
        module = name.removesuffix(".weight")
        if ".attn" in name and name != module and ".to_" in name:
            for part, shape in (("A", (rank, stored.shape[1])), ("B", (stored.shape[0], rank))):
                rows.append((f"unet.{module}.lora_{part}.weight", np.dtype(np.float32), shape))
                data.append(SCALE * generator.standard_normal(shape, np.float32))
    with file.open("xb") as stream:
        stream.write(header_bytes(rows, {"format": "pt"}))
        for array in data:
            stream.write(array.astype(np.float32).tobytes())


if __name__ == "__main__":
    write_random(sys.argv[1], Path(sys.argv[2]))
    write_adapter(Path(sys.argv[2]), Path(sys.argv[2]).with_suffix(".adapter.safetensors"))
    print(json.dumps({"folder": sys.argv[2]}))
