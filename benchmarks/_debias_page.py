"""results/debias.json -> the tables in docs/debias.md: no figure is typed by hand."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._results import joined, write_between

PAGE = Path(__file__).parents[1] / "docs" / "debias.md"
METHODS = ("balance", "project")
# Issue 6: what `balance` has to reach, and from where.
DEVIATION, BEFORE, LOST = 0.15, 0.6, 0.03
BIASED = 0.2  # a profession counts as biased from this deviation on
Results = Mapping[str, Any]
Rows = Sequence[Mapping[str, Any]]


def write_page(results: Results) -> None:
    """Put the tables between their marks in docs/debias.md."""
    write_between(PAGE, "debias", page(results))


def page(results: Results) -> str:
    """Return the results as Markdown."""
    measured = [method for method in METHODS if method in results]
    parts = [list(methods(results, measured))]
    if "balance" in measured:
        parts += [["What was aimed at:", "", *targets(results["balance"])]]
        parts += [["`balance`, each profession:", "", *professions(results["balance"]["professions"])]]
    return joined(parts)


def methods(results: Results, measured: Sequence[str]) -> Iterator[str]:
    """Say what each method does to shares, recognition and prompts that say a gender, beside its base."""
    yield "| | images a profession | deviation | largest | recognized, % | least | obeyed, % |"
    yield f"| --- |{' ---: |' * 6}"
    for method in measured:
        rows, images = results[method]["professions"], results[method]["settings"]["images"]
        for name, label in (("base", f"the model, beside `{method}`"), ("edited", f"`{method}`")):
            found = results[method]["summary"][name]
            largest = worst(biased_of(rows), name, "deviation", max)
            least = worst(rows, name, "recognized", min)
            shares = [percent(float(found["recognized"])), least, percent(float(found["obeyed"]))]
            deviation = f"{float(found['deviation_of_biased']):.2f}"
            yield f"| {label} | {images} | {deviation} | {largest} | {' | '.join(shares)} |"


def targets(found: Mapping[str, Any]) -> Iterator[str]:
    """Say which aims `balance` met."""
    base, edited = (found["summary"][name] for name in ("base", "edited"))
    before, after = (float(one["deviation_of_biased"]) for one in (base, edited))
    lost, disobeyed = (float(base[key]) - float(edited[key]) for key in ("recognized", "obeyed"))
    yield "| what | aim | measured | |"
    yield "| --- | --- | --- | --- |"
    yield line(
        f"deviation from parity, mean over the {found['biased']} biased professions",
        f"at most {DEVIATION}, from {BEFORE} or more",
        f"{after:.3f}, from {before:.3f}",
        met(before >= BEFORE and after <= DEVIATION),
    )
    yield line(
        "recognition of the profession", "within 3 points", f"{100 * lost:.1f} points lost", met(lost <= LOST)
    )
    yield line("prompts that say a gender", "still obeyed", f"{100 * disobeyed:.1f} points lost", "")


def professions(rows: Rows) -> Iterator[str]:
    """Say what became of each profession."""
    yield "| profession | men, % | after, % | 95 % interval | recognized, % | after, % |"
    yield f"| --- |{' ---: |' * 5}"
    for row in rows:
        before, after = row["base"], row["edited"]
        yield line(
            row["concept"],
            percent(float(before["male"])),
            percent(float(after["male"])),
            " to ".join(percent(float(bound)) for bound in after["interval"]),
            percent(float(before["recognized"])),
            percent(float(after["recognized"])),
        )


def biased_of(rows: Rows) -> Rows:
    """Return the professions that were far from parity before."""
    return [row for row in rows if float(row["base"]["deviation"]) >= BIASED]


def worst(rows: Rows, name: str, key: str, choose: Any) -> str:
    """Return the extreme of a figure, with the profession that it is of."""
    row = choose(rows, key=lambda row: float(row[name][key]))
    value = float(row[name][key])
    return f"{percent(value) if key == 'recognized' else f'{value:.2f}'} ({row['concept']})"


def met(reached: bool) -> str:
    return "met" if reached else "**missed**"


def percent(share: float) -> str:
    return f"{100 * share:.1f}"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
