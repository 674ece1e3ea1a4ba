"""Tables of layouts.yaml -> the name of each tensor of a component in a single file.

The tables pair modules; a config says how often each stands. What comes out is exhaustive: a name
that is not among the matches is not one of the model's, and a match that finds no tensor is a gap.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter

from ...specs.errors import Fault, InputError
from ..families import Family
from ..ir import Component
from . import MODEL_ROLES

Form = Literal["same", "pointwise", "transposed", "stacked"]
Place = Mapping[str, int]
Places = Mapping[str, Sequence[Place]]


@dataclass(frozen=True)
class Match:
    """One tensor of a single file and what it is called in diffusers' layout.

    `ours` are several only where `form` is `stacked`.
    """

    ours: tuple[str, ...]
    theirs: str
    form: Form = "same"
    optional: bool = False


@dataclass(frozen=True)
class Row:
    """One row of a table, as layouts.yaml explains it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    pair: tuple[str, str] | None = None
    tensor: tuple[tuple[str, ...], str] | None = None
    each: str = ""
    holds: str = ""
    tensors: tuple[str, ...] = ("weight", "bias")
    form: Form = "same"
    optional: bool = False


@dataclass(frozen=True)
class Part:
    """Where a component lies in a file: its table, the prefixes of its names, what else stands there."""

    table: str
    prefixes: tuple[str, ...]
    unused: str = ""


@dataclass(frozen=True)
class Layout:
    """The parts of a file by the components that they are; `activation` is its text encoder's."""

    parts: dict[str, Part]
    activation: str = ""


@dataclass(frozen=True)
class Other:
    """A kind of file that is no model of ours, and names that give it away."""

    title: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Layouts:
    """All of layouts.yaml."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    tables: dict[str, tuple[Row, ...]]
    layouts: dict[str, Layout]
    optional_beginnings: dict[str, str]
    left_out: tuple[str, ...]
    ema: str
    flags: dict[str, str]
    predictions: dict[str, dict[str, str]]
    others: tuple[Other, ...]


@cache
def layouts() -> Layouts:
    """Return the tables."""
    text = (Path(__file__).parent / "layouts.yaml").read_text(encoding="utf-8")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return TypeAdapter(Layouts).validate_python(yaml.load(text, loader))


def layout_of(family: Family, activation: str) -> Layout:
    """Return the layout that a family's model has in a single file.

    Args:
        activation: `hidden_act` of its text encoder, which tells OpenCLIP's from CLIP's.

    Raises:
        InputError: no layout has the family's parts.
    """
    found = layouts_of(family)
    return next((layout for layout in found if layout.activation in ("", activation)), found[0])


def layouts_of(family: Family) -> tuple[Layout, ...]:
    """Return every layout that has just the family's parts.

    Raises:
        InputError: there is none.
    """
    wanted = {name for name, role in family.roles.items() if role in MODEL_ROLES}
    found = tuple(layout for layout in layouts().layouts.values() if set(layout.parts) == wanted)
    if not found:
        raise InputError(Fault("E_SINGLE_FILE", f"no single-file layout of {family.title} is known"))
    return found


def matches(table: str, component: Component) -> tuple[Match, ...]:
    """Return every tensor of a component, in the order of its table.

    Raises:
        InputError: the config lacks a size, or has one that single files cannot say.
    """
    try:
        places = PLACES[component.role](component)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        where = str(component.folder / "config.json")
        raise InputError(Fault("E_CONFIG", f"the config lacks a usable {error}", where)) from error
    return tuple(_expand(table, places))


def modules(table: str, component: Component) -> dict[str, str]:
    """Return each module with a weight of its own, as diffusers calls it -> as single files do."""
    return {
        match.ours[0].removesuffix(".weight"): match.theirs.removesuffix(".weight")
        for match in matches(table, component)
        if len(match.ours) == 1 and match.ours[0].endswith(".weight")
    }


def _expand(table: str, places: Places) -> Iterator[Match]:
    for row in layouts().tables[table]:
        for place in places[row.each] if row.each else [{}]:
            yield from _at(row, place, places)


def _at(row: Row, place: Place, places: Places) -> Iterator[Match]:
    """Yield the tensors of one row at one place."""
    if row.tensor is not None:
        ours, theirs = row.tensor
        yield Match(tuple(_fill(name, place) for name in ours), _fill(theirs, place), row.form, row.optional)
        return
    assert row.pair is not None
    mine, other = (_fill(name, place) for name in row.pair)
    if row.holds:
        for inner in _expand(row.holds, places):
            below = tuple(f"{mine}.{name}" for name in inner.ours)
            yield Match(below, f"{other}.{inner.theirs}", inner.form, inner.optional)
        return
    for kind in row.tensors:
        # A bias has one axis, however the weight lies.
        form = row.form if kind == "weight" else "same"
        yield Match((f"{mine}.{kind}",), f"{other}.{kind}", form, row.optional)


def _fill(name: str, place: Place) -> str:
    """Put a place's numbers into a name.

    >>> _fill("input_blocks.{1+i*n+j}.0", {"i": 2, "n": 3, "j": 1})
    'input_blocks.8.0'
    """
    return re.sub(r"\{([^}]+)\}", lambda found: str(_number(found[1], place)), name)


def _number(formula: str, place: Place) -> int:
    """Return a sum of products of letters and digits."""
    terms = ([place[factor] if factor in place else int(factor) for factor in term.split("*")]
             for term in formula.split("+"))  # fmt: skip
    return sum(prod(term) for term in terms)


def _denoiser(component: Component) -> Places:
    """Return the places of UNet2DConditionModel.

    Raises ValueError where the blocks differ in their number of layers: a single file cannot say so.
    """
    config = component.config
    kinds, up_kinds = config["down_block_types"], config["up_block_types"]
    layers, blocks = _same(config["layers_per_block"]), len(kinds)
    depths = _each(config.get("transformer_layers_per_block") or 1, blocks)
    attends = ["Attn" in kind for kind in kinds]
    up_attends = ["Attn" in kind for kind in up_kinds]
    down = [{"i": i, "j": j, "n": layers + 1} for i in range(blocks) for j in range(layers)]
    up = [{"i": i, "j": j, "n": layers + 1} for i in range(blocks) for j in range(layers + 1)]
    down_attention = [place for place in down if attends[place["i"]]]
    up_attention = [place for place in up if up_attends[place["i"]]]
    return {
        "addition": [{}] if config.get("addition_embed_type") == "text_time" else [],
        "down_layer": down,
        "down_attention": down_attention,
        "down_transformer": [
            {**place, "k": k} for place in down_attention for k in range(depths[place["i"]])
        ],
        "downsampler": [{"i": i, "n": layers + 1} for i in range(blocks - 1)],
        "middle_layer": [{"j": 0}, {"j": 1}],
        "middle_transformer": [{"k": k} for k in range(depths[-1])],
        "up_layer": up,
        "up_attention": up_attention,
        "up_transformer": [
            {**place, "k": k} for place in up_attention for k in range(depths[blocks - 1 - place["i"]])
        ],
        "upsampler": [
            {"i": i, "n": layers + 1, "l": layers, "a": int(up_attends[i])} for i in range(blocks - 1)
        ],
    }


def _autoencoder(component: Component) -> Places:
    """Return the places of AutoencoderKL."""
    config = component.config
    layers, blocks = _same(config["layers_per_block"]), len(config["block_out_channels"])
    return {
        "down_layer": [{"i": i, "j": j} for i in range(blocks) for j in range(layers)],
        "downsampler": [{"i": i} for i in range(blocks - 1)],
        "middle_layer": [{"j": 0}, {"j": 1}],
        "middle_attention": [{}] if config.get("mid_block_add_attention", True) else [],
        "up_layer": [{"i": i, "j": j, "r": blocks - 1 - i} for i in range(blocks) for j in range(layers + 1)],
        "upsampler": [{"i": i, "r": blocks - 1 - i} for i in range(blocks - 1)],
    }


def _text_encoder(component: Component) -> Places:
    """Return the places of CLIPTextModel and CLIPTextModelWithProjection."""
    layers = int(component.config["num_hidden_layers"])
    return {
        "text_layer": [{"i": i} for i in range(layers)],
        "next_layer": [{"i": layers}],
        "projection": [{}] if component.class_name.endswith("WithProjection") else [],
    }


def _same(layers: Any) -> int:
    """Return the number of layers that all blocks have."""
    (number,) = set(layers) if isinstance(layers, list | tuple) else {layers}
    return int(number)


def _each(value: Any, blocks: int) -> list[int]:
    return [int(item) for item in value] if isinstance(value, list | tuple) else [int(value)] * blocks


PLACES: Mapping[str, Callable[[Component], Places]] = {
    "denoiser": _denoiser,
    "text": _text_encoder,
    "vae": _autoencoder,
}
