"""The background selective whitening loss L_w of time-lapse deraining (Cho et al., IEEE TIP 2022, eqs. 10 to 13)."""

import torch
from torch import Tensor

from jobs.models.collective import all_gather, rank
from jobs.models.kmeans import kmeans

RIDGE = 1e-5  # what the release adds to each variance


def selective_whitening(
    q_v: Tensor, q_w: Tensor, clusters: int = 4, lowest: int = 2, *, diagonal: bool = False
) -> Tensor:
    """L_w: (B, C, H, W) InstanceNorm'd queries of two frames -> (B,).

    The covariances that hardly change between the frames are the background's: the `lowest` of the `clusters` of their
    variances, for each sample by itself. Their mean absolute value is the loss. The mask has no gradient.
    diagonal: of the whole matrices, instead of the strict upper triangle. After InstanceNorm the diagonal is a constant.
    """
    S_v, S_w = covariances(q_v), covariances(q_w)
    with torch.no_grad():
        V, i, j, counts = variances(S_v, S_w, diagonal)
        mask = torch.zeros_like(S_v)
        mask[:, i, j] = (kmeans(V, clusters, counts) < lowest) * counts  # eq. 12
    return (mask * (S_v.abs() + S_w.abs())).sum((1, 2)) / (2 * mask.sum((1, 2)))


def batch_whitening(
    q_v: Tensor, q_w: Tensor, true: Tensor, clusters: int = 50, lowest: int = 1, *, diagonal: bool = True
) -> Tensor:
    """The released L_w: as selective_whitening, with the variances of the global batch in one clustering.

    true: bool (B,), False for padding, which counts in no cluster. A sample's sum over both frames is divided by the number
    of entries that the mask has in the whole batch, so that the mean over B samples is 2/B of the mean absolute covariance.
    With the diagonal the release clusters the whole matrices, and masks and counts their upper triangles.
    """
    S_v, S_w = covariances(q_v), covariances(q_w)
    with torch.no_grad():
        V, i, j, counts = variances(S_v, S_w, diagonal)
        counts = counts * true[:, None]
        # All ranks cluster the values of all of them, and get the same.
        everywhere = all_gather(torch.stack((V, counts))).transpose(0, 1).flatten(1)  # (2, W B n)
        low = (kmeans(everywhere[:1], clusters, everywhere[1:]) < lowest) & (everywhere[1:] > 0)
        mask = torch.zeros_like(S_v)
        mask[:, i, j] = low.view(-1, *V.shape)[rank()].to(V.dtype)
        entries = low.sum().clamp_min(1)
    if diagonal:
        S_v, S_w = (S + RIDGE * torch.eye(S.shape[1], dtype=S.dtype, device=S.device) for S in (S_v, S_w))
    return (mask * (S_v.abs() + S_w.abs())).sum((1, 2)) / entries


def covariances(q: Tensor) -> Tensor:
    """(B, C, H, W), of mean 0 -> (B, C, C)."""
    q = q.flatten(2)
    return q @ q.mT / (q.shape[2] - 1)


def variances(S_v: Tensor, S_w: Tensor, diagonal: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 11 for two (B, C, C): (B, n), the rows and columns (n,) of its n entries, and how often each counts (B, n).

    With the diagonal that is how often it stands in the matrix; without it, once.
    """
    i, j = torch.triu_indices(S_v.shape[1], S_v.shape[1], 0 if diagonal else 1, device=S_v.device)
    V = (S_v - S_w).square()[:, i, j] / 4  # both deviations from the mean are half the difference
    counts = 2 - (i == j).to(V.dtype) if diagonal else torch.ones_like(V[0])
    return V, i, j, counts.expand_as(V)
