"""DRCNet as its release computes it: a convolution for each branch, two filled regions, each negative through VGG19 alone."""

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.models.drcnet import DFR, SLOPE, DRCNet, Features, RegionNorm, UNet
from jobs.models.padding import mirrored


def region(x: Tensor, mask: Tensor) -> Tensor:
    """InstanceNorm of one region, the other filled with its mean, times the root of its share of the pixels."""
    count = mask.sum((2, 3), keepdim=True)
    mean = (x * mask).sum((2, 3), keepdim=True) / count.clamp_min(1)
    share = (count / mask[0].numel()).sqrt()
    return F.instance_norm(x * mask + (1 - mask) * mean) * share * mask


def normalised(n: RegionNorm, z: Tensor) -> Tensor:
    """The adaptive feature normalisation."""
    m = torch.sigmoid(n.conv(torch.cat([z.mean(1, keepdim=True), z.max(1, keepdim=True).values], 1)))
    mask = (m > n.t).to(z.dtype)
    both = region(z, mask) + region(z, 1 - mask)
    return both * (1 + n.gamma(m)) + n.beta(m)


def attention(v: Tensor, delta: float) -> Tensor:
    """The energy attention."""
    N = v.shape[2] * v.shape[3]
    square = (v - v.mean((2, 3), keepdim=True)).pow(2)
    return v * torch.sigmoid(square / (4 * (square.sum((2, 3), keepdim=True) / N + delta)) + 0.5)


def dfr(d: DFR, x: Tensor) -> Tensor:
    """The dynamic filter module with both branches."""
    (weight_u, weight_v), (bias_u, bias_v) = d.conv.weight.chunk(2), d.conv.bias.chunk(2)
    u, v = F.conv2d(x, weight_u, bias_u, padding=1), F.conv2d(x, weight_v, bias_v, padding=1)
    if d.norm is not None:
        first, second = u.chunk(2, 1)
        u = torch.cat([normalised(d.norm, first), second], 1)
    return F.leaky_relu(u, SLOPE) * F.leaky_relu(attention(v, d.delta), SLOPE) + d.identity(x)


def unet(net: UNet, x: Tensor, before: Features | None = None) -> Features:
    """One stage."""
    e, d = [], []
    for i, down in enumerate(net.down):
        x = dfr(net.encoder[i], x)
        if before is not None:
            x = x + net.csff_e[i](before.e[i]) + net.csff_d[i](before.d[i])
        e.append(x)
        x = down(x)
    x = dfr(net.encoder[-1], x)
    for i in reversed(range(len(e))):
        block, joined = net.decoder[i], torch.cat([net.up[i](x), net.skip[i](e[i])], 1)
        x = F.leaky_relu(block.conv_b(F.leaky_relu(block.conv_a(joined), SLOPE)), SLOPE) + block.shortcut(joined)
        d.insert(0, x)
    return Features(e, d)


def outputs(model: DRCNet, lq: Tensor) -> list[Tensor]:
    """The images of both stages."""
    before, sam = unet(model.stage_1, model.stage_1.stem(lq)), model.sam
    out_1 = sam.image(before.d[0]) + lq
    f = before.d[0] + sam.features(before.d[0]) * torch.sigmoid(sam.attention(out_1))
    x = model.merge(torch.cat([model.stage_2.stem(lq), f], 1))
    return [out_1, model.tail(unet(model.stage_2, x, before).d[0]) + lq]


def loss(model: DRCNet, batch: dict[str, Tensor]) -> Tensor:
    """L1 of both outputs and alpha times the intra-class contrastive term, at its final weight."""
    options, lq, gt = model.contrastive, batch["lq"], batch["gt"]
    X = outputs(model, lq)
    total = sum(F.l1_loss(out, gt) for out in X)
    if model._features is None:
        model.load_features(lq.device)
    G, (_, omega) = model._features, options.maps
    of_X = G(X[-1])
    with torch.no_grad():
        of_J = G(gt)
        of_N = [G(batch["negatives"][:, k]) for k in range(batch["negatives"].shape[1])]
    each = []
    for i in range(len(lq)):
        terms = []
        for layer, weight in enumerate(omega):
            near = (of_X[layer][i] - of_J[layer][i]).abs().mean()
            far = sum(
                c * (of_X[layer][i] - N[layer][i]).abs().mean() for c, N in zip(batch["lambdas"][i], of_N, strict=True)
            )
            terms.append(weight * near / (far + 1e-7))
        each.append(sum(terms))
    return total + options.alpha * sum(each) / len(each)


def restore(model: DRCNet, lq: Tensor) -> Tensor:
    """The second stage's image."""
    return outputs(model, mirrored(lq, model.size_multiple, 16))[-1][..., : lq.shape[2], : lq.shape[3]]
