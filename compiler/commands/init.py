"""retouch init: from a few plain questions, or flags, to a commented spec that `check` accepts."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

import click

from ...runtime.console import json_option, print_result
from ...specs.errors import Fault, SpecError
from ...specs.preset import Concept, preset_names, read_preset
from ...specs.read import parse_spec
from ...specs.strict_yaml import scalar
from ..plan import REGISTRIES

DEFAULT_FILE = Path("edit.yaml")
DEFAULT_PRESET = "logos"
# A thing that every model can draw and that means little.
DEFAULT_TOWARDS = "a heart"
# What each emitter's block says in a new spec; an emitter that is not here gets its defaults.
EMITTER_BLOCKS = {"onnx": "{profile: cpu, precision: float32}"}


@dataclass(frozen=True)
class Erasure:
    """Concepts to erase for one reason."""

    reason: str
    concepts: tuple[Concept, ...]


@dataclass(frozen=True)
class Answers:
    """What a new spec is made from."""

    name: str
    model: str
    erasures: tuple[Erasure, ...]
    preserve: tuple[str, ...]
    emit: tuple[str, ...]


@click.command("init")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=DEFAULT_FILE)
@click.option("--name", help="What the artefact is called.")
@click.option("--model", help="`demo`, or a folder in diffusers layout, relative to FILE.")
@click.option(
    "--preset", "presets", multiple=True, type=click.Choice(preset_names()), help="A list of concepts."
)
@click.option(
    "--concept", "concepts", multiple=True, help="What the model shall no longer draw; may be repeated."
)
@click.option(
    "--towards", multiple=True, help="What it draws instead: once for all, or once a concept, in order."
)
@click.option("--preserve", multiple=True, help="What must stay as it is; may be repeated.")
@click.option("--emit", multiple=True, help="An emitter, such as `onnx`; may be repeated.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.option("--yes", is_flag=True, help="Ask nothing: take the default of every question.")
@json_option
def command(
    file: Path,
    name: str | None,
    model: str | None,
    presets: tuple[str, ...],
    concepts: tuple[str, ...],
    towards: tuple[str, ...],
    preserve: tuple[str, ...],
    emit: tuple[str, ...],
    force: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Write a commented spec to FILE (edit.yaml).

    Asks for what the flags leave open where there is a terminal to ask.
    """
    asking = _has_terminal() and not yes
    _refuse_to_replace(file, force)
    name = name or _ask("What is the artefact called?", "my-model", asking)
    model = model or _ask("Which model: `demo`, or a folder in diffusers layout?", "demo", asking)
    if not (presets or concepts):
        presets, concepts = _ask_what_to_erase(asking, yes)
        preserve = preserve or _list(_ask("What else must stay as it is (commas between)?", "", asking))
    erasures = (*_from_presets(presets), *_from_flags(concepts, towards, asking))
    emit = emit or _list(_ask("Emit what (commas between)?", "onnx", asking))
    text = spec_text(Answers(name, model, erasures, _preserved(presets, preserve), emit), file.name)
    parse_spec(text.encode(), file, REGISTRIES)
    _write(file, text, force)
    print_result({"file": str(file)}, f"{file}: written. Next: retouch plan {file}", as_json)


def spec_text(answers: Answers, file: str) -> str:
    """Return the commented text of a new spec that will stand in `file`."""
    return "\n".join(
        [
            "# What shall change in a model, and what must be shown before it ships.",
            f"# `retouch check {file}` reads it, `retouch plan {file}` says what a build would do and cost.",
            "schema: 1",
            f"name: {scalar(answers.name)}",
            "version: 0.1.0",
            "# `demo` is built in; anything else is a folder in diffusers layout, relative to this file.",
            f"source: {{model: {scalar(answers.model)}}}",
            "",
            *_edit_lines(answers),
            "",
            "sampling: {sampler: dpmpp_2m, steps: 20}",
            "",
            "emit:",
            *(f"  - {scalar(name)}: {EMITTER_BLOCKS.get(name, '{}')}" for name in answers.emit),
            "",
            *GATE_LINES,
            "",
            "# Who answers for the artefact: the manifest must say it, and nobody can measure it.",
            'provider: {name: "", contact: ""}',
            "",
        ]
    )


# Not in force in a new spec: a judge must know the concepts, and the built-in one knows the demo model's.
GATE_LINES = (
    "# Gates draw images from the finished artefact and stop the build when it is not good enough.",
    "# The built-in judge knows what the demo model can draw; another model needs a judge of its own.",
    "gates: []",
    '#  - erased: {at_most: "0.05", images: 128, judge: demo}',
    '#  - kept: {within: "0.03", concepts: 60, images: 16, judge: demo}',
)


def _edit_lines(answers: Answers) -> Iterator[str]:
    if not answers.erasures:
        yield "edits: []  # `retouch passes` lists what may stand here"
        return
    yield "edits:"
    yield "  - erase_concepts:"
    yield "      solver: linear  # closed form: no training"
    yield "      # Only what the model knows can be erased: name it as a prompt would."
    yield "      concepts:"
    for erasure in answers.erasures:
        yield from (f"        # {line}" for line in wrap(erasure.reason, 90))
        yield from (f"        - {_concept(concept)}" for concept in erasure.concepts)
    yield "      # Near in meaning, and to be drawn as before."
    yield f"      preserve: [{', '.join(map(scalar, answers.preserve))}]"
    yield "      output: fused  # into the weights"


def _concept(concept: Concept) -> str:
    synonyms = f", synonyms: [{', '.join(map(scalar, concept.synonyms))}]" if concept.synonyms else ""
    return f"{{name: {scalar(concept.name)}, towards: {scalar(concept.towards)}{synonyms}}}"


def _has_terminal() -> bool:
    return sys.stdin.isatty()


def _ask(question: str, default: str, asking: bool) -> str:
    return click.prompt(question, default=default, err=True) if asking else default


def _ask_what_to_erase(asking: bool, yes: bool) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of presets, and concepts of the user's own."""
    if yes:
        return (DEFAULT_PRESET,), ()
    if not asking:
        hint = f"give --preset or --concept, or --yes for the preset `{DEFAULT_PRESET}`"
        raise SpecError(
            Fault("E_INIT", "nothing says what to erase, and there is no terminal to ask", hint=hint)
        )
    for name in preset_names():
        click.echo(f"  {name}: {read_preset(name).title}", err=True)
    presets = _list(_ask("Erase which of these lists (commas between, `none`)?", DEFAULT_PRESET, asking))
    concepts = _list(_ask("Erase what else, in the words of a prompt (commas between)?", "", asking))
    return tuple(name for name in presets if name != "none"), concepts


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())


def _from_presets(names: Sequence[str]) -> Iterator[Erasure]:
    for name in dict.fromkeys(names):
        preset = read_preset(name)
        yield Erasure(f"{preset.title}. {preset.why}", preset.concepts)


def _from_flags(concepts: Sequence[str], towards: Sequence[str], asking: bool) -> Iterator[Erasure]:
    """Pair concepts with what is drawn instead of them: one for all, one each, or what the user says."""
    if len(towards) not in (0, 1, len(concepts)) or (towards and not concepts):
        what = f"{len(towards)} times --towards for {len(concepts)} times --concept"
        raise SpecError(
            Fault("E_INIT", what, hint="give it once for all concepts, or once for each, in order")
        )
    if not towards:
        towards = [_ask(f"Draw what instead of `{name}`?", DEFAULT_TOWARDS, asking) for name in concepts]
    if concepts:
        pairs = zip(concepts, towards if len(towards) > 1 else [*towards] * len(concepts), strict=True)
        yield Erasure("As asked for.", tuple(Concept(name, instead) for name, instead in pairs))


def _preserved(presets: Sequence[str], preserve: Sequence[str]) -> tuple[str, ...]:
    listed = [name for preset in presets for name in read_preset(preset).preserve]
    return tuple(dict.fromkeys([*listed, *preserve]))


def _refuse_to_replace(file: Path, force: bool) -> None:
    if file.exists() and not force:
        raise SpecError(Fault("E_EXISTS", "is there already", str(file), "--force replaces it"))


def _write(file: Path, text: str, force: bool) -> None:
    try:
        with file.open("w" if force else "x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
    except FileExistsError as error:
        raise SpecError(Fault("E_EXISTS", "is there already", str(file), "--force replaces it")) from error
    except OSError as error:
        raise SpecError(Fault("E_FILE", f"cannot be written: {error.strerror}", str(file))) from error
