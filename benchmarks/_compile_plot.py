"""results/compile.json -> a plot of peak memory against the size of the model."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from benchmarks._compile_table import MODELS
from benchmarks._measured import LIMIT

# What is drawn, its color and its label.
SERIES: Mapping[str, tuple[str, str]] = {
    "retouch, cold": ("#1f77b4", "retouch, pipeline"),
    "retouch, edit": ("#17a2c4", "retouch, after an edit"),
    "torch": ("#d62728", "torch.onnx.export, U-Net, float32"),
    "torch16": ("#e6812f", "torch.onnx.export, U-Net, float16"),
    "optimum": ("#2ca02c", "optimum-onnx, pipeline, float32"),
    "optimum16": ("#8c9a1f", "optimum-onnx, pipeline, float16"),
    "olive": ("#9467bd", "Olive, pipeline, float16"),
}
WIDTH, HEIGHT = 900, 520
LEFT, RIGHT, TOP, BOTTOM = 60, 270, 48, 52
FINER = 3  # drawn so much larger, then made smaller: lines without steps
APART = 19  # pixels between labels
INK, GRID = "#333333", "#dddddd"
Point = tuple[float, float, bool]  # size in GB, peak in GB, whether it was done


def write_plot(results: Mapping[str, Any], file: Path) -> None:
    """Draw a line for each series, both axes linear from zero; what was stopped is a ring."""
    lines = {name: list(_points(results, name)) for name in SERIES}
    lines = {name: points for name, points in lines.items() if points}
    if lines:
        sizes = {name: entry["bytes"] / 1e9 for name, entry in results["models"].items() if name in MODELS}
        highest = max([LIMIT / 1e9, *(peak for points in lines.values() for _, peak, _ in points)])
        canvas = Canvas(max(sizes.values()) * 1.04, highest * 1.06)
        canvas.axes(sizes)
        for name, points in lines.items():
            canvas.line(points, SERIES[name][0])
        canvas.labels({name: points[-1] for name, points in lines.items()})
        canvas.save(file)


def _points(results: Mapping[str, Any], row: str) -> Iterator[Point]:
    """Yield what a row took for each model, from small to large."""
    for entry in sorted(results["models"].values(), key=lambda entry: entry["bytes"]):
        found = entry["rows"].get(row)
        if found is not None and not found["outcome"].startswith("failed"):
            yield entry["bytes"] / 1e9, found["peak_bytes"] / 1e9, found["outcome"] == "done"


def ticks(largest: float) -> list[float]:
    """Return round numbers from zero on: steps of 1, 2 or 5 times a power of ten, four to ten of them."""
    step = 10.0 ** math.floor(math.log10(largest / 4))
    step *= max(factor for factor in (1, 2, 5) if factor * step <= largest / 4)
    return [step * count for count in range(int(largest / step) + 1)]


class Canvas:
    """A picture with two linear axes from zero."""

    def __init__(self, right: float, top: float) -> None:
        self.right, self.top = right, top
        self.image = Image.new("RGB", (WIDTH * FINER, HEIGHT * FINER), "white")
        self.draw = ImageDraw.Draw(self.image)
        self.font = ImageFont.load_default(13 * FINER)

    def place(self, size: float, peak: float) -> tuple[float, float]:
        """Return pixels."""
        x = LEFT + (WIDTH - LEFT - RIGHT) * size / self.right
        return x, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * peak / self.top

    def axes(self, sizes: Mapping[str, float]) -> None:
        """Draw axes, round ticks, a guide for each model, and the limit of memory."""
        for value in ticks(self.top):
            self._stroke([self.place(0, value), self.place(self.right, value)], GRID)
            self._text(self.place(0, value), f"{value:g}", "rm", dx=-8)
        for value in ticks(self.right):
            self._stroke([self.place(value, 0), self.place(value, self.top * 0.01)], INK)
            self._text(self.place(value, 0), f"{value:g}", "mt", dy=8)
        for number, (name, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
            self._stroke([self.place(size, 0), self.place(size, self.top)], GRID)
            # Two models of nearly one size are named on either side.
            self._text(self.place(size, self.top), MODELS[name], "lb" if number else "rb", dy=-3)
        limit = LIMIT / 1e9
        for dash in range(0, 100, 2):
            ends = [self.place(self.right * part / 100, limit) for part in (dash, dash + 1)]
            self._stroke(ends, INK)
        self._text(self.place(0, limit), f"limit: {LIMIT >> 30} GiB", "lb", dx=6, dy=-3)
        self._stroke([self.place(0, self.top), self.place(0, 0), self.place(self.right, 0)], INK)
        self._text((8, 8), "peak memory, GB", "lt")
        self._text(self.place(self.right, 0), "model on disk, GB", "rt", dy=28)

    def line(self, points: list[Point], color: str) -> None:
        """Draw points and the line through them."""
        places = [self.place(size, peak) for size, peak, _ in points]
        self._stroke(places, color, 2)
        for (x, y), (_, _, done) in zip(places, points, strict=True):
            box = [FINER * value for value in (x - 5, y - 5, x + 5, y + 5)]
            self.draw.ellipse(box, fill=color if done else "white", outline=color, width=2 * FINER)

    def labels(self, ends: Mapping[str, Point]) -> None:
        """Name each line at its end, from low to high, none on another."""
        lowest = float(HEIGHT)
        for name, (size, peak, done) in sorted(ends.items(), key=lambda item: item[1][1]):
            color, text = SERIES[name]
            x, y = self.place(size, peak)
            below = min(y, lowest - APART)
            lowest = below
            self._stroke([(x + 7, y), (x + 18, below)], color)
            self._text((x + 22, below), text if done else f"{text}: stopped", "lm", color)

    def save(self, file: Path) -> None:
        self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS).save(file)

    def _stroke(self, places: list[tuple[float, float]], color: str, width: int = 1) -> None:
        self.draw.line([(x * FINER, y * FINER) for x, y in places], fill=color, width=width * FINER)

    def _text(
        self, place: tuple[float, float], text: str, anchor: str, color: str = INK, dx: int = 0, dy: int = 0
    ) -> None:
        x, y = place
        self.draw.text(((x + dx) * FINER, (y + dy) * FINER), text, fill=color, font=self.font, anchor=anchor)
