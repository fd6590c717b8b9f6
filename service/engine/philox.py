"""Random numbers that depend on a seed and a position and on nothing else: Philox4x32-10.

J. Salmon, M. Moraes, R. Dror and D. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The generator is a
function, not a stream: no state to keep with a session, none to restore when it is resumed.

Integer arithmetic alone, row by row, so a row has the same bits in any company. `R` is the number of rows.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

UintArray = NDArray[np.uint64]

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], np.uint64)
_KEY_STEPS = np.arange(10, dtype=np.uint64)[:, None, None] * np.array([[0x9E3779B9], [0xBB67AE85]], np.uint64)
"""[10, 2, 1]: what is added to the key before each round."""


def uniform(seeds: UintArray, positions: UintArray) -> NDArray[np.float64]:
    """One number in [0, 1) a row: a multiple of 2**-53, each as likely as any other.

    seeds, positions: [R], any 64 bits. The seed is the key, the position the lower half of the counter, and the number
    the upper 53 of the first 64 bits that come out. Raises nothing.
    """
    even = np.zeros((2, len(positions)), np.uint64)
    odd = np.zeros_like(even)
    even[0], odd[0] = positions & _LOW, positions >> _HALF
    even, odd = _rounds(even, odd, np.stack((seeds & _LOW, seeds >> _HALF)))
    upper = ((odd[0] << _HALF) | even[0]) >> np.uint64(11)
    numbers: NDArray[np.float64] = upper * 2.0**-53
    return numbers


def philox4x32(counters: NDArray[np.uint32], keys: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The generator itself, 10 rounds. counters: [R, 4], keys: [R, 2], lowest word first. Returns [R, 4]."""
    words = counters.astype(np.uint64).T
    even, odd = _rounds(words[0::2], words[1::2], keys.astype(np.uint64).T)
    return np.stack((even[0], odd[0], even[1], odd[1]), axis=-1).astype(np.uint32)


def _rounds(even: UintArray, odd: UintArray, key: UintArray) -> tuple[UintArray, UintArray]:
    """even: words 0 and 2 of the counter, odd: words 1 and 3, key: all [2, R], 32 bits each in 64, so that a product
    keeps both its halves."""
    for round_key in (key + _KEY_STEPS) & _LOW:
        products = even * _MULTIPLIERS
        even = (products >> _HALF)[::-1] ^ odd ^ round_key
        odd = (products & _LOW)[::-1]
    return even, odd
