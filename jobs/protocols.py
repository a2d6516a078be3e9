"""Evaluation protocols: how the published tables were measured, and the rows to print beside a result.

A number means nothing without its protocol: the Y of MATLAB's rgb2ycbcr has 219 levels, and scores 1.3 dB more than the
same image on all 256. What proves a protocol is its baseline row: the degraded input, scored by itself.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import cv2
import numpy as np

from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.noise import awgn
from pipeline.degradations.scale import bicubic_lowres, imresize, modcrop
from pipeline.errors import UserError, nearest
from pipeline.images import UnusableImageError


class Score(NamedTuple):
    """psnr in dB, infinite if the two images are identical; ssim, 1 if they are."""

    psnr: float
    ssim: float

    def json(self) -> dict[str, float | None]:
        """For JSON, which holds no infinity: an infinite PSNR is null. No other score is: NaN is refused by `score`."""
        return {"psnr": self.psnr if math.isfinite(self.psnr) else None, "ssim": self.ssim}


class Pair(NamedTuple):
    """A degraded image and its target: float32, (H, W, C), on the scale [0, 1]; lq may leave it, gt does not."""

    lq: np.ndarray
    gt: np.ndarray


@dataclass(frozen=True)
class Protocol:
    """What is measured. Its `str()` is stable and belongs beside every number; the version changes with the numbers."""

    name: str
    version: int
    # Y: MATLAB's rgb2ycbcr, before the model; Y of RGB: after it, of the rounded image; grey: the one plane that the
    # benchmark prepares; RGB: the error over all channels, and the mean of their SSIM
    colour: Literal["Y", "grey", "RGB", "Y of RGB"]
    border: Literal["none", "scale"]  # pixels cut on each side
    rounding: Literal["none", "uint8"]  # uint8: rounded half up and clipped to 0..255
    ssim: Literal["wang2004"]  # 11x11 Gaussian, sigma 1.5, valid region, no down-sampling

    def __str__(self) -> str:
        return (
            f"{self.name}@{self.version} "
            f"(colour={self.colour} border={self.border} rounding={self.rounding} ssim={self.ssim})"
        )


Y_MATLAB = Protocol("y-matlab", 1, colour="Y", border="scale", rounding="uint8", ssim="wang2004")
Y_RGB = Protocol("y-rgb", 1, colour="Y of RGB", border="none", rounding="uint8", ssim="wang2004")
RGB = Protocol("rgb", 1, colour="RGB", border="none", rounding="uint8", ssim="wang2004")
GRAY_FLOAT = Protocol("gray-float", 1, colour="grey", border="none", rounding="none", ssim="wang2004")


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
    height, width = a.shape[:2]
    if min(height, width) < 11:
        raise UnusableImageError(f"{width}x{height} pixels to score, SSIM needs 11x11")
    x, y = (plane.reshape(height, width).astype(np.float64) for plane in (a, b))
    mean_x, mean_y = _windowed(x), _windowed(y)
    variance_x = _windowed(x * x) - mean_x**2
    variance_y = _windowed(y * y) - mean_y**2
    covariance = _windowed(x * y) - mean_x * mean_y
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


def score(protocol: Protocol, output: np.ndarray, target: np.ndarray, scale: int = 1) -> Score:
    """PSNR and SSIM of a restored image under a protocol.

    output, target: floating, (H, W, 1), of protocols in RGB (H, W, 3), on the scale [0, 1]. scale: the factor of
    super-resolution, for the border. Raises ValueError for other shapes, UserError for an output that is not finite,
    UnusableImageError if less than 11x11 pixels are left.
    """
    channels = 3 if protocol.colour.endswith("RGB") else 1
    if output.shape != target.shape or output.ndim != 3 or output.shape[2] != channels:
        raise ValueError(f"expected two arrays (H, W, {channels}) of one size, got {output.shape} and {target.shape}")
    if not np.isfinite(output).all():
        raise UserError(
            "restored image: holds NaN or infinity, the model has diverged (evaluate an earlier checkpoint)"
        )
    a, b = 255 * output.astype(np.float64), 255 * target.astype(np.float64)
    if protocol.rounding == "uint8":
        a, b = (np.floor(plane.clip(0, 255) + 0.5) for plane in (a, b))
    if protocol.border == "scale":
        a, b = (plane[scale:-scale, scale:-scale] for plane in (a, b))
    if protocol.colour == "Y of RGB":
        a, b = (rgb2ycbcr_y(plane.astype(np.uint8)).astype(np.float64) for plane in (a, b))
    # first: it names what is too small
    similarity = math.fsum(ssim(a[..., c], b[..., c]) for c in range(a.shape[2])) / a.shape[2]
    return Score(psnr(a, b), similarity)


def mean(scores: Sequence[Score]) -> Score:
    """The mean of each figure, as the tables give it; one identical pair makes the PSNR infinite. scores: at least one."""
    return Score(*(math.fsum(values) / len(scores) for values in zip(*scores, strict=True)))


@dataclass(frozen=True)
class Benchmark:
    """One column of the published tables: a degradation at one level, and the protocol that measures it.

    level: the quality of JPEG, the factor of super-resolution, the sigma of noise (0..255 scale); of published pairs none.
    """

    name: str
    kind: Literal["jpeg", "sr", "noise", "pairs"]
    level: float
    protocol: Protocol
    plane: Literal["rgb2ycbcr", "rgb2gray", "rgb"]  # what is taken of an RGB image; a grey image is used as it is
    half: bool = False  # clean image first shrunk to half by MATLAB's bicubic, as RED and MemNet do with BSD200

    def prepare(self, image: np.ndarray) -> list[Pair]:
        """The pairs to restore and score: one, or three draws for noise.

        image: uint8, (H, W, 1) or (H, W, 3) RGB. The degraded image has the target's size; super-resolution cuts both
        to multiples of the factor. Noise is keyed by the target's pixels, so a renamed or moved file gets the same.
        Raises UnusableImageError for an image smaller than the factor.
        """
        if self.half:
            image = imresize(image, scale=0.5)
        plane = rgb2ycbcr_y(image) if self.plane == "rgb2ycbcr" else rgb2gray(image)
        if self.kind == "sr":
            plane = modcrop(plane, int(self.level))
            lowres = bicubic_lowres(plane / 255, int(self.level))
            return [Pair(lowres.astype(np.float32), _unit(plane))]
        if self.kind == "jpeg":
            return [Pair(_unit(jpeg(plane, int(self.level))), _unit(plane))]
        pixels = hashlib.blake2b(plane.tobytes(), digest_size=16).hexdigest()
        return [Pair(awgn(_unit(plane), self.level, ("benchmark", seed, pixels)), _unit(plane)) for seed in range(3)]

    def pair(self, lq: np.ndarray, gt: np.ndarray) -> Pair:
        """A published input and its target as what is restored and scored. uint8, (H, W, 1) or (H, W, 3) RGB.

        Raises UnusableImageError for two sizes.
        """
        if lq.shape[:2] != gt.shape[:2]:
            sizes = (f"{image.shape[1]}x{image.shape[0]}" for image in (lq, gt))
            raise UnusableImageError(f"{' and '.join(sizes)} pixels, an input and its target are of one size")
        return Pair(*(_unit(np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image) for image in (lq, gt)))

    def score(self, output: np.ndarray, target: np.ndarray) -> Score:
        """`output`, restored from the `lq` of a pair, against its `gt`: floating, of its shape. Raises as `score` does."""
        return score(self.protocol, output, target, int(self.level) if self.kind == "sr" else 1)


def _unit(plane: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return plane.astype(np.float32) / np.float32(255)


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name: `jpeg-q1` to `jpeg-q100`, `sr-x2`, `sr-x3`, `sr-x4`, `noise-SIGMA` with SIGMA > 0 and
    `noise-SIGMA-half`, on the images at half size; `pairs-y` and `pairs-rgb`, of published pairs.

    Raises UserError for another name.
    """
    if (match := re.fullmatch(r"jpeg-q([1-9]\d?|100)", name, re.ASCII)) is not None:
        return Benchmark(name, "jpeg", int(match[1]), GRAY_FLOAT, "rgb2ycbcr")
    if (match := re.fullmatch(r"sr-x([234])", name)) is not None:
        return Benchmark(name, "sr", int(match[1]), Y_MATLAB, "rgb2ycbcr")
    # one name for one level: no leading zeros, no trailing ones
    if (match := re.fullmatch(r"noise-((?!0$)(?:0|[1-9]\d*)(?:\.\d*[1-9])?)(-half)?", name, re.ASCII)) is not None:
        return Benchmark(name, "noise", float(match[1]), GRAY_FLOAT, "rgb2gray", half=match[2] is not None)
    if name in ("pairs-y", "pairs-rgb"):
        return Benchmark(name, "pairs", 0, Y_RGB if name == "pairs-y" else RGB, "rgb")
    known = [
        "pairs-y",
        "pairs-rgb",
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
        f"no benchmark {name!r}: {nearest(name, known)} (and any jpeg-q1 to jpeg-q100, any noise-SIGMA or noise-SIGMA-half)"
    )


# Tai et al., MemNet, ICCV 2017: table 3 (denoising), table 4 (super-resolution), table 5 (JPEG)
# and of other papers as they are named below
# (data set, benchmark) -> method -> (PSNR, SSIM); rows named JPEG and Bicubic are the degraded input itself
PAPER: dict[tuple[str, str], dict[str, tuple[float, float]]] = {
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
    # Li et al., DRCNet, ECCV 2022: tables 1 to 3
    ("Test100", "pairs-y"): {"MPRNet": (30.27, 0.897), "HINet": (30.29, 0.906), "DRCNet": (32.18, 0.917)},
    ("Rain100H", "pairs-y"): {"MPRNet": (30.41, 0.890), "HINet": (30.65, 0.894), "DRCNet": (30.96, 0.895)},
    ("Rain100L", "pairs-y"): {"MPRNet": (36.40, 0.965), "HINet": (37.28, 0.970), "DRCNet": (38.23, 0.976)},
    ("Test2800", "pairs-y"): {"MPRNet": (33.64, 0.938), "HINet": (33.91, 0.941), "DRCNet": (33.89, 0.946)},
    ("Test1200", "pairs-y"): {"MPRNet": (32.91, 0.916), "HINet": (33.05, 0.919), "DRCNet": (33.40, 0.940)},
    ("GoPro", "pairs-rgb"): {"MPRNet": (32.66, 0.959), "HINet": (32.71, 0.959), "DRCNet": (32.82, 0.961)},
    ("HIDE", "pairs-rgb"): {"MPRNet": (30.96, 0.939), "HINet": (30.32, 0.932), "DRCNet": (31.08, 0.940)},
    # Cho et al., TIP 2022, table 2; Zhang et al., MemoryNet, table 1 (its SSIM is MATLAB's of three dimensions)
    ("SPA", "pairs-y"): {"SPANet": (40.24, 0.981), "Cho et al. 2022": (41.56, 0.989)},
    ("ISTD", "pairs-rgb"): {"DHAN": (27.88, 0.921), "MemoryNet": (28.03, 0.952)},
}
