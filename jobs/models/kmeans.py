"""k-means in one dimension at its optimum: dynamic programming over the sorted values, the same on every device.

With the values in order, clusters are intervals. D_k(m), the least cost of the first m values in k clusters, is the least
D_{k-1}(j) + cost(j, m) over j, and the best j never falls as m grows (Wu, Optimal quantization by matrix searching, 1991):
the best j of every FAN-th m confines those between them. A layer of n values takes about FAN n log_FAN(n) costs instead of
n² / 2. Lloyd's iteration ends in whichever local optimum its first centroids lead to: with 50 clusters, whose first one is
what the released whitening loss whitens, at up to 126 times the least cost.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LARGEST = 1e100  # of which float64 holds sums of squares
FAN = 16  # of m in one refinement: few steps, for each is some kernels of a GPU


@torch.no_grad()
def kmeans(values: Tensor, clusters: int, weight: Tensor | None = None) -> Tensor:
    """The cluster (B, n) of each value (B, n), row by row; cluster 0 has the lowest centroid.

    weight: (B, n), how often each value counts, 0 or more, in whole numbers; once by default. The sum of squared distances
    to the centroids is the least there is, but for the rounding of float64 sums. NaN counts as 0. Equal values are in one cluster; as many
    distinct values as clusters, or fewer, are a cluster each. No randomness, no order of sums that a device may choose, no
    round trip to the CPU.
    """
    ordered, order = values.double().nan_to_num().clamp(-LARGEST, LARGEST).sort(dim=1)
    # number of each value among the distinct ones, which have slots; those left over at the end weigh nothing
    number = F.pad((ordered[:, 1:] > ordered[:, :-1]).long().cumsum(1), (1, 0))
    counts = torch.ones_like(ordered) if weight is None else weight.double().gather(1, order)
    slots = torch.zeros_like(ordered)
    w, x = slots.scatter_add(1, number, counts), slots.scatter(1, number, ordered)
    x = (x - ordered[:, :1]).clamp_min(0)  # sums of the lowest values, which are the loss's, are then the most exact
    sums = _prefix_sums(torch.stack((w, w * x, w * x * x), 1))
    label = _intervals(sums, clusters).gather(1, number)
    label = torch.where(number[:, -1:] < clusters, number, label)
    return torch.empty_like(number).scatter(1, order, label)


def _prefix_sums(x: Tensor) -> Tensor:
    """(B, 3, n) -> (B, 3, n + 1): sums of the first 0, 1, ..., n. torch's own cumsum of a GPU may add up in any order."""
    step = 1
    while step < x.shape[-1]:
        x = x + F.pad(x, (step, 0))[..., :-step]
        step *= 2
    return F.pad(x, (1, 0))


def _cost(start: Tensor, end: Tensor) -> Tensor:
    """The sum of squared distances to their mean of the values between two prefix sums (B, 3, ...): (B, ...)."""
    w, x, xx = (end - start).unbind(1)
    return xx - x * x / w.clamp_min(1)  # whole numbers: below 1 is none


def _intervals(sums: Tensor, clusters: int) -> Tensor:
    """The cluster (B, n) of each of n ordered values, of their prefix sums (B, 3, n + 1)."""
    n = sums.shape[-1] - 1
    least = _cost(sums[..., :1], sums)  # D_1
    starts = []  # of the last cluster, for each m
    for _ in range(clusters - 2):
        least, start = _layer(least, sums)
        starts.append(start)
    end = torch.full_like(starts[0][:, :1] if starts else least[:, :1].long(), n)
    first = torch.zeros_like(sums[:, 0, :n], dtype=torch.long)
    if clusters > 1:  # of the last layer the end alone is asked for
        end = (least[:, :n] + _cost(sums[..., :n], sums[..., n:])).argmin(1, keepdim=True)
        first.scatter_(1, end, 1)
    for start in reversed(starts):
        end = start.gather(1, end)
        first.scatter_(1, end, 1)
    return first.cumsum(1) - first[:, :1]


def _layer(before: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """D_k(m) of D_{k-1}(m), both (B, n + 1), and where the last cluster then starts, the least such j: (B, n + 1).

    sums: prefix sums (B, 3, n + 1).
    """
    B, n = len(before), before.shape[1] - 1
    device = before.device
    stride = 1
    while stride * FAN <= n:
        stride *= FAN
    least = before.new_zeros(B, stride * FAN)  # beyond n there is nothing to be read
    start = torch.zeros_like(least, dtype=torch.long)
    while stride:
        # Between two known m = a the start lies from lo to the next lo: t = j + group numbers all of (group, j).
        a = torch.arange(0, n + 1, stride * FAN, device=device)
        G = len(a)
        t = torch.arange(n - 1 + G, device=device).expand(B, -1).contiguous()
        lo = start[:, a].cummax(1).values  # where costs are equal but for rounding, one may be before the last
        group = torch.searchsorted(lo + torch.arange(G, device=device), t, right=True) - 1
        j = t - group
        fan = torch.arange(1, FAN, device=device)[:, None]
        m = a[group][:, None] + stride * fan  # (B, FAN - 1, T)
        inside = m.clamp_max(n)
        end = sums[:, :, None].expand(-1, -1, FAN - 1, -1).gather(3, inside[:, None].expand(-1, 3, -1, -1))
        begin = sums.gather(2, j[:, None].expand(-1, 3, -1))[:, :, None]
        cost = before.gather(1, j)[:, None] + _cost(begin, end)
        cost = cost.masked_fill((j[:, None] >= m) | (m > n), torch.inf)
        index = group[:, None].expand_as(cost)
        best = cost.new_full((B, FAN - 1, G), torch.inf).scatter_reduce(2, index, cost, "amin")
        at = torch.where(cost == best.gather(2, index), j[:, None], n)
        at = torch.full_like(best, n, dtype=torch.long).scatter_reduce(2, index, at, "amin")
        for found, each in ((best, least), (at, start)):
            each[:, : G * FAN * stride].view(B, G, FAN, stride)[:, :, 1:, 0] = found.mT  # of m = a + stride * fan
        stride //= FAN
    return least[:, : n + 1], start[:, : n + 1]
