"""The functions of DRCNet's dynamic filter: their values and gradients are those of the plain formulas, and they keep their inputs."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.models.drcnet import DFR, DFROptions, energy_attention
from jobs.models.dynamic import SLOPE, gated, region_affine


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def plain(z: Tensor, mask: Tensor, scale: Tensor, offset: Tensor, eps: float, weight: Tensor, bias: Tensor) -> Tensor:
    """Pixel by pixel, with the mean and the deviation of its region."""
    normal = torch.zeros_like(z)
    for region in (mask, ~mask):
        m = region.to(z.dtype)
        n = m.sum((2, 3), keepdim=True).clamp_min(1)
        d = z - (m * z).sum((2, 3), keepdim=True) / n
        var = (m * d * d).sum((2, 3), keepdim=True) / n
        normal = normal + m * d / (var + eps * z[0, 0].numel() / n).sqrt()
    return scale * (weight * normal + bias) + offset


@pytest.mark.parametrize("which", ["some", "none", "all", "one"])
def test_the_normalisation_of_two_regions_is_its_formula(which):
    torch.manual_seed(0)
    z = drawn(2, 5, 6, 7)
    mask = {"some": torch.rand(2, 1, 6, 7) > 0.6, "none": torch.zeros(2, 1, 6, 7), "all": torch.ones(2, 1, 6, 7)}.get(
        which
    )
    mask = (torch.arange(42).view(1, 1, 6, 7) == 3).expand(2, 1, 6, 7) if mask is None else mask.bool()
    given = (
        drawn(2, 1, 6, 7),
        drawn(2, 1, 6, 7),
        1e-5,
        drawn(1, 5, 1, 1)[0].detach().requires_grad_(),
        drawn(2, 5, 1, 1),
    )
    leaves = [z, *(each for each in given if isinstance(each, Tensor))]
    found = []
    for function in (region_affine, plain):
        out = function(z, mask, *given)
        found.append([out, *torch.autograd.grad((out * out.detach().sin()).sum(), leaves)])
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("unbiased", [True, False])
def test_the_gate_is_its_formula(unbiased):
    torch.manual_seed(0)
    u, v = drawn(2, 5, 6, 7), drawn(2, 5, 6, 7)
    out = gated(u, v, 1e-4, unbiased=unbiased)
    expected = F.leaky_relu(u, SLOPE) * F.leaky_relu(energy_attention(v, 1e-4, unbiased=unbiased), SLOPE)
    grad = torch.randn_like(out)
    actual = [out, *torch.autograd.grad(out, [u, v], grad)]
    for ours, theirs in zip(actual, [expected, *torch.autograd.grad(expected, [u, v], grad)], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_bfloat16_maps_are_computed_in_float32():
    torch.manual_seed(0)
    u, v, z = (drawn(2, 5, 6, 7, dtype=torch.float32).detach().bfloat16().requires_grad_() for _ in range(3))
    mask, one = torch.rand(2, 1, 6, 7) > 0.5, torch.ones(2, 1, 6, 7)
    for narrow in (True, False):
        a, b, c = ((x if narrow else x.detach().float().requires_grad_()) for x in (u, v, z))
        out = gated(a, b, 1e-4, unbiased=False), region_affine(c, mask, one, 0 * one, 1e-5, None, None)
        gradients = torch.autograd.grad([each.float().square().sum() for each in out], [a, b, c])
        if narrow:
            actual = [*out, *gradients]
            assert {each.dtype for each in actual} == {torch.bfloat16}
        else:
            for ours, theirs in zip(actual, [*out, *gradients], strict=True):
                torch.testing.assert_close(ours.float(), theirs, rtol=3e-2, atol=3e-2)


def test_of_a_modules_maps_few_are_kept():
    module = DFR(4, 8, DFROptions(), normalise=True)
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    x = torch.rand(1, 4, 32, 32)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(x)
    whole = sum(numbers for numbers in kept.values() if numbers >= 32 * 32)
    # Channels: input 4, both branches 16, the first branch as it is gated 8; and few maps of a channel, and of the maximum's gradient
    assert whole <= (4 + 16 + 8 + 4 + 8) * 32 * 32
