"""sampling.json: everything a host needs to draw an image, as numbers.

Every deterministic sampler in scope is linear in the sample and the denoiser's outputs, so one loop
serves them all. With `x` the sample, `w` the guidance weight and one row a step:

    out    = denoiser(input_scale * x, timestep)             guided: u + w (c - u); else c
    x0     = x0_from_sample * x + x0_from_output * out
    x      = next_from_sample * x + next_from_x0 * x0 + next_from_previous_x0 * x0_of_the_step_before

The loop starts from `initial_scale` times unit noise. A step with weight 1 is not guided and runs
the conditional half only.

`text` says which graphs make text states: their outputs, one after the other on the last axis, are the
denoiser's `encoder_hidden_states`, and a pooled one is its `text_embeds`. Where there are `time_ids`,
the denoiser takes these numbers in this order, in pixels: an image is its original, uncropped.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

# 2 added `task`, `text`, `time_ids` and `negative.zeros`; what they leave unsaid in 1 is their default.
SCHEMA = 2
Graph = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,99}$", description="a folder of the artefact")]
Task = Literal["text_to_image", "inpainting", "refining"]
TimeId = Literal[
    "original_height",
    "original_width",
    "crop_top",
    "crop_left",
    "target_height",
    "target_width",
    "aesthetic_score",
]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class Document(BaseModel):
    """A strict, frozen JSON document: unknown keys are refused at any depth."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Step(Document):
    """One row of the table; see the module's formulas."""

    timestep: float
    sigma: Annotated[float, Field(ge=0, description="noise level: sqrt((1 - abar) / abar)")]
    input_scale: float
    x0_from_sample: float
    x0_from_output: float
    next_from_sample: float
    next_from_x0: float
    next_from_previous_x0: float
    guidance_weight: Annotated[float, Field(description="classifier-free guidance scale; 1 is unguided")]

    @property
    def guided(self) -> bool:
        """Whether the unconditional half has to run."""
        return self.guidance_weight != 1.0


class Negative(Document):
    """The unconditional half: its prompt, and whether a host may exchange it."""

    prompt: str = ""
    baked: bool = False
    zeros: Annotated[bool, Field(description="whether zeros are its text states, until a host gives one")] = (
        False
    )


class TextSource(Document):
    """One graph's share of the text states."""

    graph: Graph = "text_encoder"
    tokenizer: Graph = "tokenizer"
    output: Name = "last_hidden_state"
    pooled: Annotated[Name | None, Field(description="output that is the denoiser's `text_embeds`")] = None


class Latent(Document):
    """Shape of a latent, and how it becomes an image: decode(x / scaling_factor + shift_factor)."""

    channels: Annotated[int, Field(gt=0)]
    height: Annotated[int, Field(gt=0, description="rows of the latent at the default image size")]
    width: Annotated[int, Field(gt=0)]
    downscale: Annotated[int, Field(gt=0, description="pixels a latent cell")]
    scaling_factor: float
    shift_factor: float = 0.0


class SamplingTable(Document):
    """The whole of sampling.json."""

    # `schema` shadows a deprecated method of BaseModel, hence the alias.
    schema_version: Annotated[Literal[1, 2], Field(alias="schema")] = SCHEMA
    task: Annotated[Task, Field(description="what it draws from; only text_to_image needs no image")] = (
        "text_to_image"
    )
    sampler: Name
    prediction: Literal["epsilon", "v_prediction", "sample"]
    initial_scale: Annotated[float, Field(gt=0)]
    noise: Literal["philox4x32-10/box-muller"] = "philox4x32-10/box-muller"
    guidance_baked: Annotated[bool, Field(description="whether a host must use the weights as they are")] = (
        False
    )
    negative: Negative = Negative()
    text: Annotated[list[TextSource], Field(min_length=1, max_length=4)] = [TextSource()]
    time_ids: Annotated[list[TimeId], Field(max_length=6)] = []
    latent: Latent
    steps: Annotated[list[Step], Field(min_length=1, max_length=1000)]

    model_config = ConfigDict(**{**Document.model_config, "populate_by_name": True})

    @model_validator(mode="after")
    def _first_step_has_no_past(self) -> "SamplingTable":
        if self.steps[0].next_from_previous_x0 != 0.0:
            raise ValueError("the first step uses an x0 before it")
        return self

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations of one image: two for a guided step, one for another."""
        return sum(2 if step.guided else 1 for step in self.steps)

    @classmethod
    def load(cls, file: Path) -> "SamplingTable":
        """Read and check a sampling.json. Raises pydantic's ValidationError."""
        return cls.model_validate_json(file.read_bytes())
