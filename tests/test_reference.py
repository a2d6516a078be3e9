"""The references that benchmarks measure beside our networks compute the same numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.reference import REFERENCES
from jobs.recipe import resolved_model

STAND_IN = {"vgg": {"path": "stand-in"}}
SMALL = {
    "memnet": {"memory_blocks": 3, "recursions": 2, "channels": 6},
    "memorynet": {"n": 8, "u": 4, "o": 4, "cabs": 1, "contrastive": STAND_IN},
    "timelapse": {"channels": 8, "memory": {"items": 6}, "zero_init": False},
    "drcnet": {"width": 8, "levels": 3, "contrastive": STAND_IN},
}
pytestmark = pytest.mark.usefixtures("one_thread")


def network(name: str, seed: int = 0):
    torch.manual_seed(seed)
    model = resolved_model({"model": {"name": name, **SMALL[name]}}).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn_like(p))  # also where a layer starts at 0
        if name == "timelapse":
            model.memory.items.copy_(F.normalize(model.memory.items))  # of unit length in float64 too
    return model


def batch(channels: int, side: int = 32) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    gt, other, third = (torch.rand(2, channels, side, side, generator=draw, dtype=torch.float64) for _ in range(3))
    lq = (gt + 0.2 * (other - 0.5)).clamp(0, 1)
    negatives = torch.stack([0.9 * lq + 0.1 * gt, 0.8 * lq + 0.2 * gt], 1)
    return {
        "gt": gt,
        "lq": lq,
        "frames": torch.stack((lq, (gt + 0.2 * (third - 0.5)).clamp(0, 1)), 1),
        "negatives": negatives,
        "lambdas": torch.tensor([[0.9, 0.8]] * 2, dtype=torch.float64),
        "weight": torch.ones(2, dtype=torch.float64),
        "count": torch.tensor(2.0, dtype=torch.float64),
        "progress": torch.tensor(1.0, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", list(SMALL))
def test_loss_and_gradients_are_those_of_the_network(name):
    found = []
    for way in ("ours", "reference"):
        model = network(name).train()
        given = batch(model.in_channels)
        loss = model.training_loss(given)[0] if way == "ours" else REFERENCES[name].loss(model, given)
        loss.backward()
        found.append((loss, {key: p.grad for key, p in model.named_parameters()}))
    (ours, gradients), (theirs, other) = found
    torch.testing.assert_close(theirs, ours, rtol=1e-9, atol=0)
    scale = max(float(g.abs().max()) for g in gradients.values() if g is not None)
    for key, gradient in gradients.items():
        if gradient is None or other[key] is None:
            assert gradient is other[key], key
        else:
            torch.testing.assert_close(other[key], gradient, rtol=1e-9, atol=1e-9 * scale, msg=key)


@pytest.mark.parametrize("name", list(SMALL))
def test_a_restored_image_is_that_of_the_network(name):
    model = network(name).eval()
    lq = batch(model.in_channels, 30)["lq"]
    with torch.no_grad():
        torch.testing.assert_close(REFERENCES[name].restore(model, lq), model.restore(lq), rtol=1e-9, atol=1e-9)
