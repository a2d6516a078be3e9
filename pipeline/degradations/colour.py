"""One plane of an RGB image, by MATLAB's formulas: most tables are measured on these planes."""

import cv2
import numpy as np

from pipeline.depth import peak

_PIXELS = 2**15  # pixels converted at a time, so that their floats stay in the cache


def rgb2ycbcr_y(image: np.ndarray) -> np.ndarray:
    """The Y plane of MATLAB's rgb2ycbcr: 16..235 for uint8, 257 times that for uint16.

    image: uint8 or uint16, (H, W, 3) RGB; grey (H, W, 1) has no Y to compute and passes through unchanged (0..255).
    Returns the same dtype, (H, W, 1), rounded half up. Raises ValueError for another shape or dtype.
    Source: ITU-R BT.601, studio swing; weights as in MATLAB, divided by 255 for uint8 and uint16.
    """
    return _plane(image, weights=(65_481, 128_553, 24_966), divisor=255_000, offset=16)


def rgb2gray(image: np.ndarray) -> np.ndarray:
    """The grey image of MATLAB's rgb2gray: 0..255 for uint8, 0..65535 for uint16.

    image: uint8 or uint16, (H, W, 3) RGB; grey (H, W, 1) passes through unchanged.
    Returns the same dtype, (H, W, 1), rounded half up. Raises ValueError for another shape or dtype.
    Source: 0.298936 R + 0.587043 G + 0.114021 B, the first row of the inverse of NTSC's YIQ matrix, as exact fractions.
    """
    return _plane(image, weights=(589_399, 1_157_447, 224_810), divisor=1_971_656, offset=0)


def _plane(image: np.ndarray, weights: tuple[int, int, int], divisor: int, offset: int) -> np.ndarray:
    if image.dtype not in (np.uint8, np.uint16) or image.ndim != 3 or image.shape[2] not in (1, 3) or not image.size:
        raise ValueError(f"expected uint8 or uint16 (H, W, 1) or (H, W, 3), got {image.dtype} {image.shape}")
    if image.shape[2] == 1:
        return image
    # The plane is floor((w . RGB + divisor // 2) / divisor) + offset of whole numbers. Half a unit more in the numerator
    # changes no floor, but keeps the quotient 2.5e-7 or more from a whole number: 64-bit floats, right to 1e-10 whatever
    # the order of their sums, then have the same floor.
    offset *= peak(image.dtype) // 255
    row = np.array([[*weights, divisor // 2 + 0.5 + offset * divisor]]) / divisor
    plane = np.empty((*image.shape[:2], 1), image.dtype)
    rows = max(1, _PIXELS // image.shape[1])
    for start in range(0, image.shape[0], rows):
        part = image[start : start + rows]
        plane[start : start + rows, :, 0] = cv2.transform(part.astype(np.float64), row)
    return plane


def with_channels(image: np.ndarray, channels: int) -> np.ndarray:
    """An image of 1 or `channels` channels, (H, W, C), with `channels`: grey is repeated. Raises ValueError for others.

    Training, validation, evaluation and restoration in colour all treat grey images in this way.
    """
    if image.shape[2] == channels:
        return image
    if image.shape[2] != 1:
        raise ValueError(f"it has {image.shape[2]} channels, and {channels} are wanted")
    return np.repeat(image, channels, axis=2)
