"""retouch init, check and schema as a user types them."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from retouch.compiler.commands import check, init, schema
from retouch.compiler.plan import REGISTRIES
from retouch.specs.errors import SpecError
from retouch.specs.preset import preset_names, read_preset
from retouch.specs.read import read_spec

RELEASE = Path(__file__).parents[1] / "specs" / "examples" / "release.yaml"


def run(module: Any, *arguments: str | Path, typed: str | None = None) -> Result:
    return CliRunner().invoke(module.command, [str(argument) for argument in arguments], input=typed)


def refusal(result: Result) -> str:
    assert isinstance(result.exception, SpecError)
    return str(result.exception)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "edit.yaml"


def erased(file: Path) -> list[tuple[str, str]]:
    (edit,) = read_spec(file, REGISTRIES).edits
    return [(concept.name, concept.towards) for concept in edit.concepts]


@pytest.mark.parametrize("preset", preset_names())
def test_init_from_a_preset(file: Path, preset: str) -> None:
    result = run(init, file, "--preset", preset)
    assert result.output == f"{file}: written. Next: retouch plan {file}\n"
    assert run(check, file).exit_code == 0
    assert erased(file) == [(concept.name, concept.towards) for concept in read_preset(preset).concepts]
    assert read_preset(preset).title in file.read_text()


def test_init_from_flags(file: Path) -> None:
    flags = ("--name", "mine", "--model", "models/sd", "--emit", "diffusers", "--json")
    concepts = ("--concept", "a, b: {c}", "--concept", "#2", "--towards", "a dog", "--preserve", "no")
    result = run(init, file, *flags, *concepts)
    spec = read_spec(file, REGISTRIES)
    assert json.loads(result.output)["file"] == str(file)
    assert (spec.name, spec.source.model, [target.name for target in spec.emit]) == (
        "mine",
        "models/sd",
        ["diffusers"],
    )
    assert erased(file) == [("a, b: {c}", "a dog"), ("#2", "a dog")]
    assert "no" in spec.edits[0].preserve


def test_init_with_one_target_a_concept(file: Path) -> None:
    run(init, file, "--concept", "x", "--concept", "y", "--towards", "1", "--towards", "2")
    assert erased(file) == [("x", "1"), ("y", "2")]


def test_init_asks_where_there_is_a_terminal(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init, "_has_terminal", lambda: True)
    result = run(init, file, typed="mine\n\nnone\na pistol\na shoe\na banana\n\n")
    assert result.exception is None
    assert "Which model" in result.stderr
    assert erased(file) == [("a pistol", "a banana")]
    assert "a shoe" in read_spec(file, REGISTRIES).edits[0].preserve


def test_init_without_a_terminal_guesses_nothing(file: Path) -> None:
    assert refusal(run(init, file)) == (
        "nothing says what to erase, and there is no terminal to ask\n"
        "  hint: give --preset or --concept, or --yes for the preset `logos`"
    )
    assert not file.exists()


def test_init_with_yes_takes_the_defaults(file: Path) -> None:
    run(init, file, "--yes")
    assert erased(file)[0] == ("the nike logo", "a heart")


@pytest.mark.parametrize(
    "flags", [("--concept", "x", "--towards", "1", "--towards", "2"), ("--towards", "1", "--preset", "logos")]
)
def test_init_refuses_targets_that_belong_to_nothing(file: Path, flags: tuple[str, ...]) -> None:
    assert "give it once for all concepts, or once for each, in order" in refusal(run(init, file, *flags))


def test_init_replaces_only_by_force(file: Path) -> None:
    file.write_text("precious")
    assert refusal(run(init, file, "--yes")) == f"{file}: is there already\n  hint: --force replaces it"
    assert file.read_text() == "precious"
    run(init, file, "--yes", "--force")
    assert erased(file)


def test_init_writes_nothing_that_check_refuses(file: Path) -> None:
    assert "no emitter `onx`\n  hint: did you mean `onnx`?" in refusal(
        run(init, file, "--yes", "--emit", "onx")
    )
    assert not file.exists()


def test_check_says_how_it_was_understood() -> None:
    lines = run(check, RELEASE).output.splitlines()
    assert lines[0] == f"{RELEASE}: good"
    assert [line.split(" (")[0] for line in lines[1:]] == [
        "  edits: merge_adapters",
        "  edits: erase_concepts",
        "  edits: bake_guidance",
        "  emit: onnx",
        "  emit: diffusers",
        "  gates: erased",
        "  gates: kept",
    ]
    assert "concepts: 3" in lines[2]


def test_check_as_json() -> None:
    printed = json.loads(run(check, RELEASE, "--json").output)
    assert printed["ok"] is True
    assert printed["spec"]["sampling"]["guidance_scale"] is None


def test_check_of_a_bad_spec(file: Path) -> None:
    file.write_text("schema: 1\n")
    result = run(check, file)
    assert f"{file}:1: `name` is missing" in refusal(result)
    assert result.exception.exit_code == 2  # type: ignore[union-attr] # refusal asserts what it is


def test_schema_prints_one_and_writes_all(tmp_path: Path) -> None:
    run(schema, "--into", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "edit.schema.json",
        "lock.schema.json",
        "manifest.schema.json",
        "probes.schema.json",
        "sampling.schema.json",
    ]
    assert run(schema, "sampling").output == (tmp_path / "sampling.schema.json").read_text()
