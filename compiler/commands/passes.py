"""retouch passes: what passes there are, and what the block of one may hold."""

import inspect
import json
from typing import Any

import click
from pydantic import TypeAdapter

from ...runtime.console import json_option, print_result
from ..registry import passes


@click.command("passes")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the passes, or describe the pass NAME: what it does, from which paper, and its parameters."""
    chosen = [name] if name else passes.names()
    described = [_describe(each, passes.load(each)) for each in chosen]
    lines = [f"{one['name']:<18} {one['stage']:<9} {one['summary']}" for one in described]
    print_result({"passes": described}, _page(described[0]) if name else "\n".join(lines), as_json)


def _describe(name: str, cls: type) -> dict[str, Any]:
    text = inspect.getdoc(cls) or ""
    return {
        "name": name,
        "stage": cls.stage.name.lower(),
        "summary": text.split("\n\n")[0].replace("\n", " "),
        "text": text,
        "schema": TypeAdapter(cls).json_schema(),
    }


def _page(one: dict[str, Any]) -> str:
    required = one["schema"].get("required", [])
    lines = [f"{one['name']} (stage {one['stage']})", "", one["text"], "", "Parameters:"]
    for key, schema in one["schema"].get("properties", {}).items():
        default = "required" if key in required else f"default {json.dumps(schema.get('default'))}"
        about = f"  {schema['description']}" if "description" in schema else ""
        lines.append(f"  {key}: {_type(schema)}, {default}{about}")
    return "\n".join(lines)


def _type(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return " | ".join(map(str, schema["enum"]))
    if "anyOf" in schema:
        return " | ".join(_type(each) for each in schema["anyOf"])
    if "$ref" in schema:
        return schema["$ref"].rpartition("/")[2]
    if "items" in schema:
        return f"list of {_type(schema['items'])}"
    return str(schema.get("const", schema.get("type", "any")))
