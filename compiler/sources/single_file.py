"""One safetensors file in the layout of LDM or SGM -> components and tensors, by its header alone.

What a file leaves unsaid comes from the configs of the published model that it is a version of, told
by shapes, or from a folder of configs that the spec names. Every tensor is accounted for: it belongs to
the model, it is known to be left out, or it stops the build.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...specs.errors import Fault, InputError, raise_all
from ..families import Family
from ..families.published import Published, published, published_folder
from ..headers import Header, read_header
from ..ir import Component
from ..tensors import Tensor
from . import MODEL_ROLES, Opened
from .folder import (
    INDEX,
    component_files,
    config_name,
    family_named,
    given_tensors,
    given_weights,
    read_components,
    read_json,
    read_settings,
    refuse_unknown,
    tokenizer_place,
)
from .names import Layout, layouts, layouts_of
from .reading import Reading
from .tokenizers import SIZE, clip_folder, is_tokenizer

# The tensors that tell models apart: what a denoiser's first convolution and its cross-attention read.
FIRST = "model.diffusion_model.input_blocks.0.0.weight"
KEYS = "model.diffusion_model.*.attn2.to_k.weight"
TOKENS = "embeddings.token_embedding.weight"


@dataclass(frozen=True)
class Given:
    """What a spec says about a single file beside its path.

    `config` is a folder of configs in diffusers' layout, `tokenizer` a folder, `components` stand in for
    the file's own: each a folder, or a file with that component's tensors.
    """

    config: Path | None = None
    tokenizer: Path | None = None
    prediction: str | None = None
    components: Mapping[str, Path] = field(default_factory=dict)


def open_single_file(file: Path, given: Given | None = None) -> Opened:
    """Open a checkpoint that holds a whole model in one file.

    Raises:
        InputError: the file is broken, is of another kind, lacks a part, or holds what is not known; or
            it does not say what its denoiser predicts. With all faults.
    """
    given = given or Given()
    header = read_header(file)
    configs = given.config or published_folder(_published(header, file, given.prediction).name)
    index = read_json(configs / INDEX)
    family = family_named(configs, index)
    components = read_components(configs, index, family)
    refuse_unknown(given.components, family)
    layout = _layout(family, header.tensors)
    tensors, notes = _read(header, layout, components, given, file)
    places = _tokenizers(family, tensors, configs, given, file)
    components |= {name: replace(components[name], folder=place) for name, place in places.items()}
    components |= _with_prediction(components, header, given.prediction)
    files = [(file.name, file), *_other_files(components, given)]
    return Opened(family, components, tensors, tuple(sorted(files)), read_settings(index, family), notes)


def _published(header: Header, file: Path, prediction: str | None) -> Published:
    """Return the published model that a file is a version of. Raises InputError where none or two fit."""
    width, channels = _shape(header, file)
    fitting = [model for model in published() if (model.width, model.channels) == (width, channels)]
    if not fitting:
        message = f"its denoiser reads {channels} channels and text states of width {width}; none known does"
        hint = (
            "for a model of its own make, `source.config` names a folder of its configs in diffusers' layout"
        )
        raise InputError(Fault("E_SINGLE_FILE", message, str(file), hint))
    if len(fitting) == 1:
        return fitting[0]
    said = prediction or _said(header)
    for model in fitting:
        if said == model.prediction:
            return model
    names = " or ".join(f"{model.name} ({model.prediction})" for model in fitting)
    hint = (
        "add `prediction: epsilon` (512 pixels) or `prediction: v_prediction` (768 pixels) under `source`; "
        "the model's page or the .yaml beside the file says which (`parameterization: v`)"
    )
    message = f"cannot tell {names}: their tensors are alike, and the file says nothing about it"
    raise InputError(Fault("E_PREDICTION", message, str(file), hint))


def _shape(header: Header, file: Path) -> tuple[int, int]:
    """Return the width of the text states and the channels that the denoiser reads."""
    first = header.tensors.get(FIRST)
    keys = next((name for name in header.tensors if fnmatchcase(name, KEYS)), None)
    if first is None or keys is None or len(first.shape) != 4 or len(header.tensors[keys].shape) != 2:
        raise InputError(_unknown(header.tensors, file))
    return header.tensors[keys].shape[1], first.shape[1]


def _unknown(names: Iterable[str], file: Path) -> Fault:
    """Return what a file is that holds no model, as far as its names say."""
    ordered = sorted(names)
    for other in layouts().others:
        if any(fnmatchcase(name, pattern) for pattern in other.names for name in ordered):
            message = f"this is {other.title}, not a Stable Diffusion 1.x, 2.x or XL checkpoint"
            return Fault("E_FAMILY", message, str(file))
    message = (
        "not a Stable Diffusion 1.x, 2.x or XL checkpoint: no `model.diffusion_model.` with cross-attention"
    )
    first = f"its first tensor is `{ordered[0]}`" if ordered else "it holds no tensor"
    return Fault("E_FAMILY", message, str(file), first)


def _layout(family: Family, names: Iterable[str]) -> Layout:
    """Return the family's layout with most of its parts in the file; the first where none is there."""
    ordered = tuple(names)

    def present(layout: Layout) -> int:
        return sum(any(name.startswith(part.prefixes) for name in ordered) for part in layout.parts.values())

    return max(layouts_of(family), key=present)


def _read(
    header: Header, layout: Layout, components: Mapping[str, Component], given: Given, file: Path
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the model's tensors and notes on what is left behind.

    Raises InputError where a part or a tensor is missing, or a tensor is not known.
    """
    reading = Reading(file, header.tensors)
    reading.leave(*layouts().left_out, *layouts().flags.values())
    averages = reading.leave(layouts().ema)
    tensors: dict[str, Tensor] = {}
    for name, part in sorted(layout.parts.items()):
        prefix = reading.prefix(part)
        if name in given.components:
            reading.leave(*(f"{start}*" for start in part.prefixes))
            tensors |= given_tensors(given.components[name], components[name])
        elif prefix:
            reading.take(components[name], part, prefix)
        else:
            reading.faults.append(_absent(name, file))
    raise_all(InputError, [*reading.faults, *reading.leftovers()])
    notes = [f"{averages} averaged weights ({layouts().ema}) are left behind"] if averages else []
    return tensors | reading.tensors, tuple(notes)


def _tokenizers(
    family: Family, tensors: Mapping[str, Tensor], configs: Path, given: Given, file: Path
) -> dict[str, Path]:
    """Return the folder of each tokenizer: the spec's, the configs' own, or CLIP's where it fits."""
    places, faults = {}, []
    for encoder in family.text_encoders:
        name = encoder.tokenizer
        known = _known_tokens(tensors, encoder.component)
        if given.tokenizer is not None:
            places[name] = tokenizer_place(given.tokenizer, name, alone=len(family.text_encoders) == 1)
        elif is_tokenizer(configs / name):
            places[name] = configs / name
        elif known == SIZE:
            places[name] = clip_folder(configs / name)
        else:
            message = f"`{encoder.component}` knows {known} tokens, CLIP's own tokenizer {SIZE}"
            hint = "add `tokenizer: FOLDER` under `source`"
            faults.append(Fault("E_TOKENIZER", message, str(file), hint))
    raise_all(InputError, faults)
    return places


def _known_tokens(tensors: Mapping[str, Tensor], encoder: str) -> int:
    """Return how many tokens a text encoder has a vector for."""
    spellings = (f"{encoder}.text_model.{TOKENS}", f"{encoder}.{TOKENS}")
    return next((tensors[name].shape[0] for name in spellings if name in tensors), 0)


def _said(header: Header) -> str | None:
    """Return what a file says that its denoiser predicts, or None where it says nothing."""
    if layouts().flags["velocity"] in header.tensors:
        return "v_prediction"
    for key, meanings in layouts().predictions.items():
        if header.metadata.get(key) in meanings:
            return meanings[header.metadata[key]]
    return None


def _with_prediction(
    components: Mapping[str, Component], header: Header, prediction: str | None
) -> dict[str, Component]:
    """Return the schedulers, with what the spec or the file says about the training."""
    changed: dict[str, Any] = {}
    said = prediction or _said(header)
    if said:
        changed["prediction_type"] = said
    if layouts().flags["zero_snr"] in header.tensors:
        # A schedule that ends in pure noise must be sampled from there. Source: Lin et al., 2305.08891, 3.3.
        changed |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return {
        name: replace(component, config=MappingProxyType({**component.config, **changed}))
        for name, component in components.items()
        if component.role == "scheduler"
    }


def _other_files(components: Mapping[str, Component], given: Given) -> Iterator[tuple[str, Path]]:
    """Yield what a build reads beside the file, as (label, path): configs, tokenizers, given components."""
    for name, component in components.items():
        if component.role in MODEL_ROLES and name in given.components:
            weights = given_weights(given.components[name])
            yield from ((f"{name}/{file.name}", file) for file in weights)
        if component.role == "tokenizer":
            yield from component_files(component)
        else:
            yield f"{name}/{config_name(component.role)}", component.folder / config_name(component.role)


def _absent(component: str, file: Path) -> Fault:
    hint = f"add `components: {{{component}: PATH}}` under `source`: a folder in diffusers' layout, or a file"
    return Fault("E_COMPONENT", f"the file holds no `{component}`", str(file), hint)
