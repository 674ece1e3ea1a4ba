"""What is computed once is computed once, however many threads ask."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from retouch.compiler.once import Once


def test_threads_that_ask_together_get_what_one_of_them_computed() -> None:
    made: list[object] = []
    together = threading.Barrier(8)

    def compute() -> object:
        time.sleep(0.01)
        made.append(object())
        return made[-1]

    once = Once(compute)

    def ask(_: int) -> object:
        together.wait()
        return once()

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(8)))
    assert len(made) == 1
    assert all(each is made[0] for each in found)


def test_what_failed_is_tried_again() -> None:
    answers = iter([ZeroDivisionError(), 3])

    def compute() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    once = Once(compute)
    with pytest.raises(ZeroDivisionError):
        once()
    assert once() == once() == 3
