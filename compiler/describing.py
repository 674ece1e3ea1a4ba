"""What is a model, by its headers, its configs and its model card? No element is read."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import yaml

from .headers import read_header
from .ir import Component, Pipeline
from .load import MODEL_ROLES
from .tensors import bytes_of

MAX_CARD = 1 << 20
# What a model card's front matter, or a single file's ModelSpec metadata, says of license and origin.
CARD_KEYS = ("license", "license_name", "license_link", "base_model")
FILE_KEYS = ("modelspec.license", "modelspec.title", "modelspec.author", "modelspec.architecture")
LONGEST = 200


def describe_model(pipeline: Pipeline, place: Path) -> dict[str, Any]:
    """Return what a model is, as plain data; `place` is the folder or the file that it was opened from."""
    schedule, latent = pipeline.sampling.schedule, pipeline.sampling.latent
    parts = [pipeline.components[name] for name in pipeline.family.roles if name in pipeline.components]
    scheduler = next(part for part in parts if part.role == "scheduler")
    return {
        "family": pipeline.family.name,
        "title": pipeline.family.title,
        "task": pipeline.family.task,
        "parts": [_part(part, pipeline) for part in parts if part.role in MODEL_ROLES],
        "bytes": sum(map(bytes_of, pipeline.tensors.values())),
        "pixels": [latent.height * latent.downscale, latent.width * latent.downscale],
        "scheduler": scheduler.class_name,
        "prediction": schedule.prediction,
        "timesteps": len(schedule.alphas_bar),
        "zero_terminal_snr": schedule.zero_terminal_snr,
        "license": _license(place),
        "notes": list(pipeline.notes),
    }


def _part(part: Component, pipeline: Pipeline) -> dict[str, Any]:
    tensors = pipeline.tensors_of(part.name).values()
    return {
        "name": part.name,
        "role": part.role,
        "class": part.class_name,
        "tensors": len(tensors),
        "parameters": sum(prod(tensor.shape) for tensor in tensors),
        "precision": dict(sorted(Counter(tensor.dtype.name for tensor in tensors).items())),
        "bytes": sum(map(bytes_of, tensors)),
    }


def _license(place: Path) -> dict[str, str]:
    """Return what the model's card or file says of its license and origin."""
    if place.is_file():
        metadata = read_header(place).metadata
        return {key: metadata[key][:LONGEST] for key in FILE_KEYS if metadata.get(key)}
    said = _front_matter(place / "README.md")
    found = {key: said[key] for key in CARD_KEYS if said.get(key)}
    return {key: ", ".join(map(str, _listed(value)))[:LONGEST] for key, value in found.items()}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _front_matter(card: Path) -> Mapping[str, Any]:
    """Return the YAML between the dashes that a model card starts with; {} where there is no good one."""
    if not card.is_file() or card.stat().st_size > MAX_CARD:
        return {}
    text = card.read_text(encoding="utf-8", errors="replace")
    if not text.startswith("---\n"):
        return {}
    try:
        value = yaml.safe_load(text[4:].partition("\n---")[0])
    except (yaml.YAMLError, RecursionError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
