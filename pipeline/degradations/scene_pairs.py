"""Which two frames of a time-lapse scene make a sample."""

import itertools
from collections.abc import Sequence
from typing import Literal

from pipeline.keyed import digest64


def scene_pairs(
    frames: Sequence[str], number: int | Literal["all"] = "all", *, seed: int = 0, scene: str = ""
) -> list[tuple[int, int]]:
    """Pairs (v, w), v < w, of positions in `frames`, ascending: all T (T - 1) / 2 of a scene of T frames, or so many of them.

    Which of the two is read first is not stored: the loader draws it in each epoch.

    frames: what each frame is known by, e.g. its sha256. A pair is drawn by the hash of its own two frames (rendezvous
    hashing), so that a frame that comes or goes changes no pair but its own and those that it displaces.
    """
    pairs = list(itertools.combinations(range(len(frames)), 2))
    if number == "all" or number >= len(pairs):
        return pairs
    rank = {(v, w): digest64("pair", seed, scene, *sorted((frames[v], frames[w]))) for v, w in pairs}
    return sorted(sorted(pairs, key=lambda pair: (rank[pair], pair))[:number])
