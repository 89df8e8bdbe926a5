"""A random order of n things of which any place can be asked for: no array of n is ever made, however large n is."""

import numpy as np
from numpy.typing import NDArray

from training.data.columns import mixed

ROUNDS = 8
LEAST_BITS = 2  # of a half; with fewer the rounds could not reach every order of a handful of things


def permuted(places: NDArray[np.int64], size: int, key: int) -> NDArray[np.int64]:
    """The things at ``places`` of a random order of 0 to ``size`` - 1; every key of 64 bits has an order of its own.

    A Feistel network permutes the numbers below a power of four; what leads out of the range is permuted again until it
    leads back (cycle walking: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002).
    """
    half = np.uint64(max(LEAST_BITS, ((size - 1).bit_length() + 1) // 2))
    keys = mixed(np.uint64(key) + np.arange(1, ROUNDS + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    found = places.astype(np.uint64)
    outside = np.ones(len(found), bool)
    while outside.any():
        found[outside] = _network(found[outside], half, keys)
        outside = found >= size
    return found.astype(np.int64)


def _network(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (mixed(right ^ key) & mask)
    return (left << half) | right
