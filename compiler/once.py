"""A value that is computed when it is first asked for, by one of the threads that ask, and then kept."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Once(Generic[T]):
    """Calls `compute` at the first call, and returns what it gave at every call.

    What `functools.cached_property` does for a property, but several threads may ask: from Python 3.12 on
    that computes once for each of them.
    """

    def __init__(self, compute: Callable[[], T]) -> None:
        self._compute = compute
        self._kept: list[T] = []
        self._lock = threading.Lock()

    def __call__(self) -> T:
        with self._lock:
            if not self._kept:
                self._kept.append(self._compute())
        return self._kept[0]
