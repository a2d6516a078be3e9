"""Convolutions with their weights' gradients in another layout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from jobs.models import convolution
from jobs.models.convolution import Conv2d, conv2d

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (4, 2, 1), (3, 1, 0)])
def test_it_is_a_convolution_with_its_gradients(bias, kernel, stride, padding, monkeypatch):
    monkeypatch.setattr(convolution, "LARGE", 100)
    monkeypatch.setattr(convolution, "SLOW", True)
    found = []
    for kind in (nn.Conv2d, Conv2d):
        torch.manual_seed(0)
        layer = kind(3, 5, kernel, stride, padding, bias=bias).to(memory_format=torch.channels_last)
        x = torch.rand(2, 3, 18, 15).to(memory_format=torch.channels_last).requires_grad_()
        y = layer(x)
        assert ("_Convolution" in type(y.grad_fn).__name__) == (kind is Conv2d)
        y.backward(torch.rand(y.shape))
        found.append([y.detach(), x.grad, *(p.grad for p in layer.parameters())])
        assert y.is_contiguous(memory_format=torch.channels_last)
    for plain, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_it_is_torchs_own_where_copies_would_not_pay(monkeypatch):
    calls = []
    monkeypatch.setattr(F, "conv2d", lambda *given: calls.append(given) or given[0])
    monkeypatch.setattr(convolution, "LARGE", 100)
    monkeypatch.setattr(convolution, "SLOW", True)
    weight = torch.rand(4, 4, 3, 3, requires_grad=True)
    large = torch.rand(1, 4, 16, 16).to(memory_format=torch.channels_last)
    for x, w in (
        (large[..., :6], weight),  # small
        (large.contiguous(), weight),  # in the usual layout already
        (large.double(), weight.double()),
        (large, weight.detach()),  # a frozen layer
        (large, torch.rand(4, 4, 1, 1, requires_grad=True)),
    ):
        calls.clear()
        conv2d(x, w)
        assert len(calls) == 1
        assert calls[0][0] is x
    with torch.no_grad():
        assert conv2d(large, weight) is large
