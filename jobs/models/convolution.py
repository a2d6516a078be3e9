"""Convolutions whose weights' gradients are computed in the layout that is quicker for them on a CPU.

oneDNN's AVX2 kernels compute a weight's gradient of large maps up to four times as fast in torch's usual layout as in channels_last,
in which all else is as fast or faster. So maps and gradients are copied for it; a copy costs a twentieth of what it saves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 96 * 96  # pixels of a map from which on the copies pay


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """F.conv2d, without groups and dilation."""
    apart = (
        x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[2] * x.shape[3] >= LARGE
        and weight.requires_grad
        and weight.shape[2] > 1
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and x.is_contiguous(memory_format=torch.channels_last)
    )
    if not apart:
        return F.conv2d(x, weight, bias, stride, padding)
    return _Convolution.apply(x, weight, bias, stride, padding)


class Conv2d(nn.Conv2d):
    """nn.Conv2d, without groups and dilation, by `conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.rest = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
        ctx.bias = None if bias is None else list(bias.shape)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        backward = torch.ops.aten.convolution_backward
        d_x = d_weight = d_bias = None
        if ctx.needs_input_grad[0]:
            d_x = backward(grad, x, weight, ctx.bias, *ctx.rest, [True, False, False])[0]
        if ctx.needs_input_grad[1]:
            usual = [each.contiguous() for each in (grad, x, weight)]
            with_bias = ctx.bias is not None and ctx.needs_input_grad[2]
            _, d_weight, d_bias = backward(*usual, ctx.bias, *ctx.rest, [False, True, with_bias])
        return d_x, d_weight, d_bias, None, None
