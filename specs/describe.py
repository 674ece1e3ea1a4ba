"""JSON Schemas of the documents, for editors and for other tools.

The schema of a spec depends on which passes, emitters and gates are installed, so the compiler
hands in its registries; `retouch schema` prints the result.
"""

import json
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from .lock import Lock
from .manifest import Manifest
from .probes import ProbeReport
from .read import SECTIONS, Registries
from .sampling import SamplingTable
from .schema import Draft

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MODE: Literal["validation"] = "validation"
DRAFT = ("", "spec")
DOCUMENTS: dict[str, type[BaseModel]] = {
    "lock": Lock,
    "manifest": Manifest,
    "probes": ProbeReport,
    "sampling": SamplingTable,
}


def edit_schema(registries: Registries) -> dict[str, Any]:
    """Return the JSON Schema of a spec, with the block of everything that is registered."""
    blocks = {
        (section, name): TypeAdapter(registries.of(section).load(name))
        for section in SECTIONS
        for name in registries.of(section).names()
    }
    described = {DRAFT: TypeAdapter(Draft), **blocks}
    places, shared = TypeAdapter.json_schemas([(key, MODE, adapter) for key, adapter in described.items()])
    definitions = shared["$defs"]
    spec = definitions.pop(Draft.__name__)
    for section in SECTIONS:
        named = {name: places[(kind, name), MODE] for kind, name in blocks if kind == section}
        spec["properties"][section]["items"] = _one_of(named)
    return {"$schema": DIALECT, **spec, "title": "edit.yaml", "$defs": definitions}


def _one_of(named: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a mapping with just one of these keys, in a form that editors complete."""
    size = {"minProperties": 1, "maxProperties": 1}
    return {"type": "object", "properties": named, "additionalProperties": False, **size}


def document_schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema of one of DOCUMENTS."""
    return {"$schema": DIALECT, **DOCUMENTS[name].model_json_schema(by_alias=True)}


def schema_text(schema: dict[str, Any]) -> str:
    """Return a schema as the text of its file."""
    return json.dumps(schema, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
