"""Reading a spec: one row a message, all faults at once, and a spec is its canonical text."""

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import REGISTRIES, Folder, Legible, Paint, Shelf, Swap, anything, near_yaml, spec_values

from retouch.compiler.sampling import SAMPLERS
from retouch.specs.errors import Fault, SpecError
from retouch.specs.read import Registries, parse_spec, read_spec, spec_value, write_spec
from retouch.specs.schema import ProviderBlock, Sampler, SamplingBlock, Source
from retouch.specs.strict_yaml import dump

GOOD = """\
schema: 1
name: icons-eu
version: 1.0.0
source: {model: demo}
edits:
  - paint: {strength: 1, swaps: [{old: no}], file: a.bin}
emit:
  - folder: {}
gates:
  - legible: {at_most: "0.05"}
"""


def read(text: str) -> Any:
    return parse_spec(text.encode(), Path("specs/edit.yaml"), REGISTRIES)


def complaint(text: str) -> str:
    with pytest.raises(SpecError) as raised:
        read(text)
    return str(raised.value).replace("specs/edit.yaml:", "")


def test_a_good_spec() -> None:
    spec = read(GOOD)
    paint = spec.edits[0]
    assert (spec.schema, spec.name, spec.version) == (1, "icons-eu", "1.0.0")
    assert spec.source == Source("demo")
    assert spec.sampling == SamplingBlock("dpmpp_2m", 20, None)
    assert spec.provider == ProviderBlock("", "")
    assert (paint.strength, paint.swaps) == (1.0, (Swap("no"),))
    assert paint.file.path == (Path("specs") / "a.bin").resolve()
    assert (spec.emit, spec.gates) == ((Folder(),), (Legible("0.05"),))


def test_everything_but_five_keys_has_a_default() -> None:
    spec = read("schema: 1\nname: a\nversion: v\nsource: {model: m}\nemit: [folder: {}]\n")
    assert (spec.edits, spec.gates) == ((), ())


# (a line of GOOD, what stands there instead, the message)
BAD = [
    ("schema: 1", "schema: 2", "1: schema: found 2, this retouch reads 1\n  hint: update retouch"),
    ("schema: 1", "schema: one", '1: schema: found `"one"`, expected 1'),
    ("schema: 1\n", "", "1: `schema` is missing"),
    (
        "strength: 1",
        "finish: wet",
        "6: edits.0.paint.finish: found `\"wet\"`, expected 'matte' or 'gloss'",
    ),
    (
        "name: icons-eu",
        "name: a/b",
        "2: name: found `\"a/b\"`, expected pattern '^[A-Za-z0-9][A-Za-z0-9._+-]{0,99}$'",
    ),
    ("name: icons-eu", "name:", "2: name: found nothing, expected a text"),
    ("version: 1.0.0", "version: 1.0", "3: version: found `1.0`, expected a text\n  hint: put it in quotes"),
    ("version: 1.0.0", "version: yes\nver: 1", "4: unknown key `ver`\n  hint: did you mean `version`?"),
    ("source: {model: demo}", "source: demo", '4: source: found `"demo"`, expected a mapping'),
    ("source: {model: demo}", "source: {}", "4: source: `model` is missing"),
    (
        "source: {model: demo}",
        "source: {model: demo, revision: main}",
        "4: source.revision: found `\"main\"`, expected pattern '^[0-9a-f]{40}$'",
    ),
    (
        "source: {model: demo}",
        "source:\n  model: demo\n  modle: x",
        "6: source: unknown key `modle`\n  hint: did you mean `model`?",
    ),
    (
        "gates:",
        "sampling: {sampler: dpmpp2m}\ngates:",
        "9: sampling.sampler: found `\"dpmpp2m\"`, expected 'ddim', 'dpmpp_2m' or 'euler'\n"
        "  hint: did you mean `dpmpp_2m`?",
    ),
    (
        "gates:",
        "sampling: {steps: 0}\ngates:",
        "9: sampling.steps: found `0`, expected greater than or equal to 1",
    ),
    ("gates:", "sampling: {steps: 2.5}\ngates:", "9: sampling.steps: found `2.5`, expected a whole number"),
    ("gates:", 'sampling: {steps: "20"}\ngates:', '9: sampling.steps: found `"20"`, expected a whole number'),
    (
        "gates:",
        "sampling: {guidance_scale: 0}\ngates:",
        "9: sampling.guidance_scale: found `0`, expected greater than 0",
    ),
    (
        "gates:",
        "sampling: {guidance_scale: high}\ngates:",
        '9: sampling.guidance_scale: found `"high"`, expected a number',
    ),
    ("emit:\n  - folder: {}\n", "", "1: `emit` is missing"),
    (
        "emit:\n  - folder: {}\n",
        "emit: []\n",
        "7: emit: found an empty list, expected at least 1 item",
    ),
    ("emit:\n  - folder: {}\n", "emit: folder\n", '7: emit: found `"folder"`, expected a list'),
    ("- folder: {}", "- folder", '8: emit.0: found `"folder"`, expected a mapping'),
    (
        "- folder: {}",
        "- folder:",
        "8: emit.0.folder: found nothing, expected a mapping\n  hint: write `{}` for a block without keys",
    ),
    (
        "- folder: {}",
        "- folder:\n    precision: float32",
        "8: emit.0: found 2 keys (folder, precision), expected one name with its block indented under it",
    ),
    ("- folder: {}", "- {}", "8: emit.0: found 0 keys, expected one name with its block indented under it"),
    ("- folder: {}", "- foldr: {}", "8: emit.0.foldr: no emitter `foldr`\n  hint: did you mean `folder`?"),
    ("- paint:", "- pant:", "6: edits.0.pant: no pass `pant`\n  hint: did you mean `paint`?"),
    ("- legible:", "- zzz:", "10: gates.0.zzz: no gate `zzz`"),
    (
        '"0.05"',
        "0.05",
        "10: gates.0.legible.at_most: found `0.05`, expected a text\n  hint: put it in quotes",
    ),
    (
        "strength: 1",
        "strenght: 1",
        "6: edits.0.paint: unknown key `strenght`\n  hint: did you mean `strength`?",
    ),
    ("strength: 1", "strength: 2", "6: edits.0.paint.strength: found `2`, expected less than or equal to 1"),
    ("strength: 1", "coats: 2, finish: gloss", "6: edits.0.paint: gloss takes one coat"),
    (
        "strength: 1",
        "finish: mat",
        "6: edits.0.paint.finish: found `\"mat\"`, expected 'matte' or 'gloss'\n"
        "  hint: did you mean `matte`?",
    ),
    (
        "{old: no}",
        "{old: 3}",
        "6: edits.0.paint.swaps.0.old: found `3`, expected a text\n  hint: put it in quotes",
    ),
    ("{old: no}", "{new: x}", "6: edits.0.paint.swaps.0: `old` is missing"),
    (
        "{strength: 1, swaps: [{old: no}], file: a.bin}",
        "\n      swaps:\n      - old: x\n        nwe: y",
        "9: edits.0.paint.swaps.0: unknown key `nwe`\n  hint: did you mean `new`?",
    ),
    ("strength: 1", "weights: x", '6: edits.0.paint.weights: found `"x"`, expected a number or a list'),
    ("strength: 1", "weights: [1, x]", '6: edits.0.paint.weights.1: found `"x"`, expected a number'),
    ("strength: 1", "interval: [1]", "6: edits.0.paint.interval: `1` is missing"),
    ("file: a.bin", "file: [a]", "6: edits.0.paint.file: found a list, expected a text"),
    (
        "file: a.bin",
        "file: ''",
        '6: edits.0.paint.file: found `""`, expected at least 1 character',
    ),
]


@pytest.mark.parametrize(("line", "instead", "message"), BAD, ids=[message[:60] for _, _, message in BAD])
def test_message(line: str, instead: str, message: str) -> None:
    assert line in GOOD
    assert complaint(GOOD.replace(line, instead, 1)) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "1: found nothing, expected a mapping"),
        ("# nothing\n", "1: found nothing, expected a mapping"),
        ("- a", "1: found a list, expected a mapping"),
    ],
)
def test_what_is_no_spec_at_all(text: str, message: str) -> None:
    assert complaint(text) == message


def test_all_faults_at_once_by_line() -> None:
    text = (
        GOOD.replace("1.0.0", "1.0").replace("strength: 1", "strength: 2, coat: 1").replace("folder", "fold")
    )
    with pytest.raises(SpecError) as raised:
        read(text)
    assert [(fault.code, fault.where) for fault in raised.value.faults] == [
        ("E_TYPE", "specs/edit.yaml:3"),
        ("E_UNKNOWN_KEY", "specs/edit.yaml:6"),
        ("E_VALUE", "specs/edit.yaml:6"),
        ("E_UNKNOWN_NAME", "specs/edit.yaml:8"),
    ]


def test_a_block_may_raise_faults_of_its_own() -> None:
    class Strange(Paint):
        def __post_init__(self) -> None:
            raise SpecError(Fault("E_STRANGE", "is too strange", hint="calm down"))

    registries = Registries(Shelf("pass", paint=Strange), REGISTRIES.emitters, REGISTRIES.gates)
    with pytest.raises(SpecError) as raised:
        parse_spec(GOOD.encode(), Path("edit.yaml"), registries)
    assert raised.value.faults == (
        Fault("E_STRANGE", "edits.0.paint: is too strange", "edit.yaml:6", "calm down"),
    )


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "edit.yaml"
    file.write_text(GOOD)
    assert read_spec(file, REGISTRIES).edits[0].file.path == tmp_path / "a.bin"
    with pytest.raises(SpecError, match="cannot be read"):
        read_spec(tmp_path / "absent.yaml", REGISTRIES)


def test_links_in_a_circle_are_no_bug_of_ours(tmp_path: Path) -> None:
    (tmp_path / "a.bin").symlink_to(tmp_path / "a.bin")
    file = tmp_path / "edit.yaml"
    file.write_text(GOOD)
    try:
        assert read_spec(file, REGISTRIES).edits[0].file.text == "a.bin"
    except SpecError as error:
        assert "edits.0.paint.file: `a.bin` leads nowhere" in str(error)


def test_the_canonical_text_has_every_default() -> None:
    assert write_spec(read(GOOD)).startswith(
        """\
schema: 1
name: icons-eu
version: 1.0.0
source:
  model: demo
  revision: null
  variant: null
  tokenizer: null
  config: null
  prediction: null
  components: {}
sampling:
  sampler: dpmpp_2m
  steps: 20
  guidance_scale: null
"""
    )


def test_samplers_are_those_of_the_compiler() -> None:
    assert sorted(get_args(Sampler)) == sorted(SAMPLERS)


@given(spec_values)
def test_spec_to_text_to_spec_is_the_identity(value: dict[str, Any]) -> None:
    spec = read(dump(value))
    text = write_spec(spec)
    assert read(text) == spec
    assert write_spec(read(text)) == text
    assert read(dump(spec_value(spec))) == spec


wrong_values = st.one_of(
    anything, st.lists(anything, max_size=2), anything.map(lambda value: [{"paint": value}])
)


@given(
    spec_values,
    st.sampled_from(["schema", "name", "source", "edits", "emit", "sampling", "other"]),
    wrong_values,
)
def test_a_spec_or_a_spec_error(value: dict[str, Any], key: str, instead: Any) -> None:
    try:
        read(dump({**value, key: instead}))
    except SpecError as error:
        assert all(fault.where.startswith("specs/edit.yaml:") for fault in error.faults)


@given(near_yaml)
def test_any_text_after_a_good_start_is_read_or_refused(text: str) -> None:
    try:
        read(GOOD + text)
    except SpecError as error:
        assert error.exit_code == 2
