"""Images of any size for networks that halve their sides."""

import torch
from torch import Tensor


def mirrored(x: Tensor, multiple: int, least: int = 1) -> Tensor:
    """x (B, C, H, W) with its right and lower border mirrored, up to sides that are multiples of `multiple`.

    least: sides get at least this many pixels, whatever x has; where the image is used up, it is mirrored again. The
    border's own row or column is not repeated, unless it is the only one.
    """
    for dim in (2, 3):
        side = x.shape[dim]
        wanted = -(-max(side, least) // multiple) * multiple
        if wanted > side:
            x = x.index_select(dim, _mirror(side, wanted, x.device))
    return x


def _mirror(side: int, wanted: int, device: torch.device) -> Tensor:
    """The position, out of `side`, that is shown at each of `wanted` positions."""
    at = torch.arange(wanted, device=device) % max(2 * side - 2, 1)
    return torch.minimum(at, 2 * side - 2 - at) if side > 1 else at
