"""What the documentation shows is true: specs are good, commands parse, files and links are there."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from retouch.compiler.plan import REGISTRIES
from retouch.runtime import cli
from retouch.specs.errors import RetouchError
from retouch.specs.read import parse_spec

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/*.md", "benchmarks/*.md", "specs/demo/*.md", "recipes/**/*.md")
    for page in ROOT.glob(pattern)
)
# A pass that the guide for contributors makes up.
MADE_UP = "apply_freeu"
REST = {"schema": 1, "name": "shown", "version": "1", "source": {"model": "demo"}, "emit": [{"onnx": {}}]}
PROGRAMS = ("pip", "retouch", "python", "just")
# Paths in running text, in a folder of the repository; what a command is said to write need not be there.
FOLDERS = ("benchmarks", "compiler", "docs", "passes", "recipes", "runtime", "specs", "tests")
FILE = re.compile(rf"(?<!writes )(?<!writes\n)`((?:{'|'.join(FOLDERS)})/[\w./-]*)`")
LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(?:#[^)]*)?\)")


def shown(kind: str) -> list[Any]:
    """Return each block of a kind, named by its page and its number there."""
    fence = re.compile(rf"^```{kind}\n(.*?)^```", re.DOTALL | re.MULTILINE)
    return [
        pytest.param(block, id=f"{page.relative_to(ROOT)}-{number}")
        for page in PAGES
        for number, block in enumerate(fence.findall(page.read_text(encoding="utf-8")), 1)
    ]


def check_spec(text: str) -> None:
    """Check a spec, or a part of one that is completed first. Raises what `retouch check` raises."""
    part = yaml.safe_load(text)
    missing = {key: value for key, value in REST.items() if key not in part}
    before = yaml.safe_dump(missing) if missing else ""
    parse_spec((before + text).encode(), Path("edit.yaml"), REGISTRIES)


@pytest.mark.parametrize("text", shown("yaml"))
def test_specs_are_good(text: str) -> None:
    if MADE_UP not in text:
        check_spec(text)


@pytest.mark.parametrize("text", ["emit:\n  - onnx: {profil: cpu}\n", "gates:\n  - erased: {at_most: 0.1}\n"])
def test_a_broken_example_would_be_found(text: str) -> None:
    with pytest.raises(RetouchError):
        check_spec(text)


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a console block; those after `&&` are commands of their own."""
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("$ "):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            yield words


def check_command(words: list[str]) -> None:
    """Parse a command as its program would, without running it. Raises click's errors, or AssertionError."""
    assert words[0] in PROGRAMS, words[0]
    if words[0] == "python" and words[1] == "-m":
        assert find_spec(words[2].partition(".")[0])
        assert words[2] == "pytest" or (ROOT / f"{words[2].replace('.', '/')}.py").is_file()
    if words[0] == "retouch":
        command = cli.retouch.get_command(click.Context(cli.retouch), words[1])
        assert command is not None, words[1]
        try:
            command.make_context(words[1], words[2:])
        except click.BadParameter as error:
            assert "does not exist" in error.message, error.message  # the reader's own file


@pytest.mark.parametrize("block", shown("console"))
def test_commands_parse(block: str) -> None:
    found = list(commands(block))
    assert found
    for words in found:
        check_command(words)


@pytest.mark.parametrize(
    "line", ["retouch run out -o x.png", "retouch vrify out", "python -m benchmarks.speed"]
)
def test_a_wrong_command_would_be_found(line: str) -> None:
    with pytest.raises((click.ClickException, AssertionError)):
        check_command(shlex.split(line))


def test_commands_in_running_text_parse() -> None:
    found = [
        line
        for page in PAGES
        for line in re.findall(r"`(retouch [a-z-]+ [^`]*)`", page.read_text(encoding="utf-8"))
        if not re.search(r"[A-Z.]{4,}|…", line)
    ]
    assert len(found) > 5
    for line in found:
        check_command(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_files_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    gone = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    gone += [path for path in FILE.findall(text) if not (ROOT / path).exists() and MADE_UP not in path]
    gone += [
        module
        for module in re.findall(r"python -m (benchmarks\.\w+|recipes\.[\w.]+)", text)
        if not any((ROOT / f"{module.replace('.', '/')}{end}").is_file() for end in (".py", "/__main__.py"))
    ]
    assert not gone


def test_error_codes_and_extras_are_those_of_the_code() -> None:
    sources = "".join(
        file.read_text(encoding="utf-8")
        for folder in ("compiler", "passes", "runtime", "specs")
        for file in sorted((ROOT / folder).rglob("*.py"))
    )
    told = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    codes = set(re.findall(r"`(E_[A-Z_]+)`", told))
    assert len(codes) > 10
    assert not {code for code in codes if f'"{code}"' not in sources}
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {name for names in re.findall(r"retouch\[([a-z,-]+)\]", told) for name in names.split(",")}
    assert named <= set(declared)


def test_what_the_front_page_says_of_erasing_was_measured() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "efficacy.json").read_text())
    page = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    erased = [row for row in rows if row["claim"] == "erased"]
    bases = [100 * float(row["details"]["base"]) for row in erased]
    (kept,) = (row for row in rows if row["claim"] == "kept")
    low, high = (100 * float(bound) for bound in kept["interval"])
    worst = max(erased, key=lambda row: float(row["value"]))
    told = [
        f"in {float(worst['value']) * worst['count']:.0f} of {worst['count']} images",
        f"{100 * float(worst['interval'][0]):.0f} to {100 * float(worst['interval'][1]):.1f} %",
        f"base {min(bases):.0f} to {max(bases):.0f} %",
        f"{100 * float(kept['details']['edited']):.1f} % of {kept['count']} images",
        f"base {100 * float(kept['details']['base']):.1f} %",
        f"{low:.1f} to {high:.1f} points",
    ]
    assert not [figure for figure in told if figure not in page]
