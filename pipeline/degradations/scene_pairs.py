"""The choice of the two frames of a time-lapse scene that make a sample."""

import itertools
from collections.abc import Sequence
from typing import Literal

from pipeline.keyed import digest64


def scene_pairs(
    frames: Sequence[str], number: int | Literal["all"] = "all", *, seed: int = 0, scene: str = ""
) -> list[tuple[int, int]]:
    """Pairs (v, w), v < w, of positions in `frames`, ascending: all T (T - 1) / 2 of a scene of T frames, or a given number.

    Which of the two is read first is not stored: the loader draws it in each epoch.

    frames: a name for each frame, e.g. its sha256. A pair is drawn by the hash of its own two frames (rendezvous hashing),
    so a frame that is added or removed changes only its own pairs and those that it displaces.
    """
    pairs = list(itertools.combinations(range(len(frames)), 2))
    if number == "all" or number >= len(pairs):
        return pairs
    rank = {(v, w): digest64("pair", seed, scene, *sorted((frames[v], frames[w]))) for v, w in pairs}
    return sorted(sorted(pairs, key=lambda pair: (rank[pair], pair))[:number])
