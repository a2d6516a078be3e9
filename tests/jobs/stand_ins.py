"""Models whose results can be worked out by hand, in the place of trained ones."""

import numpy as np
import torch
from torch import Tensor, nn

from jobs.models.memnet import MemNet
from pipeline.degradations.scale import imresize


def untrained(**options) -> MemNet:
    """A MemNet with random weights and running statistics that are not those of its initialisation."""
    torch.manual_seed(0)
    model = MemNet(channels=4, **options).eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.5, 0.5)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.bias, -0.5, 0.5)
    return model


def photograph(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    coarse = np.random.default_rng(seed).uniform(0, 1, (5, 5, channels))
    return np.clip(np.rint(imresize(coarse, size=(height, width)) * 255), 0, 255).astype(np.uint8)


class Brighter(nn.Module):
    """Adds a constant: what becomes of a colour can be worked out by hand."""

    size_multiple, receptive_field = 1, 1

    def __init__(self, by: float = 0.1) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(by))
        self.seen: list[Tensor] = []

    def restore(self, lq: Tensor) -> Tensor:
        self.seen.append(lq)
        return lq + self.by


class MeanOf(nn.Module):
    """A network of global statistics, at its simplest: every pixel becomes the mean of its image."""

    in_channels, size_multiple, receptive_field = 3, 1, None

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def restore(self, lq: Tensor) -> Tensor:
        return self.scale * lq.mean((2, 3), keepdim=True).expand_as(lq)
