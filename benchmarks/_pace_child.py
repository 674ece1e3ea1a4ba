"""One row of a U-Net's pace, in a process of its own, whose peak of memory is then the row's.

    python -m benchmarks._pace_child {demo,sd15} BATCH CELLS

Prints JSON: multiplications a second in torch on one thread, how much longer a gradient takes, and bytes held
beside the weights. Weights are all one number: how long a product takes does not depend on its factors.
"""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

from retouch.compiler.graphs.prebuild import config_folder, config_pipeline
from retouch.compiler.multiplications import of_image
from retouch.runtime.memory import peak_memory


def main(model: str, batch: int, cells: int) -> None:
    torch.set_num_threads(1)
    denoiser, run = _denoiser(model), _run(model, cells)
    sample, states = torch.randn(batch, 4, cells, cells), torch.randn(batch, 77, _width(denoiser))
    before = peak_memory()
    with torch.no_grad():
        plain = _timed(lambda: denoiser(sample, 500, states))
    held = peak_memory() - before
    read = states.requires_grad_()
    learned = _timed(lambda: denoiser(sample, 500, read).sample.square().mean().backward())
    found = {
        "rate": batch * run.multiplications / plain,
        "gradient": learned / plain,
        "run_bytes": held / (batch * run.widest),
        "gradient_bytes": (peak_memory() - before) / (batch * run.values),
    }
    print(json.dumps(found))


def _denoiser(model: str) -> Any:
    config = json.loads((config_folder(model) / "unet" / "config.json").read_text())
    with torch.device("meta"):
        module: Any = UNet2DConditionModel.from_config(config)
    module = module.to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.fill_(1e-3)
        parameter.requires_grad_(False)
    return module


def _run(model: str, cells: int) -> Any:
    """Return what planning takes an evaluation of so many cells to be."""
    folder = config_folder(model)
    with torch.device("meta"):
        config = json.loads((folder / "unet" / "config.json").read_text())
        tensors: Any = UNet2DConditionModel.from_config(config).state_dict()  # type: ignore[union-attr]
    pipeline = config_pipeline(folder)
    held = {f"unet.{name}": tensor for name, tensor in tensors.items()}
    return of_image(replace(pipeline, tensors=held), cells * cells)[0]


def _width(denoiser: Any) -> int:
    return int(denoiser.config["cross_attention_dim"])


def _timed(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of the second of two calls: the first one makes what later ones keep."""
    work()
    started = time.process_time()
    work()
    return time.process_time() - started


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
