"""Adapters for tests: what a library trained, written in every layout, and what the library does with it.

Kohya's names follow the rules that sd-scripts publishes: prefix, then the module's name with underscores.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from retouch.compiler.ir import Pipeline
from retouch.compiler.load import load_pipeline

from .passes import make, open_tiny
from .tiny import make_tiny_xl

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv_shortcut", "proj_in"]
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
TEXT_TARGETS = ["q_proj", "out_proj", "fc1"]
SETTINGS: dict[str, Any] = {
    "r": 3,
    "lora_alpha": 5,
    "alpha_pattern": {"conv1": 2},
    "rank_pattern": {"to_q": 2},
}


@dataclass(frozen=True)
class Factors:
    """One module's low-rank change, as a library holds it."""

    down: Tensor
    up: Tensor
    alpha: float


Writer = Callable[[Mapping[str, Factors]], dict[str, Tensor]]


def adapt(model: Any, targets: Iterable[str], seed: int = 7, **settings: Any) -> dict[str, Factors]:
    """Hang an adapter with random factors into a model of diffusers or transformers, and return them."""
    model.add_adapter(LoraConfig(target_modules=list(targets), **{**SETTINGS, **settings}))
    shake(model, seed)
    return {
        name: Factors(
            layer.lora_A["default"].weight.data,
            layer.lora_B["default"].weight.data,
            layer.lora_alpha["default"],
        )
        for name, layer in model.named_modules()
        if "default" in getattr(layer, "lora_A", ())
    }


def shake(module: torch.nn.Module, seed: int = 7, size: float = 0.1) -> None:
    """Give every factor values, those that start at zero too."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if any(mark in name for mark in ("lora_", "hada_", "lokr_")):
            parameter.data = size * torch.randn(parameter.shape, generator=generator)


def kohya(prefix: str, named: Callable[[str], str] = lambda name: name, alpha: bool = True) -> Writer:
    """Return a writer of kohya's layout; `named` gives a module's name before dots become underscores."""

    def write(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, factor in factors.items():
            stem = f"{prefix}_{named(name)}".replace(".", "_")
            found[f"{stem}.lora_down.weight"], found[f"{stem}.lora_up.weight"] = factor.down, factor.up
            if alpha:
                found[f"{stem}.alpha"] = torch.tensor(float(factor.alpha))
        return found

    return write


def dotted(start: str, down: str, up: str, named: Callable[[str], str] = lambda name: name) -> Writer:
    """Return a writer of a layout whose keys are start, name and one of two ends; it says no alpha."""

    def write(factors: Mapping[str, Factors]) -> dict[str, Tensor]:
        of_down = {f"{start}{named(name)}{down}": factor.down for name, factor in factors.items()}
        return of_down | {f"{start}{named(name)}{up}": factor.up for name, factor in factors.items()}

    return write


def in_processor(name: str) -> str:
    """Return a projection's name in the state of an attention processor of diffusers before 0.21."""
    attention, _, projection = name.removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{projection}"


def save(tensors: Mapping[str, Tensor], file: Path, **metadata: str) -> Path:
    """Write tensors as a safetensors file."""
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, file, metadata or None)
    return file


def merge(file: Path, before: Pipeline | None = None, **more: Any) -> Pipeline:
    """Merge one adapter file into a pipeline."""
    block = {"adapters": [{"path": file.name, **more}]}
    return make("merge_adapters", block, file.parent).run(before or open_tiny())


def load(pipeline: Pipeline, component: str, model: Any) -> Any:
    """Put a component's tensors into a module."""
    state = {name: torch.tensor(tensor.read()) for name, tensor in pipeline.tensors_of(component).items()}
    model.load_state_dict(state)
    return model.eval()


def predict(unet: torch.nn.Module) -> np.ndarray:
    """Return what a denoiser predicts for fixed noise and text states, SDXL's other inputs included."""
    config: Any = unet.config
    generator = torch.Generator().manual_seed(3)
    width = config.cross_attention_dim
    sample, states = (torch.randn(shape, generator=generator) for shape in ((2, 4, 8, 8), (2, 16, width)))
    more = {"text_embeds": torch.randn(2, 1280, generator=generator), "time_ids": torch.ones(2, 6)}
    with torch.inference_mode():
        return unet(sample, torch.tensor(500), states, added_cond_kwargs=more).sample.numpy()


def encode(encoder: torch.nn.Module) -> np.ndarray:
    """Return the text states of fixed tokens."""
    with torch.inference_mode():
        return encoder(torch.arange(16)[None]).last_hidden_state.numpy()


def close(found: np.ndarray, expected: np.ndarray, plain: np.ndarray) -> None:
    """Assert equality to 1e-5 with what a library computes, and that the adapter does something."""
    assert np.abs(found - expected).max() < 1e-5 * max(1.0, np.abs(expected).max())
    assert np.abs(found - plain).max() > 1e-3


@cache
def tiny_xl_folder() -> Path:
    """Return a folder with the tiny SDXL pipeline, made once a test run."""
    return make_tiny_xl(Path(mkdtemp(prefix="retouch-tiny-xl-")))


def open_tiny_xl() -> Pipeline:
    return load_pipeline(tiny_xl_folder(), "ddim", 8, 5.0)
