"""Which lists of concepts does `retouch init` offer? One YAML file each in presets/."""

import json
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import ClassVar

from pydantic import ConfigDict, TypeAdapter

from .errors import Fault, SpecError, quoted
from .schema import STRICT
from .strict_yaml import parse, read_bytes

FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True)
class Concept:
    """What a model shall no longer draw, what it draws instead, and other words for it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    towards: str
    synonyms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preset:
    """A list of concepts that belong together, why one erases them, and what must stay as it is."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    title: str
    why: str
    concepts: tuple[Concept, ...]
    preserve: tuple[str, ...]


def preset_names() -> list[str]:
    """Return the names of all presets, sorted."""
    return sorted(file.stem for file in FOLDER.glob("*.yaml"))


def read_preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        SpecError: there is none of that name.
    """
    if name not in preset_names():
        near = get_close_matches(name, preset_names(), n=1)
        hint = f"did you mean `{near[0]}`?" if near else f"there are: {', '.join(preset_names())}"
        raise SpecError(Fault("E_UNKNOWN_NAME", f"no preset {quoted(name)}", hint=hint))
    file = FOLDER / f"{name}.yaml"
    value = parse(read_bytes(file), str(file)).value
    return TypeAdapter(Preset).validate_json(json.dumps(value))
