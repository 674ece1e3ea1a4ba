"""How strongly does a file count? alpha / r, or alpha / sqrt(r) where it is rank-stabilized.

Alpha stands in the file beside the factors (kohya, LyCORIS), in PEFT's adapter_config.json, in the
metadata that diffusers writes, or nowhere: then it is r. Source of the two rules: Hu et al.,
2106.09685, sec. 4.1; Kalajdzievski, 2312.03732, eq. (4).
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

from ...specs.errors import Fault, InputError, raise_all
from ..headers import Header
from ..load import read_json

METADATA = "lora_adapter_metadata"
# Settings of PEFT's LoraConfig that say how an adapter was trained, and nothing of what it means now.
OF_TRAINING = frozenset(
    {
        *(
            "auto_mapping",
            "base_model_name_or_path",
            "inference_mode",
            "peft_version",
            "revision",
            "task_type",
        ),
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout"),
        *("megatron_config", "megatron_core", "eva_config", "qalora_group_size", "ensure_weight_tying"),
    }
)
OF_SCALE = frozenset({"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern"})
# Those that change what the factors mean, and the values with which they do not. The ways of starting
# that are not here (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) move the base weights too, so that the file
# is a difference to a model that nobody has.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
NOTHING = (None, False, "", [], {})
# Expressions are tried on every module of the model: what can be matched in many ways takes long to fail.
EXPRESSION = re.compile(r"[\w.\-^$|()\[\]?*+\\]{1,512}")
UNBOUNDED = re.compile(r"\)[*+?]|\\\d|\(\?")
CHOICE = re.compile(r"(?<!\\)[*+?(]")
MAX_CHOICES = 4


@dataclass(frozen=True)
class Strength:
    """What B A is multiplied by, and the two numbers that it is made of."""

    rank: int
    alpha: float
    scale: float


@dataclass(frozen=True)
class Settings:
    """LoRA settings by component (`""` for all), as PEFT names them; empty where a file says nothing."""

    values: Mapping[str, Mapping[str, Any]]

    def strength(self, component: str, names: tuple[str, ...], rank: int, stored: float | None) -> Strength:
        """Return how strongly a module of rank `rank`, 0 for none, counts; `names` are its dotted names.

        Raises:
            ValueError: what the settings, the stored alpha and the factors say does not fit.
        """
        if rank == 0:
            # Two whole factors: LyCORIS, ComfyUI and diffusers ignore alpha.
            return Strength(0, 0.0, 1.0)
        settings = self.values.get(component, self.values.get("", {}))
        said = _by_pattern(settings.get("rank_pattern"), names, settings.get("r", rank))
        if said != rank:
            raise ValueError(f"the config says rank {said}, the factors have {rank}")
        alpha = _by_pattern(settings.get("alpha_pattern"), names, settings.get("lora_alpha"))
        if alpha is not None and stored is not None and alpha != stored:
            raise ValueError(f"the config says alpha {alpha}, the file {stored:g}")
        found = _number(next(value for value in (alpha, stored, rank) if value is not None))
        return Strength(rank, found, found / (sqrt(rank) if settings.get("use_rslora") else rank))


def read_settings(header: Header, file: Path, config: Path | None, needed: bool) -> Settings:
    """Read PEFT's config, or the metadata that diffusers leaves in the file.

    `needed` says that without one the file's scale is unknown.

    Raises:
        InputError: malformed, missing, or with settings that mean something else than LoRA.
    """
    if config is not None:
        values: dict[str, dict[str, Any]] = {"": read_json(config)}
    elif METADATA in header.metadata:
        values = _by_component(header.metadata[METADATA], file)
    elif needed:
        hint = "name its adapter_config.json as `config`, so that the lock covers it too"
        raise InputError(
            Fault("E_ADAPTER_CONFIG", "a PEFT file says nothing of alpha itself", str(file), hint)
        )
    else:
        values = {}
    raise_all(
        InputError, (fault for found in values.values() for fault in _faults(found, str(config or file)))
    )
    return Settings(values)


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


def _faults(settings: Mapping[str, Any], where: str) -> Iterator[Fault]:
    for key, value in settings.items():
        harmless = key in OF_TRAINING or key in OF_SCALE or _among(value, (*NOTHING, *PLAIN.get(key, ())))
        if not harmless:
            yield Fault("E_ADAPTER_KIND", f"`{key}: {json.dumps(value)[:80]}` is not supported", where)
    if not isinstance(settings.get("use_rslora"), bool | None):
        yield Fault(
            "E_ADAPTER_CONFIG", f"`use_rslora` is {settings['use_rslora']!r}, expected true or false", where
        )
    for key in ("rank_pattern", "alpha_pattern"):
        patterns = settings.get(key) or {}
        if not isinstance(patterns, dict):
            yield Fault("E_ADAPTER_CONFIG", f"`{key}` is no mapping", where)
            continue
        for pattern in patterns:
            if reason := _refused(pattern):
                yield Fault("E_ADAPTER_CONFIG", f"`{key}`: {pattern[:80]!r} {reason}", where)


def _among(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value is one of some, its type included: 0 is not False here."""
    return any(type(value) is type(other) and value == other for other in allowed)


def _refused(pattern: str) -> str:
    """Return why an expression is not tried, or ""."""
    if not EXPRESSION.fullmatch(pattern) or UNBOUNDED.search(pattern):
        return "is no plain expression: no repeated groups, no counts, no references"
    if len(CHOICE.findall(pattern)) > MAX_CHOICES:
        return f"has more than {MAX_CHOICES} groups and repeats"
    try:
        re.compile(pattern)
    except re.error as error:
        return f"is no expression: {error}"
    return ""


def _by_pattern(patterns: Mapping[str, Any] | None, names: tuple[str, ...], default: Any) -> Any:
    """Return the value of the first pattern that is a name or its end at a dot, as PEFT matches them.

    Source: peft.utils.get_pattern_key.
    """
    for pattern, value in (patterns or {}).items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in names):
            return value
    return default


def _number(alpha: Any) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not isfinite(alpha):
        raise ValueError(f"alpha is {alpha!r}, expected a number")
    if alpha == 0:
        # sd-scripts and LyCORIS read 0 as r, ComfyUI as no change at all.
        raise ValueError("alpha is 0, which tools read as r or as nothing")
    return float(alpha)
