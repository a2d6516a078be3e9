"""Which scenes of a data set, and which frames of a scene, a task takes. Each is drawn by its own hash (rendezvous hashing):
one that is added or removed displaces one other at most.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from pipeline.keyed import digest64


def chosen_scenes(scenes: Mapping[str, str | None], number: int, *, seed: int = 0) -> set[str]:
    """So many of the scenes, or all if there are no more, of as many videos as there are.

    scenes: the video that each was cut from; None if it is one by itself. No video has a second scene among them before
    each has its first one.
    """
    rank = {scene: digest64("scene", seed, scene) for scene in scenes}
    ahead: Counter[str] = Counter()  # scenes of the same video that come before
    order: list[tuple[int, int, str]] = []
    for scene in sorted(scenes, key=lambda scene: (rank[scene], scene)):
        video = scenes[scene]
        order.append((0 if video is None else ahead[video], len(order), scene))
        if video is not None:
            ahead[video] += 1
    return {scene for _, _, scene in sorted(order)[:number]}


def chosen_frames(frames: Sequence[str], number: int, *, seed: int = 0, scene: str = "") -> list[int]:
    """The positions, ascending, of so many of a scene's frames, or of all if there are no more.

    frames: a name for each frame, e.g. its sha256.
    """
    order = sorted(range(len(frames)), key=lambda i: (digest64("frame", seed, scene, frames[i]), i))
    return sorted(order[:number])
