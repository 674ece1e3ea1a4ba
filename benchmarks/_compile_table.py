"""results/compile.json -> the table in README.md, and the plot of peak memory against model size."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

PAGE = Path(__file__).with_name("README.md")
START, END = "<!-- compile: start -->", "<!-- compile: end -->"
COLORS = {
    "retouch": (31, 119, 180),
    "torch": (214, 39, 40),
    "optimum": (44, 160, 44),
    "olive": (148, 103, 189),
}
WIDTH, HEIGHT, MARGIN = 720, 420, 64


def write_page(results: dict[str, Any]) -> None:
    """Put the table between its marks in README.md."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{START}\n\n{table(results)}\n{END}{after}", encoding="utf-8")


def table(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    machine = results["machine"]
    lines = [
        "| model | what | outcome | s | of it CPU, s | peak, MB | written, GB |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for model, rows in results["models"].items():
        for name, row in rows.items():
            numbers = (
                f"{row['seconds']:.1f} | {row['cpu_seconds']:.1f} | {row['peak_bytes'] / 1e6:.0f} "
                f"| {row['output_bytes'] / 1e9:.2f}"
            )
            lines.append(f"| {model} | {name} | {row['outcome']} | {numbers} |")
    versions = ", ".join(f"{name} {number}" for name, number in sorted(machine["versions"].items()))
    peers = sorted(
        {
            f"{name}: {row['versions']}"
            for rows in results["models"].values()
            for name, row in rows.items()
            if row.get("versions")
        }
    )
    lines += [
        "",
        f"{machine['cores']} cores ({machine['processor']}), load {machine['load']} at the start: other "
        "work ran beside it, so seconds by the clock are upper bounds and CPU seconds compare better. "
        f"{versions}.",
        *([f"Peers: {'; '.join(peers)}."] if peers else []),
        "`retouch` builds every component; `torch` and `olive` export the U-Net alone, `optimum` everything.",
    ]
    return "\n".join(lines) + "\n"


def write_plot(results: dict[str, Any], file: Path) -> None:
    """Draw peak memory against the bytes of the model as it lies on disk, both linear from zero."""
    points = list(_points(results))
    if not points:
        return
    right = max(size for _, size, _, _ in points) * 1.1
    top = max(peak for _, _, peak, _ in points) * 1.1
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)

    def place(size: float, peak: float) -> tuple[float, float]:
        x = MARGIN + (WIDTH - 2 * MARGIN) * size / right
        return x, HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * peak / top

    draw.line([place(0, top), place(0, 0), place(right, 0)], fill="black")
    draw.text((MARGIN, MARGIN / 3), "peak memory, GB", fill="black", font=font)
    draw.text((WIDTH - 3.2 * MARGIN, HEIGHT - MARGIN / 2), "model on disk, GB", fill="black", font=font)
    for tick in range(1, 5):
        draw.text(place(right * tick / 5, -top * 0.02), f"{right * tick / 5:.1f}", fill="black", font=font)
        x, y = place(0, top * tick / 5)
        draw.text((x - 34, y - 8), f"{top * tick / 5:.1f}", fill="black", font=font)
    for name, size, peak, outcome in points:
        x, y = place(size, peak)
        color = COLORS[name.partition(",")[0]]
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=color if outcome == "done" else None, outline=color)
        draw.text((x + 8, y - 8), name if outcome == "done" else f"{name}: {outcome}", fill=color, font=font)
    image.save(file)


def _points(results: dict[str, Any]) -> Any:
    """Yield (what, size of the model in GB, peak in GB, outcome)."""
    for rows in results["models"].values():
        size = rows["copy"]["output_bytes"] / 1e9
        for name, row in rows.items():
            if name in ("retouch, cold", "retouch, edit", "torch", "optimum", "olive"):
                yield name, size, row["peak_bytes"] / 1e9, row["outcome"]
