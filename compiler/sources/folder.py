"""A folder in diffusers' layout -> components and tensors: configs are read, headers are read, no element is.

Nothing in a model folder is code here: class names are looked up in the family's data, and a name
that is not there is refused.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ...specs.errors import Fault, InputError, raise_all
from ..families import Family, family_of
from ..headers import PICKLE_SUFFIXES, read_header
from ..ir import Component
from ..tensors import Tensor
from . import MODEL_ROLES, Opened
from .reading import component_tensors
from .tokenizers import is_tokenizer

MAX_CONFIG = 1 << 20
INDEX = "model_index.json"
WEIGHTS = ("diffusion_pytorch_model", "model")
NOTHING: Mapping[str, Path] = MappingProxyType({})


def open_folder(
    folder: Path,
    given: Mapping[str, Path] = NOTHING,
    tokenizer: Path | None = None,
    variant: str | None = None,
) -> Opened:
    """Open a diffusers folder.

    Args:
        given: what stands in for the model's own components: a folder each, or a file of tensors.
        tokenizer: a folder that stands in for the model's tokenizer.
        variant: of the model's own weights, such as fp16.

    Raises:
        InputError: a file is missing, malformed, a pickle, or of a class that is not supported.
    """
    index = read_json(folder / INDEX)
    family = family_named(folder, index)
    refuse_unknown(given, family)
    components = read_components(folder, index, family, _places(family, given, tokenizer))
    tensors: dict[str, Tensor] = {}
    files = [(INDEX, folder / INDEX)]
    for name, component in sorted(components.items()):
        if component.role in MODEL_ROLES:
            place = given.get(name, component.folder)
            chosen = None if name in given else variant
            tensors |= given_tensors(place, component, chosen)
            files += [(f"{name}/{file.name}", file) for file in given_weights(place, chosen)]
        files += component_files(component)
    return Opened(family, components, tensors, tuple(sorted(files)), read_settings(index, family))


def family_named(folder: Path, index: Mapping[str, Any]) -> Family:
    """Return the family that a model_index.json names.

    Raises:
        InputError: no family has its class.
    """
    parts = [name for name, entry in index.items() if isinstance(entry, list) and any(entry)]
    try:
        return family_of(str(index.get("_class_name")), parts)
    except InputError as error:
        raise InputError(*(_at(fault, folder / INDEX) for fault in error.faults)) from error


def read_components(
    folder: Path, index: Mapping[str, Any], family: Family, places: Mapping[str, Path] = NOTHING
) -> dict[str, Component]:
    """Return the family's components as model_index.json names them.

    Raises:
        InputError: with all faults.
    """
    faults, found = [], {}
    for name, role in family.roles.items():
        entry = index.get(name)
        if not (isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry)):
            faults.append(Fault("E_COMPONENT", f"no component `{name}`", str(folder / INDEX)))
            continue
        library, class_name = entry
        expected = family.classes.get(name, class_name)
        if class_name != expected:
            message = f"`{name}` is a `{class_name}`, supported is `{expected}`"
            faults.append(Fault("E_COMPONENT", message, str(folder / INDEX)))
            continue
        place = places.get(name, folder / name)
        config = {} if role == "tokenizer" else read_json(place / config_name(role))
        found[name] = Component(name, role, library, class_name, MappingProxyType(config), place)
    known = {*family.roles, *family.left_out}
    extra = sorted(
        key for key, entry in index.items() if isinstance(entry, list) and any(entry) and key not in known
    )
    faults += [
        Fault("E_COMPONENT", f"`{key}` is not a part of {family.title}", str(folder / INDEX)) for key in extra
    ]
    raise_all(InputError, faults)
    return found


def config_name(role: str) -> str:
    """Return the name of a component's config."""
    return "scheduler_config.json" if role == "scheduler" else "config.json"


def read_settings(index: Mapping[str, Any], family: Family) -> dict[str, bool]:
    """Return the values of the family's settings: what model_index.json says, else what is meant."""
    return {key: bool(index.get(key, meant)) for key, meant in family.settings.items()}


def given_tensors(place: Path, component: Component, variant: str | None = None) -> dict[str, Tensor]:
    """Return a component's tensors from a folder of it, or from a file of any layout; `component.name` keys.

    Raises:
        InputError: there are none, they are pickles or another's, or a header is malformed.
    """
    if not place.is_dir():
        return component_tensors(place, component)
    tensors: dict[str, Tensor] = {}
    for file in weight_files(place, variant):
        for name, tensor in read_header(file).tensors.items():
            full = f"{component.name}.{name}"
            if full in tensors:
                raise InputError(Fault("E_SAFETENSORS", "the tensor stands in two shards", f"{file}: {name}"))
            tensors[full] = tensor
    return tensors


def given_weights(place: Path, variant: str | None = None) -> list[Path]:
    """Return the files that a component's weights are read from: of a folder, or the file itself."""
    if not place.is_dir():
        return [place]
    indexes = [place / index_name(stem, variant) for stem in WEIGHTS]
    return [*weight_files(place, variant), *(index for index in indexes if index.is_file())]


def tokenizer_place(folder: Path, name: str, alone: bool) -> Path:
    """Return where a tokenizer lies in a folder that the spec gives: below its name, or alone in it.

    Raises:
        InputError: it is in neither place.
    """
    for place in [folder / name, *([folder] if alone else [])]:
        if is_tokenizer(place):
            return place
    hint = f"expected tokenizer.json, or vocab.json and merges.txt, in a folder `{name}`"
    raise InputError(Fault("E_TOKENIZER", f"no `{name}` here", str(folder), hint))


def refuse_unknown(given: Mapping[str, Path], family: Family) -> None:
    """Refuse what a spec gives for parts that the model has not, and paths that lead nowhere."""
    faults = []
    for name, place in sorted(given.items()):
        where = f"source.components.{name}"
        if name not in family.roles:
            faults.append(Fault("E_COMPONENT", f"{family.title} has no such part", where))
        elif not place.exists():
            faults.append(Fault("E_FILE", f"no file or folder `{place}`", where))
    raise_all(InputError, faults)


def component_files(component: Component) -> Iterator[tuple[str, Path]]:
    """Yield every file of a component without weights, as (label, path)."""
    folder = component.folder
    if component.role in MODEL_ROLES:
        files = [folder / "config.json"]
    else:
        files = [file for file in folder.iterdir() if file.is_file() and file.suffix in (".json", ".txt")]
    for file in sorted(files):
        yield f"{component.name}/{file.name}", file


def weight_files(folder: Path, variant: str | None = None) -> list[Path]:
    """Return the safetensors files of a component, one or the shards that an index lists.

    Args:
        variant: such as fp16. Without one, the plain files, or the only variant that there is.

    Raises:
        InputError: there is none, or only a pickle.
    """
    middle = f".{variant}" if variant else ""
    for stem in WEIGHTS:
        index, whole = folder / index_name(stem, variant), folder / f"{stem}{middle}.safetensors"
        if index.is_file():
            return [folder / name for name in shard_names(index)]
        if whole.is_file():
            return [whole]
        variants = sorted(folder.glob(f"{stem}.*.safetensors"))
        if variant is None and len(variants) == 1:
            return variants
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLE_SUFFIXES)
    if pickles:
        hint = "get the safetensors version of this model, or convert it in a sandbox"
        message = f"only pickled weights ({pickles[0]}), which are refused"
        raise InputError(Fault("E_PICKLE", message, str(folder), hint))
    hint = f"expected {WEIGHTS[0]}{middle}.safetensors or {WEIGHTS[1]}{middle}.safetensors"
    raise InputError(Fault("E_FILE", f"no {variant or ''} weights".replace("  ", " "), str(folder), hint))


def index_name(stem: str, variant: str | None = None) -> str:
    """Return the name of the file that lists the shards of weights. Source: diffusers' save_pretrained."""
    return f"{stem}.safetensors.index{f'.{variant}' if variant else ''}.json"


def shard_names(index: Path) -> list[str]:
    """Return the files that an index lists, which must be plain names beside it.

    Raises:
        InputError: one is not, or there is none.
    """
    listed = read_json(index).get("weight_map", {})
    names = sorted({str(name) for name in listed.values()}) if isinstance(listed, dict) else []
    odd = [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]
    if odd or not names:
        raise InputError(Fault("E_CONFIG", f"not a plain safetensors file name: {odd[:1]}", str(index)))
    return names


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
        hint = "the folder of a model in diffusers' layout holds one" if file.name == INDEX else ""
        raise InputError(Fault("E_FILE", f"cannot be read: {error.strerror}", str(file), hint)) from error
    except (ValueError, RecursionError) as error:
        raise InputError(Fault("E_CONFIG", f"not JSON: {error}", str(file))) from error
    if not isinstance(value, dict):
        raise InputError(Fault("E_CONFIG", "not a JSON object", str(file)))
    return value


def _places(family: Family, given: Mapping[str, Path], tokenizer: Path | None) -> dict[str, Path]:
    """Return the folders that stand in for the model's own, by component."""
    places = {name: place for name, place in given.items() if (place / "config.json").is_file()}
    if tokenizer is not None:
        names = [encoder.tokenizer for encoder in family.text_encoders]
        places |= {name: tokenizer_place(tokenizer, name, alone=len(names) == 1) for name in names}
    return places


def _at(fault: Fault, file: Path) -> Fault:
    return fault if fault.where else Fault(fault.code, fault.message, str(file), fault.hint)
