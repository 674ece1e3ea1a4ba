"""Measured numbers as manifests say them: one digit, never smaller than what was measured."""

from decimal import ROUND_CEILING, Context

import numpy as np


def rounded_up(value: float) -> str:
    """Return one significant digit, rounded up: `4.1e-7` -> `5e-7`. The last digits differ between CPUs."""
    if not np.isfinite(value):
        return "1e308"
    digit = Context(prec=1, rounding=ROUND_CEILING).create_decimal(repr(value))
    return f"{digit:e}".replace("+", "") if digit else "0"
