"""Metrics: what they are called, how tables print them, and what they measure on two images."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import cv2
import numpy as np
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

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

    def shown(self, value: float | None, margin: float | None) -> str:
        """A value with its margin, if it has one."""
        return self.text(value) + ("" if margin is None else f" ± {self.text(margin)}")

    def change(self, value: float, margin: float | None) -> str:
        """A difference of two values with its sign, and with its margin if it has one."""
        return f"{value:+.{self.digits}f}" + ("" if margin is None else f" ± {self.text(margin)}")

    @property
    def heading(self) -> str:
        """The title with its unit, and the direction that is better where that is not up."""
        notes = [self.unit] * bool(self.unit) + ["lower is better"] * (self.better == "lower")
        return f"{self.title} ({', '.join(notes)})" if notes else self.title


REGIONS = ("", "_shadow", "_nonshadow")  # suffixes of a metric's name: on all pixels, inside a mask, outside it


def by_region(metric: Metric) -> tuple[Metric, ...]:
    """The metric on all pixels, in the shadow and outside it."""
    return tuple(
        replace(metric, name=f"{metric.name}{end}", title=f"{metric.title}{end.replace('_', ', ')}") for end in REGIONS
    )


PSNR = Metric("psnr", "PSNR", "dB", "higher", 2)


SSIM = Metric("ssim", "SSIM", "", "higher", 4)


SSIM_3D = Metric("ssim_3d", "SSIM 3-D", "", "higher", 4)


VIF = Metric("vif", "VIF", "", "higher", 4)


FSIM = Metric("fsim", "FSIM", "", "higher", 4)


FSIMC = Metric("fsimc", "FSIMc", "", "higher", 4)


# pi: per image, the mean of each image's figure; pp: per pixel, over the pixels of all images at once. 480 and 256: resized
# to 480x640 or 256x256. Papers on shadows print any of the three as RMSE.
LAB_RMSE_PI_480 = Metric("lab_rmse_pi_480", "Lab RMSE pi 480", "", "lower", 2)


LAB_MAE_PI_480 = Metric("lab_mae_pi_480", "Lab MAE pi 480", "", "lower", 2)


LAB_MAE_PP_256 = Metric("lab_mae_pp_256", "Lab MAE pp 256", "", "lower", 2)


REGIONAL = [by_region(metric) for metric in (PSNR, SSIM_3D, LAB_RMSE_PI_480, LAB_MAE_PI_480, LAB_MAE_PP_256)]


SHADOW = tuple(dict.fromkeys((PSNR, SSIM, *(each[i] for i in range(3) for each in REGIONAL))))


METRICS = {metric.name: metric for metric in (*SHADOW, VIF, FSIM, FSIMC)}


def measured(row: Mapping[str, Any]) -> list[Metric]:
    """The metrics that a row of scores has, in the order of tables."""
    return [metric for name, metric in METRICS.items() if name in row]


def table(row: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """A row of scores as text: for each metric its heading, the degraded input, the output, and what was published.

    The output has its margin behind it, where the row has one.
    """
    lines = []
    for metric in measured(row):
        published = {method: figures[metric.name] for method, figures in row["paper"].items() if metric.name in figures}
        rows = ", ".join(f"{method} {metric.text(value)}" for method, value in published.items())
        after = metric.shown(row[metric.name], (row.get("margin") or {}).get(metric.name))
        lines.append((metric.heading, metric.text(row["baseline"][metric.name]), after, rows))
    return lines


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape on the scale 0..255. Infinite if they are equal.

    Raises ValueError if the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"cannot compare {a.shape} and {b.shape}")
    error = float(np.mean(np.square(a.astype(np.float64) - b)))
    return 10 * math.log10(255**2 / error) if error else math.inf


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of two planes, (H, W) or (H, W, 1), on the scale 0..255.

    The mean over the windows that lie inside the image, in float64. Raises ValueError for other shapes, UnusableImageError
    for planes smaller than the window. Source: Wang et al., Image quality assessment, TIP 2004, with its constants.
    """
    return float(ssim_map(a, b).mean())


def ssim_map(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """What `ssim` is the mean of: float64, (H - 10, W - 10), one value for each window. Arguments and errors as there."""
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

    The window is 11x11x11, Gaussian with sigma 1.5, and crosses the border, where the edge is repeated: each of the three
    channels enters the others' means. Raises ValueError for other shapes, UnusableImageError for less than 11x11 pixels.
    """
    if a.shape != b.shape or a.shape[2:] != (3,):
        raise ValueError(f"expected two arrays (H, W, 3) of one size, got {a.shape} and {b.shape}")
    _check_window(a, 11)
    means = partial(gaussian_filter, sigma=1.5, mode="nearest", radius=5)
    return float(_similarity(a.astype(np.float64), b.astype(np.float64), means).mean())


def _ssim_skimage(a: np.ndarray, b: np.ndarray) -> float:
    """scikit-image's structural_similarity with its defaults, of two planes (H, W, 1) on the scale 0..255."""
    _check_window(a, 7)
    return float(structural_similarity(a[..., 0], b[..., 0], data_range=255))


def ssim_channels(a: np.ndarray, b: np.ndarray) -> float:
    """The mean of `ssim` over the channels: (H, W, C)."""
    return math.fsum(ssim(a[..., c], b[..., c]) for c in range(a.shape[2])) / a.shape[2]


SIMILARITIES: dict[str, dict[str, Callable[[np.ndarray, np.ndarray], float]]] = {
    "wang2004": {"ssim": ssim_channels},
    "wang2004-downsampled": {"ssim": ssim_downsampled},
    "wang2004,matlab3d": {"ssim": ssim_channels, "ssim_3d": ssim_3d},
    "skimage": {"ssim": _ssim_skimage},
}  # of Protocol.ssim, by metric


def _check_window(image: np.ndarray, side: int) -> None:
    height, width = image.shape[:2]
    if min(height, width) < side:
        raise UnusableImageError(f"{width}x{height} pixels to score, SSIM needs {side}x{side}")


def _similarity(x: np.ndarray, y: np.ndarray, means: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """SSIM's index of all windows; `means` gives their weighted means."""
    mean_x, mean_y = means(x), means(y)
    variance_x = means(x * x) - mean_x**2
    variance_y = means(y * y) - mean_y**2
    covariance = means(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return ((2 * mean_x * mean_y + c1) * (2 * covariance + c2)) / (
        (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    )


def _windowed(plane: np.ndarray) -> np.ndarray:
    """Gaussian means of all 11x11 windows inside the plane: (H, W) -> (H - 10, W - 10)."""
    weights = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    weights /= weights.sum()
    return cv2.sepFilter2D(plane, cv2.CV_64F, weights, weights)[5:-5, 5:-5]


LEVELS = np.arange(256) / 255


LINEAR = np.where(LEVELS <= 0.04045, LEVELS / 12.92, ((LEVELS + 0.055) / 1.055) ** 2.4)  # by level, 0..255


# XYZ of red, green and blue in the ICC profile sRGB IEC61966-2.1: sRGB's primaries, adapted to D50 by Bradford's transform
PRIMARIES_D50 = np.array([[0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]])
WHITE_D50 = np.array([0.9642, 1, 0.8249])


def srgb2lab(image: np.ndarray) -> np.ndarray:
    """CIE L*a*b* with the white of D50, as MATLAB's makecform("srgb2lab") gives it; with D65, distances differ.

    image: uint8, (H, W, 3) RGB. Returns float64, (H, W, 3): L in 0..100, a and b about -100..100. The curve is sRGB's formula;
    MATLAB reads 1,024 points of it from the profile.
    """
    ratio = LINEAR[image] @ PRIMARIES_D50 / WHITE_D50
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * 841 / 108 + 4 / 29)
    x, y, z = np.moveaxis(f, 2, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=2)
