"""retouch check: is a spec good as it is written? Opens no model."""

from pathlib import Path

import click

from ...runtime.console import json_option, print_result
from ...specs.read import SECTIONS, read_spec, spec_value
from ..plan import REGISTRIES


@click.command("check")
@click.argument("spec", type=click.Path(path_type=Path))
@json_option
def command(spec: Path, as_json: bool) -> None:
    """Check SPEC and say how it was understood, or every fault with its line."""
    value = spec_value(read_spec(spec, REGISTRIES))
    entries = [(section, *item) for section in SECTIONS for entry in value[section] for item in entry.items()]
    lines = [f"  {section}: {name}{_summary(block)}" for section, name, block in entries]
    print_result({"spec": value}, "\n".join([f"{spec}: good", *lines]), as_json)


def _summary(block: dict[str, object]) -> str:
    """Return a block in a few words: short values as they are, long ones by their number."""
    words = [_words(key, value) for key, value in block.items() if value not in (None, [], {}, "")]
    return f" ({', '.join(words)})" if words else ""


def _words(key: str, value: object) -> str:
    if isinstance(value, dict):
        return key
    if isinstance(value, list) and not all(isinstance(item, int | float) for item in value):
        return f"{key}: {len(value)}"
    return f"{key} {value}"
