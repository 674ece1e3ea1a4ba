"""Strict YAML: every refusal, every scalar, and that what is written is read back."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import near_yaml, texts, written

from retouch.specs.errors import SpecError
from retouch.specs.strict_yaml import MOST_BYTES, MOST_FAULTS, dump, parse, read_bytes, scalar

REFUSED = [
    (
        b"a: 1\na: 2\n",
        "E_YAML_DUPLICATE_KEY",
        "f:2: a: key `a` is already on line 1\n  hint: keep one of the two",
    ),
    (
        b"a: &x 1\n",
        "E_YAML_ANCHOR",
        "f:1: anchor `&x` is not allowed\n  hint: write the value out where it is used",
    ),
    (b"\na: *x\n", "E_YAML_ALIAS", "f:2: alias `*x` is not allowed\n  hint: write the value out"),
    (
        b"a: !!int 3",
        "E_YAML_TAG",
        "f:1: tag `tag:yaml.org,2002:int` is not allowed\n  hint: put quotes around a text",
    ),
    (b"a: ! 3", "E_YAML_TAG", "f:1: tag `!` is not allowed\n  hint: put quotes around a text"),
    (b"<<: {}", "E_YAML_MERGE", "f:1: merge key `<<` is not allowed\n  hint: write the keys out"),
    (
        b"a: 1\n---\nb: 2\n",
        "E_YAML_DOCUMENTS",
        "f:2: a second document starts here\n  hint: write one file a spec",
    ),
    (b"1: 2", "E_YAML_KEY", "f:1: key `1` is no text\n  hint: put it in quotes"),
    (b"true: 2", "E_YAML_KEY", "f:1: key `true` is no text\n  hint: put it in quotes"),
    (b"[a]: 2", "E_YAML_KEY", "f:1: a key is no text\n  hint: put the text in quotes"),
    (b"a: \xff", "E_YAML_UTF8", "f:1: is not UTF-8\n  hint: save the file as UTF-8"),
    (b"a:\n\n  \x07", "E_YAML_CHARACTER", "f:3: control character U+0007\n  hint: remove it"),
    (b'a: "\\0"', "E_YAML_CHARACTER", "f:1: a: control character U+0000\n  hint: remove it"),
    (b'a: "\\ud800"', "E_YAML_CHARACTER", "f:1: a: control character U+D800\n  hint: remove it"),
    (
        b"a: 1e999",
        "E_YAML_NUMBER",
        "f:1: a: number `1e999` is too large\n  hint: whole numbers end at 9007199254740991",
    ),
    (
        b"a: [9007199254740992]",
        "E_YAML_NUMBER",
        "f:1: a.0: number `9007199254740992` is too large\n  hint: whole numbers end at 9007199254740991",
    ),
    (b"[" * 33, "E_YAML_DEPTH", "f:1: more than 32 levels\n  hint: a spec needs fewer than ten"),
    (b"[" * 100_000, "E_YAML_DEPTH", "f:1: more than 32 levels\n  hint: a spec needs fewer than ten"),
    (b"\na: [1\n", "E_YAML_SYNTAX", "f:3: is no YAML: expected ',' or ']', but got '<stream end>'"),
    (b"a: b: c", "E_YAML_SYNTAX", "f:1: is no YAML: mapping values are not allowed here"),
    (b'a: "\\UFFFFFFFF"', "E_YAML_SYNTAX", "f:1: is no YAML: Python int too large to convert to C int"),
    (
        b"#" * (MOST_BYTES + 1),
        "E_YAML_SIZE",
        "f: is larger than 1048576 bytes\n"
        "  hint: a spec holds names of files and numbers, not their contents",
    ),
]


@pytest.mark.parametrize(("data", "code", "message"), REFUSED)
def test_refusal(data: bytes, code: str, message: str) -> None:
    with pytest.raises(SpecError) as raised:
        parse(data, "f")
    assert str(raised.value) == message
    assert [fault.code for fault in raised.value.faults] == [code]


def test_all_faults_at_once_in_the_order_of_the_lines() -> None:
    text = b"a: &x 1\nb: *x\nc: !t 3\na: 4\n<<: {}\n1: 2\n"
    with pytest.raises(SpecError) as raised:
        parse(text, "f")
    assert [fault.where for fault in raised.value.faults] == [f"f:{line}" for line in range(1, 7)]


def test_faults_beyond_a_screenful_are_counted() -> None:
    with pytest.raises(SpecError) as raised:
        parse(b"1: 2\n" * (MOST_FAULTS + 7), "f")
    assert len(raised.value.faults) == MOST_FAULTS + 1
    assert str(raised.value.faults[-1]) == "f: and 7 faults more"


SCALARS = [
    ("", None),
    ("~", None),
    ("null", None),
    ("true", True),
    ("FALSE", False),
    ("12", 12),
    ("-3", -3),
    ("+7", 7),
    ("0", 0),
    ("1e-3", 0.001),
    (".5", 0.5),
    ("4.", 4.0),
    ("-1.5e+2", -150.0),
    # What YAML 1.1 takes for something else:
    ("no", "no"),
    ("Yes", "Yes"),
    ("on", "on"),
    ("010", "010"),
    ("0o14", "0o14"),
    ("0x1f", "0x1f"),
    ("0b1", "0b1"),
    ("1_000", "1_000"),
    ("12:30", "12:30"),
    ("2001-01-01", "2001-01-01"),
    (".inf", ".inf"),
    (".nan", ".nan"),
    ("=", "="),
    ("1.0.0", "1.0.0"),
    ("'1'", "1"),
    ('"true"', "true"),
]


@pytest.mark.parametrize(("text", "value"), SCALARS)
def test_scalar(text: str, value: object) -> None:
    read = parse(f"a: {text}".encode(), "f").value["a"]
    assert (type(read), read) == (type(value), value)


def test_lines_of_keys_and_items() -> None:
    text = parse(b"a:\n  - b: 1\n    c: |\n      long\n      text\n  - d\n", "f")
    assert text.lines == {(): 1, ("a",): 1, ("a", 0): 2, ("a", 0, "b"): 2, ("a", 0, "c"): 3, ("a", 1): 6}
    assert text.line_of(("a", 0, "not there", 3)) == 2


def test_a_byte_order_mark_is_no_fault() -> None:
    assert parse("\ufeffa: 1".encode(), "f").value == {"a": 1}


def test_depth_of_32_is_allowed() -> None:
    assert parse(b"[" * 32 + b"]" * 32, "f").value


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be read: No such file or directory"):
        read_bytes(tmp_path / "absent.yaml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_bytes(tmp_path)


@given(st.binary(max_size=200) | near_yaml.map(str.encode) | st.text(max_size=60).map(str.encode))
def test_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        value = parse(data, "f").value
    except SpecError as error:
        assert all(fault.where.startswith("f") for fault in error.faults)
    else:
        json.dumps(value, allow_nan=False)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=25,
)


@given(json_values)
def test_what_is_dumped_is_read_back(value: object) -> None:
    assert parse(dump(value).encode(), "f").value == value


@given(texts | st.text(written | st.sampled_from("\n\t"), max_size=20))
def test_a_scalar_fits_into_one_line_of_any_collection(text: str) -> None:
    one = scalar(text)
    assert "\n" not in one
    assert parse(f"a: {{b: {one}, c: [{one}, 1]}}\nd: {one}".encode(), "f").value == {
        "a": {"b": text, "c": [text, 1]},
        "d": text,
    }
