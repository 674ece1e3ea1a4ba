"""results/erase.json -> the tables in README.md."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks._results import joined, write_between

PAGE = Path(__file__).with_name("README.md")
MODELS: Mapping[str, str] = {"sd15": "SD 1.5", "sdxl": "SDXL"}
# What is measured of each number of concepts, in this order: the others need what encoding leaves behind.
METHODS = ("encoding", "published", "vectorized", "same_rows", "as_used")
# Cores that other programs may keep busy where seconds are judged: they share caches and memory.
QUIET = 0.3
Results = Mapping[str, Any]


def write_page(results: Results) -> None:
    """Put the tables between their marks in README.md."""
    write_between(PAGE, "erase", page(results))


def page(results: Results) -> str:
    """Return the results as Markdown."""
    parts = [
        [*same_rows(results)],
        ["The whole pass with its default settings, encoding apart:", "", *as_used(results)],
        ["Encoding for it, with multiplications counted:", "", *encoding(results)],
        ["What was aimed at:", "", *targets(results)],
        [*conditions(results)],
    ]
    return joined(parts)


def rows_of(results: Results, *methods: str) -> Iterator[tuple[str, int, list[Mapping[str, Any]]]]:
    """Yield (model, concepts, a row for each method) where all of them were measured."""
    for model in MODELS:
        for count, rows in sorted(results.get(model, {}).items(), key=lambda item: int(item[0])):
            if all(method in rows for method in methods):
                yield model, int(count), [rows[method] for method in methods]


def same_rows(results: Results) -> Iterator[str]:
    """Say what each method takes for the same rows."""
    yield (
        "| model | concepts | published, s | one product a sum, s | retouch, s | times faster "
        "| published, MB | retouch, MB | published, error | retouch, error |"
    )
    yield f"| --- |{' ---: |' * 9}"
    for model, count, (published, vectorized, ours) in rows_of(
        results, "published", "vectorized", "same_rows"
    ):
        cells = [
            MODELS[model],
            f"{count:,}",
            *(seconds(row) for row in (published, vectorized, ours)),
            f"{'over ' if cut(published) else ''}{faster(published, ours):.0f}",
            *(f"{row['peak_bytes'] / 1e6:.0f}" for row in (published, ours)),
            *(f"{row['error']:.0e}" for row in (published, ours)),
        ]
        yield f"| {' | '.join(cells)} |"


def as_used(results: Results) -> Iterator[str]:
    """Say what the whole pass takes."""
    yield "| model | concepts | rows of text states | s | by the clock, s | evidence, s | peak, MB |"
    yield f"| --- |{' ---: |' * 6}"
    for model, count, (row,) in rows_of(results, "as_used"):
        numbers = " | ".join(f"{row[key]:.1f}" for key in ("cpu_seconds", "seconds", "evidence_cpu_seconds"))
        peak = f"{row['peak_bytes'] / 1e6:.0f}"
        yield f"| {MODELS[model]} | {count:,} | {row['rows']:,} | {numbers} | {peak} |"


def encoding(results: Results) -> Iterator[str]:
    """Say what the encoders did, and what the tokens of the prompts needed."""
    yield (
        "| model | concepts | prompts | their tokens | computed, share | multiplications, 10^12 "
        "| of those needed | beginnings once | s | by the clock, s | peak, MB |"
    )
    yield f"| --- |{' ---: |' * 10}"
    for model, count, (row,) in rows_of(results, "encoding"):
        first, total = row["encoders"][0], arithmetic(row)
        cells = [
            MODELS[model],
            f"{count:,}",
            f"{first['prompts']:,}",
            f"{first['tokens']:,}",
            f"{first['computed'] / first['tokens']:.2f}",
            f"{total['multiplications'] / 1e12:.2f}",
            f"{total['multiplications'] / total['needed']:.2f}",
            f"{total['multiplications'] / total['beginnings']:.2f}",
            f"{row['cpu_seconds']:.0f}",
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 1e6:.0f}",
        ]
        yield f"| {' | '.join(cells)} |"


def targets(results: Results) -> Iterator[str]:
    """Say which aims were met; of seconds only where the machine had little else to do."""
    yield "| what | aim | measured | |"
    yield "| --- | --- | --- | --- |"
    for model, count, (published, ours) in rows_of(results, "published", "same_rows"):
        if count == 100:
            found, what = faster(published, ours), f"{MODELS[model]}, 100 concepts, same rows"
            yield verdict(what, "20 times faster", f"{found:.1f}", found >= 20, published, ours)
    for model, count, (row,) in rows_of(results, "as_used"):
        if (model, count) == ("sdxl", 1000):
            took, peak = row["cpu_seconds"], row["peak_bytes"] / 1e9
            whole = took + row["evidence_cpu_seconds"]
            yield verdict("SDXL, 1,000 concepts, the pass", "under 60 s", f"{took:.1f} s", took < 60, row)
            yield verdict("the same with its evidence", "under 60 s", f"{whole:.1f} s", whole < 60, row)
            yield verdict("the same, memory", "under 2 GB", f"{peak:.2f} GB", peak < 2)
    totals = [arithmetic(row) for _, _, (row,) in rows_of(results, "encoding")]
    if totals:
        most = max(total["multiplications"] / total["needed"] for total in totals)
        what = "multiplications of encoding over those that the prompts' own tokens need, the largest"
        yield verdict(what, "at most 1.3", f"{most:.2f}", most <= 1.3)


def conditions(results: Results) -> Iterator[str]:
    """Say on what, and beside what, the rows were measured."""
    rows = [row for counts in results.values() for methods in counts.values() for row in methods.values()]
    versions = {f"{name} {number}" for row in rows for name, number in row["versions"].items()}
    said = {key: " and ".join(sorted({str(row[key]) for row in rows})) for key in ("machine", "date", "blas")}
    yield (
        f"Measured on {said['machine']}, one thread ({said['blas']} for NumPy), on {said['date']}; "
        f"{', '.join(sorted(versions))}. Other programs kept at most "
        f"{max((row['others'] for row in rows), default=0.0):.1f} cores busy meanwhile."
    )


def arithmetic(row: Mapping[str, Any]) -> dict[str, int]:
    """Return the multiplications of all encoders together."""
    keys = ("multiplications", "needed", "beginnings")
    return {key: sum(encoder[key] for encoder in row["encoders"]) for key in keys}


def verdict(what: str, aim: str, found: str, met: bool, *timed: Mapping[str, Any]) -> str:
    """Return a row of the aims; seconds of the rows in `timed` count where others kept quiet."""
    busy = max((row["others"] for row in timed), default=0.0)
    said = "met" if met else "**missed**"
    if busy > QUIET:
        said = f"not judged: other programs kept {busy:.1f} cores busy"
    return f"| {what} | {aim} | {found} | {said} |"


def cut(row: Mapping[str, Any]) -> bool:
    """Whether a loop over layers was stopped before its end."""
    return row["layers"] < row["of"]


def seconds(row: Mapping[str, Any]) -> str:
    took = row["cpu_seconds"]
    done = f"{took:.2f}" if took < 10 else f"{took:.0f}"
    return f"over {done} ({row['layers']} of {row['of']} matrices)" if cut(row) else done


def faster(published: Mapping[str, Any], ours: Mapping[str, Any]) -> float:
    """Return how often ours fits into the published loop's seconds of the processor."""
    return published["cpu_seconds"] / ours["cpu_seconds"]
