"""The symmetry of the square: a patch in its 8 views, one at a time or many small ones at once."""

import cv2
import numpy as np

# A view is the patch upside down or not; then as it is (0), mirrored (1), transposed (2), or mirrored and transposed (3).
UPSIDE_DOWN = np.array([False, False, True, True, False, False, True, True])


TURNED = np.array([0, 3, 1, 2, 1, 2, 0, 3])


def turn(patch: np.ndarray, view: int, out: np.ndarray) -> None:
    """Write `dihedral` of a square patch, 8 or 16 bits (p, p, C), into `out` of its shape; much faster for colour."""
    if view == 0:
        out[...] = patch
    elif view < 4:
        cv2.rotate(patch, (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)[view - 1], out)
    elif view == 4:
        cv2.flip(patch, 1, out)
    elif view == 5:
        cv2.transpose(patch, out)
    elif view == 6:
        cv2.flip(patch, 0, out)
    else:
        cv2.flip(cv2.transpose(patch), -1, out)


def gather(
    mapped: dict[int, np.ndarray],
    shards: np.ndarray,
    begin: np.ndarray,
    line: np.ndarray,
    view: np.ndarray,
    out: np.ndarray,
) -> None:
    """`turn` of many small grey patches at once, without a call for each.

    mapped: the bytes of the shards. For each patch, (k,): its shard, where its first pixel lies there, the bytes from one of
    its rows to the next, and its view. out: 8 or 16 bits, (k, p, p).
    """
    p = out.shape[1]
    row = np.arange(p)
    order = np.where(UPSIDE_DOWN[view][:, None], row[::-1], row)
    starts = begin[:, None] + order * line[:, None]
    # A row of p pixels is one item of an array that begins anew at every byte.
    width = p * out.itemsize
    target = np.ndarray(out.shape[:2], f"V{width}", out, strides=out.strides[:2])
    for shard, source in mapped.items():
        rows = np.ndarray((len(source) - width + 1,), f"V{width}", source, strides=(1,))
        if len(mapped) == 1:
            target[...] = rows[starts]
        else:
            here = np.flatnonzero(shards == shard)
            target[here] = rows[starts[here]]
    rest = TURNED[view]
    here = np.flatnonzero(rest == 1)
    out[here] = out[here][:, :, ::-1]
    here = np.flatnonzero(rest == 2)
    out[here] = out[here].swapaxes(1, 2)
    here = np.flatnonzero(rest == 3)
    out[here] = out[here][:, :, ::-1].swapaxes(1, 2)
