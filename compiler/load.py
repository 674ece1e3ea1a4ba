"""A diffusers folder -> Pipeline: configs are read, headers are read, no element is.

Nothing in a model folder is code here: class names are looked up in the family's data, and a name
that is not there is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..specs.errors import Fault, InputError, SpecError, raise_all
from ..specs.fields import DEMO
from ..specs.sampling import Latent
from .families import Family, family_of
from .headers import PICKLE_SUFFIXES, read_header
from .ir import Component, Pipeline, verify
from .sampling import Sampling, Schedule, check_sampler, constant
from .tensors import Tensor

MAX_CONFIG = 1 << 20
WEIGHTS = ("diffusion_pytorch_model", "model")
BUILT_IN_MODELS: Mapping[str, Path] = {"demo": DEMO / "model"}


def source_folder(model: str, spec_folder: Path) -> Path:
    """Return the folder of a spec's `source.model`: a built-in name, or a path from the spec's folder.

    Raises:
        SpecError: neither.
    """
    if model in BUILT_IN_MODELS:
        return BUILT_IN_MODELS[model]
    folder = (spec_folder / model).resolve()
    if folder.is_dir():
        return folder
    built_in = ", ".join(f"`{name}`" for name in BUILT_IN_MODELS)
    hint = f"give a folder in diffusers layout, relative to the spec, or a built-in model: {built_in}"
    found = "a single file is not supported yet" if folder.is_file() else f"no folder `{folder}`"
    raise SpecError(Fault("E_SOURCE", f"`{model}`: {found}", "source.model", hint))


def load_pipeline(folder: Path, sampler: str, steps: int, guidance_scale: float | None = None) -> Pipeline:
    """Open a diffusers folder as a pipeline that draws with `sampler` in `steps`.

    Raises:
        InputError: a file is missing, malformed, a pickle, or of a class that is not supported.
        SpecError: the sampler is unknown.
    """
    index = read_json(folder / "model_index.json")
    family = family_of(str(index.get("_class_name")))
    components = _components(folder, index, family)
    tensors: dict[str, Tensor] = {}
    for name in sorted(components):
        if components[name].role in MODEL_ROLES:
            tensors.update(_tensors(components[name]))
    pipeline = Pipeline(
        family=family,
        components=MappingProxyType(components),
        tensors=MappingProxyType(tensors),
        sampling=_sampling(components, family, sampler, steps, guidance_scale),
    )
    verify(pipeline, "load")
    return pipeline


MODEL_ROLES = frozenset({"denoiser", "text", "vae"})


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a component, one or the shards that an index lists.

    Raises:
        InputError: there is none, or only a pickle.
    """
    for stem in WEIGHTS:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return _shards(index)
        plain = folder / f"{stem}.safetensors"
        if plain.is_file():
            return [plain]
        variants = sorted(folder.glob(f"{stem}.*.safetensors"))
        if len(variants) == 1:
            return variants
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        hint = "get the safetensors version of this model, or convert it in a sandbox"
        raise InputError(
            Fault("E_PICKLE", f"only pickled weights ({pickles[0]}), which are refused", str(folder), hint)
        )
    raise InputError(
        Fault(
            "E_FILE",
            "no weights",
            str(folder),
            f"expected {WEIGHTS[0]}.safetensors or {WEIGHTS[1]}.safetensors",
        )
    )


def source_files(pipeline: Pipeline) -> list[tuple[str, Path]]:
    """Return every file of the source that a build may read: (path in the folder, path), sorted."""
    root = next(iter(pipeline.components.values())).folder.parent
    files = [root / "model_index.json"]
    for component in pipeline.components.values():
        if component.role in MODEL_ROLES:
            files += [component.folder / "config.json", *weight_files(component.folder)]
            files += sorted(component.folder.glob("*.safetensors.index.json"))
        else:
            files += sorted(
                file
                for file in component.folder.iterdir()
                if file.is_file() and file.suffix in (".json", ".txt")
            )
    return sorted((str(file.relative_to(root)), file) for file in files)


def read_json(file: Path) -> dict[str, Any]:
    """Return a small JSON object of a model folder.

    Raises:
        InputError: missing, too large, or not an object.
    """
    try:
        if file.stat().st_size > MAX_CONFIG:
            raise InputError(Fault("E_CONFIG", f"larger than {MAX_CONFIG} bytes", str(file)))
        value = json.loads(file.read_bytes())
    except OSError as error:
        raise InputError(Fault("E_FILE", f"cannot be read: {error.strerror}", str(file))) from error
    except (ValueError, RecursionError) as error:
        raise InputError(Fault("E_CONFIG", f"not JSON: {error}", str(file))) from error
    if not isinstance(value, dict):
        raise InputError(Fault("E_CONFIG", "not a JSON object", str(file)))
    return value


def _components(folder: Path, index: Mapping[str, Any], family: Family) -> dict[str, Component]:
    """Return the family's components as model_index.json names them; all faults at once."""
    faults, found = [], {}
    for name, role in family.roles.items():
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            faults.append(Fault("E_COMPONENT", f"no component `{name}`", str(folder / "model_index.json")))
            continue
        library, class_name = entry
        expected = family.classes.get(name, class_name)
        if class_name != expected:
            where = str(folder / "model_index.json")
            faults.append(
                Fault("E_COMPONENT", f"`{name}` is a `{class_name}`, supported is `{expected}`", where)
            )
            continue
        place = folder / name
        config_name = "scheduler_config.json" if role == "scheduler" else "config.json"
        config = {} if role == "tokenizer" else read_json(place / config_name)
        found[name] = Component(name, role, library, class_name, MappingProxyType(config), place)
    known = {*family.roles, *family.left_out}
    extra = sorted(
        key for key, entry in index.items() if isinstance(entry, list) and any(entry) and key not in known
    )
    faults += [
        Fault("E_COMPONENT", f"`{key}` is not a part of {family.title}", str(folder / "model_index.json"))
        for key in extra
    ]
    raise_all(InputError, faults)
    return found


def _tensors(component: Component) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in weight_files(component.folder):
        for name, tensor in read_header(file).tensors.items():
            full = f"{component.name}.{name}"
            if full in tensors:
                raise InputError(Fault("E_SAFETENSORS", "the tensor stands in two shards", f"{file}: {name}"))
            tensors[full] = tensor
    return tensors


def _shards(index: Path) -> list[Path]:
    """Return the files that an index lists, which must be plain names beside it."""
    names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
    odd = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if odd or not names:
        raise InputError(Fault("E_CONFIG", f"not a plain safetensors file name: {odd[:1]}", str(index)))
    return [index.parent / name for name in names]


def _sampling(
    components: Mapping[str, Component],
    family: Family,
    sampler: str,
    steps: int,
    guidance_scale: float | None,
) -> Sampling:
    """Return the sampling of the folder's scheduler, with constant guidance until a pass bakes another."""
    scheduler = next(component for component in components.values() if component.role == "scheduler")
    schedule = Schedule.from_config(scheduler.config, str(scheduler.folder / "scheduler_config.json"))
    check_sampler(sampler, steps, schedule)
    scale = family.guidance_scale if guidance_scale is None else guidance_scale
    sampling = Sampling(schedule, _latent(components), sampler, steps)
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
