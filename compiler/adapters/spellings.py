"""Which names may a file call a module by? One table, made from the names of the pipeline's own modules.

    diffusers            unet.down_blocks.0.attentions.0.proj_in, text_encoder.text_model.encoder...
    PEFT                 base_model.model.down_blocks.0.attentions.0.proj_in
    kohya                lora_unet_down_blocks_0_attentions_0_proj_in, lora_te1_text_model_encoder_...
    kohya (LDM names)    lora_unet_input_blocks_1_1_proj_in
    attention processor  down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q

Underscores in place of dots can make two names one, and PEFT does not say which model it means: a
spelling of two modules leads to both, and is refused where a file uses it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ...specs.errors import InputError
from ..ir import Component, Pipeline
from ..sources.names import modules

ROLES = ("denoiser", "text")
# What a file's keys end with after the spelling of a module, and which part of a change each holds.
SUFFIXES: Mapping[str, str] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_mid.weight": "mid",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".alpha": "alpha",
    **{f".{part}": part for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")},
    **{f".{part}": part for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")},
    **{f".{part}": part for part in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
}
# Source: networks/lora.py and networks/sdxl_lora.py of kohya-ss/sd-scripts.
KOHYA: Mapping[str, tuple[str, ...]] = {
    "unet": ("lora_unet",),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
}
# Attention as diffusers before 0.21 hung adapters into it: the last part of a name -> its name there.
PROCESSOR: Mapping[str, str] = {
    "to_q": "to_q",
    "to_k": "to_k",
    "to_v": "to_v",
    "to_out.0": "to_out",
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}
# Linear in shape only: libraries adapt a table of vectors by another formula.
TABLES = (".token_embedding", ".position_embedding")


@dataclass(frozen=True, order=True)
class Place:
    """A linear map `[out, in]` or convolution `[out, in, height, width]` that an adapter may change.

    `module` is its name in diffusers, `target` the name of its weight among the pipeline's tensors,
    `ldm` its name in LDM and SGM layout, where it has one.
    """

    component: str
    module: str
    target: str
    shape: tuple[int, ...]
    ldm: str = ""

    def __str__(self) -> str:
        return f"{self.component}.{self.module}"


@dataclass(frozen=True)
class Spelling:
    """The layout that a name belongs to, and the module or modules that it may mean."""

    layout: str
    places: tuple[Place, ...]


Table = Mapping[str, Spelling]


def split(key: str) -> tuple[str, str]:
    """Return the spelling of a module and the part of a change that a key names; ("", "") if it is none.

    >>> split("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight")
    ('lora_te_text_model_encoder_layers_0_mlp_fc1', 'up')
    """
    for suffix, part in SUFFIXES.items():
        if key.endswith(suffix):
            return key.removesuffix(suffix), part
    return "", ""


def table_of(pipeline: Pipeline, component: str | None = None) -> Table:
    """Return every spelling of every module that an adapter may change, of one component or of all."""
    found: dict[str, Spelling] = {}
    for place in places_of(pipeline):
        if component in (None, place.component):
            for layout, name in _spellings(place, pipeline):
                places = found[name].places if name in found else ()
                found[name] = Spelling(layout, tuple(dict.fromkeys((*places, place))))
    return found


def places_of(pipeline: Pipeline) -> tuple[Place, ...]:
    """Return every module that an adapter may change, denoiser first, in the order of their names."""
    found: list[Place] = []
    for component in (part for role in ROLES for part in pipeline.of_role(role)):
        ldm = _ldm_names(component) if component.role == "denoiser" else {}
        for name, tensor in pipeline.tensors_of(component.name).items():
            module = pipeline.family.module_name(component.name, name).removesuffix(".weight")
            if name.endswith(".weight") and len(tensor.shape) in (2, 4) and not module.endswith(TABLES):
                target = f"{component.name}.{name}"
                found.append(Place(component.name, module, target, tensor.shape, ldm.get(module, "")))
    return tuple(found)


def _ldm_names(denoiser: Component) -> Mapping[str, str]:
    """Return the names in LDM and SGM layout; none for a denoiser that the layout cannot hold."""
    try:
        return modules("unet", denoiser)
    except InputError:
        return {}


def dotted(place: Place, pipeline: Pipeline) -> tuple[str, ...]:
    """Return a module's name as libraries write it, with and without what only some of them prepend."""
    optional = pipeline.family.optional_prefixes.get(place.component, "")
    return tuple(dict.fromkeys((place.module, optional + place.module)))


def _spellings(place: Place, pipeline: Pipeline) -> Iterator[tuple[str, str]]:
    """Yield (layout, name) for every name of a module."""
    bare = pipeline.components[place.component].role == "denoiser"
    for name in dotted(place, pipeline):
        yield "diffusers", f"{place.component}.{name}"
        yield "PEFT", f"base_model.model.{name}"
        if bare:
            yield "diffusers", name
        for old in _in_processor(name):
            yield "attention processor", f"{place.component}.{old}"
            if bare:
                yield "attention processor", old
        for prefix in KOHYA.get(place.component, ()):
            yield "kohya", f"{prefix}_{name}".replace(".", "_")
    for prefix in KOHYA.get(place.component, ()) if place.ldm else ():
        yield "kohya (LDM names)", f"{prefix}_{place.ldm}".replace(".", "_")


def _in_processor(name: str) -> Iterator[str]:
    """Yield the names of an attention projection that was adapted through its processor."""
    for end, old in PROCESSOR.items():
        if name.endswith("." + end):
            attention = name.removesuffix("." + end)
            yield f"{attention}.processor.{old}"
            yield f"{attention}.{old}"
