"""Evaluation protocols: how the published tables were measured, and the rows to print beside a result.

A number means nothing without its protocol: the Y of MATLAB's rgb2ycbcr has 219 levels, and scores 1.3 dB more than the
same image on all 256. What proves a protocol is its baseline row: the degraded input, scored by itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import cv2
import numpy as np

from jobs.evaluation.alignment import aligned, masked_psnr, masked_ssim
from jobs.evaluation.fsim import fsim
from jobs.evaluation.metrics import (
    FSIM,
    FSIMC,
    LAB_RMSE_PI_480,
    PSNR,
    REGIONS,
    SHADOW,
    SIMILARITIES,
    SSIM,
    SSIM_3D,
    VIF,
    Metric,
    by_region,
    psnr,
    srgb2lab,
    ssim_3d,
    ssim_channels,
)
from jobs.evaluation.vif import vif
from pipeline.degradations.colour import rgb2ycbcr_y
from pipeline.degradations.scale import imresize
from pipeline.errors import UserError
from pipeline.images import UnusableImageError


class Score(NamedTuple):
    """What a protocol gives for one image, or for several in the mean.

    values: by the metric's name; identical images have an infinite PSNR. weights: the weight of an image in the mean of a
    metric, 1 where it is not named; for a metric per pixel, the number of pixels.
    """

    values: dict[str, float]
    weights: dict[str, float] = {}  # noqa: RUF012, never changed

    def json(self) -> dict[str, float | None]:
        """The values for JSON, which holds no infinity: only an infinite PSNR is null, as `score` refuses NaN."""
        return {name: value if math.isfinite(value) else None for name, value in self.values.items()}


@dataclass(frozen=True)
class Protocol:
    """What is measured. Its `str()` is stable and belongs beside every number; the version changes with the numbers."""

    name: str
    version: int
    # Y: MATLAB's rgb2ycbcr, before the model; Y of RGB: after it, of the rounded image; float Y of RGB: the same, not
    # rounded; full Y of RGB: OpenCV's YCrCb, 0..255; grey: the one plane that the benchmark prepares; RGB: the error over
    # all channels, and the mean of their SSIM
    colour: Literal["Y", "grey", "RGB", "Y of RGB", "float Y of RGB", "full Y of RGB"]
    # scale: so many pixels cut on each side; modulo4: both images cut to multiples of 4 before the model, right and bottom
    border: Literal["none", "scale", "modulo4"]
    rounding: Literal["none", "clip", "uint8"]  # uint8: rounded half up and clipped to 0..255
    # wang2004: 11x11 Gaussian, sigma 1.5, valid region; no down-sampling but in wang2004-downsampled. matlab3d: `ssim_3d`,
    # beside the SSIM of each channel. skimage: 7x7 uniform windows, sample covariance
    ssim: Literal["wang2004", "wang2004-downsampled", "wang2004,matlab3d", "skimage"]
    metrics: tuple[Metric, ...] = (PSNR, SSIM)
    published: tuple[Metric, ...] = (PSNR, SSIM)  # the metrics that a published row gives, in its order
    regions: bool = False  # measured at two sizes, also in the shadow and outside it, see `_regional`
    aligned: bool = False  # the output is first brought onto its target, see jobs.evaluation.alignment
    video: bool = False  # VIF and FSIM, too, and PSNR of each channel, see `_frame`

    def __str__(self) -> str:
        regions = " regions=shadow size=480x640,256x256" if self.regions else ""
        more = " alignment=gain,ecc" if self.aligned else " psnr=channels vif=channels,3x3" if self.video else ""
        return (
            f"{self.name}@{self.version} "
            f"(colour={self.colour} border={self.border} rounding={self.rounding} ssim={self.ssim}{regions}{more})"
        )


Y_MATLAB = Protocol("y-matlab", 1, colour="Y", border="scale", rounding="uint8", ssim="wang2004")
GRAY_FLOAT = Protocol("gray-float", 1, colour="grey", border="none", rounding="none", ssim="wang2004")
Y_RGB = Protocol("y-rgb", 1, colour="Y of RGB", border="none", rounding="uint8", ssim="wang2004")
# statistic.m of RCDNet's release: MATLAB's rgb2ycbcr of doubles, and the SSIM that shrinks large images first
Y_RCD = Protocol("y-rcd", 1, colour="float Y of RGB", border="none", rounding="uint8", ssim="wang2004-downsampled")
# metrics.py and predict.py of DeRaindrop's release, whose Y has all 256 levels
Y_RAINDROP = Protocol("y-raindrop", 1, colour="full Y of RGB", border="modulo4", rounding="uint8", ssim="skimage")
# MATLAB's psnr and ssim, which takes an RGB image for a volume
RGB = Protocol(
    "rgb",
    2,
    colour="RGB",
    border="none",
    rounding="uint8",
    ssim="wang2004,matlab3d",
    metrics=(PSNR, SSIM, SSIM_3D),
    published=(PSNR, SSIM_3D),
)
RGB_FLOAT = replace(RGB, name="rgb-float", version=1, rounding="clip")  # as SIDD's blocks are scored
ISTD = replace(
    RGB,
    name="istd",
    version=1,
    metrics=SHADOW,
    published=(*by_region(PSNR), *by_region(SSIM_3D), *by_region(LAB_RMSE_PI_480)),
    regions=True,
)
# evaluate_RealBlur.py of MPRNet's release
REALBLUR = Protocol("realblur", 1, colour="RGB", border="none", rounding="uint8", ssim="wang2004", aligned=True)
# metrics.m of the release of MS-CSC (Li et al., CVPR 2018), whose clips and table Cho et al. 2022 take; what it calls FSIM is
# FSIMc, and its SSIM is MATLAB's
VIDEO = replace(
    RGB,
    name="video",
    version=1,
    metrics=(PSNR, SSIM, SSIM_3D, VIF, FSIM, FSIMC),
    published=(PSNR, VIF, FSIMC, SSIM_3D),
    video=True,
)
PAIRS = {
    "pairs-y": Y_RGB,
    "pairs-y-rcd": Y_RCD,
    "pairs-y-raindrop": Y_RAINDROP,
    "pairs-rgb": RGB,
    "pairs-rgb-float": RGB_FLOAT,
    "pairs-istd": ISTD,
    "pairs-realblur": REALBLUR,
    "pairs-video": VIDEO,
}  # benchmarks of published pairs


def _float_y(image: np.ndarray) -> np.ndarray:
    """The Y of MATLAB's rgb2ycbcr of doubles: (H, W, 3) on the scale 0..255 -> (H, W, 1), 16..235, not rounded."""
    return 16 + image @ np.array([[65.481], [128.553], [24.966]]) / 255


def _full_y(image: np.ndarray) -> np.ndarray:
    """The Y of OpenCV's YCrCb of whole levels: (H, W, 3) -> (H, W, 1), 0..255, rounded."""
    return cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_RGB2YCrCb)[..., :1].astype(np.float64)


def _whole_y(image: np.ndarray) -> np.ndarray:
    """The Y of MATLAB's rgb2ycbcr of uint8: (H, W, 3), whole levels -> (H, W, 1), 16..235, rounded."""
    return rgb2ycbcr_y(image.astype(np.uint8)).astype(np.float64)


LUMAS = {"Y of RGB": _whole_y, "float Y of RGB": _float_y, "full Y of RGB": _full_y}  # by Protocol.colour


def score(
    protocol: Protocol, output: np.ndarray, target: np.ndarray, scale: int = 1, mask: np.ndarray | None = None
) -> Score:
    """The metrics of a restored image under a protocol.

    output, target: floating, (H, W, 1), or (H, W, 3) for protocols in RGB, on the scale [0, 1]. scale: the factor of
    super-resolution, for the border. mask: as in `Pair`, for protocols with regions. Raises ValueError for other shapes, and
    for a missing mask; UserError for an output that is not finite; UnusableImageError if less is left than SSIM's window,
    and for a mask with nothing inside or outside it.
    """
    channels = 3 if protocol.colour.endswith("RGB") else 1
    if output.shape != target.shape or output.ndim != 3 or output.shape[2] != channels:
        raise ValueError(f"expected two arrays (H, W, {channels}) of one size, got {output.shape} and {target.shape}")
    if not np.isfinite(output).all():
        raise UserError(
            "restored image: holds NaN or infinity, the model has diverged (evaluate an earlier checkpoint)"
        )
    a, b = 255 * output.astype(np.float64), 255 * target.astype(np.float64)
    if protocol.rounding != "none":
        a, b = (plane.clip(0, 255) for plane in (a, b))
    if protocol.rounding == "uint8":
        a, b = (np.floor(plane + 0.5) for plane in (a, b))
    if protocol.border == "scale":
        a, b = (plane[scale:-scale, scale:-scale] for plane in (a, b))
    if protocol.colour in LUMAS:
        a, b = (LUMAS[protocol.colour](plane) for plane in (a, b))
    if protocol.regions:
        if mask is None:
            raise ValueError(f"{protocol.name} needs a mask")
        return _regional(protocol, a.astype(np.uint8), b.astype(np.uint8), mask)
    if protocol.aligned:
        together = aligned(a / 255, b / 255)
        return Score({"psnr": masked_psnr(together), "ssim": masked_ssim(together)})
    # first: it names what is too small
    similarity = {name: measure(a, b) for name, measure in SIMILARITIES[protocol.ssim].items()}
    values = {"psnr": psnr(a, b)} | similarity
    return Score(values | _frame(a, b) if protocol.video else values)


def _frame(output: np.ndarray, target: np.ndarray) -> dict[str, float]:
    """PSNR and VIF, each the mean of the channels', FSIM and FSIMc of a frame: whole levels, (H, W, 3).

    The peak of a channel's PSNR is the target's maximum in that channel.
    """
    channels = [(output[..., c], target[..., c]) for c in range(3)]
    each = [psnr(a, b) + 20 * math.log10(max(b.max(), 1) / 255) for a, b in channels]
    information = math.fsum(vif(a, b) for a, b in channels) / 3
    return {"psnr": math.fsum(each) / 3, "vif": information} | fsim(output, target)._asdict()


def _regional(protocol: Protocol, output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Score:
    """What papers on shadows measure: everywhere, in the shadow and outside it. uint8, (H, W, 3), (H, W, 3), (H, W, 1).

    A distance in Lab is summed over L, a and b, and divided by the pixels of the region. PSNR and SSIM of a region are of the
    whole frame, black outside the region in both images. A pixel is in the shadow where the resized mask is not 0.
    Source: at 480x640, the size of ISTD's images, evaluate.m of SpA-Former's release (its author scored MemoryNet
    with it); at 256x256, the mean per pixel of RDDM's release, which resizes before it converts, as Fu et al. 2021 do.
    """
    values: dict[str, float] = {}
    weights: dict[str, float] = {}
    for size in ((480, 640), (256, 256)):
        a, b, resized = (imresize(image, size=size) for image in (output, target, mask))
        shadow = resized > 0  # (h, w, 1)
        difference = srgb2lab(a) - srgb2lab(b)
        for end, region in zip(REGIONS, (np.ones_like(shadow), shadow, ~shadow), strict=True):
            if not region.any():
                raise UnusableImageError(f"its mask shows {'no' if end == '_shadow' else 'nothing but'} shadow")
            errors = difference[region[..., 0]]  # (pixels, 3)
            mae = float(np.abs(errors).sum()) / len(errors)
            if size == (256, 256):
                values[f"lab_mae_pp_256{end}"], weights[f"lab_mae_pp_256{end}"] = mae, len(errors)
                continue
            values[f"lab_mae_pi_480{end}"] = mae
            values[f"lab_rmse_pi_480{end}"] = math.sqrt(float(np.square(errors).sum()) / len(errors))
            values[f"psnr{end}"] = psnr(a * region, b * region)
            values[f"ssim_3d{end}"] = ssim_3d(a * region, b * region)
            if not end:
                values["ssim"] = ssim_channels(a, b)
    return Score({metric.name: values[metric.name] for metric in protocol.metrics}, weights)


def mean(scores: Sequence[Score]) -> Score:
    """The mean of each figure, as the tables give it; one identical pair makes the PSNR infinite. scores: at least one.

    Scores count by their weights, so that the mean of a metric per pixel is its mean over the pixels of all images.
    """
    values, weights = {}, {}
    for name in scores[0].values:
        each = [score.weights.get(name, 1.0) for score in scores]
        total = math.fsum(each)
        values[name] = math.fsum(w * score.values[name] for w, score in zip(each, scores, strict=True)) / total
        if name in scores[0].weights:
            weights[name] = total
    return Score(values, weights)
