"""retouch inspect: what is this model or adapter, and is it supported?"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from io import StringIO
from pathlib import Path
from shutil import get_terminal_size
from typing import Any

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ...runtime.console import json_option, one_line, print_result
from ...specs.errors import Fault, InputError, SpecError
from ...specs.schema import Source
from ..adapters.describing import describe, is_adapter
from ..adapters.effects import effects
from ..adapters.reading import read_adapter
from ..describing import describe_model
from ..headers import read_header
from ..ir import Pipeline
from ..load import BUILT_IN_MODELS, HUB_ID, open_source
from .plan import size

# Models carry no sampling of their own; opening one asks for some.
SAMPLER, STEPS = "dpmpp_2m", 20
# What libraries call the one adapter of a folder.
ADAPTER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")
PEFT_CONFIG = "adapter_config.json"
NOT_SAID = "not said"
Row = tuple[str, ...]


@click.command("inspect")
@click.argument("path")
@click.option("--base", metavar="MODEL", help="Say what the adapter would change in MODEL.")
@click.option("--config", type=click.Path(path_type=Path), help="PEFT's adapter_config.json, if elsewhere.")
@click.option("--component", help="What a PEFT adapter was trained on, where MODEL has two text encoders.")
@json_option
def command(path: str, base: str | None, config: Path | None, component: str | None, as_json: bool) -> None:
    """Say what the model or adapter at PATH is.

    PATH is a folder, a .safetensors file or `demo`. Only headers are read, but for the norms that --base
    asks for. An adapter that is not supported is an answer, with every reason; exit codes other than 0 are
    for files that cannot be read as what they are.
    """
    place = BUILT_IN_MODELS.get(path, Path(path))
    file = _adapter_file(place)
    if (place / "manifest.json").is_file():
        hint = f"an artefact of retouch: `retouch verify {path}` says whether it is whole and what it claims"
        print_result({"kind": "artefact", "path": path}, f"{path}: {hint}", as_json)
    elif file is None:
        value = {"kind": "model", "path": path, **_model(path, place)}
        print_result(value, _model_text(value), as_json)
    else:
        beside = config or (file.parent / PEFT_CONFIG if (file.parent / PEFT_CONFIG).is_file() else None)
        value = {"kind": "adapter", "path": path, **_adapter(file, beside, base, component)}
        print_result(value, _adapter_text(value), as_json)


def _adapter_file(place: Path) -> Path | None:
    """Return the adapter that a path names, or None where it names something else."""
    found = [place / name for name in ADAPTER_FILES if (place / name).is_file()]
    if found:
        return found[0]
    return place if place.is_file() and is_adapter(read_header(place)) else None


def _model(path: str, place: Path) -> dict[str, Any]:
    """Return what a model is; what a file leaves unsaid goes with its size in pixels, which hang together."""
    pipeline, unsaid = _open(path)
    value = describe_model(pipeline, place)
    if unsaid is None:
        return value
    note = f"{unsaid.message}; {unsaid.hint}"
    return {**value, "prediction": NOT_SAID, "pixels": None, "notes": [*value["notes"], note]}


def _open(model: str) -> tuple[Pipeline, Fault | None]:
    """Open a model that is here, and return it with what its file leaves unsaid.

    Raises:
        SpecError: it is not here: only a spec fetches.
        InputError: it cannot be read as what it is.
    """
    if model not in BUILT_IN_MODELS and not Path(model).exists() and HUB_ID.fullmatch(model):
        message = f"`{model}`: no file or folder, and `inspect` fetches nothing"
        pinned = f"`source: {{model: {model}, revision: COMMIT}}`"
        hint = f"a spec fetches a hub's model: {pinned}; `retouch plan` then says what it is"
        raise SpecError(Fault("E_SOURCE", message, model, hint))
    try:
        return _opened(Source(model=model)), None
    except InputError as error:
        if [fault.code for fault in error.faults] != ["E_PREDICTION"]:
            raise
        # Any will do: what the versions' tensors and parts are does not hang on it.
        return _opened(Source(model=model, prediction="epsilon")), error.faults[0]


def _opened(source: Source) -> Pipeline:
    return open_source(source, Path(), SAMPLER, STEPS)


def _adapter(file: Path, config: Path | None, base: str | None, component: str | None) -> dict[str, Any]:
    """Return what an adapter is and, given a base, what it would change there."""
    found = describe(file, config)
    value = found.as_json()
    reasons, changed = found.reasons, None
    if base is not None:
        pipeline, _ = _open(base)
        try:
            found_effects = effects(read_adapter(file, config, pipeline, component), pipeline)
            changed = [{**asdict(effect), "ratio": effect.ratio} for effect in found_effects]
        except InputError as error:
            reasons = [str(fault) for fault in error.faults]
    return {**value, "reasons": reasons, "supported": not reasons, "base": base, "changes": changed}


def _model_text(value: Mapping[str, Any]) -> str:
    pixels = " x ".join(map(str, value["pixels"])) if value["pixels"] else f"size {NOT_SAID}"
    terminal = ", zero terminal SNR" if value["zero_terminal_snr"] else ""
    facts = [
        ("family", f"{value['title']} ({value['task'].replace('_', ' ')}), {pixels}"),
        ("scheduler", f"{value['scheduler']}, {value['timesteps']} steps{terminal}"),
        ("prediction", value["prediction"]),
        ("size", size(value["bytes"])),
        ("license", "; ".join(f"{key}: {said}" for key, said in value["license"].items()) or NOT_SAID),
        *(("note", note) for note in value["notes"]),
    ]
    rows = [
        (
            *(part["name"], part["class"], f"{part['tensors']:,}", f"{part['parameters']:,}"),
            *(", ".join(part["precision"]), size(part["bytes"])),
        )
        for part in value["parts"]
    ]
    titles = ("part", "class", "tensors", "parameters", "precision", "size")
    return f"{value['path']}: a model\n{_facts(facts)}{_table(titles, rows)}"


def _adapter_text(value: Mapping[str, Any]) -> str:
    where = f", on {value['base']}" if value["base"] else ""
    facts = [
        ("type", _counted(value["forms"]) or "none that is supported"),
        ("layout", ", ".join(value["layouts"]) or "unknown"),
        ("parts", _counted(value["components"])),
        ("rank", _counted(value["ranks"])),
        ("alpha", _counted(value["alphas"])),
        ("scale", _counted(value["scales"])),
        ("size", f"{size(value['bytes'])}, {', '.join(value['precisions'])}"),
        ("reads text", ", ".join(f"{width} wide" for width in value["widths"])),
        ("fits", ", ".join(value["bases"]) or "no published model that its shapes tell"),
        *((key.removeprefix("ss_"), said) for key, said in value["training"].items()),
        ("tags", _counted(value["tags"])),
        ("supported", f"{'yes' if value['supported'] else 'no'}{where}"),
        *(("", reason) for reason in value["reasons"]),
    ]
    head = f"{value['path']}: an adapter\n{_facts(fact for fact in facts if fact[1])}"
    if value["changes"] is None:
        return head + _table(("block", "modules"), [(name, str(n)) for name, n in value["blocks"].items()])
    rows = [
        (
            row["block"],
            str(row["modules"]),
            f"{row['change']:.4g}",
            f"{row['weight']:.4g}",
            "-" if row["ratio"] is None else f"{row['ratio']:.2%}",
        )
        for row in value["changes"]
    ]
    return head + _table(("block", "modules", "|change|", "|weight|", "ratio"), rows)


def _counted(counts: Mapping[str, int]) -> str:
    """Return what there is with how often, or alone where it is all."""
    return (
        next(iter(counts)) if len(counts) == 1 else ", ".join(f"{name} ({n})" for name, n in counts.items())
    )


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    return "".join(f"  {name:<12}{one_line(text)}\n" for name, text in facts)


def _table(titles: Row, rows: Iterable[Row]) -> str:
    """Return a table as text, names to the left and numbers to the right, as wide as the terminal."""
    table = Table(box=SIMPLE_HEAD)
    for number, title in enumerate(titles):
        table.add_column(title, justify="right" if number and title not in ("class", "precision") else "left")
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    out = StringIO()
    Console(file=out, width=max(100, get_terminal_size().columns), color_system=None).print(table)
    return "\n".join(line.rstrip() for line in out.getvalue().rstrip().split("\n"))
