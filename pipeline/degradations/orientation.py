"""The 8 views of a square, and which of them a degraded image may be turned to."""

from collections.abc import Iterable
from typing import Literal

import numpy as np

# Which views of a degraded image are what the degradation would have made of that view of the clean one: all 8; those
# that keep rows rows (as it is, both mirror images, the half turn); the half turn; none but the image as it is.
Turns = Literal["all", "flips", "half turn", "none"]

# For each of the 8 views, the first one that has its artefacts.
MADE: dict[Turns, tuple[int, ...]] = {
    "all": (0, 0, 0, 0, 0, 0, 0, 0),
    "flips": (0, 1, 0, 1, 0, 1, 0, 1),
    "half turn": (0, 1, 0, 1, 4, 5, 4, 5),
    "none": (0, 1, 2, 3, 4, 5, 6, 7),
}


def dihedral(patch: np.ndarray, view: int) -> np.ndarray:
    """One of the 8 views of (H, W, C): view % 4 quarter turns, mirrored left to right first from 4 on."""
    return np.rot90(patch[:, ::-1] if view >= 4 else patch, view % 4)


def upright(patch: np.ndarray, view: int) -> np.ndarray:
    """What `dihedral` made this view of."""
    patch = np.rot90(patch, -(view % 4))
    return patch[:, ::-1] if view >= 4 else patch


def fewest(turns: Iterable[Turns]) -> Turns:
    """What several degradations, one after another, leave of their turns: each kind of turns contains those after it."""
    order = list(MADE)
    return order[max(map(order.index, turns), default=0)]


def apart(turns: Turns) -> tuple[int, ...]:
    """The views whose artefacts differ: 0, and those that need a degraded image of their own."""
    return tuple(sorted(set(MADE[turns])))
