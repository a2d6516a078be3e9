"""The pre-activated convolution: BatchNorm, ReLU and convolution in one, of which the backward pass needs the input alone.

What lies between them would be kept for each of them: of MemNet's maps those are two of three. Computing them again takes as
long as writing them did.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jobs.models.batchnorm import BatchNorm2d, Statistics, batch_statistics, normalise_backward
from jobs.models.convolution import conv2d, convolution_backward


def preactivated(
    bn: BatchNorm2d,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    statistics: Statistics | None = None,
    start: int = 0,
) -> Tensor:
    """The convolution of relu(bn(x)) of x (B, c, H, W) with weight (d, c, k, k) and bias: (B, d, H, W), stride 1, k odd.

    statistics: of x, if the caller has them already; used in training only. start: x has the channels of `bn` from there on, if it
    has fewer; the convolutions of such parts add up to that of the whole, which need not be built.
    """
    padding = weight.shape[2] // 2
    if not bn.training:
        return conv2d(F.relu(bn.part(x, start), inplace=True), weight, bias, padding=padding)
    statistics = statistics or batch_statistics(x, bn.eps, of_rank=bn.of_rank)
    bn.track(statistics, start)
    part = slice(start, start + x.shape[1])
    gamma, beta = (each if x.shape[1] == bn.num_features else each[part] for each in (bn.weight, bn.bias))
    mean, var, _, of_rank = statistics
    return _Preactivated.apply(x, mean, var, gamma, beta, weight, bias, bn.eps, padding, of_rank)


def _active(x: Tensor, mean: Tensor, var: Tensor, gamma: Tensor, beta: Tensor, eps: float) -> Tensor:
    return F.batch_norm(x, mean, var, gamma, beta, False, 0.0, eps).relu_()


class _Preactivated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, var, gamma, beta, weight, bias, eps, padding, of_rank):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, mean, var, gamma, beta, weight)
        ctx.bias = None if bias is None else list(bias.shape)
        ctx.rest = eps, padding, of_rank
        return F.conv2d(_active(x, mean, var, gamma, beta, eps), weight, bias, 1, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, mean, var, gamma, beta, weight = ctx.saved_tensors
        eps, padding, of_rank = ctx.rest
        active = _active(x, mean, var, gamma, beta, eps).to(grad.dtype)
        d_active, d_weight, d_bias = convolution_backward(
            grad,
            active,
            weight.to(grad.dtype),
            ctx.bias,
            1,
            padding,
            (True, ctx.needs_input_grad[5], ctx.needs_input_grad[6]),
        )
        d_active = torch.ops.aten.threshold_backward(d_active, active, 0).to(x.dtype)
        of_x = normalise_backward(d_active, x, mean, var, gamma, eps, of_rank=of_rank)
        narrow = (None if each is None else each.to(weight.dtype) for each in (d_weight, d_bias))
        return *of_x, *narrow, None, None, None
