"""The time-lapse network as its release computes it: concatenated skips, an update of the items by loops over them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.reference.memnet import norm
from jobs.models.kmeans import kmeans
from jobs.models.padding import mirrored
from jobs.models.timelapse import DecoderLevel, TimeLapseNet


def layers(sequence: nn.Sequential, x: Tensor) -> Tensor:
    """Convolutions, BatchNorm and ReLU in a row."""
    for each in sequence:
        if isinstance(each, nn.Sequential):
            x = layers(each, x)
        elif isinstance(each, nn.BatchNorm2d):
            x = norm(each, x)
        else:
            x = F.relu(x) if isinstance(each, nn.ReLU) else each(x)
    return x


def decoded(level: DecoderLevel, *maps: Tensor) -> Tensor:
    """A level of the decoder, on the concatenation of its maps."""
    return layers(level.b, layers(level.activation_a, level.conv_a(torch.cat(maps, 1))))


def encoded(model: TimeLapseNet, frame: Tensor) -> tuple[list[Tensor], Tensor]:
    """Skips and E4b."""
    skips = [layers(model.e1, frame)]
    for level in (model.e2, model.e3):
        skips.append(layers(level, F.max_pool2d(skips[-1], 2)))
    return skips, layers(model.e4, F.max_pool2d(skips[-1], 2))


def rain(model: TimeLapseNet, skips: list[Tensor], q: Tensor, read: Tensor) -> Tensor:
    """The decoder. q, read: (B, C, h, w)."""
    x = layers(model.u3, decoded(model.d4, q, read))
    x = layers(model.u2, decoded(model.d3, x, skips[2]))
    x = layers(model.u1, decoded(model.d2, x, skips[1]))
    return torch.tanh(model.output(decoded(model.d1, x, skips[0])))


def queries(E4b: Tensor) -> tuple[Tensor, Tensor]:
    """E4b's InstanceNorm, and the same with unit length (B, C, h, w)."""
    q_c = F.instance_norm(E4b, eps=1e-5)
    return q_c, F.normalize(q_c, dim=1, eps=1e-4)


def reads(q: Tensor, items: Tensor) -> Tensor:
    """What each position reads, (B, C, h, w)."""
    rows = q.permute(0, 2, 3, 1).detach()
    return (torch.softmax(rows @ items.T, -1) @ items).permute(0, 3, 1, 2)


@torch.no_grad()
def moved(q: Tensor, items: Tensor) -> Tensor:
    """The items after an update, one item after the other."""
    rows = q.permute(0, 2, 3, 1).reshape(-1, q.shape[1])
    score = rows @ items.T
    of_items = torch.softmax(score, 0)  # over the queries
    nearest = score.argmax(1)
    total = torch.zeros_like(items)
    for i in range(len(items)):
        mine = (nearest == i).nonzero().squeeze(1)
        if len(mine):
            total[i] = ((of_items[mine, i] / of_items[:, i].max())[:, None] * rows[mine]).sum(0)
    return F.normalize(items + total, dim=1)


def covariance(q: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, C)."""
    q = q.flatten(2)
    return q.bmm(q.transpose(1, 2)) / (q.shape[2] - 1)


def whitening(q_v: Tensor, q_w: Tensor, h: int, l: int) -> Tensor:  # noqa: E741 - the paper's symbol
    """L_w of each pair, over the l lowest of h clusters; the clusters are those of our exact k-means."""
    S_v, S_w = covariance(q_v), covariance(q_w)
    upper = torch.triu(torch.ones_like(S_v[0]), diagonal=1)
    found = []
    for a, b in zip(S_v, S_w, strict=True):
        with torch.no_grad():
            mean = (a + b) / 2
            variance = ((a - mean) ** 2 + (b - mean) ** 2) / 2
            mask = torch.zeros_like(a)
            mask[upper > 0] = (kmeans(variance[upper > 0][None], h)[0] < l).to(a.dtype)
        found.append(((a * mask).abs().sum() + (b * mask).abs().sum()) / (2 * mask.sum()))
    return torch.stack(found).mean()


def loss(model: TimeLapseNet, batch: dict[str, Tensor]) -> Tensor:
    """The objective of a pair of frames, in the profile `ours`."""
    assert model.memory is not None
    weights, items = model.weights, model.memory.items.clone()
    parts = []
    for frame in (2 * batch["frames"][:, 0] - 1, 2 * batch["frames"][:, 1] - 1):
        skips, E4b = encoded(model, frame)
        q_c, q = queries(E4b)
        R = rain(model, skips, q, reads(q, items))
        items = moved(q, items)
        parts.append((frame, frame - R, R, q_c))
    (v, B_v, R_v, q_v), (w, B_w, R_w, q_w) = parts
    return (
        weights["b"] * F.l1_loss(B_w, B_v)
        + weights["s"] * (F.l1_loss(B_v + R_w, w) + F.l1_loss(B_w + R_v, v))
        + weights["c"] * (F.l1_loss(B_v, w) + F.l1_loss(B_w, v))
        + weights["w"] * whitening(q_v, q_w, model.settings.h, model.settings.l)
    )


def restore(model: TimeLapseNet, lq: Tensor) -> Tensor:
    """The background; the items stay."""
    assert model.memory is not None
    x = mirrored(lq, 8, 16)
    skips, E4b = encoded(model, 2 * x - 1)
    q = queries(E4b)[1]
    return (x - rain(model, skips, q, reads(q, model.memory.items)) / 2)[..., : lq.shape[2], : lq.shape[3]]
