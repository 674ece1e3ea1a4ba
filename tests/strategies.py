"""Hypothesis strategies for specs, and registries of made-up passes that need no compiler."""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from hypothesis import strategies as st
from pydantic import ConfigDict, Field

from retouch.specs.errors import Fault, SpecError
from retouch.specs.fields import InputFile
from retouch.specs.read import Registries

STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Swap:
    """A part of a made-up block, nested in a list."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    old: str
    new: str = ""


@dataclass(frozen=True)
class Paint:
    """A made-up pass with every kind of field that blocks have."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: ClassVar[str] = "paint"

    strength: Annotated[float, Field(ge=0, le=1)] = 1.0
    coats: int = 1
    finish: Literal["matte", "gloss"] = "matte"
    swaps: tuple[Swap, ...] = ()
    interval: tuple[float, float] | None = None
    weights: float | tuple[float, ...] = 1.0
    file: InputFile | None = None

    def __post_init__(self) -> None:
        if self.coats > 1 and self.finish == "gloss":
            raise ValueError("gloss takes one coat")


@dataclass(frozen=True)
class Folder:
    """A made-up emitter."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: ClassVar[str] = "folder"

    precision: str = "float32"


@dataclass(frozen=True)
class Legible:
    """A made-up gate."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT
    name: ClassVar[str] = "legible"

    at_most: str


class Shelf:
    """A registry of classes that are handed in."""

    def __init__(self, kind: str, **classes: type) -> None:
        self._kind, self._classes = kind, classes

    def names(self) -> list[str]:
        return sorted(self._classes)

    def load(self, name: str) -> type:
        if name not in self._classes:
            near = get_close_matches(name, self._classes, n=1)
            hint = f"did you mean `{near[0]}`?" if near else ""
            raise SpecError(Fault("E_UNKNOWN_NAME", f"no {self._kind} `{name}`", hint=hint))
        return self._classes[name]


REGISTRIES = Registries(
    Shelf("pass", paint=Paint), Shelf("emitter", folder=Folder), Shelf("gate", legible=Legible)
)

# Texts that some YAML takes for something else, beside any that may be written.
TRAPS = (
    "no",
    "yes",
    "on",
    "~",
    "null",
    "1e-3",
    "010",
    "1_000",
    "0x1f",
    "12:30",
    ".inf",
    "2001-01-01",
    "<<",
    "=",
    "",
)
written = st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\ufffe\uffff")
texts = st.sampled_from(TRAPS) | st.text(written, max_size=40)
numbers = st.floats(0, 1) | st.integers(0, 1)
# Names of files that every file system takes.
file_names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8})?", fullmatch=True)

swaps = st.fixed_dictionaries({"old": texts}, optional={"new": texts})
paints = st.fixed_dictionaries(
    {},
    optional={
        "strength": numbers,
        "coats": st.integers(-5, 1),
        "finish": st.sampled_from(["matte", "gloss"]),
        "swaps": st.lists(swaps, max_size=3),
        "interval": st.none() | st.tuples(numbers, numbers).map(list),
        "weights": numbers | st.lists(numbers, max_size=3),
        "file": st.none() | file_names,
    },
)
labels = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,12}", fullmatch=True)


def blocks(
    name: str, block: st.SearchStrategy[Any], least: int = 0
) -> st.SearchStrategy[list[dict[str, Any]]]:
    """Lists of one-key mappings."""
    return st.lists(block.map(lambda value: {name: value}), min_size=least, max_size=2)


sources = st.fixed_dictionaries(
    {"model": file_names},
    optional={
        "tokenizer": file_names,
        "config": file_names,
        "variant": st.none() | st.just("fp16"),
        "prediction": st.sampled_from(["epsilon", "v_prediction"]),
        "components": st.dictionaries(st.sampled_from(["unet", "vae"]), file_names),
    },
)
spec_values = st.fixed_dictionaries(
    {
        "schema": st.just(1),
        "name": labels,
        "version": labels,
        "source": sources,
        "emit": blocks("folder", st.just({}), least=1),
    },
    optional={
        "edits": blocks("paint", paints),
        "gates": blocks("legible", st.fixed_dictionaries({"at_most": texts})),
        "sampling": st.fixed_dictionaries(
            {},
            optional={
                "sampler": st.sampled_from(["ddim", "dpmpp_2m", "euler"]),
                "steps": st.integers(1, 1000),
                "guidance_scale": st.none() | st.floats(0.1, 30),
            },
        ),
        "provider": st.fixed_dictionaries({}, optional={"name": texts, "contact": texts}),
    },
)

# Values that have the shape of YAML and nothing else in common with a spec.
keys = st.sampled_from(["schema", "edits", "paint", "swaps", "emit", "gates", "sampling", "name"]) | texts
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)
# Text made of what YAML gives a meaning to, which random text seldom hits.
pieces = st.sampled_from(
    [*"[]{}:,-?&*!|>'\"%@`#\n\t ", "a", "1", "- ", ": ", "\n  ", "---", "...", "<<: ", "!!int ", "\\U"]
)
near_yaml = st.lists(pieces, max_size=40).map("".join)
