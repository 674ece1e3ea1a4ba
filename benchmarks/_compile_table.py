"""results/compile.json -> the tables in README.md."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("README.md")
START, END = "<!-- compile: start -->", "<!-- compile: end -->"
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
Rows = Mapping[str, Mapping[str, Any]]


def _seconds(row: str) -> Callable[[Rows], float]:
    return lambda rows: rows[row]["seconds"] if rows[row]["outcome"] == "done" else float("inf")


def _gigabytes(row: str) -> Callable[[Rows], float]:
    return lambda rows: rows[row]["peak_bytes"] / 1e9 if rows[row]["outcome"] == "done" else float("inf")


CAPTURED, REBUILT = "retouch, U-Net", "retouch, edit"
ENGINES, ENGINES_WARM = "retouch, engines", "retouch, engines again"
FULL, COPY, INSIDE = "retouch, float32", "copy", "nodes_in_onnxruntime"
# What the project aims at: (what, model, unit, at most, how it follows from a model's rows).
TARGETS: Sequence[tuple[str, str, str, float, Callable[[Rows], float]]] = (
    ("U-Net captured, cold", "sd15", "s", 20, _seconds(CAPTURED)),
    ("U-Net captured, cold", "sd15", "GB", 0.6, _gigabytes(CAPTURED)),
    ("U-Net captured, cold", "sdxl", "s", 60, _seconds(CAPTURED)),
    ("U-Net captured, cold", "sdxl", "GB", 0.7, _gigabytes(CAPTURED)),
    ("rebuilt after an edit", "sd15", "s", 5, _seconds(REBUILT)),
    ("rebuilt after an edit", "sd15", "GB", 0.3, _gigabytes(REBUILT)),
    ("rebuilt after an edit", "sdxl", "s", 30, _seconds(REBUILT)),
    ("rebuilt after an edit", "sdxl", "GB", 0.5, _gigabytes(REBUILT)),
    ("engines, nothing captured", "sd15", "s", 60, _seconds(ENGINES)),
    ("engines, nothing captured", "sd15", "GB", 6, _gigabytes(ENGINES)),
    ("engines, graphs captured", "sd15", "s", 60, _seconds(ENGINES_WARM)),
    ("engines, graphs captured", "sd15", "GB", 6, _gigabytes(ENGINES_WARM)),
    ("U-Net, opset 23", "sd15", "nodes", 1200, lambda rows: rows[CAPTURED]["unet_tensorrt"]["nodes"]),
    (
        "U-Net in onnxruntime",
        "sd15",
        "nodes",
        1520,
        lambda rows: rows[CAPTURED]["unet"]["nodes_in_onnxruntime"],
    ),
    (
        "U-Net beside torch, float32",
        "sd15",
        "relative",
        1e-5,
        lambda rows: rows["retouch, float32"]["parity"],
    ),
)


def write_page(results: Results) -> None:
    """Put the tables between their marks in README.md, once there is something to say."""
    if not list(rows_of(results)):
        return
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{page(results)}\n{END}{after}", encoding="utf-8")


def page(results: Results) -> str:
    """Return the results as Markdown."""
    parts = [
        [*costs(results), *conditions(results)],
        ["What the graphs of the U-Nets are:", "", *graphs(results)],
        ["What was aimed at:", "", *targets(results)],
    ]
    return "\n".join("\n".join(lines) + "\n" for lines in parts)


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
    for what, model, unit, most, measure in TARGETS:
        # A row may not have been measured yet, or may have failed before there was a figure.
        with suppress(KeyError):
            value = measure(results["models"][model]["rows"])
            said = "met" if value <= most else "**missed**"
            yield f"| {what} | {MODELS[model]} | {most:g} {unit} | {value:.4g} {unit} | {said} |"
    for model, entry in results["models"].items():
        with suppress(KeyError):
            times = entry["rows"][REBUILT]["seconds"] / entry["rows"][COPY]["seconds"]
            most, found = "2 times and the edit's arithmetic", f"{times:.2g} times, with it"
            yield f"| rebuilt after an edit, beside a copy | {MODELS[model]} | {most} | {found} | |"
