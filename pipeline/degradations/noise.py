"""Additive noise, drawn by key."""

import numpy as np

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
