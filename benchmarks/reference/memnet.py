"""MemNet as its release computes it: gates over concatenated memories, a BatchNorm of its own before each convolution."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.models.memnet import MemNet, MemoryBlock


def norm(layer: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """BatchNorm by torch's own function."""
    if layer.training:
        return F.batch_norm(x, None, None, layer.weight, layer.bias, True, layer.momentum, layer.eps)
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False, 0.0, layer.eps)


def unit(bn: nn.BatchNorm2d, conv: nn.Conv2d, x: Tensor) -> Tensor:
    """BatchNorm, ReLU, convolution."""
    return conv(F.relu(norm(bn, x)))


def block(b: MemoryBlock, long_term: list[Tensor]) -> Tensor:
    """A memory block."""
    h, short_term = long_term[-1], []
    for r in range(b.recursions):
        h = h + unit(b.bn_b[r % len(b.bn_b)], b.conv_b, unit(b.bn_a[r % len(b.bn_a)], b.conv_a, h))
        short_term.append(h)
    memories = (long_term if b.long_term else []) + (short_term if b.short_term else short_term[-1:])
    return unit(b.gate.bn, b.gate.conv, torch.cat(memories, 1))


def predictions(model: MemNet, x: Tensor) -> list[Tensor]:
    """The images that the blocks predict."""
    feature = model.feature
    memories = [feature(x) if isinstance(feature, nn.Conv2d) else unit(feature.bn, feature.conv, x)]
    for each in model.blocks:
        memories.append(block(each, memories))
    sources = memories[1:] if model.multi_supervision else memories[-1:]
    return [x + unit(bn, model.recon, B_m) for bn, B_m in zip(model.recon_bn, sources, strict=True)]


def output(model: MemNet, y: list[Tensor]) -> Tensor:
    """Their ensemble."""
    return sum(w * each for w, each in zip(model.ensemble, y, strict=True)) if model.multi_supervision else y[0]


def loss(model: MemNet, batch: dict[str, Tensor]) -> Tensor:
    """The mean over the M + 1 predictions of half of the summed squared error."""
    y = predictions(model, batch["lq"])
    terms = [*y, output(model, y)] if model.multi_supervision else y
    return sum(F.mse_loss(term, batch["gt"], reduction="sum") for term in terms) / (2 * len(terms) * batch["count"])


def restore(model: MemNet, lq: Tensor) -> Tensor:
    """The ensemble's image."""
    return output(model, predictions(model, lq))
