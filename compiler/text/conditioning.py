"""What a denoiser reads beside sample and timestep: text states, their pooled one, and the image's size.

A family says which, configs say how wide. Where the two do not fit, the model is another than its folder
claims, and a fault says so before anything is computed.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from ...specs.errors import Fault, InputError, SpecError, raise_all
from ...specs.sampling import TextSource, TimeId
from ..families import Family, TextEncoder
from ..sampling import Conditioning

if TYPE_CHECKING:
    from ..ir import Component

# Inputs of a U-Net that no family here has; a config that asks for one describes another architecture.
FOREIGN = ("class_embed_type", "encoder_hid_dim_type", "num_class_embeds", "time_cond_proj_dim")


def conditioning_of(
    family: Family, components: Mapping[str, "Component"], settings: Mapping[str, bool]
) -> Conditioning:
    """Return what the denoiser of a model is told.

    Raises:
        InputError: the parts' widths do not fit each other; all faults.
    """
    try:
        raise_all(InputError, list(_faults(family, components)))
        return Conditioning(
            task=family.task,
            text=tuple(text_source(encoder, components) for encoder in family.text_encoders),
            time_ids=tuple(cast(TimeId, name) for name in family.time_ids),
            zero_negative=settings.get("force_zeros_for_empty_prompt", False),
        )
    except (KeyError, TypeError, ValueError) as error:
        where = str(next(iter(components.values())).folder.parent)
        raise InputError(Fault("E_CONFIG", f"a config lacks a usable {error}", where)) from error


def text_source(encoder: TextEncoder, components: Mapping[str, "Component"]) -> TextSource:
    """Return which outputs of an encoder's graph are its share of the text states."""
    layers = int(components[encoder.component].config["num_hidden_layers"])
    return TextSource(
        graph=encoder.component,
        tokenizer=encoder.tokenizer,
        # Hidden state 0 is the embedding, so there is one more than there are layers.
        output="last_hidden_state"
        if encoder.layer is None
        else f"hidden_states.{range(layers + 1)[encoder.layer]}",
        pooled="text_embeds" if encoder.pooled else None,
    )


def check_draws(family: Family, what: str) -> None:
    """Refuse to draw with a model that needs an image to begin with.

    Raises:
        SpecError: naming `what` asked for it.
    """
    if family.task != "text_to_image":
        message = f"{family.title} does not draw from text alone, and {what} would have to"
        hint = "edits and emitting work; remove what draws images"
        raise SpecError(Fault("E_TASK", message, what, hint))


def _faults(family: Family, components: Mapping[str, "Component"]) -> Iterator[Fault]:
    (denoiser,) = (component for component in components.values() if component.role == "denoiser")
    (vae,) = (component for component in components.values() if component.role == "vae")
    config, where = denoiser.config, str(denoiser.folder / "config.json")
    for key in FOREIGN:
        if config.get(key) is not None:
            message = f"`{key}: {config[key]}` is an input that {family.title} does not have"
            yield Fault("E_DENOISER", message, where)
    yield from _channel_faults(family, int(config["in_channels"]), int(vae.config["latent_channels"]), where)
    encoders = [(encoder, components[encoder.component].config) for encoder in family.text_encoders]
    width = sum(int(text["hidden_size"]) for _, text in encoders)
    if config["cross_attention_dim"] != width:
        message = f"reads text states {config['cross_attention_dim']} wide, the text encoders make {width}"
        yield Fault("E_DENOISER", message, where)
    pooled = sum(int(text["projection_dim"]) for encoder, text in encoders if encoder.pooled)
    yield from _addition_faults(family, config, pooled, where)
    if vae.config.get("latents_mean") is not None:
        message = "`latents_mean`: latents that are shifted channel by channel are not supported"
        yield Fault("E_CONFIG", message, str(vae.folder / "config.json"))


def _channel_faults(family: Family, found: int, latent: int, where: str) -> Iterator[Fault]:
    # An inpainting denoiser also sees the masked image's latent and, in one channel, the mask.
    wanted = {"inpainting": (latent, 2 * latent + 1)}.get(family.task, (latent,))
    if found not in wanted:
        message = f"{found} input channels, {family.title} has {' or '.join(map(str, wanted))}"
        hint = "an inpainting model's model_index.json has to say so" if found == 2 * latent + 1 else ""
        yield Fault("E_DENOISER", message, where, hint)


def _addition_faults(family: Family, config: Mapping[str, Any], pooled: int, where: str) -> Iterator[Fault]:
    kind = config.get("addition_embed_type")
    wanted = "text_time" if family.time_ids else None
    if kind != wanted:
        yield Fault("E_DENOISER", f"`addition_embed_type` is {kind}, {family.title} has {wanted}", where)
        return
    if wanted is None:
        return
    columns = pooled + len(family.time_ids) * int(config["addition_time_embed_dim"])
    found = config["projection_class_embeddings_input_dim"]
    if found != columns:
        message = f"reads {found} numbers of text and size, pooled state and time ids make {columns}"
        yield Fault("E_DENOISER", message, where)
    for text_input in family.text_inputs:
        if text_input.reads == "pooled" and text_input.columns != (0, pooled):
            known = "all" if text_input.columns is None else text_input.columns[1]
            message = f"a pooled state is {pooled} wide, {family.title} has {known}"
            yield Fault("E_DENOISER", message, where)
