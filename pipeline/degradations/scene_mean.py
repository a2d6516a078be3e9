"""The pseudo ground truth of a time-lapse scene, which the baselines B_a and B_b of Cho et al. (TIP 2022) learn from."""

from collections.abc import Sequence

import numpy as np


def scene_mean(frames: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of a scene's frames, rounded half up; frames and result: uint8, or uint16, of one shape (H, W, C).

    Computed in integers: the order of the frames does not matter. Raises ValueError without frames, and for several shapes
    or dtypes.
    """
    if len({(frame.shape, frame.dtype) for frame in frames}) != 1:
        raise ValueError(
            f"frames of shapes {[frame.shape for frame in frames]}: one or more, all of one shape and dtype"
        )
    total = np.zeros(frames[0].shape, np.uint64 if frames[0].dtype.itemsize > 1 else np.uint32)
    for frame in frames:
        total += frame
    return ((2 * total + len(frames)) // (2 * len(frames))).astype(frames[0].dtype)
