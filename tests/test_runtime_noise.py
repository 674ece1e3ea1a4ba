"""Noise is a function of seed, stream and shape alone, and it is normal."""

import numpy as np
import pytest

from retouch.runtime.noise import normal, philox

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    # Source: known-answer vectors of Random123, tests/kat_vectors, philox4x32 10.
    [
        ([0, 0, 0, 0], (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ([ONES, ONES, ONES, ONES], (ONES, ONES), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_answers(counter: list[int], key: tuple[int, int], expected: str) -> None:
    words = philox(np.array([counter], dtype=np.uint64), key)[0]
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_first_numbers_are_box_muller_of_the_published_words() -> None:
    a, b, c, d = (int(word, 16) for word in ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"])
    turn = 2 * np.pi / 2**32
    first, second = np.sqrt(-2 * np.log((a + 1) / 2**32)), np.sqrt(-2 * np.log((c + 1) / 2**32))
    expected = [
        first * np.cos(b * turn),
        first * np.sin(b * turn),
        second * np.cos(d * turn),
        second * np.sin(d * turn),
    ]
    np.testing.assert_array_equal(normal(0, [4]), np.array(expected, np.float32))


def test_a_shape_is_only_an_arrangement() -> None:
    flat = normal(7, [4 * 9 * 5], stream=3)
    np.testing.assert_array_equal(normal(7, (4, 9, 5), stream=3).ravel(), flat)
    np.testing.assert_array_equal(normal(7, [17], stream=3), flat[:17])


def test_seeds_and_streams_do_not_share_numbers() -> None:
    drawn = [normal(seed, [64], stream) for seed in (0, 1, 2**32, 2**64 - 1) for stream in (0, 1, 2**32)]
    assert len({array.tobytes() for array in drawn}) == len(drawn)


def test_noise_is_normal_and_uncorrelated() -> None:
    """Each bound is five standard errors of its statistic at 10^6 numbers."""
    values = normal(12345, [1_000_000]).astype(np.float64)
    error = 5 / 1000
    assert abs(values.mean()) < error
    assert abs(values.var() - 1) < error * np.sqrt(2)
    assert abs((values**3).mean()) < error * np.sqrt(15)
    assert abs((values**4).mean() - 3) < error * np.sqrt(96)
    for lag in (1, 2, 3, 4):
        assert abs((values[lag:] * values[:-lag]).mean()) < error
    neighbor = normal(12346, [1_000_000]).astype(np.float64)
    assert abs((values * neighbor).mean()) < error


@pytest.mark.parametrize("arguments", [{"seed": -1}, {"seed": 2**64}, {"seed": 0, "stream": 2**64}])
def test_numbers_that_do_not_fit_are_refused(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected 0 to 2\\^64 - 1"):
        normal(shape=[4], **arguments)
