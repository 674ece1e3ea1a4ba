"""Capture the programs of a model before anybody builds with it: from configs alone, without weights."""

from collections.abc import Mapping
from pathlib import Path

from ...specs.errors import Fault, SpecError, quoted
from ..families.published import published_folder, published_models
from ..ir import Pipeline
from ..load import BUILT_IN_MODELS, pipeline_of
from ..sources import Opened
from ..sources.folder import INDEX, family_named, read_components, read_json, read_settings
from .capture import program_of
from .interfaces import interfaces
from .shapes import check_shapes

# Short names of published models.
SHORT: Mapping[str, str] = {
    "sd15": "stable-diffusion-v1-5",
    "sd21": "stable-diffusion-2-1",
    "sdxl": "stable-diffusion-xl-base-1.0",
}


def config_folder(model: str) -> Path:
    """Return the folder of a model's configs: a short name, a published or built-in one, or a path.

    Raises:
        SpecError: it is none of these.
    """
    name = SHORT.get(model, model)
    if name in BUILT_IN_MODELS:
        return BUILT_IN_MODELS[name]
    if name in published_models():
        return published_folder(name)
    if (Path(model) / INDEX).is_file():
        return Path(model)
    known = ", ".join([*BUILT_IN_MODELS, *SHORT, *published_models()])
    hint = f"give a folder that holds {INDEX}, or one of: {known}"
    raise SpecError(Fault("E_MODEL", f"{quoted(model)} is no model whose configs are known", hint=hint))


def config_pipeline(folder: Path) -> Pipeline:
    """Open a model's configs as a pipeline without tensors.

    Raises:
        InputError: a config is missing or of a kind that is not supported.
    """
    index = read_json(folder / INDEX)
    family = family_named(folder, index)
    components = read_components(folder, index, family)
    return pipeline_of(Opened(family, components, {}, (), read_settings(index, family)), "euler", 20)


def prebuild(model: str, cache: Path) -> int:
    """Capture each graph of a model that the cache does not hold; return how many graphs it has.

    Raises:
        SpecError, InputError: the model is unknown, or its configs describe no module.
    """
    pipeline = config_pipeline(config_folder(model))
    found = interfaces(pipeline)
    for interface in found:
        program_of(interface, (), cache)
    check_shapes(pipeline, cache)  # there are no tensors to check: it keeps what they are checked against
    return len(found)
