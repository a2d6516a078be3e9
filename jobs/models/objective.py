"""The objective of a network that has none of its own: a weighted sum of terms, each a function of its output and target.

Each term takes the output and the target, float32 (B, C, H, W) in [0, 1], and returns the loss of each sample, (B,).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.models import Batch, memorynet
from jobs.models.elementwise import psnr

WINDOW, SIGMA = 11, 1.5  # of SSIM's Gaussian


def charbonnier(output: Tensor, target: Tensor) -> Tensor:
    """Mean of sqrt(d^2 + 0.001^2), d the difference. Source: Lai et al., LapSRN (CVPR 2017), section 3.3."""
    return memorynet.charbonnier(output - target)


def l1(output: Tensor, target: Tensor) -> Tensor:
    """Mean of |d|. Source: Zhao et al., Loss Functions for Image Restoration with Neural Networks (2017), section III-A."""
    return (output - target).abs().mean((1, 2, 3))


def l2(output: Tensor, target: Tensor) -> Tensor:
    """Mean of d^2; its minimum has the best PSNR. Source: the same, section III."""
    return (output - target).square().mean((1, 2, 3))


def ssim(output: Tensor, target: Tensor) -> Tensor:
    """1 - the mean SSIM of the channels; sides have at least WINDOW pixels.

    Source: Wang et al., Image Quality Assessment: From Error Visibility to Structural Similarity (2004): a Gaussian window of
    11x11 with sigma 1.5, K1 = 0.01, K2 = 0.03, values in [0, 1], windows within the image only.
    """
    C = output.shape[1]
    maps = torch.cat((output, target, output * output, target * target, output * target), 1)
    taps = maps.new_tensor(_gaussian()).expand(5 * C, 1, 1, WINDOW)
    means = F.conv2d(F.conv2d(maps, taps, groups=5 * C), taps.mT, groups=5 * C)
    x, y, xx, yy, xy = means.split(C, 1)
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * x * y + c1) * (2 * (xy - x * y) + c2)
    similar = similar / ((x * x + y * y + c1) * (xx - x * x + yy - y * y + c2))
    return 1 - similar.mean((1, 2, 3))


def edge(output: Tensor, target: Tensor) -> Tensor:
    """Charbonnier of the difference of the Laplacians. Source: Zamir et al., MPRNet (CVPR 2021), eq. 3, as released."""
    return memorynet.charbonnier(memorynet.laplacian(output - target))  # the Laplacian is linear


def frequency(output: Tensor, target: Tensor) -> Tensor:
    """Mean of |Re| and |Im| of the Fourier transform of d. Source: Cho et al., MIMO-UNet (ICCV 2021), eq. 6, as released.

    The transform is for real images: it has half of the plane, as the other half mirrors it.
    """
    return torch.view_as_real(torch.fft.rfft2(output - target)).abs().mean((1, 2, 3, 4))


Term = Callable[[Tensor, Tensor], Tensor]
TERMS: dict[str, Term] = {each.__name__: each for each in (charbonnier, l1, l2, ssim, edge, frequency)}


def objective(output: Tensor, batch: Batch, terms: dict[str, float]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one rank's part of a batch, as jobs.models.Network.training_loss has it, and what to log.

    terms: the weight of each term. Logs the terms, unweighted, where there are several, and `psnr` (dB), all times this
    rank's share of the true samples, so that the mean over the ranks is the mean over the samples.
    """
    weight, count, target = batch["weight"], batch["count"], batch["gt"]
    with torch.autocast(target.device.type, enabled=False):
        output = output.float()
        each = {name: TERMS[name](output, target) for name in terms}  # (B,)
        loss = torch.stack([terms[name] * value for name, value in each.items()]).sum(0)
        with torch.no_grad():
            logs = {name: (value * weight).sum() / count for name, value in each.items()} if len(each) > 1 else {}
            true = weight.sum()
            mse = (l2(output, target) * weight).sum() / true.clamp_min(1)
            logs["psnr"] = psnr(mse) * (true / count)
    return (loss * weight).sum() / count, logs


def _gaussian() -> list[float]:
    """The taps of SSIM's window along one side; they add up to 1."""
    taps = [math.exp(-((i - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for i in range(WINDOW)]
    return [tap / sum(taps) for tap in taps]
