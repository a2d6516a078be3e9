"""An image through a network in pieces, so that the memory of a large one is bounded.

If a network says how far it sees, its tiles overlap by that much, and the result is that of the whole image. If its
statistics are those of its whole input, the result in tiles is another, whatever the tiles; there are three ways:
one piece (the papers' protocol for most sets), the tiles of a release (`restore_grid`), and tiles that are blended where
they overlap (`restore_blended`), for images too large for the memory.
"""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from jobs.models import Network

TILE = 256  # pixels a side that go through a network at once, which is quickest on a CPU's caches
OVERLAP = 64  # pixels over which one blended tile passes into the next
WHOLE = 640 * 640  # pixels of the largest image that a network with global statistics takes as one piece

GPU = threading.Lock()  # which has room for one piece at a time

Part = tuple[int, int, int, int]  # of an image: top, bottom, left, right
Watch = Callable[[Sequence[Any]], Iterable[Any]]  # sees the pieces of an image go by: a progress bar, or `iter`


def is_global(model: Network) -> bool:
    """Whether a model's result depends on statistics of its whole input."""
    return model.receptive_field is None


def in_blended_tiles(model: Network, height: int, width: int) -> bool:
    """Whether `restore_plane` takes an image of this size in blended tiles."""
    return is_global(model) and height * width > WHOLE


def restore_plane(model: Network, plane: np.ndarray, *, whole: bool = False, watch: Watch = iter) -> np.ndarray:
    """Restore a plane, float32 (H, W, C) in [0, 1]; the result has the same shape and is not clipped.

    whole: take it as one piece if the model's statistics are global, whatever memory that needs. Otherwise a plane of more
    than WHOLE pixels is restored in blended tiles.
    """
    if not is_global(model):
        return restore_tiled(model, plane, watch=watch)
    if whole or not in_blended_tiles(model, *plane.shape[:2]):
        return _piece(model, plane)
    return restore_blended(model, plane, watch=watch)


def restore_tiled(model: Network, plane: np.ndarray, tile: int = TILE, *, watch: Watch = iter) -> np.ndarray:
    """Restore a plane, as in `restore_plane`, tile by tile: the same values as in one piece, up to rounding in float32.

    Tiles overlap by half the model's receptive field, and begin at multiples of its `size_multiple`. A tile has `tile`
    pixels a side with its overlap; more only for a model that sees so far that the overlap would be most of it.
    """
    H, W = plane.shape[:2]
    field, multiple = model.receptive_field, model.size_multiple
    assert field is not None
    if max(H, W) <= tile:
        return _piece(model, plane)
    halo = -(-(field // 2) // multiple) * multiple
    core = max((tile - 2 * halo) // multiple, 3 * halo // multiple, 1) * multiple
    output = np.empty_like(plane)
    for top, bottom, left, right in watch(_parts(range(0, H, core), range(0, W, core), core, H, W)):
        y, x = max(top - halo, 0), max(left - halo, 0)
        piece = _piece(model, plane[y : bottom + halo, x : right + halo])
        output[top:bottom, left:right] = piece[top - y : bottom - y, left - x : right - x]
    return output


def restore_blended(
    model: Network, plane: np.ndarray, tile: int = TILE, overlap: int = OVERLAP, *, watch: Watch = iter
) -> np.ndarray:
    """Restore a plane, as in `restore_plane`, in tiles that are images of their own and pass linearly into each other.

    Tiles of `tile` pixels a side, spread evenly, overlap by `overlap` or more; a side shorter than a tile is taken whole.
    """
    H, W = plane.shape[:2]
    rows, columns = (_spread(side, tile, overlap) for side in (H, W))
    down, across = _shares(rows, tile, H, overlap), _shares(columns, tile, W, overlap)
    output = np.zeros_like(plane)
    for top, bottom, left, right in watch(_parts(rows, columns, tile, H, W)):
        piece = _piece(model, plane[top:bottom, left:right])
        piece *= (down[top][:, None] * across[left])[..., None]
        output[top:bottom, left:right] += piece
    return output


def restore_grid(model: Network, plane: np.ndarray, tile: int) -> np.ndarray:
    """Restore a plane, as in `restore_plane`, in tiles that are images of their own; overlaps get their mean.

    The fewest tiles of `tile` pixels a side cover the image, spread evenly; a side shorter than a tile is taken whole.
    Source: `grids` in the releases of HINet and DRCNet.
    """
    H, W = plane.shape[:2]
    total, count = np.zeros_like(plane), np.zeros((H, W, 1), np.float32)
    for top, bottom, left, right in _parts(_starts(H, tile), _starts(W, tile), tile, H, W):
        total[top:bottom, left:right] += restore_plane(model, plane[top:bottom, left:right], whole=True)
        count[top:bottom, left:right] += 1
    return total / count


@torch.inference_mode()
def _piece(model: Network, plane: np.ndarray) -> np.ndarray:
    """Restore a plane, as in `restore_plane`, at once."""
    lq = torch.from_numpy(np.ascontiguousarray(plane.transpose(2, 0, 1)))[None]  # (1, C, H, W)
    device = next(model.parameters()).device
    with nullcontext() if device.type == "cpu" else GPU:
        return model.restore(lq.to(device)).cpu()[0].permute(1, 2, 0).numpy()


def _parts(rows: Iterable[int], columns: Sequence[int], side: int, H: int, W: int) -> list[Part]:
    """The tiles that begin at these rows and columns."""
    return [(top, min(top + side, H), left, min(left + side, W)) for top in rows for left in columns]


def _starts(side: int, tile: int) -> list[int]:
    """Where the tiles that cover `side` pixels begin; the last one ends with them."""
    gaps = (side - 1) // tile
    step = math.ceil((side - tile) / gaps) if gaps else 0
    return [min(i * step, side - tile) for i in range(gaps)] + [max(side - tile, 0)]


def _spread(side: int, tile: int, overlap: int) -> list[int]:
    """Where the tiles begin that cover `side` pixels and overlap by at least `overlap` pixels."""
    gaps = max(math.ceil((side - tile) / (tile - overlap)), 0)
    return [(side - tile) * i // gaps for i in range(gaps)] + [max(side - tile, 0)]


def _shares(starts: list[int], tile: int, side: int, overlap: int) -> dict[int, np.ndarray]:
    """The share of a tile's pixels in the result, by where the tile begins along a side: shares add up to 1 everywhere."""
    size = min(tile, side)
    edge = (np.arange(size, dtype=np.float32) + 0.5).clip(None, overlap)  # rises over the overlap, and is level then
    total = np.zeros(side, np.float32)
    shares = {}
    for start in starts:
        share = np.full(size, np.float32(overlap))
        if start > 0:
            share = np.minimum(share, edge)
        if start + size < side:
            share = np.minimum(share, edge[::-1])
        shares[start] = share
        total[start : start + size] += share
    return {start: share / total[start : start + size] for start, share in shares.items()}
