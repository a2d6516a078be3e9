"""The pre-activated convolution: equal to its three layers, and it keeps its input alone for the backward pass."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.models.batchnorm import BatchNorm2d, batch_statistics
from jobs.models.memnet import MemNet
from jobs.models.preactivation import preactivated


def layers(dtype: torch.dtype) -> tuple[BatchNorm2d, nn.Conv2d]:
    torch.manual_seed(0)
    bn, conv = BatchNorm2d(6).to(dtype), nn.Conv2d(6, 4, 3, padding=1).to(dtype)
    nn.init.normal_(bn.weight)
    nn.init.normal_(bn.bias)
    return bn, conv


def results(x: Tensor, bn: BatchNorm2d, conv: nn.Conv2d, out: Tensor) -> list[Tensor]:
    loss = (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)).sum()
    gradients = torch.autograd.grad(loss, [x, *bn.parameters(), *conv.parameters()])
    return [out.detach(), *gradients, *bn.buffers()]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_it_is_its_three_layers(shared, training, layout):
    x = (3 * torch.randn(2, 6, 5, 7, dtype=torch.float64) + 1).contiguous(memory_format=layout).requires_grad_()
    one, three = layers(torch.float64), layers(torch.float64)
    for bn, _ in (one, three):
        bn.train(training)
    statistics = batch_statistics(x) if shared else None
    actual = results(x, *one, preactivated(one[0], x, one[1].weight, one[1].bias, statistics))
    expected = results(x, *three, three[1](F.relu(three[0](x))))
    for ours, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_under_autocast_its_weights_gradients_are_of_the_weights_dtype():
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    one, three = layers(torch.float32), layers(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, other = preactivated(one[0], x, one[1].weight, one[1].bias), three[1](F.relu(three[0](x)))
    assert out.dtype == torch.bfloat16
    for ours, theirs in zip(results(x, *one, out), results(x, *three, other), strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)


def test_of_memnets_maps_only_those_are_kept_that_are_normalised():
    model = MemNet(memory_blocks=3, recursions=2, channels=8).train()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and tensor.shape[1:] == (8, 16, 16):
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = model.predictions(torch.rand(2, 1, 16, 16))
    assert len(y) == 3
    assert len(kept) == 1 + 3 * (2 * 2 + 1)  # B_0; of each block two for each recursion, and its gate's


def test_frozen_layers_get_no_gradient_and_the_input_has_its_own():
    bn, conv = layers(torch.float32)
    conv.requires_grad_(False)
    x = torch.randn(2, 6, 5, 7, requires_grad=True)
    preactivated(bn, x, conv.weight, conv.bias).sum().backward()
    assert x.grad is not None
    assert bn.weight.grad is not None
    assert conv.weight.grad is None
