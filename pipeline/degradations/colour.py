"""One plane of an RGB image, by MATLAB's formulas: most tables are measured on these planes."""

import numpy as np


def rgb2ycbcr_y(image: np.ndarray) -> np.ndarray:
    """The Y plane of MATLAB's rgb2ycbcr: 16..235.

    image: uint8, (H, W, 3) RGB; grey (H, W, 1) has no Y to compute and passes through unchanged (0..255).
    Returns uint8, (H, W, 1), rounded half up. Raises ValueError for another shape or dtype.
    Source: ITU-R BT.601, studio swing; weights as in MATLAB, divided by 255 for uint8.
    """
    # whole numbers, so that the rounding does not depend on the order of a float sum
    return _plane(image, weights=(65_481, 128_553, 24_966), divisor=255_000, offset=16)


def rgb2gray(image: np.ndarray) -> np.ndarray:
    """MATLAB's rgb2gray: 0..255.

    image: uint8, (H, W, 3) RGB; grey (H, W, 1) passes through unchanged.
    Returns uint8, (H, W, 1), rounded half up. Raises ValueError for another shape or dtype.
    Source: 0.298936 R + 0.587043 G + 0.114021 B, the first row of the inverse of NTSC's YIQ matrix, as exact fractions.
    """
    return _plane(image, weights=(589_399, 1_157_447, 224_810), divisor=1_971_656, offset=0)


def _plane(image: np.ndarray, weights: tuple[int, int, int], divisor: int, offset: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise ValueError(f"expected uint8 (H, W, 1) or (H, W, 3), got {image.dtype} {image.shape}")
    if image.shape[2] == 1:
        return image
    total = np.full(image.shape[:2], divisor // 2, np.int32)  # at most 5.1e8
    for channel, weight in enumerate(weights):
        total += image[..., channel] * np.int32(weight)
    return (total // divisor + offset).astype(np.uint8)[..., None]  # (H, W, 1)
