"""What goes into and comes out of each graph of an artefact: names, types and dimensions.

Names are those that ONNX hosts of diffusers pipelines ask for. A dimension is a number from the
component's config, or a name: one that the caller chooses at run time.
Source: optimum-onnx, `optimum/onnxruntime/modeling_diffusion.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...specs.errors import Fault, InputError
from ..families import Family
from ..ir import Component, Pipeline

Dimension = int | str
# Every name that is added to a denoiser's graph starts like this: no module's name does.
OWN = "retouch."
# What a baked negative prompt adds to the denoiser's tensors, by the input that it stands for.
NEGATIVE = f"{OWN}negative_hidden_states"
NEGATIVE_POOLED = f"{OWN}negative_text_embeds"
BAKED: Mapping[str, str] = {"encoder_hidden_states": NEGATIVE, "text_embeds": NEGATIVE_POOLED}


@dataclass(frozen=True)
class Port:
    """One input or output of a graph; `dtype` is a NumPy name."""

    name: str
    dtype: str
    shape: tuple[Dimension, ...]


@dataclass(frozen=True)
class Interface:
    """One graph: its folder in the artefact, the component that it is cut from, and its ports.

    `height` and `width` of the inputs must be multiples of `multiple`.
    """

    folder: str
    component: Component
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    multiple: int = 1


def interfaces(pipeline: Pipeline) -> tuple[Interface, ...]:
    """Return the graphs of a pipeline, in the order in which they are written.

    Raises:
        InputError: a config lacks a size.
    """
    return tuple(
        _read(part, component, pipeline.family)
        for role, parts in PARTS.items()
        for component in pipeline.of_role(role)
        for part in parts
    )


def _read(part: "Part", component: Component, family: Family) -> Interface:
    """Return a part of a component. Raises InputError where the config lacks what the part needs."""
    try:
        return part(component, family)
    except (KeyError, TypeError, ValueError) as error:
        where = str(component.folder / "config.json")
        raise InputError(Fault("E_CONFIG", f"the config lacks a usable {error}", where)) from error


def _text_encoder(component: Component, family: Family) -> Interface:
    """Hosts that read an inner hidden state ask for each but the last, by number; 0 is the embedding."""
    (encoder,) = (encoder for encoder in family.text_encoders if encoder.component == component.name)
    config = component.config
    length, width = int(config["max_position_embeddings"]), int(config["hidden_size"])
    sequence = ("batch", length, width)
    states = Port("last_hidden_state", "float32", sequence)
    inner = 0 if encoder.layer is None else int(config["num_hidden_layers"])
    outputs = (
        # Hosts take the first output of the pooled encoder for its pooled state.
        (Port("text_embeds", "float32", ("batch", int(config["projection_dim"]))), states)
        if encoder.pooled
        else (states, Port("pooler_output", "float32", ("batch", width)))
    )
    return Interface(
        folder=component.name,
        component=component,
        inputs=(Port("input_ids", "int64", ("batch", length)),),
        outputs=(*outputs, *(Port(f"hidden_states.{i}", "float32", sequence) for i in range(inner))),
    )


def _denoiser(component: Component, family: Family) -> Interface:
    """Timesteps are floating-point: some samplers use fractions, and whole ones are exact."""
    config = component.config
    image = ("height", "width")
    states = ("batch", "sequence", int(config["cross_attention_dim"]))
    return Interface(
        folder=component.name,
        component=component,
        inputs=(
            Port("sample", "float32", ("batch", int(config["in_channels"]), *image)),
            Port("timestep", "float32", ()),
            Port("encoder_hidden_states", "float32", states),
            *_added(config, len(family.time_ids)),
        ),
        outputs=(Port("out_sample", "float32", ("batch", int(config["out_channels"]), *image)),),
        multiple=_halvings(config),
    )


def _added(config: Mapping[str, Any], ids: int) -> tuple[Port, ...]:
    """Return the inputs that are embedded together with the timestep: pooled text, and the image's size."""
    if not ids:
        return ()
    columns = int(config["projection_class_embeddings_input_dim"])
    pooled = columns - ids * int(config["addition_time_embed_dim"])
    return (
        Port("text_embeds", "float32", ("batch", pooled)),
        Port("time_ids", "float32", ("batch", ids)),
    )


def _decoder(component: Component, family: Family) -> Interface:
    del family
    config = component.config
    latent = ("batch", int(config["latent_channels"]), "latent_height", "latent_width")
    return Interface(
        folder=f"{component.name}_decoder",
        component=component,
        inputs=(Port("latent_sample", "float32", latent),),
        outputs=(Port("sample", "float32", ("batch", int(config["out_channels"]), "height", "width")),),
    )


def _encoder(component: Component, family: Family) -> Interface:
    """The output is mean and log variance one after the other: drawing from them is the host's."""
    del family
    config = component.config
    latent = ("batch", 2 * int(config["latent_channels"]), "latent_height", "latent_width")
    return Interface(
        folder=f"{component.name}_encoder",
        component=component,
        inputs=(Port("sample", "float32", ("batch", int(config["in_channels"]), "height", "width")),),
        outputs=(Port("latent_parameters", "float32", latent),),
        multiple=_halvings(config),
    )


def _halvings(config: Mapping[str, Any]) -> int:
    """Return by how much a network of blocks makes an image smaller: by 2 between two blocks."""
    return 2 ** (len(config["block_out_channels"]) - 1)


Part = Callable[[Component, Family], Interface]
PARTS: Mapping[str, tuple[Part, ...]] = {
    "text": (_text_encoder,),
    "denoiser": (_denoiser,),
    "vae": (_decoder, _encoder),
}
