"""A spec's `source`, whatever it is -> Pipeline: configs are read, headers are read, no element is."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from ..specs.errors import Fault, InputError, SpecError, quoted
from ..specs.fields import DEMO
from ..specs.sampling import Latent
from ..specs.schema import Source
from .headers import refuse_pickle
from .ir import Component, Pipeline, verify
from .sampling import Sampling, Schedule, check_sampler, constant
from .sources import MODEL_ROLES, Opened
from .sources.folder import open_folder, read_json
from .sources.single_file import Given, open_single_file
from .text.conditioning import conditioning_of

__all__ = [
    "BUILT_IN_MODELS",
    "MODEL_ROLES",
    "load_pipeline",
    "open_source",
    "pipeline_of",
    "read_json",
    "source_files",
]

BUILT_IN_MODELS: Mapping[str, Path] = {"demo": DEMO / "model"}
# owner/name, as hubs spell it. Source: huggingface_hub, `validate_repo_id`.
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def open_source(
    source: Source, spec_folder: Path, sampler: str, steps: int, guidance_scale: float | None = None
) -> Pipeline:
    """Open a spec's source as a pipeline that draws with `sampler` in `steps`.

    Raises:
        SpecError: the source is none of the kinds, or a key of it does not belong to its kind.
        InputError: a file is missing, malformed, a pickle, or of a kind that is not supported.
    """
    return pipeline_of(_open(source, spec_folder), sampler, steps, guidance_scale)


def load_pipeline(folder: Path, sampler: str, steps: int, guidance_scale: float | None = None) -> Pipeline:
    """Open a diffusers folder as a pipeline that draws with `sampler` in `steps`.

    Raises:
        InputError: a file is missing, malformed, a pickle, or of a class that is not supported.
        SpecError: the sampler is unknown.
    """
    return pipeline_of(open_folder(folder), sampler, steps, guidance_scale)


def source_files(pipeline: Pipeline) -> list[tuple[str, Path]]:
    """Return every file of the source that a build may read: (label, path), sorted."""
    return sorted(pipeline.files)


def _open(source: Source, spec_folder: Path) -> Opened:
    """Open a source by its kind: a commit makes it a hub's, then built-in names come before paths."""
    place = (spec_folder / source.model).resolve()
    components = {name: file.path for name, file in source.components.items()}
    tokenizer = source.tokenizer.path if source.tokenizer else None
    config = source.config.path if source.config else None
    if source.revision is not None:
        from .sources.hub import snapshot  # huggingface_hub belongs to the build

        if not HUB_ID.fullmatch(source.model):
            message = f"{quoted(source.model)} is no hub model (owner/name), and only those have revisions"
            raise SpecError(Fault("E_SOURCE", message, "source.revision"))
        place = snapshot(source.model, source.revision, source.variant, frozenset(components))
    elif source.model in BUILT_IN_MODELS:
        place = BUILT_IN_MODELS[source.model]
    if place.is_dir():
        _refuse_keys(source, "a folder", "config", "prediction")
        return open_folder(place, components, tokenizer, source.variant)
    if place.is_file():
        refuse_pickle(place)
        _refuse_keys(source, "a single file", "variant")
        return open_single_file(place, Given(config, tokenizer, source.prediction, components))
    raise _no_source(source.model, place)


def _refuse_keys(source: Source, kind: str, *keys: str) -> None:
    """Refuse keys that would change nothing."""
    faults = [
        Fault("E_SOURCE", f"means nothing for {kind}", f"source.{key}", "leave the key out")
        for key in keys
        if getattr(source, key) is not None
    ]
    if faults:
        raise SpecError(*faults)


def _no_source(model: str, place: Path) -> SpecError:
    built_in = ", ".join(f"`{name}`" for name in BUILT_IN_MODELS)
    hint = f"give a folder in diffusers layout or a .safetensors file, relative to the spec, or {built_in}"
    if HUB_ID.fullmatch(model):
        hint += (
            "; for a hub's model add `revision:` with a commit's 40 hex digits, from the page of its files"
        )
    return SpecError(Fault("E_SOURCE", f"{quoted(model)}: no file or folder `{place}`", "source.model", hint))


def pipeline_of(opened: Opened, sampler: str, steps: int, guidance_scale: float | None = None) -> Pipeline:
    """Return a pipeline of what was opened, with the sampling of its scheduler.

    Raises:
        InputError: the scheduler's config asks for what no table reproduces, or another lacks a size.
        SpecError: the sampler is unknown.
    """
    pipeline = Pipeline(
        family=opened.family,
        components=MappingProxyType(dict(opened.components)),
        tensors=MappingProxyType(dict(opened.tensors)),
        sampling=_sampling(opened, sampler, steps, guidance_scale),
        settings=MappingProxyType(dict(opened.settings)),
        files=opened.files,
        notes=opened.notes,
    )
    verify(pipeline, "load")
    return pipeline


def _sampling(opened: Opened, sampler: str, steps: int, guidance_scale: float | None) -> Sampling:
    """Return the sampling of the source's scheduler, with constant guidance until a pass bakes another."""
    components, family = opened.components, opened.family
    scheduler = next(component for component in components.values() if component.role == "scheduler")
    schedule = Schedule.from_config(scheduler.config, str(scheduler.folder / "scheduler_config.json"))
    check_sampler(sampler, steps, schedule)
    scale = family.guidance_scale if guidance_scale is None else guidance_scale
    conditioning = conditioning_of(family, components, opened.settings)
    sampling = Sampling(schedule, _latent(components), sampler, steps, conditioning=conditioning)
    return replace(sampling, guidance=constant(scale, steps))


def _latent(components: Mapping[str, Component]) -> Latent:
    vae = next(component for component in components.values() if component.role == "vae")
    denoiser = next(component for component in components.values() if component.role == "denoiser")
    try:
        size = int(denoiser.config["sample_size"])
        return Latent(
            channels=int(vae.config["latent_channels"]),
            height=size,
            width=size,
            downscale=2 ** (len(vae.config["block_out_channels"]) - 1),
            # 0.18215 is AutoencoderKL's default, for configs older than the key.
            scaling_factor=float(vae.config.get("scaling_factor") or 0.18215),
            shift_factor=float(vae.config.get("shift_factor") or 0.0),
        )
    except (KeyError, TypeError, ValueError) as error:
        message = f"the U-Net or VAE config lacks a usable {error}"
        raise InputError(Fault("E_CONFIG", message, str(vae.folder.parent))) from error
