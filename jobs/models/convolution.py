"""Convolutions whose weights' gradients are computed in the layout that is quicker for them on a CPU.

oneDNN's AVX2 kernels compute a weight's gradient of large maps up to four times as fast in torch's usual layout as in channels_last,
in which all else is as fast or faster. So maps and gradients are copied for it; a copy costs a twentieth of what it saves.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LARGE = 96 * 96  # pixels of a map from which on the copies pay
SLOW = torch.backends.cpu.get_cpu_capability() == "AVX2"  # with AVX-512 the copies cost more than they save


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: int = 1, padding: int = 0) -> Tensor:
    """F.conv2d, without groups and dilation."""
    apart = (
        _apart(x, weight) and weight.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    )
    if not apart:
        return F.conv2d(x, weight, bias, stride, padding)
    return _Convolution.apply(x, weight, bias, stride, padding)


def _apart(x: Tensor, weight: Tensor) -> bool:
    """Whether the weight's gradient is quicker in torch's usual layout."""
    return (
        SLOW
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.shape[2] * x.shape[3] >= LARGE
        and weight.shape[2] > 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def convolution_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: list[int] | None,
    stride: int,
    padding: int,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, those that are wanted. bias: its shape, None if there is none."""
    backward = torch.ops.aten.convolution_backward
    rest = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1)
    of_x, of_weight, of_bias = wanted[0], wanted[1], wanted[2] and bias is not None
    if not (of_weight and _apart(x, weight)):
        return tuple(backward(grad, x, weight, bias, *rest, [of_x, of_weight, of_bias]))
    d_x = backward(grad, x, weight, bias, *rest, [True, False, False])[0] if of_x else None
    usual = [each.contiguous() for each in (grad, x, weight)]
    _, d_weight, d_bias = backward(*usual, bias, *rest, [False, True, of_bias])
    return d_x, d_weight, d_bias


class Conv2d(nn.Conv2d):
    """nn.Conv2d, without groups and dilation, by `conv2d`."""

    def forward(self, x: Tensor) -> Tensor:
        return conv2d(x, self.weight, self.bias, self.stride[0], int(self.padding[0]))


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, stride, padding):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, weight)
        ctx.rest = None if bias is None else list(bias.shape), stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        x, weight = ctx.saved_tensors
        bias, stride, padding = ctx.rest
        return *convolution_backward(grad, x, weight, bias, stride, padding, ctx.needs_input_grad[:3]), None, None
