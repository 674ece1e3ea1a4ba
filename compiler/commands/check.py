"""retouch check: is a spec good as it is written? Opens no model."""

import json
from pathlib import Path

import click

from ...specs.read import SECTIONS, read_spec, spec_value
from ..plan import REGISTRIES


@click.command("check")
@click.argument("spec", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the spec as understood, defaults filled in.")
def command(spec: Path, as_json: bool) -> None:
    """Check SPEC and say how it was understood, or every fault with its line."""
    value = spec_value(read_spec(spec, REGISTRIES))
    if as_json:
        click.echo(json.dumps({"ok": True, "spec": value}, ensure_ascii=False))
        return
    click.echo(f"{spec}: good")
    for section in SECTIONS:
        for entry in value[section]:
            for name, block in entry.items():
                click.echo(f"  {section}: {name}{_summary(block)}")


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
