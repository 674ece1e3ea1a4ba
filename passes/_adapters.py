"""LoRA files as PEFT and as diffusers save them -> which module each pair of factors belongs to.

A key is looked up whole in a table made from the pipeline's own module names, never rewritten: what
is not in the table is a fault, and so is a pair without its other half, a wrong shape, a number that
is not finite, and everything that is no plain LoRA.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from ..compiler.headers import Header, read_header
from ..compiler.ir import Pipeline
from ..compiler.load import read_json
from ..compiler.tensors import Stored, Tensor, widen
from ..specs.errors import Fault, InputError, raise_all

ROLES = ("denoiser", "text")
FACTORS: Mapping[str, str] = {
    ".lora_A.weight": "A",
    ".lora_B.weight": "B",
    ".lora_A.default.weight": "A",
    ".lora_B.default.weight": "B",
}
# What a key says that belongs to another kind of adapter, or to another tool's spelling.
NOT_YET: Mapping[str, str] = {
    "lora_magnitude_vector": "DoRA",
    "dora_scale": "DoRA",
    "hada_": "LoHa",
    "lokr_": "LoKr",
    "oft_": "OFT",
    "boft_": "BOFT",
    "lora_embedding_": "LoRA of an embedding",
    "lora_mid": "LoRA with a Tucker core",
    "lora_bias": "LoRA with a bias",
    "lora_down": "the kohya spelling of LoRA",
    "lora_up": "the kohya spelling of LoRA",
    ".lora.down": "the old diffusers spelling of LoRA",
    ".lora.up": "the old diffusers spelling of LoRA",
    "modules_to_save": "modules saved whole",
}
# Settings of a PEFT config that change what the factors mean, and the values that do not.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA", None),
    "use_dora": (False, None),
    "fan_in_fan_out": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "layer_replication": (None, []),
    "use_qalora": (False, None),
}
METADATA = "lora_adapter_metadata"


@dataclass(frozen=True)
class Factors:
    """One low-rank change, scale * B A: `down` is A [r, in, ...], `up` is B [out, r, ...]."""

    component: str
    target: str
    down: Stored
    up: Stored
    scale: float


@dataclass(frozen=True)
class _Place:
    """Where a key's path leads: the component, the module in it, and the tensor that holds its weight."""

    component: str
    module: str
    target: str


def read_adapter(file: Path, config: Path | None, pipeline: Pipeline) -> tuple[Factors, ...]:
    """Return the factors of an adapter file, by the name of the tensor that they change.

    `config` is PEFT's adapter_config.json. Scales are alpha / r, or alpha / sqrt(r) with rslora;
    a file in diffusers' layout that says nothing of alpha has alpha = r, as diffusers reads it.

    Raises:
        InputError: with every fault of the file.
    """
    header = read_header(file)
    settings = _settings(header, file, config)
    pairs, faults = _pairs(header, file, _table(pipeline))
    found: list[Factors] = []
    for place, pair in sorted(pairs.items(), key=lambda item: item[0].target):
        problems = list(_pair_faults(pair, pipeline.tensors[place.target], f"{file}: {place.module}"))
        faults += problems
        if not problems:
            try:
                scale = settings.scale(place.component, place.module, pair["A"].shape[0])
            except ValueError as problem:
                faults.append(Fault("E_ADAPTER_CONFIG", str(problem), f"{file}: {place.module}"))
                continue
            found.append(Factors(place.component, place.target, pair["A"], pair["B"], scale))
    if not pairs and not faults:
        faults.append(Fault("E_ADAPTER_EMPTY", "the file holds no tensor", str(file)))
    raise_all(InputError, faults)
    return tuple(found)


def _table(pipeline: Pipeline) -> dict[str, _Place]:
    """Return every spelling of every module path that an adapter may use."""
    table: dict[str, _Place] = {}
    for component in (part for role in ROLES for part in pipeline.of_role(role)):
        optional = pipeline.family.optional_prefixes.get(component.name, "")
        for name, tensor in pipeline.tensors_of(component.name).items():
            if not name.endswith(".weight") or len(tensor.shape) not in (2, 4):
                continue
            module = pipeline.family.module_name(component.name, name).removesuffix(".weight")
            place = _Place(component.name, module, f"{component.name}.{name}")
            for start in (f"{component.name}.", "base_model.model."):
                for path in dict.fromkeys((module, optional + module)):
                    table[start + path] = place
    return table


def _pairs(
    header: Header, file: Path, table: Mapping[str, _Place]
) -> tuple[dict[_Place, dict[str, Stored]], list[Fault]]:
    pairs: dict[_Place, dict[str, Stored]] = {}
    faults: list[Fault] = []
    for key, tensor in sorted(header.tensors.items()):
        suffix = next((suffix for suffix in FACTORS if key.endswith(suffix)), "")
        place = table.get(key.removesuffix(suffix)) if suffix else None
        kind = next((kind for mark, kind in NOT_YET.items() if mark in key), "")
        if kind:
            faults.append(Fault("E_ADAPTER_KIND", f"{kind} is not supported yet", f"{file}: {key}"))
        elif place is None:
            hint = "was the adapter trained for another model?"
            faults.append(
                Fault("E_ADAPTER_UNMATCHED", "the pipeline has no such module", f"{file}: {key}", hint)
            )
        elif FACTORS[suffix] in pairs.setdefault(place, {}):
            faults.append(Fault("E_ADAPTER_TWICE", "another key names the same factor", f"{file}: {key}"))
        else:
            pairs[place][FACTORS[suffix]] = tensor
    return pairs, faults


def _pair_faults(pair: Mapping[str, Stored], target: Tensor, where: str) -> Iterator[Fault]:
    for half in ("A", "B"):
        if half not in pair:
            yield Fault("E_ADAPTER_UNPAIRED", f"lora_{half} is missing", where)
    if len(pair) < 2:
        return
    down, up = pair["A"].shape, pair["B"].shape
    rank = down[0] if down else 0
    ones = (1,) * (len(target.shape) - 2)
    fits_down = down in ((rank, *target.shape[1:]), (rank, target.shape[1])) and prod(down) == rank * prod(
        target.shape[1:]
    )
    if rank < 1 or not fits_down or up not in ((target.shape[0], rank, *ones), (target.shape[0], rank)):
        message = f"lora_A {list(down)} and lora_B {list(up)} do not fit a weight {list(target.shape)}"
        yield Fault("E_ADAPTER_SHAPE", message, where)
    for half in ("A", "B"):
        if pair[half].dtype.kind in "iub" or not np.isfinite(widen(pair[half].read())).all():
            yield Fault("E_ADAPTER_NUMBER", f"lora_{half} holds what is no finite number", where)


@dataclass(frozen=True)
class _Settings:
    """LoRA settings by component (`""` for all), as PEFT names them."""

    values: Mapping[str, Mapping[str, Any]]

    def scale(self, component: str, module: str, rank: int) -> float:
        """Return what B A is multiplied by. Raises ValueError with what does not fit."""
        settings = self.values.get(component, self.values.get("", {}))
        said = _by_pattern(settings.get("rank_pattern"), module, settings.get("r", rank))
        if said != rank:
            raise ValueError(f"the config says rank {said}, the factors have {rank}")
        alpha = _by_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", rank))
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not np.isfinite(alpha):
            raise ValueError(f"alpha is {alpha!r}, expected a number")
        return float(alpha) / (sqrt(rank) if settings.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, default: Any) -> Any:
    """Return the value of the first key that is the module or an end of its path, as PEFT matches."""
    for key, value in (patterns or {}).items():
        if module == key or module.endswith("." + key) or key.endswith("." + module):
            return value
    return default


def _settings(header: Header, file: Path, config: Path | None) -> _Settings:
    """Read PEFT's config, or the metadata that diffusers leaves in the file."""
    peft = any(key.startswith("base_model.") for key in header.tensors)
    if config is not None:
        values: dict[str, dict[str, Any]] = {"": read_json(config)}
    elif METADATA in header.metadata:
        values = _by_component(header.metadata[METADATA], file)
    elif peft:
        hint = "name its adapter_config.json as `config`, so that the lock covers it too"
        raise InputError(
            Fault("E_ADAPTER_CONFIG", "a PEFT file says nothing of alpha itself", str(file), hint)
        )
    else:
        values = {}
    raise_all(InputError, _setting_faults(values, str(config or file)))
    return _Settings(values)


def _by_component(text: str, file: Path) -> dict[str, dict[str, Any]]:
    """Split diffusers' flat `unet.lora_alpha` keys by component."""
    try:
        flat = json.loads(text)
        if not isinstance(flat, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise InputError(
            Fault("E_ADAPTER_CONFIG", f"`{METADATA}` is not JSON: {error}", str(file))
        ) from error
    values: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        component, _, setting = key.rpartition(".")
        values.setdefault(component, {})[setting] = value
    return values


def _setting_faults(values: Mapping[str, Mapping[str, Any]], where: str) -> Iterator[Fault]:
    for settings in values.values():
        for key, plain in PLAIN.items():
            if key in settings and settings[key] not in plain:
                yield Fault("E_ADAPTER_KIND", f"`{key}: {settings[key]}` is not supported yet", where)
        for key in ("rank_pattern", "alpha_pattern"):
            patterns = settings.get(key) or {}
            if not isinstance(patterns, dict) or any(set(name) & set("\\^$*+?()[]{}|") for name in patterns):
                yield Fault("E_ADAPTER_KIND", f"`{key}` with expressions is not supported yet", where)
