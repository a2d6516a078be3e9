"""Kernels of blur: the Gaussian and its relatives, round or elliptic, and the ideal low-pass filter, whose kernel rings."""

import math
from typing import Literal

import numpy as np

Shape = Literal["gaussian", "generalised", "plateau"]


def bell(
    radius: int, sigma: float, sigma_y: float, rotation: float = 0, shape: Shape = "gaussian", beta: float = 1
) -> np.ndarray:
    """A kernel that falls from its middle, as a function of the elliptic distance q = (u/sigma)^2 + (v/sigma_y)^2.

    radius: of the square that it is cut to, in pixels. sigma, sigma_y: in pixels, along the axes u and v. rotation: of u,
    in degrees, from the image's x to its y, which points down. shape: gaussian is exp(-q/2), generalised exp(-q^beta/2),
    which is flatter inside and steeper outside for a larger beta, and plateau 1/(1 + q^beta), which has longer tails.
    beta: above 0; of no effect on gaussian.
    Returns float64 (2 radius + 1, 2 radius + 1), indexed by y and x, with the sum 1.
    Source: Wang et al. 2021, Real-ESRGAN, section 3.1.
    """
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(np.float64)
    cos, sin = math.cos(math.radians(rotation)), math.sin(math.radians(rotation))
    q = ((cos * x + sin * y) / sigma) ** 2 + ((cos * y - sin * x) / sigma_y) ** 2
    if shape != "gaussian":
        q **= beta
    kernel = 1 / (1 + q) if shape == "plateau" else np.exp(-q / 2)
    return kernel / kernel.sum()


def sinc(radius: int, cutoff: float) -> np.ndarray:
    """The kernel that passes the frequencies inside a disc and none outside, cut to a square: it leaves ringing and overshoot.

    radius: of the square, in pixels. cutoff: the disc's radius, above 0; 1 is half a cycle a pixel, the highest frequency
    along a row.
    Returns float64 (2 radius + 1, 2 radius + 1), with the sum 1. It is w J1(w r) / (2 pi r), where w is pi cutoff, r the
    distance from the middle, and J1 the Bessel function of the first kind; w^2 / (4 pi) in the middle.
    """
    from scipy.special import j1  # its import takes a part of a second, and reading a task does without

    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    r = np.hypot(x, y)
    r[radius, radius] = 1
    w = math.pi * cutoff
    kernel = w * j1(w * r) / (2 * math.pi * r)
    kernel[radius, radius] = w**2 / (4 * math.pi)
    return kernel / kernel.sum()
