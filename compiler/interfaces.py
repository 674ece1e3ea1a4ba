"""What goes into and comes out of each graph of an artefact: names, types and dimensions.

Names are those that ONNX hosts of diffusers pipelines ask for. A dimension is a number from the
component's config, or a name: one that the caller chooses at run time.
Source: optimum-onnx, `optimum/onnxruntime/modeling_diffusion.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..specs.errors import Fault, InputError
from .ir import Component, Pipeline

Dimension = int | str
# Every name that is added to a denoiser's graph starts like this: no module's name does.
OWN = "retouch."
NEGATIVE = f"{OWN}negative_hidden_states"


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
        _read(part, component)
        for role, parts in PARTS.items()
        for component in pipeline.of_role(role)
        for part in parts
    )


def _read(part: Callable[[Component], Interface], component: Component) -> Interface:
    """Return a part of a component. Raises InputError where the config lacks what the part needs."""
    try:
        return part(component)
    except (KeyError, TypeError, ValueError) as error:
        where = str(component.folder / "config.json")
        raise InputError(Fault("E_CONFIG", f"the config lacks a usable {error}", where)) from error


def _text_encoder(component: Component) -> Interface:
    config = component.config
    length, width = int(config["max_position_embeddings"]), int(config["hidden_size"])
    return Interface(
        folder=component.name,
        component=component,
        inputs=(Port("input_ids", "int64", ("batch", length)),),
        outputs=(
            Port("last_hidden_state", "float32", ("batch", length, width)),
            Port("pooler_output", "float32", ("batch", width)),
        ),
    )


def _denoiser(component: Component) -> Interface:
    """Timesteps are floating-point: some samplers use fractions, and whole ones are exact."""
    config = component.config
    image = ("height", "width")
    return Interface(
        folder=component.name,
        component=component,
        inputs=(
            Port("sample", "float32", ("batch", int(config["in_channels"]), *image)),
            Port("timestep", "float32", ()),
            Port(
                "encoder_hidden_states", "float32", ("batch", "sequence", int(config["cross_attention_dim"]))
            ),
        ),
        outputs=(Port("out_sample", "float32", ("batch", int(config["out_channels"]), *image)),),
        multiple=_halvings(config),
    )


def _decoder(component: Component) -> Interface:
    config = component.config
    latent = ("batch", int(config["latent_channels"]), "latent_height", "latent_width")
    return Interface(
        folder=f"{component.name}_decoder",
        component=component,
        inputs=(Port("latent_sample", "float32", latent),),
        outputs=(Port("sample", "float32", ("batch", int(config["out_channels"]), "height", "width")),),
    )


def _encoder(component: Component) -> Interface:
    """The output is mean and log variance one after the other: drawing from them is the host's."""
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


PARTS: Mapping[str, tuple[Callable[[Component], Interface], ...]] = {
    "text": (_text_encoder,),
    "denoiser": (_denoiser,),
    "vae": (_decoder, _encoder),
}
