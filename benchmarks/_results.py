"""results/NAME.json and the pages that quote it: what each benchmark found, written in one way."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def kept_results(name: str) -> dict[str, Any]:
    """Return what an earlier run of a benchmark wrote; nothing where there was none."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def write_results(name: str, value: Any) -> None:
    """Write what a benchmark found in place of what was there."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_between(page: Path, name: str, text: str) -> None:
    """Put Markdown between the marks `NAME: start` and `NAME: end` of a page."""
    start, end = f"<!-- {name}: start -->", f"<!-- {name}: end -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(start)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{start}\n\n{text}\n{end}{after}", encoding="utf-8")


def joined(parts: Iterable[Iterable[str]]) -> str:
    """Return parts of a page, each some lines, with an empty line behind each."""
    return "\n".join("\n".join(lines) + "\n" for lines in parts)
