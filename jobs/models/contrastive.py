"""The ratio of distances that the papers' contrastive losses share (AECR-Net; Wu et al., CVPR 2021)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from jobs.models.collective import all_gather

EPS = 1e-7  # AECR-Net's, added to the denominator

Over = Literal["sample", "batch"]


def ratio(
    positive: Sequence[Tensor], negative: Sequence[Tensor], omega: Sequence[float], weight: Tensor, over: Over
) -> Tensor:
    """sum_l omega_l positive_l / (negative_l + eps) for each sample: (B,), in the distances' dtype.

    positive, negative: for each layer the samples' distances (B,) from the anchor, such as `vgg.distance`; of several negatives
    a weighted sum. omega: the layers' weights. weight: (B,), 1 for samples that have such a term and 0 for the others (padding,
    or a sample without a negative), whose value is 0.
    over: sample: the ratio of each sample's own distances, so that a sample near its negative, such as a crop without
        degradation, has a small denominator and with it most of the gradient. batch: the ratio of the means over the batch, as
        AECR-Net's L1 losses have it, in which a distance moves the loss equally whichever sample it is of. The means are over
        all ranks, by a collective that every rank must enter, and every sample has the ratio as its value.

    In both the mean over the samples with weight 1 is the loss, and its gradient that of the mean: of `batch` to first order,
    which needs no gradient to cross the ranks. The mean over ranks of sum(weight * ratio) / (N / W), with N samples over W ranks,
    does not depend on W.
    """
    d_p, d_n = torch.stack(list(positive)), torch.stack(list(negative))  # (L, B)
    omegas = d_p.new_tensor(omega)
    taken = weight > 0
    if over == "batch":
        means_p, means_n = _means(d_p.detach(), d_n.detach(), taken)  # (L, 1)
        value = means_p / (means_n + EPS)
        # Zeros with the gradient of d(p / n) = dp / n - p dn / n^2 in the means, of which each sample is an equal part.
        change = (d_p - d_p.detach()) / (means_n + EPS) - value * (d_n - d_n.detach()) / (means_n + EPS)
        ratios = value + change
    else:
        ratios = d_p / (d_n + EPS)
    return torch.where(taken, (omegas[:, None] * ratios).sum(0), 0)


def _means(d_p: Tensor, d_n: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The means of each layer's distances over the samples that are taken, of all ranks: (L, 1) twice.

    A sample whose distances are not finite has a ratio that is not, too, and spoils no other's, so that it can be told.
    """
    finite = (d_p.isfinite() & d_n.isfinite()).all(0)
    kept = torch.where(taken & finite, torch.cat((d_p, d_n, torch.ones_like(d_p[:1]))), 0)  # (2L + 1, B)
    sums = all_gather(kept.sum(1)).sum(0)
    means = sums[:-1, None] / sums[-1].clamp_min(1)
    return means[: len(d_p)], means[len(d_p) :]
