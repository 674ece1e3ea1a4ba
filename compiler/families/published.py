"""Configs of the published models: a folder each in diffusers' layout, without weights and vocabulary.

They are what a single file leaves unsaid, and what a benchmark at true size is built from. Facts only:
a checkpoint's own config, where it has one, always wins. Source: the published diffusers folders; the
parameter counts of the modules that they describe are checked in tests/test_families.py.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ...specs.errors import Fault, InputError

CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Published:
    """What tells a published model from the others: what its denoiser reads and predicts.

    `width` is that of the text states, `channels` those of its first convolution.
    """

    name: str
    width: int
    channels: int
    prediction: str


@cache
def published() -> tuple[Published, ...]:
    """Return the published models in the order of their names."""
    return tuple(map(_described, published_models()))


def published_models() -> tuple[str, ...]:
    """Return the names of the published models whose configs are here, sorted."""
    return tuple(sorted(folder.name for folder in CONFIGS.iterdir()))


def published_folder(name: str) -> Path:
    """Return the folder that holds the configs of a published model: model_index.json, unet/config.json, ...

    Raises:
        InputError: there is none of this name.
    """
    if name not in published_models():
        known = ", ".join(published_models())
        raise InputError(Fault("E_PUBLISHED", f"no configs of `{name}`", hint=f"there are: {known}"))
    return CONFIGS / name


def _described(name: str) -> Published:
    denoiser = json.loads((CONFIGS / name / "unet" / "config.json").read_text())
    scheduler = json.loads((CONFIGS / name / "scheduler" / "scheduler_config.json").read_text())
    # Noise is what configs mean by leaving it out.
    prediction = scheduler.get("prediction_type", "epsilon")
    return Published(name, denoiser["cross_attention_dim"], denoiser["in_channels"], prediction)
