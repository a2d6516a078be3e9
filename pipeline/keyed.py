"""Keyed randomness: a draw depends on the names given to it, not on the draws before it or the number of workers."""

import hashlib
import json
import operator

import numpy as np


def philox(*key: int | str) -> np.random.Generator:
    """A counter-based generator for this key, e.g. `philox(seed, "levels", sample)`.

    Equal keys give equal streams, other keys independent ones; 1 and "1" are different keys.
    Raises TypeError for a part that is neither an integer (NumPy's are taken too) nor a string.
    """
    text = json.dumps([part if isinstance(part, str) else operator.index(part) for part in key])
    digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "little")))


def mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64, uint64 to uint64: a bijection in which each input bit reaches each output bit."""
    with np.errstate(over="ignore"):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


def hashed(key: int, index: np.ndarray) -> np.ndarray:
    """64 random bits for each number, uint64. key: 64 bits, e.g. of `digest64`. index: whole numbers, at least 0."""
    return mixed(mixed(index.astype(np.uint64) ^ np.uint64(key)) ^ np.uint64(key >> 1))


def digest64(*key: int | str) -> int:
    """64 bits of hash for this key, as an integer in [0, 2^64)."""
    text = json.dumps([part if isinstance(part, str) else operator.index(part) for part in key])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
