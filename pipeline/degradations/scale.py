"""MATLAB's bicubic imresize, from which the inputs of the super-resolution papers are made.

A pass is a sparse matrix applied to rows: SciPy adds the taps of a row one by one, in the order in which they are stored,
where the matrix product of a BLAS or a filter of OpenCV would choose an order by the processor. So the result is the same
to the last bit on every x86-64 machine. SciPy's wheels for ARM fuse products with sums: there the last bit may differ,
and a pixel of uint8 by 1 where its sum falls on a half.
"""

import functools
import math
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import cv2
import numpy as np
from pydantic import Field
from scipy.sparse import csr_array

from pipeline.degradations.base import Degradation, Distinct
from pipeline.depth import fixed, peak, unit
from pipeline.images import UnusableImageError

_STRIP = 48  # output rows made at a time, so that what lies between the two passes stays in the cache


def imresize(image: np.ndarray, scale: float | None = None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Resize as MATLAB's imresize(A, scale) or imresize(A, [rows columns]) does: bicubic, antialiased when shrinking.

    image: (H, W) or (H, W, C), floating, uint8 or uint16. Give either `scale`, for an output of ceil(scale * H) x
    ceil(scale * W), or `size`, the output's (height, width).
    Returns float64 for floating input, neither rounded nor clipped (the cubic kernel overshoots). uint8 and uint16 give
    their own dtype, rounded and clipped after each of the two passes, as in MATLAB. Raises ValueError for other arguments.
    Source: the kernel is Keys' cubic convolution (1981) with a = -0.5, stretched by 1/scale when shrinking; the border
    is mirrored, its edge pixels repeated.
    """
    whole = image.dtype in (np.uint8, np.uint16)
    if image.ndim not in (2, 3) or not image.size or not (whole or image.dtype.kind == "f"):
        raise ValueError(f"expected floats, uint8 or uint16 (H, W) or (H, W, C), got {image.dtype} {image.shape}")
    if size is not None and scale is None and min(size) >= 1:
        scales = [size[0] / image.shape[0], size[1] / image.shape[1]]
    elif scale is not None and size is None and 0 < scale < math.inf:
        scales = [float(scale), float(scale)]
        size = (math.ceil(scale * image.shape[0]), math.ceil(scale * image.shape[1]))
    else:
        raise ValueError(f"give either a scale > 0 or a size (height, width) of pixels, got {scale=} and {size=}")
    first, second = (0, 1) if scales[0] <= scales[1] else (1, 0)  # MATLAB begins where it shrinks more
    rows = image.swapaxes(0, first)
    across = _whole(image.shape[second], size[second], scales[second])
    most = peak(image.dtype) if whole else None
    resized = np.empty((size[first], size[second], *image.shape[2:]), image.dtype if whole else np.float64)
    for strip in _strips(image.shape[first], size[first], scales[first]):
        part = _transposed(_sums(strip, rows, most))
        resized[strip.made] = _transposed(_sums(across, part, most))
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
    Raises ValueError for another dtype or shape. Source: MemNet, section 5.1, after MATLAB's imresize on im2double images.
    """
    if image.dtype.kind != "f" or image.ndim not in (2, 3) or not image.size:
        raise ValueError(f"expected a floating image in [0, 1], (H, W) or (H, W, C), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    h, w = math.ceil(height / factor), math.ceil(width / factor)
    narrow, widen = _whole(width, w, 1 / factor), _whole(w, width, width / w)
    low = np.empty((h, *image.shape[1:]))
    # Rows down, columns down and up, rows up: passes along different axes may change places, and in this order only the
    # low image is transposed. Two calls of imresize give the same but for the last bit.
    for strip in _strips(height, h, 1 / factor):
        part = _transposed(_sums(strip, image))  # (W, n, C)
        low[strip.made] = _transposed(_sums(widen, _sums(narrow, part)))
    return _sums(_whole(h, height, height / h), low)


class _Strip(NamedTuple):
    """Some rows of a pass."""

    made: slice  # output rows
    needed: slice  # input rows
    weights: csr_array  # (rows made, rows needed)


def _sums(strip: _Strip, rows: np.ndarray, most: int | None = None) -> np.ndarray:
    """The rows that a strip makes from all rows (m, ...): float64, (n, ...); rounded and clipped to 0..most, if given."""
    needed = rows[strip.needed].astype(np.float64, copy=False)
    sums = strip.weights @ needed.reshape(len(needed), -1)
    if most is not None:
        sums.clip(0, most, out=sums)
        sums += 0.5
        np.floor(sums, out=sums)
    return sums.reshape(-1, *rows.shape[1:])


def _transposed(pixels: np.ndarray) -> np.ndarray:
    """The pixels, float64 (n, m[, C]), transposed to (m, n[, C]) and contiguous."""
    turned = pixels.swapaxes(0, 1)
    if pixels.ndim == 3 and pixels.shape[2] > 4:  # more than cv2 transposes
        return np.ascontiguousarray(turned)
    return cv2.transpose(pixels).reshape(turned.shape)  # cv2 drops an axis of length 1


def _whole(source: int, length: int, scale: float) -> _Strip:
    """A pass that makes all rows at once."""
    return _strips(source, length, scale, length)[0]


@functools.lru_cache(maxsize=64)
def _strips(source: int, length: int, scale: float, rows: int = _STRIP) -> tuple[_Strip, ...]:
    """The pass from `source` rows to `length` rows, in strips of some rows."""
    indices, weights = _taps(source, length, scale)
    strips = []
    for start in range(0, length, rows):
        made = slice(start, min(start + rows, length))
        index, weight = indices[:, made].T, weights[:, made].T  # (rows, taps)
        needed = slice(int(index.min()), int(index.max()) + 1)
        ends = np.arange(0, index.size + 1, index.shape[1])
        shape = (len(index), needed.stop - needed.start)
        matrix = csr_array((weight.ravel(), index.ravel() - needed.start, ends), shape)
        matrix.eliminate_zeros()  # the kernel is 0 at whole pixels: a quarter of the taps when growing x3
        strips.append(_Strip(made, needed, matrix))
    return tuple(strips)


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


class Scale(Degradation):
    """MATLAB's bicubic resize, down by each factor and up again to the target's size."""

    kind: Literal["scale"]
    factor: Annotated[tuple[Annotated[int, Field(ge=2, le=8)], ...], Distinct] = Field(
        (2, 3, 4), min_length=1, description="of the sides; a level of each"
    )

    level_text: ClassVar[str] = "x{}"
    restores: ClassVar[str] = "Images enlarged by bicubic interpolation: super-resolution"

    @property
    def levels(self) -> tuple[int, ...]:
        """The factors."""
        return self.factor

    @property
    def factors(self) -> tuple[int, ...]:
        """As Degradation.factors."""
        return self.factor

    @property
    def fixed(self) -> bool:
        """The papers keep this input in float, unclipped; levels of 8 bits would cost it 0.29 grey levels rms, these 0.0045.

        For all factors the numbers lie within [-0.28, 1.28], whatever the image. Turned, they are the same to the last
        bit of float64: pixel centres lie symmetrically on both sides.
        """
        return True

    def stored(self) -> dict[str, Any] | None:
        """As Degradation.stored."""
        return self.model_dump(mode="json") | {"inputs": "int16"}

    def made(self, image: np.ndarray, level: int, key: str) -> tuple[str, np.ndarray, Any]:
        """As Degradation.made, int16; without the last rows and columns that the factor does not divide."""
        lowres = bicubic_lowres(modcrop(image, level) / peak(image.dtype), level)
        return f"lq-x{level}", fixed(lowres), {"bicubic": level}

    @staticmethod
    def benchmark(plane: np.ndarray, level: float) -> tuple[list[np.ndarray], np.ndarray]:
        """As Degradation.benchmark: `level` is the factor, and both images are cut to multiples of it."""
        plane = modcrop(plane, int(level))
        return [bicubic_lowres(plane / peak(plane.dtype), int(level)).astype(np.float32)], unit(plane)
