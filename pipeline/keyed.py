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


def digest64(*key: int | str) -> int:
    """64 bits of hash for this key, as an integer in [0, 2^64)."""
    text = json.dumps([part if isinstance(part, str) else operator.index(part) for part in key])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
