"""results/compile.json -> the tables in README.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks._results import joined, write_between

PAGE = Path(__file__).with_name("README.md")
MODELS: Mapping[str, str] = {"sd15": "SD 1.5", "sd21": "SD 2.1", "sdxl": "SDXL"}
# What each row measured, in the order of the table.
ROWS: Mapping[str, str] = {
    "retouch, U-Net": "retouch: the U-Net's graph, nothing captured",
    "retouch, cold": "retouch: pipeline, float16, nothing captured",
    "retouch, warm": "retouch: the same again",
    "retouch, first edit": "retouch: with edits, prompts encoded",
    "retouch, edit": "retouch: with edits, prompts kept",
    "copy": "a plain copy of these files",
    "retouch, float32": "retouch: pipeline, float32, nothing captured",
    "retouch, engines": "retouch: TensorRT-RTX engines, nothing captured",
    "retouch, engines again": "retouch: the same again",
    "torch": "torch.onnx.export: U-Net, float32",
    "torch16": "torch.onnx.export: U-Net, float16",
    "optimum": "optimum-onnx: pipeline, float32",
    "optimum16": "optimum-onnx: pipeline, float16",
    "olive": "Olive: pipeline, float16",
    "draw, retouch": "`retouch run` draws 256x256 in 2 steps",
    "draw, optimum-onnx": "optimum-onnx draws the same from our folder",
}
Results = Mapping[str, Any]
Row = Mapping[str, Any]
CAPTURED, REBUILT, COPY = "retouch, U-Net", "retouch, edit", "copy"
ENGINES, ENGINES_WARM, FULL = "retouch, engines", "retouch, engines again", "retouch, float32"
INSIDE = "nodes_in_onnxruntime"


def _seconds(row: Row) -> float:
    return row["seconds"]


def _gigabytes(row: Row) -> float:
    return row["peak_bytes"] / 1e9


# What the project aims at: (what, model, row, unit, at most, how it follows from the row).
TARGETS: Sequence[tuple[str, str, str, str, float, Callable[[Row], float]]] = (
    ("U-Net captured, cold", "sd15", CAPTURED, "s", 20, _seconds),
    ("U-Net captured, cold", "sd15", CAPTURED, "GB", 0.6, _gigabytes),
    ("U-Net captured, cold", "sdxl", CAPTURED, "s", 60, _seconds),
    ("U-Net captured, cold", "sdxl", CAPTURED, "GB", 0.7, _gigabytes),
    ("rebuilt after an edit", "sd15", REBUILT, "s", 5, _seconds),
    ("rebuilt after an edit", "sd15", REBUILT, "GB", 0.3, _gigabytes),
    ("rebuilt after an edit", "sdxl", REBUILT, "s", 30, _seconds),
    ("rebuilt after an edit", "sdxl", REBUILT, "GB", 0.5, _gigabytes),
    ("engines, nothing captured", "sd15", ENGINES, "s", 60, _seconds),
    ("engines, nothing captured", "sd15", ENGINES, "GB", 6, _gigabytes),
    ("engines, graphs captured", "sd15", ENGINES_WARM, "s", 60, _seconds),
    ("engines, graphs captured", "sd15", ENGINES_WARM, "GB", 6, _gigabytes),
    ("U-Net, opset 23", "sd15", CAPTURED, "nodes", 1200, lambda row: row["unet_tensorrt"]["nodes"]),
    ("U-Net in onnxruntime", "sd15", CAPTURED, "nodes", 1520, lambda row: row["unet"][INSIDE]),
    ("U-Net beside torch, float32", "sd15", FULL, "relative", 1e-5, lambda row: row["parity"]),
)


def write_page(results: Results) -> None:
    """Put the tables between their marks in README.md, once there is something to say."""
    if not list(rows_of(results)):
        return
    write_between(PAGE, "compile", page(results))


def page(results: Results) -> str:
    """Return the results as Markdown."""
    parts = [
        [*costs(results), *conditions(results)],
        ["What the graphs of the U-Nets are:", "", *graphs(results)],
        ["What was aimed at:", "", *targets(results)],
    ]
    return joined(parts)


def rows_of(results: Results) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield (model, row, what was measured), in the order of the tables."""
    for model in MODELS:
        rows = results["models"].get(model, {"rows": {}})["rows"]
        for name in ROWS:
            if name in rows:
                yield model, name, rows[name]


def costs(results: Results) -> Iterator[str]:
    """Say what each process took; one that was stopped took at least what is said."""
    yield "| model | what | s | of it CPU, s | others, cores | peak, MB | written, GB |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: |"
    for model, name, row in rows_of(results):
        done = row["outcome"] == "done"
        seconds = f"{row['seconds']:.1f}" if done else f"**{row['outcome']}** ({row['seconds']:.0f} s)"
        written = f"{row['output_bytes'] / 1e9:.2f}" if done else ""
        numbers = f"{row['cpu_seconds']:.1f} | {row['others']:.1f} | {row['peak_bytes'] / 1e6:.0f}"
        yield f"| {MODELS[model]} | {ROWS[name]} | {seconds} | {numbers} | {written} |"


def conditions(results: Results) -> Iterator[str]:
    """Say on what, and beside what, the rows were measured."""
    rows = [row for _, _, row in rows_of(results)]
    machines = ", ".join(sorted({row["machine"] for row in rows}))
    dates = sorted({row["date"] for row in rows})
    busy, load = max(row["others"] for row in rows), max(row["load"] for row in rows)
    yield ""
    yield (
        f"Measured on {machines}, one thread each, on {' and '.join(dates)}. Other programs kept at most "
        f"{busy:.1f} cores busy meanwhile (*others*); the load at a start was at most {load:.1f}."
    )
    tools: dict[str, set[str]] = {}
    for row in rows:
        for name, number in row["versions"].items():
            tools.setdefault(name, set()).add(number)
    named = ", ".join(f"{name} {' and '.join(sorted(numbers))}" for name, numbers in sorted(tools.items()))
    yield f"Versions: {named}."
    for model, _, row in rows_of(results):
        if "psnr" in row:
            yield (
                f"{MODELS[model]}: the pictures of `retouch run` and optimum-onnx agree to {row['psnr']} dB "
                f"(standard deviation of the pixels: {row['spread']:.0f} of 255)."
            )


def graphs(results: Results) -> Iterator[str]:
    """Say what each exporter made of a U-Net."""
    yield "| model | graph | opset | nodes | in onnxruntime | free dimensions |"
    yield "| --- | --- | ---: | ---: | ---: | --- |"
    for model, name, row in rows_of(results):
        for key, form in (("unet", ""), ("unet_tensorrt", ", TensorRT's profile")):
            if row.get(key):
                graph = row[key]
                numbers = graph["opset"], graph["nodes"], graph.get(INSIDE, "")
                cells = (ROWS[name] + form, *numbers, ", ".join(graph["free"]) or "none")
                yield f"| {MODELS[model]} | {' | '.join(map(str, cells))} |"


def targets(results: Results) -> Iterator[str]:
    """Say which aims were met."""
    yield "| what | model | at most | measured | |"
    yield "| --- | --- | ---: | ---: | --- |"
    for what, model, name, unit, most, measure in TARGETS:
        # A row may not have been measured yet, or may have ended before there was a figure.
        with suppress(KeyError):
            row = results["models"][model]["rows"][name]
            value = measure(row) if row["outcome"] == "done" else float("inf")
            found = f"{value:.4g} {unit}" + (f" ({row['cpu_seconds']:.1f} s of CPU)" if unit == "s" else "")
            said = "met" if value <= most else "**missed**"
            yield f"| {what} | {MODELS[model]} | {most:g} {unit} | {found} | {said} |"
    for model, entry in results["models"].items():
        with suppress(KeyError):
            times = entry["rows"][REBUILT]["seconds"] / entry["rows"][COPY]["seconds"]
            most, found = "2 times and the edit's arithmetic", f"{times:.2g} times, with it"
            yield f"| rebuilt after an edit, beside a copy | {MODELS[model]} | {most} | {found} | |"
