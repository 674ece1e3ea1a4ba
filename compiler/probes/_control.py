"""A control that no model was trained on: a figure made up from a seed, drawn in many places and colors.

A probe that brings back what was never there would bring back anything: its recovered share of a concept
says something only as far as it exceeds the control's.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...runtime.judges import Judge
from ..gates import Images

NAME = "a figure that no model was trained on"
CORNERS = 9
SHAPE_SEED = 20261122
FINE = 4  # drawn so much larger and averaged, for smooth edges


def figures(count: int, height: int, width: int) -> Images:
    """Return images [N, H, W, 3] of the control figure: one shape, at seeded places, scales and grounds."""
    shape = _shape(np.random.default_rng(SHAPE_SEED))
    return np.stack(
        [_figure(shape, np.random.default_rng([SHAPE_SEED, i]), height, width) for i in range(count)]
    )


def likeness(judge: Judge, own: Images, others: Sequence[Images]) -> Callable[[Images], NDArray[np.bool_]]:
    """Return what recognizes images that look like `own`: for things that no judge has a label for.

    An image is recognized when it is closer to the mean of `own` than to that of any of `others`, and as
    close as the least typical of `own` is to the mean of the rest. Closeness is the cosine of the judge's
    features where it has them, else of its logits.
    """
    features = judge.features if "features" in judge.session.outputs else judge.logits
    typical = _unit(features(own))
    means = np.stack([_unit(rows.mean(axis=0)) for rows in (typical, *(_unit(features(g)) for g in others))])
    rest = _unit(typical.sum(axis=0) - typical)
    least = float(np.sum(typical * rest, axis=1).min())

    def recognized(images: Images) -> NDArray[np.bool_]:
        closeness = _unit(features(images)) @ means.T
        return (closeness.argmax(axis=1) == 0) & (closeness[:, 0] >= least)

    return recognized


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = rows.astype(np.float64)
    return wide / np.linalg.norm(wide, axis=-1, keepdims=True).clip(min=1e-12)


def _shape(random: np.random.Generator) -> NDArray[np.float64]:
    """Return the corners of an uneven star around the origin, within the unit circle."""
    angles = np.sort(random.uniform(0, 2 * np.pi, CORNERS))
    radius = np.where(np.arange(CORNERS) % 2, 0.35, 1.0) * random.uniform(0.7, 1, CORNERS)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _figure(
    shape: NDArray[np.float64], random: np.random.Generator, height: int, width: int
) -> NDArray[np.uint8]:
    size = np.array([width, height]) * FINE
    ground = tuple(int(level) for level in random.integers(90, 256, 3))
    picture = Image.new("RGB", (width * FINE, height * FINE), ground)
    corners = size * random.uniform(0.45, 0.55, 2) + shape * size * random.uniform(0.36, 0.44)
    ImageDraw.Draw(picture).polygon(
        [tuple(corner) for corner in corners], fill=(24, 160, 120), outline=(0, 0, 0)
    )
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX))
