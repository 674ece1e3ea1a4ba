"""Model families as data: which components a pipeline class has, and where text enters the denoiser.

One YAML file a family. Passes read roles and patterns from here, never names of one architecture.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import ConfigDict, Field, TypeAdapter

from ...specs.errors import Fault, InputError


@dataclass(frozen=True)
class TextInput:
    """A place where text states enter the denoiser: the linear maps that an edit of text rewrites.

    `pattern` matches on-disk tensor names of the denoiser; each is `[out, width of the text state]`.
    """

    pattern: str


@dataclass(frozen=True)
class Family:
    """What the compiler knows about one family of models."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: str
    title: str
    pipeline_class: str
    # component -> role, in the order in which the parts are written
    roles: dict[str, str]
    # component -> the class its config must name; what another class would need is not known here
    classes: dict[str, str]
    text_inputs: tuple[TextInput, ...]
    # how the sequence of text states is made: the last hidden state after the final layer norm
    text_state: Annotated[str, Field(pattern="^(last_hidden_state)$")]
    guidance_scale: float
    # components that may stand in a model_index.json and are not carried into an artefact
    left_out: tuple[str, ...] = ()
    # component -> what some versions of its library write before every module name, and others do not
    optional_prefixes: dict[str, str] = field(default_factory=dict)
    # component -> part of a dotted name as older versions wrote it -> as today's write it
    old_names: dict[str, dict[str, str]] = field(default_factory=dict)
    limits: tuple[str, ...] = ()

    def module_name(self, component: str, name: str) -> str:
        """Return a tensor's or module's name in the one spelling that all library versions share."""
        old = self.old_names.get(component, {})
        parts = name.removeprefix(self.optional_prefixes.get(component, "")).split(".")
        return ".".join(old.get(part, part) for part in parts)


@cache
def families() -> tuple[Family, ...]:
    """Return every family, in the order of the file names."""
    adapter = TypeAdapter(Family)
    files = sorted(Path(__file__).parent.glob("*.yaml"))
    return tuple(adapter.validate_python(yaml.safe_load(file.read_text()), strict=False) for file in files)


def family_of(pipeline_class: str) -> Family:
    """Return the family of a diffusers pipeline class.

    Raises:
        InputError: no family has it.
    """
    for family in families():
        if family.pipeline_class == pipeline_class:
            return family
    known = ", ".join(family.pipeline_class for family in families())
    raise InputError(
        Fault("E_FAMILY", f"pipeline class `{pipeline_class}` is not supported", hint=f"supported: {known}")
    )
