"""Our own noise: a counter-based generator, so each image has its own stream whatever it is drawn with.

The name in sampling.json is `philox4x32-10/box-muller`, and this is all of it: block `b` of stream
`s` is Philox4x32-10 of the counter (b, s), each split into two 32-bit words, low word first, under
the key `seed`, split likewise. Its four words give four normal numbers, elements 4b to 4b + 3 of the
array in C order: each pair of words (a, b) gives r cos t and r sin t with r = sqrt(-2 ln((a + 1) / 2^32))
and t = 2 pi b / 2^32, in float64, rounded once to float32.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words, held wide so that products do not overflow

# Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 3.3.
ROUNDS = 10
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
LOW = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)
WORD = 2**32


def normal(seed: int, shape: Sequence[int], stream: int = 0) -> NDArray[np.float32]:
    """Return unit normal noise that depends on nothing but the arguments.

    The integer arithmetic is exact; logarithm and cosine may differ in the last bit of a float64
    between math libraries, which the rounding to float32 hides all but about once in 10^8 numbers.

    Raises:
        ValueError: `seed` or `stream` is not in 0 to 2^64 - 1.
    """
    for name, value in (("seed", seed), ("stream", stream)):
        if not 0 <= value < WORD**2:
            raise ValueError(f"{name} {value}, expected 0 to 2^64 - 1")
    count = int(np.prod(shape, dtype=np.int64))
    words = philox(_counters(-(-count // 4), stream), (seed % WORD, seed // WORD))
    return _box_muller(words).reshape(-1)[:count].astype(np.float32).reshape(shape)


def philox(counters: Words, key: tuple[int, int]) -> Words:
    """Return Philox4x32-10 of counters [n, 4], each word below 2^32."""
    a, b, c, d = counters.T
    low, high = key
    for _ in range(ROUNDS):
        first, second = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c
        a, b = (second >> HALF) ^ b ^ np.uint64(low), second & LOW
        c, d = (first >> HALF) ^ d ^ np.uint64(high), first & LOW
        low, high = (low + KEY_STEPS[0]) % WORD, (high + KEY_STEPS[1]) % WORD
    return np.stack([a, b, c, d], axis=1)


def _counters(blocks: int, stream: int) -> Words:
    index = np.arange(blocks, dtype=np.uint64)
    low, high = np.uint64(stream % WORD), np.uint64(stream // WORD)
    return np.stack([index & LOW, index >> HALF, np.full_like(index, low), np.full_like(index, high)], axis=1)


def _box_muller(words: Words) -> NDArray[np.float64]:
    """Source: Box and Muller, Annals of Mathematical Statistics 29 (1958), 610."""
    unit = words.astype(np.float64)
    radius = np.sqrt(-2.0 * np.log((unit[:, 0::2] + 1.0) / WORD))
    angle = 2.0 * np.pi * unit[:, 1::2] / WORD
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
