"""Model families as data: which components a pipeline class has, and where text enters the denoiser.

One YAML file a family, variants of it (inpainting, refiner) at its end: each is the family with some
keys exchanged. Passes read roles and patterns from here, never names of one architecture.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter

from ...specs.errors import Fault, InputError

Task = Literal["text_to_image", "inpainting", "refining"]


@dataclass(frozen=True)
class TextEncoder:
    """One text encoder's share of the text states; shares are concatenated on the last axis, in order.

    `layer` None is the last hidden state after the final layer norm (SD 1.x, 2.x), a number indexes the
    hidden states, without that norm (SDXL: -2). With `pooled`, its projected pooled output conditions
    the denoiser too.
    """

    component: str
    tokenizer: str
    layer: int | None = None
    pooled: bool = False


@dataclass(frozen=True)
class TextInput:
    """A place where text enters the denoiser: the linear maps that an edit of text rewrites.

    `pattern` matches on-disk tensor names of the denoiser; each is `[out, width]`. `reads` says what: the
    sequence of text states, or the pooled one. `columns` are those that read it, from the first up to
    but without the last; None means all.
    """

    pattern: str
    reads: Literal["sequence", "pooled"] = "sequence"
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Family:
    """What the compiler knows about one family of models, or about a variant of it."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    name: str
    title: str
    pipeline_class: str
    # component -> role, in the order in which the parts are written
    roles: dict[str, str]
    # component -> the class its config must name; what another class would need is not known here
    classes: dict[str, str]
    text_encoders: tuple[TextEncoder, ...]
    text_inputs: tuple[TextInput, ...]
    guidance_scale: float
    # what the model draws from; only text_to_image needs no image
    task: Task = "text_to_image"
    # keys of model_index.json beside the components, and the values meant by leaving them out
    settings: dict[str, bool] = field(default_factory=dict)
    # what the denoiser is told about the image beside text, in the order of its input `time_ids`
    time_ids: tuple[str, ...] = ()
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
    """Return every family and its variants, in the order of the file names."""
    files = sorted(Path(__file__).parent.glob("*.yaml"))
    return tuple(family for file in files for family in _read(yaml.safe_load(file.read_text())))


def family_of(pipeline_class: str, components: Collection[str] | None = None) -> Family:
    """Return the family of a diffusers pipeline class.

    Args:
        components: names of the parts that a model has, where they are known: among variants of one
            class, they choose the first that asks for no other.

    Raises:
        InputError: no family has the class.
    """
    found = [family for family in families() if family.pipeline_class == pipeline_class]
    if not found:
        known = ", ".join(dict.fromkeys(family.pipeline_class for family in families()))
        message = f"pipeline class `{pipeline_class}` is not supported"
        raise InputError(Fault("E_FAMILY", message, hint=f"supported: {known}"))
    fitting = (family for family in found if components is None or set(family.roles) <= set(components))
    return next(fitting, found[0])


def _read(text: dict[str, Any]) -> list[Family]:
    """Return the family of a file and its variants, each the family with some keys exchanged."""
    adapter = TypeAdapter(Family)
    base = {key: value for key, value in text.items() if key != "variants"}
    overlays = [{}, *text.get("variants", [])]
    return [adapter.validate_python({**base, **overlay}, strict=False) for overlay in overlays]
