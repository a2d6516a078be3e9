"""BatchNorm over the global batch, on CPU (gloo) and GPU alike: torch's SyncBatchNorm refuses CPU tensors.

The statistics of a tensor are a value of their own, so that the layers that normalise the same tensor (in MemNet up to
M + 1 of them) share them: one collective forward and one backward for each tensor, not for each layer.

Running averages are bias-corrected, as Caffe's are: see `BatchNorm2d`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from jobs.models.collective import all_gather, world_size
from jobs.models.fp32 import exact


class Statistics(NamedTuple):
    """A tensor's (N, C, H, W) statistics over (N, H, W) of all ranks: mean (C,), biased variance (C,), elements a channel.

    of_rank: they are of this rank's elements alone. Then they are constants to autograd, and what normalises with them gives all
    of the gradient, as one fused kernel does; else their own gradient needs an exchange, and is theirs to give.
    """

    mean: Tensor
    var: Tensor
    elements: int
    of_rank: bool


def batch_statistics(x: Tensor, eps: float = 1e-5, *, of_rank: bool = False) -> Statistics:
    """Mean and variance of x (N, C, H, W) over the global batch: float32 (float64 for float64), differentiable once.

    Every rank must hold equally many elements: the ranks' means are averaged as they are. of_rank: over this rank's part alone.
    """
    ranks = 1 if of_rank else world_size()
    elements = x.numel() // x.shape[1] * ranks
    if ranks > 1:
        mean, var = _Statistics.apply(x, eps, ranks)
    else:
        with torch.no_grad():
            mean, var = _of_rank(x, eps)
    return Statistics(mean, var, elements, of_rank=ranks == 1)


def _of_rank(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    if x.device.type == "cpu":
        return torch.batch_norm_update_stats(exact(x), None, None, 0.0)
    # torch's fused kernel; given float32 affine parameters it keeps float32 statistics of a bfloat16 tensor too.
    one = x.new_ones(x.shape[1], dtype=torch.promote_types(x.dtype, torch.float32))
    _, mean, rstd = torch.native_batch_norm(x, one, one, None, None, True, 0.0, eps)
    return mean, (rstd.pow(-2) - eps).clamp_min(0)


class _Statistics(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, eps, ranks):  # type: ignore[no-untyped-def]
        means, variances = all_gather(torch.stack(_of_rank(x, eps))).unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        ctx.save_for_backward(x, mean)
        ctx.ranks = ranks
        return mean, var

    @staticmethod
    @once_differentiable
    def backward(ctx, d_mean, d_var):  # type: ignore[no-untyped-def]
        x, mean = ctx.saved_tensors
        grads = all_gather(torch.stack((d_mean, d_var))).sum(0)  # every rank's loss depends on these statistics
        d_mean, d_var = grads / (x.numel() // x.shape[1] * ctx.ranks)
        scale = 2 * d_var
        shift = d_mean - scale * mean
        return torch.addcmul(shift.view(1, -1, 1, 1), x, scale.view(1, -1, 1, 1)).to(x.dtype), None, None


def normalise_backward(
    grad: Tensor, x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, eps: float, *, of_rank: bool
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
    """The gradients of x, mean, var, gamma and beta of F.batch_norm with these statistics; of_rank: as `Statistics`."""
    rstd = (var + eps).rsqrt()
    d_x, d_gamma, d_beta = torch.ops.aten.native_batch_norm_backward(
        grad, x, gamma, mean, var, mean, rstd, of_rank, eps, [True, True, True]
    )
    if of_rank:
        return d_x, None, None, d_gamma, d_beta
    return d_x, -gamma * rstd * d_beta, -0.5 * gamma * rstd.square() * d_gamma, d_gamma, d_beta


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, gamma, beta, eps, of_rank):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, mean, var, gamma)
        ctx.eps, ctx.of_rank = eps, of_rank
        return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, mean, var, gamma = ctx.saved_tensors
        return *normalise_backward(grad, x, mean, var, gamma, ctx.eps, of_rank=ctx.of_rank), None, None


class BatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d with the training statistics of the global batch; same parameters, buffers and eval mode.

    The running averages weigh the batch before last (1 - momentum) times as much as the last one, and so on, and their
    weights sum to 1 from the first batch on. Caffe keeps the sum of the batches' and that of their weights, and divides in
    eval mode; here the buffers hold the quotient. nn.BatchNorm2d counts its initial 0 and 1 in: with a momentum of 0.001, they
    are 77 % of the averages after 263 batches.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float
    of_rank = False  # whether the statistics are of this rank's samples alone; the running averages then differ

    def forward(self, x: Tensor, statistics: Statistics | None = None) -> Tensor:
        """Normalise x (N, C, H, W). statistics: x's, if the caller has them already; used in training only."""
        return self.part(x, 0, statistics)

    def part(self, x: Tensor, start: int, statistics: Statistics | None = None) -> Tensor:
        """Normalise x (N, c, H, W) by the layer's channels from `start` on.

        BatchNorm of a concatenation is the BatchNorm of its parts: the concatenation need not be built.
        """
        stop = start + x.shape[1]
        gamma, beta = self.weight[start:stop], self.bias[start:stop]
        running_mean, running_var = self.running_mean[start:stop], self.running_var[start:stop]
        if not self.training:
            return F.batch_norm(x, running_mean, running_var, gamma, beta, False, 0.0, self.eps)
        if statistics is None and (self.of_rank or world_size() == 1):
            # The tensor is this layer's alone: statistics and result in one go, and one backward pass for both.
            out, mean, rstd = torch.native_batch_norm(x, gamma, beta, None, None, True, 0.0, self.eps)
            var, elements = (rstd.detach().pow(-2) - self.eps).clamp_min(0), x.numel() // x.shape[1]
            statistics = Statistics(mean, var, elements, of_rank=True)
        else:
            statistics = statistics or batch_statistics(x, self.eps)
            out = _Normalise.apply(x, statistics.mean, statistics.var, gamma, beta, self.eps, statistics.of_rank)
        self.track(statistics, start)
        return out

    @torch.no_grad()
    def track(self, statistics: Statistics, start: int = 0) -> None:
        """Take a tensor's statistics into the running averages of the channels from `start` on."""
        mean, var, elements, _ = statistics
        part = slice(start, start + len(mean))
        if start == 0:
            self.num_batches_tracked.add_(1)
        weight = self._newest_weight()
        self.running_mean[part].lerp_(mean, weight)
        self.running_var[part].lerp_(var * (elements / max(elements - 1, 1)), weight)

    def _newest_weight(self) -> Tensor:
        """The weight of batch t, the newest, in the running averages: momentum / (1 - (1 - momentum)^t), so 1 for t = 1."""
        older = (1 - self.momentum) ** self.num_batches_tracked.double()
        return (self.momentum / (1 - older)).to(self.running_mean.dtype)
