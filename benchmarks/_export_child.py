"""Run by compile.py in another exporter's environment: export a diffusers folder. Imports nothing of retouch.

Arguments: exporter (torch, optimum or olive), precision, folder of the model, folder for what it writes;
with the exporter alone, it says its versions.
Each is used as its documentation has it. Dimensions are left free where it can do so: the batch (torch),
batch and size (optimum-onnx), none (Olive). optimum-onnx does not compare what it wrote with torch, as our
builds do not here.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any


def export_with_torch(precision: str, model: Path, target: Path) -> None:
    """The U-Net alone: torch.onnx.export, batch dynamic, weights in a file of their own."""
    import torch
    from diffusers import UNet2DConditionModel

    dtype = getattr(torch, precision)
    unet: Any = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=dtype).eval()
    config = unet.config
    inputs: dict[str, Any] = {
        "sample": torch.zeros(2, config.in_channels, config.sample_size, config.sample_size, dtype=dtype),
        "timestep": torch.tensor(1.0),
        "encoder_hidden_states": torch.zeros(2, 77, config.cross_attention_dim, dtype=dtype),
    }
    shapes: dict[str, Any] = {name: {0: "batch"} if value.dim() else None for name, value in inputs.items()}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        sizes = {"text_embeds": pooled, "time_ids": 6}
        added = {name: torch.zeros(2, size, dtype=dtype) for name, size in sizes.items()}
        inputs["added_cond_kwargs"] = added
        shapes["added_cond_kwargs"] = {name: {0: "batch"} for name in added}
    (target / "unet").mkdir()
    file = target / "unet" / "model.onnx"
    torch.onnx.export(
        unet, (), file, kwargs=inputs, dynamic_shapes=shapes, dynamo=True, external_data=True, verbose=False
    )


def export_with_optimum(precision: str, model: Path, target: Path) -> None:
    """The whole pipeline: main_export."""
    from optimum.exporters.onnx import main_export  # type: ignore[import-not-found] # own environment

    dtype = {"float32": "fp32", "float16": "fp16"}[precision]
    main_export(str(model), str(target), task="text-to-image", dtype=dtype, do_validation=False)


def export_with_olive(precision: str, model: Path, target: Path) -> None:
    """The whole pipeline: `olive capture-onnx-graph`. With diffusers 0.42 it cannot tell the variant."""
    variant = "sdxl" if (model / "text_encoder_2").is_dir() else "sd"
    command = [sys.executable, "-m", "olive", "capture-onnx-graph", "-m", str(model)]
    command += ["--model_variant", variant, "--torch_dtype", precision, "-o", str(target)]
    os.chdir(target.parent)  # where its cache goes
    os.execv(sys.executable, [*command, "--disable_telemetry"])


EXPORTERS = {
    "torch": (export_with_torch, ("torch", "onnxscript", "diffusers")),
    "optimum": (export_with_optimum, ("optimum-onnx", "optimum", "torch", "diffusers", "transformers")),
    "olive": (export_with_olive, ("olive-ai", "torch", "onnxscript", "diffusers", "transformers")),
}

if __name__ == "__main__":
    run, libraries = EXPORTERS[sys.argv[1]]
    if len(sys.argv) > 2:
        os.environ["HF_HUB_OFFLINE"] = "1"
        run(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        print("FACTS", json.dumps({"versions": {name: version(name) for name in libraries}}))
