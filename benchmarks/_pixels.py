"""How alike are two pictures?"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

EQUAL = 200.0  # dB, above what any two different images have: JSON has no infinity


def as_pixels(images: Any) -> NDArray[np.uint8]:
    """Return values from 0 to 1 as a file holds them."""
    return np.round(np.asarray(images) * 255).astype(np.uint8)


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the peak signal-to-noise ratio in dB, to a tenth; `EQUAL` where no pixel differs."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return EQUAL if error == 0 else round(float(10 * np.log10(255**2 / error)), 1)
