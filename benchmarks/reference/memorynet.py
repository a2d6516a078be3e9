"""MemoryNet as its release computes it: quarters and halves one after the other, upsampling before convolutions, reads of whole
score matrices, a second pass for the clean images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.models.memorynet import CAB, EPS, OMEGA, SPREAD, CABs, Decoder, Encoder, HierarchicalMemory, MemoryNet, ORSNet
from jobs.models.padding import mirrored


def cab(c: CAB, x: Tensor, a: Tensor) -> Tensor:
    """Channel attention."""
    r = c.conv2(F.prelu(c.conv1(x), a))
    return r * torch.sigmoid(c.excite(F.relu(c.squeeze(F.adaptive_avg_pool2d(r, 1))))) + x


def cabs(row: CABs, x: Tensor, a: Tensor) -> Tensor:
    """Several."""
    for each in row:
        x = cab(each, x, a)
    return x


def resized(x: Tensor, factor: float) -> Tensor:
    """Bilinear."""
    return F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)


def encoder(
    e: Encoder, x: Tensor, a: Tensor, enc: list[Tensor] | None = None, dec: list[Tensor] | None = None
) -> list[Tensor]:
    """An encoder."""
    maps: list[Tensor] = []
    for k, level in enumerate(e.levels):
        x = cabs(level, x if k == 0 else e.down[k - 1](resized(maps[-1], 0.5)), a)
        if enc is not None and dec is not None:
            x = x + e.from_encoder[k](enc[k]) + e.from_decoder[k](dec[k])
        maps.append(x)
    return maps


def decoder(d: Decoder, enc: list[Tensor], a: Tensor) -> list[Tensor]:
    """A decoder."""
    maps = [cabs(d.levels[2], enc[2], a)]
    for k in (1, 0):
        maps.insert(0, cabs(d.levels[k], d.up[k](resized(maps[0], 2)) + cab(d.skip[k], enc[k], a), a))
    return maps


def raised(steps: nn.Sequential, x: Tensor, levels: int) -> Tensor:
    """A map of a lower level at full resolution: upsampling, then its convolution, level by level."""
    for i, step in enumerate(steps):
        x = step(resized(x, 2) if i < levels else x)
    return x


def orsnet(o: ORSNet, x: Tensor, a: Tensor, enc: list[Tensor], dec: list[Tensor]) -> Tensor:
    """Stage 3."""
    for k, orb in enumerate(o.orbs):
        x = x + orb.conv(cabs(orb.cabs, x, a))
        x = x + raised(o.from_encoder[k], enc[k], k) + raised(o.from_decoder[k], dec[k], k)
    return x


def chain(memory: HierarchicalMemory, x: Tensor) -> list[Tensor]:
    """The images that the three levels read in turn, less 1/2: what the stages convolve."""
    q, found = (x.permute(0, 2, 3, 1) - 0.5) / SPREAD, []
    for bank in memory.banks():
        q = torch.softmax(q @ bank.T, -1) @ bank
        found.append((q * SPREAD).permute(0, 3, 1, 2))
    return found


def stages(model: MemoryNet, x: Tensor) -> list[Tensor]:
    """The images of stages 3, 2 and 1, each a residual to what the next stage reads."""
    assert model.memory is not None
    a, seen = model.slope, chain(model.memory, x)
    H, W = x.shape[2] // 2, x.shape[3] // 2
    top, bottom = [], []
    for rows, maps in ((slice(0, H), top), (slice(H, None), bottom)):
        for columns in (slice(0, W), slice(W, None)):
            maps.append(encoder(model.encoder1, shallow(model, 0, seen[0][:, :, rows, columns]), a))
    halves = [[torch.cat(pair, 3) for pair in zip(*maps, strict=True)] for maps in (top, bottom)]
    decoded = [decoder(model.decoder1, half, a) for half in halves]
    sams = [
        sam(model.sam1, d[0], seen[1][:, :, rows] + 0.5)
        for d, rows in zip(decoded, (slice(0, H), slice(H, None)), strict=True)
    ]
    image1 = torch.cat([image for _, image in sams], 2)
    encoded2 = []
    for number, rows in enumerate((slice(0, H), slice(H, None))):
        f = model.fusion2(torch.cat((shallow(model, 1, seen[1][:, :, rows]), sams[number][0]), 1))
        encoded2.append(encoder(model.encoder2, f, a, halves[number], decoded[number]))
    enc = [torch.cat(pair, 2) for pair in zip(*encoded2, strict=True)]
    dec = decoder(model.decoder2, enc, a)
    attended, image2 = sam(model.sam2, dec[0], seen[2] + 0.5)
    f = model.fusion3(torch.cat((shallow(model, 2, seen[2]), attended), 1))
    return [seen[2] + 0.5 + model.tail(orsnet(model.orsnet, f, a, enc, dec)), image2, image1]


def shallow(model: MemoryNet, s: int, x: Tensor) -> Tensor:
    """The first features of a stage."""
    return cab(model.shallow[s].cab, model.shallow[s].conv(x), model.slope)


def sam(s: nn.Module, f: Tensor, base: Tensor) -> tuple[Tensor, Tensor]:
    """Supervised attention."""
    image = s.image(f) + base
    return s.conv(f) * torch.sigmoid(s.attention(image)) + f, image


def blurred(x: Tensor) -> Tensor:
    """The 5x5 kernel of MPRNet's edge loss, as one convolution."""
    taps = x.new_tensor([0.05, 0.25, 0.4, 0.25, 0.05])
    kernel = torch.outer(taps, taps).expand(3, 1, 5, 5)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)


def laplacian(x: Tensor) -> Tensor:
    """The image less its blurred lower half band."""
    low = blurred(x)[:, :, ::2, ::2]
    spread = torch.zeros_like(x)
    spread[:, :, ::2, ::2] = low * 4
    return x - blurred(spread)


def charbonnier(x: Tensor, y: Tensor) -> Tensor:
    """Mean of the smooth absolute difference."""
    return torch.sqrt((x - y) ** 2 + EPS**2).mean()


def loss(model: MemoryNet, batch: dict[str, Tensor]) -> Tensor:
    """Charbonnier and edges of three stages, reconstruction of the clean images, the contrastive ratio at its final weight."""
    lq, gt = batch["lq"], batch["gt"]
    images = stages(model, lq)
    total = sum(charbonnier(image, gt) for image in images)
    total = total + model.loss.lambda_edge * sum(charbonnier(laplacian(i), laplacian(gt)) for i in images)
    clean = stages(model, gt)[0]
    total = total + (((clean - gt) ** 2).mean((1, 2, 3)) + 1e-12).sqrt().mean()
    assert model.contrastive is not None
    if model._features is None:
        model.load_features(lq.device)
    G = model._features
    of_X = G(images[0])
    with torch.no_grad():
        of_Y, of_J = G(gt), G(lq)
    terms = [
        weight * F.l1_loss(X, Y) / (F.l1_loss(X, J) + 1e-7)
        for weight, X, Y, J in zip(OMEGA, of_X, of_Y, of_J, strict=True)
    ]
    return total + model.contrastive.lambda_cr * sum(terms)


def restore(model: MemoryNet, lq: Tensor) -> Tensor:
    """The third stage's image; the others are not needed for it but come along, as there."""
    return stages(model, mirrored(lq, 8))[0][..., : lq.shape[2], : lq.shape[3]]
