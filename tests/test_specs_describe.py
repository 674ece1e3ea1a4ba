"""JSON Schemas: the committed files are current, and what we ship or read is valid by them."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from strategies import REGISTRIES, spec_values

from retouch.compiler.commands.schema import NAMES, text_of
from retouch.compiler.plan import REGISTRIES as REAL
from retouch.specs.describe import document_schema, edit_schema
from retouch.specs.lock import Lock
from retouch.specs.manifest import Evidence, FileRecord, Manifest, Provider
from retouch.specs.preset import preset_names, read_preset
from retouch.specs.read import read_spec, spec_value
from retouch.specs.sampling import Latent, SamplingTable, Step
from retouch.specs.strict_yaml import parse

SPECS = Path(__file__).parents[1] / "specs"
EXAMPLES = sorted((SPECS / "examples").glob("*.yaml"))
MADE_UP = edit_schema(REGISTRIES)


def validate(value: Any, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(schema).validate(value)


@pytest.mark.parametrize("name", NAMES)
def test_the_committed_schema_is_current(name: str) -> None:
    file = SPECS / f"{name}.schema.json"
    assert file.read_text() == text_of(name), "run: retouch schema --into specs"


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_is_one(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(json.loads(text_of(name)))


@given(spec_values)
def test_good_specs_are_valid(value: dict[str, Any]) -> None:
    validate(value, MADE_UP)


GOOD = {
    "schema": 1,
    "name": "a",
    "version": "1",
    "source": {"model": "demo"},
    "edits": [{"paint": {"swaps": [{"old": "x"}]}}],
    "emit": [{"folder": {}}],
}


@pytest.mark.parametrize(
    "wrong",
    [
        {"schema": 2},
        {"extra": 1},
        {"version": 1.0},
        {"emit": []},
        {"emit": [{"foldr": {}}]},
        {"emit": [{"folder": {}, "other": {}}]},
        {"emit": [{}]},
        {"edits": [{"paint": {"strength": 2}}]},
        {"edits": [{"paint": {"swaps": [{"old": "x", "nwe": "y"}]}}]},
        {"sampling": {"sampler": "heun"}},
    ],
    ids=str,
)
def test_bad_specs_are_not(wrong: dict[str, Any]) -> None:
    validate(GOOD, MADE_UP)
    with pytest.raises(jsonschema.ValidationError):
        validate({**GOOD, **wrong}, MADE_UP)


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_examples(file: Path) -> None:
    schema = edit_schema(REAL)
    validate(parse(file.read_bytes(), str(file)).value, schema)
    validate(spec_value(read_spec(file, REAL)), schema)


@pytest.mark.parametrize("name", preset_names())
def test_presets(name: str) -> None:
    preset = read_preset(name)
    names = [word for concept in preset.concepts for word in (concept.name, *concept.synonyms)]
    assert preset.title and preset.why
    assert len({*names, *preset.preserve}) == len(names) + len(preset.preserve)


def test_a_manifest() -> None:
    record = FileRecord(path="spec/edit.yaml", size=1, sha256="0" * 64)
    evidence = Evidence(kind="static", claim="erased", subject="a logo", value="0.01", produced_by="test")
    manifest = Manifest(
        retouch="0.1.0",
        name="a",
        version="1",
        provider=Provider(name="b"),
        source={"model": "demo"},
        spec=record,
        lock=record,
        inputs=[],
        passes=[],
        statements=[evidence],
        targets=[],
        gates=[],
        environment={},
        limits=[],
        not_claimed=[],
        files=[record],
        merkle_root="0" * 64,
    ).sealed()
    value = manifest.model_dump(mode="json", by_alias=True)
    validate(value, document_schema("manifest"))
    with pytest.raises(jsonschema.ValidationError):
        validate({**value, "compliant": True}, document_schema("manifest"))


def test_a_sampling_table() -> None:
    step = Step(
        timestep=1.0,
        sigma=1.0,
        input_scale=1.0,
        x0_from_sample=1.0,
        x0_from_output=-1.0,
        next_from_sample=0.0,
        next_from_x0=1.0,
        next_from_previous_x0=0.0,
        guidance_weight=1.0,
    )
    latent = Latent(channels=4, height=8, width=8, downscale=8, scaling_factor=1.0)
    table = SamplingTable(
        sampler="ddim", prediction="epsilon", initial_scale=1.0, latent=latent, steps=[step]
    )
    validate(table.model_dump(mode="json", by_alias=True), document_schema("sampling"))


def test_a_lock() -> None:
    lock = Lock(retouch="0.1.0", spec="0" * 64, inputs=[])
    validate(lock.model_dump(mode="json", by_alias=True), document_schema("lock"))
