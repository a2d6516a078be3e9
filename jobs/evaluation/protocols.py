"""Evaluation protocols: how the published tables were measured, and the rows to print beside a result.

A number means nothing without its protocol: the Y of MATLAB's rgb2ycbcr has 219 levels, and scores 1.3 dB more than the
same image on all 256. What proves a protocol is its baseline row: the degraded input, scored by itself.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from pipeline.degradations.base import Degradation
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y, with_channels
from pipeline.degradations.jpeg import Jpeg
from pipeline.degradations.noise import Noise
from pipeline.degradations.scale import Scale, imresize, modcrop
from pipeline.depth import levels, unit
from pipeline.errors import UserError, nearest
from pipeline.images import UnusableImageError


@dataclass(frozen=True)
class Metric:
    """A figure that a protocol gives. name: its key in scores.json and its column in scores.parquet."""

    name: str
    title: str  # in tables
    unit: Literal["dB", ""]
    better: Literal["higher", "lower"]
    digits: int  # after the point, as tables print them

    def text(self, value: float | None) -> str:
        """A value as tables print it; None is the infinite PSNR of identical images."""
        return "identical" if value is None else f"{value:.{self.digits}f}"

    @property
    def heading(self) -> str:
        """The title with its unit, and the way that is better where it is not up."""
        notes = [self.unit] * bool(self.unit) + ["lower is better"] * (self.better == "lower")
        return f"{self.title} ({', '.join(notes)})" if notes else self.title


REGIONS = ("", "_shadow", "_nonshadow")  # ends of the names of a metric on all pixels, and on those of a mask


def _regions(metric: Metric) -> tuple[Metric, ...]:
    """The metric on all pixels, in the shadow and outside it."""
    return tuple(
        replace(metric, name=f"{metric.name}{end}", title=f"{metric.title}{end.replace('_', ', ')}") for end in REGIONS
    )


PSNR = Metric("psnr", "PSNR", "dB", "higher", 2)
SSIM = Metric("ssim", "SSIM", "", "higher", 4)
SSIM_3D = Metric("ssim_3d", "SSIM 3-D", "", "higher", 4)
# pi: per image, the mean of each image's figure; pp: per pixel, over the pixels of all images at once. 480 and 256: resized
# to 480x640 or 256x256. Papers on shadows print any of the three as RMSE.
LAB_RMSE_PI_480 = Metric("lab_rmse_pi_480", "Lab RMSE pi 480", "", "lower", 2)
LAB_MAE_PI_480 = Metric("lab_mae_pi_480", "Lab MAE pi 480", "", "lower", 2)
LAB_MAE_PP_256 = Metric("lab_mae_pp_256", "Lab MAE pp 256", "", "lower", 2)
REGIONAL = [_regions(metric) for metric in (PSNR, SSIM_3D, LAB_RMSE_PI_480, LAB_MAE_PI_480, LAB_MAE_PP_256)]
METRICS = {metric.name: metric for metric in (PSNR, SSIM, *(each[i] for i in range(3) for each in REGIONAL))}


def measured(row: Mapping[str, Any]) -> list[Metric]:
    """The metrics that a row of scores.json has, in the order of tables."""
    return [metric for name, metric in METRICS.items() if name in row]


def table(row: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row of scores.json as text: of each metric its heading, the degraded input, the output, and what was published."""
    lines = []
    for metric in measured(row):
        published = {method: figures[metric.name] for method, figures in row["paper"].items() if metric.name in figures}
        rows = ", ".join(f"{method} {metric.text(value)}" for method, value in published.items())
        lines.append((metric.heading, metric.text(row["baseline"][metric.name]), metric.text(row[metric.name]), rows))
    return lines


class Score(NamedTuple):
    """What a protocol gives for one image, or for several in the mean.

    values: by the metric's name; an infinite PSNR is that of identical images. weights: what an image counts for in the
    mean of a metric, 1 where it is not named; of a metric per pixel, the number of pixels.
    """

    values: dict[str, float]
    weights: dict[str, float] = {}  # noqa: RUF012, never changed

    def json(self) -> dict[str, float | None]:
        """For JSON, which holds no infinity: an infinite PSNR is null. No other score is: NaN is refused by `score`."""
        return {name: value if math.isfinite(value) else None for name, value in self.values.items()}


class Pair(NamedTuple):
    """A degraded image and its target: float32, (H, W, C), on the scale [0, 1]; lq may leave it, gt does not.

    mask: where the shadow is, uint8 (H, W, 1), not 0 in it; None where a benchmark needs none.
    """

    lq: np.ndarray
    gt: np.ndarray
    mask: np.ndarray | None = None


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
    # beside that of each channel. skimage: 7x7 uniform windows, sample covariance
    ssim: Literal["wang2004", "wang2004-downsampled", "wang2004,matlab3d", "skimage"]
    metrics: tuple[Metric, ...] = (PSNR, SSIM)
    published: tuple[Metric, ...] = (PSNR, SSIM)  # those that a row of PAPER gives, in its order
    regions: bool = False  # of two sizes, and in the shadow and outside it too, see `_regional`

    def __str__(self) -> str:
        regions = " regions=shadow size=480x640,256x256" if self.regions else ""
        return (
            f"{self.name}@{self.version} "
            f"(colour={self.colour} border={self.border} rounding={self.rounding} ssim={self.ssim}{regions})"
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
    metrics=tuple(METRICS.values()),
    published=(*_regions(PSNR), *_regions(SSIM_3D), *_regions(LAB_RMSE_PI_480)),
    regions=True,
)
PAIRS = {
    "pairs-y": Y_RGB,
    "pairs-y-rcd": Y_RCD,
    "pairs-y-raindrop": Y_RAINDROP,
    "pairs-rgb": RGB,
    "pairs-rgb-float": RGB_FLOAT,
    "pairs-istd": ISTD,
}  # benchmarks of published pairs


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB: two arrays of one shape on the scale 0..255. Infinite if they are equal.

    Raises ValueError for two shapes.
    """
    if a.shape != b.shape:
        raise ValueError(f"cannot compare {a.shape} and {b.shape}")
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity: two planes, (H, W) or (H, W, 1), on the scale 0..255.

    The mean over the windows that lie inside the image, in float64. Raises ValueError for other shapes, UnusableImageError
    for planes smaller than the window. Source: Wang et al., Image quality assessment, TIP 2004, with its constants.
    """
    if a.shape != b.shape or a.ndim not in (2, 3) or a.shape[2:] not in ((), (1,)):
        raise ValueError(f"expected two planes of one size, got {a.shape} and {b.shape}")
    _check_window(a, 11)
    x, y = (plane.reshape(a.shape[:2]).astype(np.float64) for plane in (a, b))
    return _similarity(x, y, _windowed)


def ssim_downsampled(a: np.ndarray, b: np.ndarray) -> float:
    """`ssim` of two planes that are shrunk so that the shorter side comes near 256: means of f x f pixels, every f-th kept.

    f is that side / 256, rounded half up, and 1 for small images. Arguments and errors as those of `ssim`.
    Source: ssim.m of the same authors, the version of 2009.
    """
    f = max(1, math.floor(min(a.shape[:2]) / 256 + 0.5))
    centre = (f + 1) // 2 - 1  # of a window, as MATLAB's imfilter has it; beyond the border the image is mirrored
    x, y = (
        cv2.blur(plane.astype(np.float64), (f, f), anchor=(centre, centre), borderType=cv2.BORDER_REFLECT)[::f, ::f]
        for plane in (a, b)
    )
    return ssim(x, y)


def ssim_3d(a: np.ndarray, b: np.ndarray) -> float:
    """MATLAB's ssim of two RGB images, (H, W, 3) on the scale 0..255, which it takes for a volume.

    The window is 11x11x11, Gaussian with sigma 1.5, and goes over the border, where the edge is repeated: of three channels
    each weighs in the others' means. Raises ValueError for other shapes, UnusableImageError for less than 11x11 pixels.
    """
    if a.shape != b.shape or a.shape[2:] != (3,):
        raise ValueError(f"expected two arrays (H, W, 3) of one size, got {a.shape} and {b.shape}")
    _check_window(a, 11)
    means = partial(gaussian_filter, sigma=1.5, mode="nearest", radius=5)
    return _similarity(a.astype(np.float64), b.astype(np.float64), means)


def _ssim_skimage(a: np.ndarray, b: np.ndarray) -> float:
    """scikit-image's structural_similarity with its defaults, of two planes (H, W, 1) on the scale 0..255."""
    _check_window(a, 7)
    return float(structural_similarity(a[..., 0], b[..., 0], data_range=255))


def _ssim_channels(a: np.ndarray, b: np.ndarray) -> float:
    """The mean of `ssim` over the channels: (H, W, C)."""
    return math.fsum(ssim(a[..., c], b[..., c]) for c in range(a.shape[2])) / a.shape[2]


SIMILARITIES: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "wang2004": {"ssim": _ssim_channels},
    "wang2004-downsampled": {"ssim": ssim_downsampled},
    "wang2004,matlab3d": {"ssim": _ssim_channels, "ssim_3d": ssim_3d},
    "skimage": {"ssim": _ssim_skimage},
}  # of Protocol.ssim, by metric


def _check_window(image: np.ndarray, side: int) -> None:
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise UnusableImageError(f"{width}x{height} pixels to score, SSIM needs {side}x{side}")


def _similarity(x: np.ndarray, y: np.ndarray, means: Callable[[np.ndarray], np.ndarray]) -> float:
    """The mean of SSIM's index over all windows, whose weighted means `means` gives."""
    mean_x, mean_y = means(x), means(y)
    variance_x = means(x * x) - mean_x**2
    variance_y = means(y * y) - mean_y**2
    covariance = means(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    index = ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )
    return float(index.mean())


def _windowed(plane: np.ndarray) -> np.ndarray:
    """Gaussian means of all 11x11 windows inside the plane: (H, W) -> (H - 10, W - 10)."""
    weights = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    weights /= weights.sum()
    return cv2.sepFilter2D(plane, cv2.CV_64F, weights, weights)[5:-5, 5:-5]


# XYZ of red, green and blue in the ICC profile sRGB IEC61966-2.1: sRGB's primaries, adapted to D50 by Bradford's transform
PRIMARIES_D50 = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
WHITE_D50 = np.array([0.9642, 1, 0.8249])
LEVELS = np.arange(256) / 255
LINEAR = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)  # of each of the 256 levels


def srgb2lab(image: np.ndarray) -> np.ndarray:
    """CIE L*a*b* with the white of D50, as MATLAB's makecform("srgb2lab") gives it; under D65 distances are others.

    image: uint8, (H, W, 3) RGB. Returns float64, (H, W, 3): L in 0..100, a and b about -100..100. The curve is sRGB's formula,
    of which MATLAB reads 1,024 points from the profile.
    """
    ratio = LINEAR[image] @ PRIMARIES_D50 / WHITE_D50
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29)
    x, y, z = np.moveaxis(f, 2, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=2)


def _float_y(image: np.ndarray) -> np.ndarray:
    """The Y of MATLAB's rgb2ycbcr of doubles: (H, W, 3) on the scale 0..255 -> (H, W, 1), 16..235, not rounded."""
    return 16 + image @ np.array([[65.481], [128.553], [24.966]]) / 255


def _full_y(image: np.ndarray) -> np.ndarray:
    """The Y of OpenCV's YCrCb of whole levels: (H, W, 3) -> (H, W, 1), 0..255, rounded."""
    return cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_RGB2YCrCb)[..., :1].astype(np.float64)


def _whole_y(image: np.ndarray) -> np.ndarray:
    """The Y of MATLAB's rgb2ycbcr of uint8: (H, W, 3), whole levels -> (H, W, 1), 16..235, rounded."""
    return rgb2ycbcr_y(image.astype(np.uint8)).astype(np.float64)


LUMAS = {"Y of RGB": _whole_y, "float Y of RGB": _float_y, "full Y of RGB": _full_y}  # of Protocol.colour


def score(
    protocol: Protocol, output: np.ndarray, target: np.ndarray, scale: int = 1, mask: np.ndarray | None = None
) -> Score:
    """The metrics of a restored image under a protocol.

    output, target: floating, (H, W, 1), of protocols in RGB (H, W, 3), on the scale [0, 1]. scale: the factor of
    super-resolution, for the border. mask: as in `Pair`, of protocols with regions. Raises ValueError for other shapes, and
    for a mask too few; UserError for an output that is not finite; UnusableImageError if less is left than SSIM's window,
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
    # first: it names what is too small
    similarity = {name: measure(a, b) for name, measure in SIMILARITIES[protocol.ssim].items()}
    return Score({"psnr": psnr(a, b)} | similarity)


def _regional(protocol: Protocol, output: np.ndarray, target: np.ndarray, mask: np.ndarray) -> Score:
    """What papers on shadows measure: everywhere, in the shadow and outside it. uint8, (H, W, 3), (H, W, 3), (H, W, 1).

    A distance in Lab is summed over L, a and b, and divided by the pixels of the region. PSNR and SSIM of a region are of the
    whole frame, black outside the region in both images. A pixel is in the shadow where the resized mask is not 0.
    Source: at 480x640, which is the size of ISTD's images, evaluate.m of SpA-Former's release, whose author scored MemoryNet
    with it; at 256x256, the mean per pixel of RDDM's release, which resizes before it converts, as Fu et al. 2021 do.
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
                values["ssim"] = _ssim_channels(a, b)
    return Score({metric.name: values[metric.name] for metric in protocol.metrics}, weights)


def mean(scores: Sequence[Score]) -> Score:
    """The mean of each figure, as the tables give it; one identical pair makes the PSNR infinite. scores: at least one.

    By the scores' weights, so that the mean of a metric per pixel is the one over the pixels of all images.
    """
    values, weights = {}, {}
    for name in scores[0].values:
        each = [score.weights.get(name, 1.0) for score in scores]
        total = math.fsum(each)
        values[name] = math.fsum(w * score.values[name] for w, score in zip(each, scores, strict=True)) / total
        if name in scores[0].weights:
            weights[name] = total
    return Score(values, weights)


DEGRADATIONS: dict[str, type[Degradation]] = {"jpeg": Jpeg, "sr": Scale, "noise": Noise}  # by a benchmark's kind


@dataclass(frozen=True)
class Benchmark:
    """One column of the published tables: a degradation at one level, and the protocol that measures it.

    level: the quality of JPEG, the factor of super-resolution, the sigma of noise (0..255 scale); of published pairs none.
    column: its name in PAPER, which does not say how a model is run.
    """

    name: str
    kind: Literal["jpeg", "sr", "noise", "pairs"]
    level: float
    protocol: Protocol
    plane: Literal["rgb2ycbcr", "rgb2gray", "rgb"]  # what is taken of an RGB image; a grey image is used as it is
    half: bool = False  # clean image first shrunk to half by MATLAB's bicubic, as RED and MemNet do with BSD200
    tile: int | None = None  # the model sees tiles of so many pixels a side, see jobs.restoring.tiles.restore_grid

    @property
    def column(self) -> str:
        return self.name.partition("-tile")[0]

    @property
    def channels(self) -> int:
        """What a model gets: 3 or 1."""
        return 3 if self.plane == "rgb" else 1

    def prepare(self, image: np.ndarray) -> list[Pair]:
        """The pairs to restore and score: one, or three draws for noise.

        image: uint8 or uint16, (H, W, 1) or (H, W, 3) RGB. The degraded image has the target's size; super-resolution cuts both
        to multiples of the factor.
        Raises UnusableImageError for an image smaller than the factor, and for 16 bits where the degradation is JPEG.
        """
        if self.half:
            image = imresize(image, scale=0.5)
        plane = rgb2ycbcr_y(image) if self.plane == "rgb2ycbcr" else rgb2gray(image)
        inputs, gt = DEGRADATIONS[self.kind].benchmark(plane, self.level)
        return [Pair(lq, gt) for lq in inputs]

    def pair(self, lq: np.ndarray, gt: np.ndarray, mask: np.ndarray | None = None) -> Pair:
        """A published input, its target and, where the protocol has regions, the mask as what is restored and scored.

        uint8 or uint16, (H, W, 1) or (H, W, 3) RGB. Raises UnusableImageError for sizes that differ.
        """
        images = [lq, gt] if mask is None else [lq, gt, levels(unit(mask.max(axis=2, keepdims=True)), np.uint8)]
        if len({image.shape[:2] for image in images}) > 1:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
            raise UnusableImageError(f"{sizes} pixels, an input and its target (and mask) are of one size")
        if self.protocol.border == "modulo4":
            images = [modcrop(image, 4) for image in images]
        lq, gt = (unit(with_channels(image, 3)) for image in images[:2])
        return Pair(lq, gt, *images[2:])

    def score(self, output: np.ndarray, pair: Pair) -> Score:
        """`output`, restored from the `lq` of a pair, against its `gt`: floating, of its shape. Raises as `score` does."""
        return score(self.protocol, output, pair.gt, int(self.level) if self.kind == "sr" else 1, pair.mask)

    def paper(self, dataset: str) -> dict[str, dict[str, float]]:
        """The published rows on this data set: method -> metric -> value, of as many metrics as were published."""
        names = [metric.name for metric in self.protocol.published]
        return {
            method: dict(zip(names, row, strict=False)) for method, row in PAPER.get((dataset, self.column), {}).items()
        }


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name: `jpeg-q1` to `jpeg-q100`, `sr-x2`, `sr-x3`, `sr-x4`, `noise-SIGMA` with SIGMA > 0 and
    `noise-SIGMA-half`, on the images at half size; of published pairs those of PAIRS, and each of them with `-tileN`, for
    a model that sees tiles of N pixels a side, 16 or more.

    Raises UserError for another name.
    """
    if (match := re.fullmatch(r"jpeg-q([1-9]\d?|100)", name, re.ASCII)) is not None:
        return Benchmark(name, "jpeg", int(match[1]), GRAY_FLOAT, "rgb2ycbcr")
    if (match := re.fullmatch(r"sr-x([234])", name)) is not None:
        return Benchmark(name, "sr", int(match[1]), Y_MATLAB, "rgb2ycbcr")
    # one name for one level: no leading zeros, no trailing ones
    if (match := re.fullmatch(r"noise-((?!0$)(?:0|[1-9]\d*)(?:\.\d*[1-9])?)(-half)?", name, re.ASCII)) is not None:
        return Benchmark(name, "noise", float(match[1]), GRAY_FLOAT, "rgb2gray", half=match[2] is not None)
    tiles = r"(?:-tile(1[6-9]|[2-9]\d|[1-9]\d\d+))?"
    if (match := re.fullmatch(f"({'|'.join(PAIRS)}){tiles}", name, re.ASCII)) is not None:
        return Benchmark(name, "pairs", 0, PAIRS[match[1]], "rgb", tile=int(match[2]) if match[2] else None)
    known = [
        *PAIRS,
        "pairs-rgb-tile256",
        "jpeg-q10",
        "jpeg-q20",
        "sr-x2",
        "sr-x3",
        "sr-x4",
        "noise-30",
        "noise-50",
        "noise-70",
    ]
    raise UserError(
        f"no benchmark {name!r}: {nearest(name, known)} "
        "(and any jpeg-q1 to jpeg-q100, any noise-SIGMA or noise-SIGMA-half, any pairs-...-tileN)"
    )


# Tai et al., MemNet, ICCV 2017: table 3 (denoising), table 4 (super-resolution), table 5 (JPEG)
# and of other papers as they are named below
# (data set, benchmark) -> method -> what the protocol's `published` names, or the first of it;
# rows named JPEG and Bicubic are the degraded input itself
PAPER: dict[tuple[str, str], dict[str, tuple[float, ...]]] = {
    ("Classic5", "jpeg-q10"): {"JPEG": (27.82, 0.7595), "MemNet": (29.69, 0.8107)},
    ("Classic5", "jpeg-q20"): {"JPEG": (30.12, 0.8344), "MemNet": (31.90, 0.8658)},
    ("LIVE1", "jpeg-q10"): {"JPEG": (27.77, 0.7730), "MemNet": (29.45, 0.8193)},
    ("LIVE1", "jpeg-q20"): {"JPEG": (30.07, 0.8512), "MemNet": (31.83, 0.8846)},
    ("BSD200", "noise-30-half"): {"WNNM": (27.48, 0.7807), "MemNet": (28.04, 0.8053)},
    ("BSD200", "noise-50-half"): {"WNNM": (25.26, 0.6928), "MemNet": (25.86, 0.7202)},
    ("BSD200", "noise-70-half"): {"WNNM": (23.95, 0.6346), "MemNet": (24.53, 0.6608)},
    ("Set5", "sr-x2"): {"Bicubic": (33.66, 0.9299), "MemNet": (37.78, 0.9597)},
    ("Set5", "sr-x3"): {"Bicubic": (30.39, 0.8682), "MemNet": (34.09, 0.9248)},
    ("Set5", "sr-x4"): {"Bicubic": (28.42, 0.8104), "MemNet": (31.74, 0.8893)},
    ("Set14", "sr-x2"): {"Bicubic": (30.24, 0.8688), "MemNet": (33.28, 0.9142)},
    ("Set14", "sr-x3"): {"Bicubic": (27.55, 0.7742), "MemNet": (30.00, 0.8350)},
    ("Set14", "sr-x4"): {"Bicubic": (26.00, 0.7027), "MemNet": (28.26, 0.7723)},
    ("BSD100", "sr-x2"): {"Bicubic": (29.56, 0.8431), "MemNet": (32.08, 0.8978)},
    ("BSD100", "sr-x3"): {"Bicubic": (27.21, 0.7385), "MemNet": (28.96, 0.8001)},
    ("BSD100", "sr-x4"): {"Bicubic": (25.96, 0.6675), "MemNet": (27.40, 0.7281)},
    # Li et al., DRCNet, ECCV 2022: tables 1 to 3; its SSIM on SIDD is of another definition
    ("Test100", "pairs-y"): {"MPRNet": (30.27, 0.897), "HINet": (30.29, 0.906), "DRCNet": (32.18, 0.917)},
    ("Rain100H", "pairs-y"): {"MPRNet": (30.41, 0.890), "HINet": (30.65, 0.894), "DRCNet": (30.96, 0.895)},
    ("Rain100L", "pairs-y"): {"MPRNet": (36.40, 0.965), "HINet": (37.28, 0.970), "DRCNet": (38.23, 0.976)},
    ("Test2800", "pairs-y"): {"MPRNet": (33.64, 0.938), "HINet": (33.91, 0.941), "DRCNet": (33.89, 0.946)},
    ("Test1200", "pairs-y"): {"MPRNet": (32.91, 0.916), "HINet": (33.05, 0.919), "DRCNet": (33.40, 0.940)},
    # and 4 of its text; its SSIM of SIDD is another than MATLAB's
    ("GoPro-blur", "pairs-rgb"): {"MPRNet": (32.66, 0.959), "HINet": (32.71, 0.959), "DRCNet": (32.82, 0.961)},
    ("HIDE", "pairs-rgb"): {"MPRNet": (30.96, 0.939), "HINet": (30.32, 0.932), "DRCNet": (31.08, 0.940)},
    ("SIDD", "pairs-rgb-float"): {"MPRNet": (39.71, 0.958), "DRCNet": (40.08,)},
    # Cho et al., TIP 2022, table 2: real rain (RealDataset is the test set of SPA-Data)
    ("SPA", "pairs-y-rcd"): {"SPANet": (40.24, 0.981), "RCDNet": (41.47, 0.983), "Cho et al. 2022": (41.56, 0.989)},
    ("Rain100L", "pairs-y-rcd"): {"RCDNet": (40.17, 0.988), "Cho et al. 2022": (38.45, 0.981)},
    ("Rain12000", "pairs-y-rcd"): {"JORDER-E": (33.98, 0.950), "Cho et al. 2022": (34.55, 0.949)},
    ("Rain14000", "pairs-y-rcd"): {"PReNet": (32.55, 0.946), "Cho et al. 2022": (34.02, 0.945)},
    # Zhang et al., MemoryNet, table 1; others' errors in Lab, which it cites, are of more than one definition
    ("ISTD-istd", "pairs-istd"): {
        "DHAN": (27.88, 34.79, 29.54, 0.921, 0.983, 0.941),
        "MemoryNet": (28.03, 34.44, 30.234, 0.952, 0.986, 0.970, 6.03, 9.72, 5.425),
    },
}
