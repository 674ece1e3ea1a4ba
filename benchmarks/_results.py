"""results/NAME.json: what each benchmark found, written in one way."""

import json
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
