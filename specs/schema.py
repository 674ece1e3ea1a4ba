"""What may a spec hold? All of edit.yaml, apart from the blocks of passes, emitters and gates.

Draft   as written: blocks are mappings that nobody has looked at yet
Spec    as understood: each block is an instance of the class that its name stands for
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, ConfigDict, Field

from .fields import InputFile

SCHEMA = 1
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

# Both become parts of file names and of lines in logs.
Label = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$")]
Words = Annotated[str, Field(max_length=200)]
# The keys of compiler/sampling.py's SAMPLERS; a test compares them.
Sampler = Literal["ddim", "dpmpp_2m", "euler"]


@dataclass(frozen=True)
class Source:
    """The model to edit: built-in, a folder in diffusers' layout, a single file, or a hub's at a commit.

    Paths are relative to the spec's folder. Whether the model exists is asked by whoever opens it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    model: Annotated[
        str,
        Field(
            min_length=1, max_length=4096, description="`demo`, a folder, a .safetensors file, or owner/name"
        ),
    ]
    revision: Annotated[
        str | None, Field(pattern=r"^[0-9a-f]{40}$", description="of a hub's model: commit, 40 hex digits")
    ] = None
    variant: Annotated[
        str | None, Field(pattern=r"^[A-Za-z0-9_]{1,16}$", description="of a hub's files, such as fp16")
    ] = None
    tokenizer: Annotated[InputFile | None, Field(description="folder, where the model has no tokenizer")] = (
        None
    )
    config: Annotated[
        InputFile | None,
        Field(description="folder of configs in diffusers' layout, where a single file is of no known make"),
    ] = None
    prediction: Annotated[
        Literal["epsilon", "v_prediction"] | None,
        Field(description="what a single file's denoiser predicts, where the file does not say"),
    ] = None
    components: Annotated[
        dict[Literal["text_encoder", "text_encoder_2", "unet", "vae"], InputFile],
        Field(description="folders or files that stand in for the model's own parts"),
    ] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingBlock:
    """How the finished artefact draws. Without a guidance scale, the model family's own."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    sampler: Sampler = "dpmpp_2m"
    steps: Annotated[int, Field(ge=1, le=1000)] = 20
    guidance_scale: Annotated[float | None, Field(gt=0, description="1 is unguided")] = None


@dataclass(frozen=True)
class ProviderBlock:
    """Who answers for the artefact: what the manifest must say and nobody can measure."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: Words = ""
    contact: Words = ""


def _one_key(block: Any) -> Any:
    if isinstance(block, dict) and len(block) != 1:
        names = f" ({', '.join(map(str, block))})" if block else ""
        raise ValueError(
            f"found {len(block)} keys{names}, expected one name with its block indented under it"
        )
    return block


RawBlock = Annotated[dict[str, dict[str, Any]], BeforeValidator(_one_key)]


@dataclass(frozen=True, kw_only=True)
class Head:
    """What every spec says beside its blocks."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    schema: Literal[1]
    name: Label
    version: Annotated[Label, Field(description="of the artefact, a text: put 1.0 in quotes")]
    source: Source
    sampling: SamplingBlock = SamplingBlock()
    provider: ProviderBlock = ProviderBlock()


@dataclass(frozen=True, kw_only=True)
class Draft(Head):
    """A spec as written."""

    edits: tuple[RawBlock, ...] = ()
    emit: Annotated[tuple[RawBlock, ...], Field(min_length=1)]
    gates: tuple[RawBlock, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Spec(Head):
    """A spec as understood: `edits` are passes, `emit` emitters and `gates` gates, in the order written.

    Each has a `name`, its key in the spec. Specs are plain values: equal ones are spelled alike by
    `write_spec`.
    """

    edits: tuple[Any, ...]
    emit: tuple[Any, ...]
    gates: tuple[Any, ...]
