"""docs/erasure-table.md from results/erasure_table.json: no figure is typed by hand."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from retouch.runtime.statistics import paired_difference, wilson

# Images of one label: recognized in both, in the edited only, in the base only, in neither.
Cells = list[int]
Hits = Mapping[str, Cells]

COLUMNS = (
    "erased concepts",
    "method",
    "recognized of them",
    "worst",
    "neighbors, points lost",
    "worst",
    "others, points lost",
    "H_o",
    "seconds",
)
HEAD = """\
<!-- Written by `python -m benchmarks.erasure_table`, from benchmarks/results/erasure_table.json. -->

# What is erased, what is kept, what comes back

The demo model, {sampler} in {steps} steps, guidance {guidance}; {seeds} seeds an erased concept and a near
neighbor, {kept_seeds} for each of {others} others, the same noise for base and edited. Recognition in per
cent with 95 % intervals (Wilson; paired differences by Newcombe's method 10). H_o is the harmonic mean of
what is not recognized of the erased and what is recognized of the others. The spec names no neighbor and no
other to preserve.
"""
PROBES = """\
## Probes

The share recovered, in per cent, over {probed} erased concepts, {probe_images} images each; in brackets the
control's, a figure that no model was trained on (for `noise`, a word that means nothing, judged as the
concept). `static` is the norm needed in text space, in distances from the empty prompt; its control is
directions that mean nothing. `none` is the unedited model.
"""
AVOIDANCE = """\
Where a probe recovers more than its control does, the intervals not touching, the concept was **avoided, not
removed**: the model still draws it, whatever its own prompt does.
"""


def page_text(
    kept: Mapping[str, Any],
    methods: Sequence[str],
    counts: Sequence[int],
    probes: Sequence[str],
) -> str:
    """Return the page of some results; methods, counts and probes in the order given, run or not."""
    grid = {**kept["settings"]["grid"], "probed": kept["probed"]}
    parts = [HEAD.format(**grid)]
    for judge, title in (("demo", "The independent classifier"), ("demo-clip", "The demo CLIP")):
        parts.append("\n".join([f"## {title}", "", *_table(kept["cells"], judge, methods), ""]))
    parts.append(_left_out("Cells", [f"{m}/{n}" for n in counts for m in methods], kept["cells"]))
    parts.append(PROBES.format(**grid))
    if kept["probes"]:
        parts.append("\n".join([*_probes(kept["probes"], methods, probes), ""]))
    parts.append(
        _left_out("Probes", [f"{m}/{p}" for m in ("none", *methods) for p in probes], kept["probes"])
    )
    if kept["probes"]:
        parts.append("\n".join([AVOIDANCE, *_verdicts(kept["probes"], methods, probes), ""]))
    return "\n".join(part for part in parts if part)


def _left_out(what: str, wanted: Sequence[str], done: Mapping[str, Any]) -> str:
    """Return a sentence that names what was not measured; empty where all was."""
    missing = [name for name in wanted if name not in done]
    return f"{what} not run: {_named(missing)}.\n" if missing else ""


def _named(cells: Iterable[str]) -> str:
    return "; ".join(name.replace("/", ", ") for name in cells)


def _verdicts(found: Mapping[str, Any], methods: Sequence[str], probes: Sequence[str]) -> Iterator[str]:
    """Yield for each method which probes recover more than their control."""
    for method in methods:
        entries = {probe: found.get(f"{method}/{probe}") for probe in probes}
        tried = {probe: entry["found"] for probe, entry in entries.items() if entry}
        counted = {probe: e for probe, e in tried.items() if e[0]["kind"] != "static"}
        revived = [
            f"`{probe}` recovers {100 * _mean(e):.0f} % (control {100 * _control(e):.0f} %)"
            for probe, e in counted.items()
            if _beyond_control(e)
        ]
        if revived:
            yield f"- **{method}**: avoidance only, {', '.join(revived)}"
        elif counted:
            yield f"- **{method}**: {_listed(counted)} recovered no more than the control"


def _listed(probes: Iterable[str]) -> str:
    return ", ".join(f"`{probe}`" for probe in probes)


def _beyond_control(evidence: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether the interval of all concepts together lies above the control's."""
    count = int(evidence[0]["count"])
    low, _ = wilson(_hits(evidence), sum(e["count"] for e in evidence))
    # All concepts share one control, drawn once: its images count once.
    _, high = wilson(round(_control(evidence) * count), count)
    return low > high


def _table(cells: Mapping[str, Any], judge: str, methods: Sequence[str]) -> list[str]:
    places = [name.rpartition("/") for name in cells]
    ordered = sorted((int(count), methods.index(method), method) for method, _, count in places)
    rows = [_row(cells[f"{method}/{count}"], judge, method, count) for count, _, method in ordered]
    return [_line(COLUMNS), _line(["---"] * len(COLUMNS)), *rows]


def _row(cell: Mapping[str, Any], judge: str, method: str, count: int) -> str:
    erased, near, others = (cell[group][judge] for group in ("erased", "near", "others"))
    return _line(
        [
            str(count),
            method,
            _share(_sum(erased)),
            _worst({label: _recognized(hits) for label, hits in erased.items()}),
            _lost(_sum(near)),
            _worst({label: _loss(hits) for label, hits in near.items()}),
            _lost(_sum(others)),
            f"{100 * harmonic_mean(erased, others):.1f}",
            f"{cell['seconds_to_edit']:g}",
        ]
    )


def harmonic_mean(erased: Hits, others: Hits) -> float:
    """Return H_o of erasing and keeping, 0 to 1. Source: Lu et al., MACE, 2403.06135, section 4.1."""
    forgotten, kept = 1 - _recognized(_sum(erased)), _recognized(_sum(others))
    return 2 * forgotten * kept / (forgotten + kept) if forgotten + kept else 0.0


def _line(entries: Sequence[str]) -> str:
    return f"| {' | '.join(entries)} |"


def _sum(hits: Hits) -> Cells:
    return [sum(column) for column in zip(*hits.values(), strict=True)]


def _recognized(cells: Cells) -> float:
    return (cells[0] + cells[1]) / sum(cells)


def _loss(cells: Cells) -> float:
    return (cells[2] - cells[1]) / sum(cells)


def _share(cells: Cells) -> str:
    low, high = wilson(cells[0] + cells[1], sum(cells))
    return f"{100 * _recognized(cells):.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _lost(cells: Cells) -> str:
    low, high = paired_difference(*cells)
    return f"{100 * _loss(cells):.1f} ({-100 * high:.1f} to {-100 * low:.1f})"


def _worst(values: Mapping[str, float]) -> str:
    name = max(sorted(values), key=lambda label: values[label])
    return f"{name} {100 * values[name]:.0f}"


def _probes(found: Mapping[str, Any], methods: Sequence[str], probes: Sequence[str]) -> list[str]:
    lines = [_line(["method", *probes]), _line(["---"] * (1 + len(probes)))]
    for method in ("none", *methods):
        entries = [found.get(f"{method}/{probe}") for probe in probes]
        if any(entries):
            lines.append(
                _line([method, *("not run" if e is None else _revival(e["found"]) for e in entries)])
            )
    return lines


def _revival(evidence: Sequence[Mapping[str, Any]]) -> str:
    """Return the mean over the concepts, with the interval of all images together, and the control's."""
    if evidence[0]["kind"] == "static":
        return f"{_mean(evidence):.2f} [{_control(evidence):.2f}]"
    low, high = wilson(_hits(evidence), sum(e["count"] for e in evidence))
    interval = f"({100 * low:.0f} to {100 * high:.0f})"
    return f"{100 * _mean(evidence):.0f} {interval} [{100 * _control(evidence):.0f}]"


def _mean(evidence: Sequence[Mapping[str, Any]]) -> float:
    return sum(float(e["value"]) for e in evidence) / len(evidence)


def _control(evidence: Sequence[Mapping[str, Any]]) -> float:
    return sum(float(e["details"]["control"]) for e in evidence) / len(evidence)


def _hits(evidence: Sequence[Mapping[str, Any]]) -> int:
    return sum(round(float(e["value"]) * e["count"]) for e in evidence)
