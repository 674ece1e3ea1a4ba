"""The benchmarks' own instruments: a stopwatch that is wrong makes every figure wrong."""

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _compile_table
from benchmarks._compile_plot import ticks, write_plot
from benchmarks._measured import measured

MEGABYTE = 1 << 20


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_is_measured_with_those_that_it_starts() -> None:
    child = f"import time; kept = bytearray({100 * MEGABYTE}); time.sleep(0.5)"
    start = f"subprocess.run([sys.executable, '-c', {child!r}])"
    parent = f"import subprocess, sys; kept = bytearray({60 * MEGABYTE}); {start}"
    run = measured(python(parent))
    assert run.outcome == "done"
    assert run.peak_bytes > 160 * MEGABYTE
    assert run.seconds >= 0.5


def test_a_process_that_takes_too_much_is_stopped(tmp_path: Path) -> None:
    run = measured(python(f"import time; kept = bytearray({300 * MEGABYTE}); time.sleep(60)"), limit=1 << 27)
    assert run.outcome == "did not fit 0 GiB"
    assert run.seconds < 30


def test_a_late_process_is_stopped_with_those_that_it_started(tmp_path: Path) -> None:
    late = f"import time; time.sleep(2); open({str(tmp_path / 'late')!r}, 'w')"
    command = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {late!r}])"
    assert measured(python(command), timeout=1.0).outcome == "took longer than 0.0166667 min"
    time.sleep(1.5)
    assert not (tmp_path / "late").exists()


def test_a_failure_says_its_last_line(tmp_path: Path) -> None:
    run = measured(python("raise SystemExit('no such model')"), log=tmp_path / "log")
    assert run.outcome == "failed (1): no such model"


@pytest.mark.parametrize(
    ("largest", "expected"),
    [
        (18.2, [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]),
        (7.2, [0, 1, 2, 3, 4, 5, 6, 7]),
        (0.9, [0, 0.2, 0.4, 0.6, 0.8]),
    ],
)
def test_ticks_are_round_and_end_below_the_largest_value(largest: float, expected: list[float]) -> None:
    assert ticks(largest) == pytest.approx(expected)


def row(**changed: Any) -> dict[str, Any]:
    return {
        "piece": "builds",
        "machine": "2 cores",
        "versions": {"torch": "2.13.0"},
        "date": "2026-11-22",
        "outcome": "done",
        "seconds": 10.0,
        "cpu_seconds": 9.0,
        "peak_bytes": 2e9,
        "load": 0.5,
        "others": 0.3,
        "output_bytes": 1e9,
        **changed,
    }


RESULTS = {
    "models": {
        "sd15": {
            "bytes": 2e9,
            "rows": {
                "retouch, edit": row(seconds=4.0),
                "retouch, engines": row(outcome="failed (1): no engine"),
                "olive": row(outcome="did not fit 16 GiB", others=1.5),
            },
        }
    }
}


def test_the_page_follows_from_what_was_measured() -> None:
    page = _compile_table.page(RESULTS)
    assert "| SD 1.5 | Olive: pipeline, float16 | **did not fit 16 GiB** (10 s) |" in page
    assert "at most 1.5 cores busy" in page
    assert "| rebuilt after an edit | SD 1.5 | 5 s | 4 s (9.0 s of CPU) | met |" in page
    assert "| rebuilt after an edit | SD 1.5 | 0.3 GB | 2 GB | **missed** |" in page
    assert "| engines, nothing captured | SD 1.5 | 60 s | inf s (9.0 s of CPU) | **missed** |" in page


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    write_plot(RESULTS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 0
