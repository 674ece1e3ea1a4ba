"""Run by compile.py in another exporter's environment: export a diffusers folder. Imports nothing of retouch.

Arguments: exporter (torch, optimum or olive), folder of the model, folder for what it writes.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

exporter, model, target = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


def export_with_torch() -> None:
    """The U-Net alone, in float32, batch and size dynamic, as torch's documentation has it."""
    import torch
    from diffusers import UNet2DConditionModel

    unet: Any = UNet2DConditionModel.from_pretrained(model / "unet", torch_dtype=torch.float32).eval()
    width, size = unet.config.cross_attention_dim, 8 * 2 ** (len(unet.config.block_out_channels) - 1)
    sample, states = torch.zeros(2, 4, size, size), torch.zeros(2, 77, width)
    inputs: dict[str, Any] = {
        "sample": sample,
        "timestep": torch.tensor(1.0),
        "encoder_hidden_states": states,
        "return_dict": False,
    }
    if unet.config.addition_embed_type == "text_time":
        inputs["added_cond_kwargs"] = {"text_embeds": torch.zeros(2, 1280), "time_ids": torch.zeros(2, 6)}
    program = torch.onnx.export(unet, (), kwargs=inputs, dynamo=True)
    assert program is not None
    program.save(target / "model.onnx", external_data=True)


def export_with_optimum() -> None:
    """The whole pipeline, float32, without the comparison that it runs at the end."""
    from optimum.exporters.onnx import main_export  # type: ignore[import-not-found] # own environment

    main_export(str(model), output=str(target), task="text-to-image", do_validation=False)


def export_with_olive() -> None:
    """The U-Net alone: OnnxConversion, the first pass of Olive's Stable Diffusion recipes."""
    from olive.workflows import run  # type: ignore[import-not-found] # own environment

    script = target / "unet_script.py"
    script.write_text(
        "import torch\n"
        "from diffusers import UNet2DConditionModel\n\n"
        "def load(model_path=None):\n"
        f"    return UNet2DConditionModel.from_pretrained({str(model / 'unet')!r}).float()\n\n"
        "def inputs(model=None):\n"
        "    return {'sample': torch.zeros(2, 4, 64, 64), 'timestep': torch.tensor(1.0),\n"
        "            'encoder_hidden_states': torch.zeros(2, 77, 768)}\n"
    )
    names = ["sample", "timestep", "encoder_hidden_states"]
    axes = {
        "sample": {0: "batch", 2: "height", 3: "width"},
        "encoder_hidden_states": {0: "batch", 1: "sequence"},
    }
    run(
        {
            "input_model": {
                "type": "PyTorchModel",
                "model_loader": "load",
                "model_script": str(script),
                "dummy_inputs_func": "inputs",
                "io_config": {"input_names": names, "output_names": ["out_sample"], "dynamic_axes": axes},
            },
            "passes": {
                "convert": {"type": "OnnxConversion", "target_opset": 17, "save_as_external_data": True}
            },
            "output_dir": str(target / "out"),
            "cache_dir": str(target / "cache"),
        }
    )


LIBRARIES = {
    "torch": ("torch", "onnxscript"),
    "optimum": ("optimum-onnx", "torch"),
    "olive": ("olive-ai", "torch"),
}
print("VERSIONS", json.dumps({name: version(name) for name in LIBRARIES[exporter]}), flush=True)
{"torch": export_with_torch, "optimum": export_with_optimum, "olive": export_with_olive}[exporter]()
