"""MATLAB's bicubic imresize, from which the inputs of the super-resolution papers are made.

Only elementwise products and sums in a fixed order: no matrix product, whose summation order depends on the processor.
So the result is the same to the last bit on every machine.
"""

import functools
import math

import numpy as np

from pipeline.images import UnusableImageError

_STRIP = 64  # output rows made at a time, so that what lies between the two passes stays in the cache


def imresize(image: np.ndarray, scale: float | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Resize as MATLAB's imresize(A, scale) or imresize(A, [rows columns]) does: bicubic, antialiased when shrinking.

    image: (H, W) or (H, W, C), floating or uint8. Give either `scale`, for an output of ceil(scale * H) x
    ceil(scale * W), or `size`, the output's (height, width).
    Returns float64 for floating input, neither rounded nor clipped (the cubic kernel overshoots). uint8 gives uint8,
    rounded and clipped after each of the two passes, as in MATLAB. Raises ValueError for other arguments.
    Source: the kernel is Keys' cubic convolution (1981) with a = -0.5, stretched by 1/scale when shrinking; the border
    is mirrored, its edge pixels repeated.
    """
    if image.ndim not in (2, 3) or not image.size or not (image.dtype == np.uint8 or image.dtype.kind == "f"):
        raise ValueError(f"expected floating or uint8 (H, W) or (H, W, C), got {image.dtype} {image.shape}")
    if size is not None and scale is None and min(size) >= 1:
        scales = [size[0] / image.shape[0], size[1] / image.shape[1]]
    elif scale is not None and size is None and 0 < scale < math.inf:
        scales = [float(scale), float(scale)]
        size = (math.ceil(scale * image.shape[0]), math.ceil(scale * image.shape[1]))
    else:
        raise ValueError(f"give either a scale > 0 or a size (height, width) of pixels, got {scale=} and {size=}")
    first, second = (0, 1) if scales[0] <= scales[1] else (1, 0)  # MATLAB begins where it shrinks more
    rows = image.swapaxes(0, first).astype(np.float64, order="C")
    indices, weights = _taps(image.shape[first], size[first], scales[first])
    across = _taps(image.shape[second], size[second], scales[second])
    whole = image.dtype == np.uint8
    resized = np.empty((size[first], size[second], *image.shape[2:]), np.uint8 if whole else np.float64)
    for start in range(0, size[first], _STRIP):
        span = slice(start, start + _STRIP)
        strip = _combine(rows, indices[:, span], weights[:, span], whole)
        strip = _combine(strip.swapaxes(0, 1).copy(), *across, whole)
        resized[span] = strip.swapaxes(0, 1)
    return np.ascontiguousarray(resized.swapaxes(0, first))


def modcrop(image: np.ndarray, factor: int) -> np.ndarray:
    """Cut rows and columns at the bottom and right so that both sides are multiples of `factor`. image: (H, W, ...).

    Raises UnusableImageError for an image smaller than `factor`.
    """
    height, width = image.shape[:2]
    if min(height, width) < factor:
        raise UnusableImageError(f"{width}x{height} pixels, smaller than the scale factor {factor}")
    return image[: height - height % factor, : width - width % factor]


def bicubic_lowres(image: np.ndarray, factor: int) -> np.ndarray:
    """The input of a super-resolution network that works at the target size: down by 1/factor, up to the same size.

    image: floating, (H, W) or (H, W, C), in [0, 1], already cut by `modcrop`.
    Returns float64 of the same shape; overshoots [0, 1] a little at edges, not rounded in between.
    Raises ValueError for another dtype. Source: MemNet, section 5.1, after MATLAB's imresize on im2double images.
    """
    if image.dtype.kind != "f":
        raise ValueError(f"expected a floating image in [0, 1], got {image.dtype}")
    return imresize(imresize(image, scale=1 / factor), size=(image.shape[0], image.shape[1]))


def _combine(rows: np.ndarray, indices: np.ndarray, weights: np.ndarray, whole: bool) -> np.ndarray:
    """Weighted sums of rows: (n, ...) from rows (m, ...), indices and weights (taps, n); `whole`: as 8-bit values."""
    weights = weights.reshape(*weights.shape, *[1] * (rows.ndim - 1))
    total = rows[indices[0]] * weights[0]
    for index, weight in zip(indices[1:], weights[1:], strict=True):
        tap = rows[index]
        tap *= weight
        total += tap
    return np.floor(total.clip(0, 255) + 0.5) if whole else total


@functools.lru_cache(maxsize=256)
def _taps(source: int, length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """The input pixels of each of `length` output pixels, and their weights: two arrays of (taps, length)."""
    stretch = min(scale, 1.0)  # antialiasing: a wider kernel when shrinking
    width = 4 / stretch
    # pixel centres are at 1, 2, ... on both sides, and the outer edges (0.5) coincide
    centre = np.arange(1, length + 1) / scale + 0.5 * (1 - 1 / scale)
    position = np.floor(centre - width / 2) + np.arange(math.ceil(width) + 2)[:, None]
    weights = stretch * _cubic(stretch * (centre - position))
    weights /= weights.sum(axis=0)
    used = weights.any(axis=1)
    mirrored = np.concatenate([np.arange(source), np.arange(source)[::-1]])
    return mirrored[(position[used].astype(np.int64) - 1) % (2 * source)], weights[used]


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel, a = -0.5: zero outside [-2, 2]."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
