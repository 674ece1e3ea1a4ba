"""One thread for arithmetic whose last bits must not depend on how many cores a machine has."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits


@contextmanager
def single_threaded() -> Iterator[None]:
    """Let NumPy's BLAS, and torch where it is loaded, use one thread an operation.

    Sums of several threads depend on how many there are. Operations may still run side by side.
    """
    torch = sys.modules.get("torch")
    threads = torch.get_num_threads() if torch is not None else 1
    if torch is not None:
        torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
