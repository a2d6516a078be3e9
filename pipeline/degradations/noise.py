"""Additive noise, drawn by key."""

import numpy as np

from pipeline.depth import peak
from pipeline.keyed import philox


def awgn(image: np.ndarray, sigma: float, key: tuple[int | str, ...]) -> np.ndarray:
    """Add white Gaussian noise, as the denoising papers do: neither clipped nor quantised.

    image: float32 or float64 of any shape, in [0, 1]. sigma: the noise's standard deviation on the 0..255 scale.
    key: names the draw (`pipeline.keyed.philox`); the same key and shape give the same noise, scaled by sigma.
    Returns the same shape and dtype. Raises ValueError for another dtype or a negative sigma.
    Source: MemNet, section 5.1: y = x + sigma/255 * N(0, 1).
    """
    if image.dtype not in (np.float32, np.float64):
        raise ValueError(f"expected a float32 or float64 image in [0, 1], got {image.dtype}")
    if sigma < 0:
        raise ValueError(f"sigma is at least 0, got {sigma}")
    return image + np.float32(sigma / 255) * philox(*key).standard_normal(image.shape, np.float32)


def noisy_levels(image: np.ndarray, sigma: float, key: tuple[int | str, ...]) -> np.ndarray:
    """Add the noise of `awgn` and store it as a file does: rounded half to even and clipped to the levels of its dtype.

    image: uint8 or uint16 of any shape. sigma: the noise's standard deviation on the 0..255 scale, whatever the dtype (a
    level of uint8 is 257 of uint16), before rounding and clipping. key: as in `awgn`, with the same draw. Returns the same
    shape and dtype. Raises ValueError for another dtype or a negative sigma.
    """
    if image.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"expected a uint8 or uint16 image, got {image.dtype}")
    if sigma < 0:
        raise ValueError(f"sigma is at least 0, got {sigma}")
    noisy = philox(*key).standard_normal(image.shape, np.float32)
    noisy *= np.float32(sigma * (peak(image.dtype) // 255))
    noisy += image
    return np.rint(noisy, out=noisy).clip(0, peak(image.dtype), out=noisy).astype(image.dtype)
