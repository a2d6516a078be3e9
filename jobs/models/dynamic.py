"""What DRCNet computes of its convolutions pixel by pixel: functions of autograd that keep their inputs alone.

Everything between would be kept, too: a dozen maps for each module. It is computed again in the backward pass, in float32 at least
and from the closed form of the gradients, which takes fewer passes over the maps than a graph of single operations.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from jobs.models.fp32 import exact

SLOPE = 0.2  # of every LeakyReLU


def region_affine(
    z: Tensor, mask: Tensor, scale: Tensor, offset: Tensor, eps: float, weight: Tensor | None, bias: Tensor | None
) -> Tensor:
    """scale * (weight * normal(z) + bias) + offset, in z's precision; normal: `jobs.models.drcnet.region_normalise`, two regions.

    z: (B, C, H, W). mask: (B, 1, H, W), bool. scale, offset: (B, 1, H, W). weight: (C, 1, 1) or None, 1. bias: (B, C, 1, 1) or
    None, 0.
    """
    return _RegionAffine.apply(z, mask, scale, offset, eps, weight, bias)


class _Regions(NamedTuple):
    """R (B, HW, 2): which region a pixel is of. n (B, 2, 1): pixels of each, at least 1. d (B, HW, C): z less its region's mean.

    rstd (B, 2, C): of each region and channel.
    """

    R: Tensor
    n: Tensor
    d: Tensor
    rstd: Tensor


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, HW, C), without a copy for channels_last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _regions(z: Tensor, mask: Tensor, eps: float) -> _Regions:
    Z = _rows(z)
    inside = mask.flatten(1).to(Z.dtype)
    R = torch.stack((inside, 1 - inside), 2)
    n = R.sum(1).clamp_min(1)[..., None]
    # Products with R pick a pixel's region, or sum over it, in one pass over the map.
    d = torch.baddbmm(Z, R, torch.bmm(R.mT, Z) / n, alpha=-1)
    var = torch.bmm(R.mT, d.square()) / n
    # A fraction f of the filled image varies, so InstanceNorm sees f var + eps; times sqrt(f): 1/sqrt(var + eps / f).
    return _Regions(R, n, d, (var + eps * (Z.shape[1] / n)).rsqrt())


class _RegionAffine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z, mask, scale, offset, eps, weight, bias):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(z, mask, scale, weight, bias)
        ctx.eps = eps
        R, _, d, rstd = _regions(exact(z), mask, eps)
        g, b = _rows(scale), _rows(offset)  # (B, HW, 1)
        if weight is not None:
            rstd = rstd * weight.view(-1)
        if bias is not None:
            b = b + g * bias.flatten(2).mT
        out = torch.addcmul(b, d, torch.bmm(R * g, rstd))
        return out.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2).to(z.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        z, mask, scale, weight, bias = ctx.saved_tensors
        R, n, normal, rstd = _regions(exact(z), mask, ctx.eps)
        normal.mul_(torch.bmm(R, rstd))
        G, g = _rows(exact(grad)), _rows(scale)
        product = G * normal
        d_weight = d_bias = None
        weighted = rstd if weight is None else rstd * weight.view(-1)
        if weight is None:
            d_scale = product.sum(2, keepdim=True)
        else:
            d_scale = product @ weight.view(-1, 1)
            d_weight = torch.bmm(g.mT, product).sum(0).view_as(weight)
        if bias is not None:
            d_scale = d_scale + torch.bmm(G, bias.flatten(2))
            d_bias = torch.bmm(g.mT, G).view_as(bias)
        gR = R * g
        means = (torch.bmm(gR.mT, each) * weighted / n for each in (G, product))  # of gradient and product, times rstd
        of_grad, of_product = means
        d_z = torch.bmm(gR, weighted).mul_(G).baddbmm_(R, of_grad, alpha=-1)
        d_z.addcmul_(normal, torch.bmm(R, of_product), value=-1)

        def shaped(rows: Tensor) -> Tensor:
            return rows.unflatten(1, z.shape[2:]).permute(0, 3, 1, 2)

        d_offset = shaped(G.sum(2, keepdim=True))
        return shaped(d_z).to(z.dtype), None, shaped(d_scale), d_offset, None, d_weight, d_bias


def gated(u: Tensor, v: Tensor, delta: float, *, unbiased: bool) -> Tensor:
    """LeakyReLU of u, times LeakyReLU of the energy attention of v (`jobs.models.drcnet.energy_attention`); all (B, C, H, W)."""
    return _Gated.apply(u, v, delta, unbiased)


def energy(v: Tensor, delta: float, *, unbiased: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The deviations of v (B, C, H, W) from its channels' means, their squares, and 1 / (4 (variance + delta)) (B, C, 1, 1)."""
    w = v - v.mean((2, 3), keepdim=True)
    square = w.square()
    N = v.shape[2] * v.shape[3]
    var = square.sum((2, 3), keepdim=True) / (max(N - 1, 1) if unbiased else N)
    return w, square, (4 * (var + delta)).reciprocal()


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, v, delta, unbiased):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(u, v)
        ctx.options = delta, unbiased
        _, square, k = energy(exact(v), delta, unbiased=unbiased)
        attended = torch.sigmoid_(torch.addcmul(_half(square), square, k)).to(v.dtype).mul_(v)
        return F.leaky_relu_(attended, SLOPE).mul_(F.leaky_relu(u, SLOPE))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        u, v = (exact(each) for each in ctx.saved_tensors)
        delta, unbiased = ctx.options
        w, square, k = energy(v, delta, unbiased=unbiased)
        s = torch.sigmoid_(torch.addcmul(_half(square), square, k))
        G = exact(grad)
        backward = torch.ops.aten.leaky_relu_backward
        d_u = backward(F.leaky_relu_(v * s, SLOPE).mul_(G), u, SLOPE, False)
        d_attended = backward(G * F.leaky_relu(u, SLOPE), v, SLOPE, False)  # attention leaves the sign of v
        d_y = torch.ops.aten.sigmoid_backward(d_attended * v, s)  # of y = square k + 1/2
        N = v.shape[2] * v.shape[3]
        d_var = -4 * k.square() * (d_y * square).sum((2, 3), keepdim=True)
        d_square = torch.addcmul(d_var / (max(N - 1, 1) if unbiased else N), d_y, k)
        d_w = d_square.mul_(w).mul_(2)
        d_v = d_attended.mul_(s).add_(d_w).sub_(d_w.mean((2, 3), keepdim=True))
        return d_u.to(ctx.saved_tensors[0].dtype), d_v.to(ctx.saved_tensors[1].dtype), None, None


def _half(like: Tensor) -> Tensor:
    return like.new_full((), 0.5)
