"""Feature similarity (FSIM and, of colour images, FSIMc): how alike two images are in phase congruency and in gradients.

Source: Zhang et al., FSIM: A Feature Similarity Index for Image Quality Assessment, TIP 2011, as its authors' FeatureSIM.m
computes it, with phase congruency as in Kovesi, Image Features from Phase Congruency, Videre 1999.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from pipeline.images import UnusableImageError

SCALES, ORIENTATIONS = 4, 4
SHORTEST = 6  # pixels: the wavelength of the finest filter; each further scale doubles it
BANDWIDTH = 0.55  # of the log-Gabor filters: sigma over centre frequency
SPREAD = math.pi / ORIENTATIONS / 1.2  # sigma of a filter's angle
NOISE_SIGMAS = 2.0  # the energy of noise that is taken off is so many sigmas above its mean, over 1.7
T_PHASE, T_GRADIENT, T_COLOUR, COLOUR_POWER = 0.85, 160.0, 200.0, 0.03
YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
SCHARR = np.array([[3, 0, -3], [10, 0, -10], [3, 0, -3]]) / 16


class FSIM(NamedTuple):
    """fsim: of the luma alone. fsimc: also of the colours; of grey images the same."""

    fsim: float
    fsimc: float


def fsim(a: np.ndarray, b: np.ndarray) -> FSIM:
    """FSIM and FSIMc of two images, (H, W, 1) or (H, W, 3) RGB, on the scale 0..255: 1 if they are equal.

    Images are first shrunk so that the shorter side comes near 256. Raises ValueError for other shapes, UnusableImageError
    where neither image has any structure.
    """
    if a.shape != b.shape or a.ndim != 3 or a.shape[2] not in (1, 3):
        raise ValueError(f"expected two arrays (H, W, 1) or (H, W, 3) of one size, got {a.shape} and {b.shape}")
    planes = [
        _shrunk(image.astype(np.float64) @ (YIQ.T if image.shape[2] == 3 else np.ones((1, 1)))) for image in (a, b)
    ]
    first, second = (plane[..., 0] for plane in planes)
    congruent, other = phase_congruency(first), phase_congruency(second)
    weight = np.maximum(congruent, other)
    if not weight.any():
        raise UnusableImageError("nothing but flat areas, and FSIM is not defined")
    alike = _alike(congruent, other, T_PHASE) * _alike(_gradient(first), _gradient(second), T_GRADIENT) * weight
    luma = float(alike.sum() / weight.sum())
    if a.shape[2] == 1:
        return FSIM(luma, luma)
    colours = [_alike(planes[0][..., c], planes[1][..., c], T_COLOUR) for c in (1, 2)]
    tinted = (
        alike * ((colours[0] * colours[1]).astype(np.complex128) ** COLOUR_POWER).real
    )  # colours that are opposed have a negative one
    return FSIM(luma, float(tinted.sum() / weight.sum()))


def _alike(a: np.ndarray, b: np.ndarray, constant: float) -> np.ndarray:
    return (2 * a * b + constant) / (a**2 + b**2 + constant)


def _shrunk(image: np.ndarray) -> np.ndarray:
    """Means of f x f pixels, every f-th kept; beyond the border is black. (H, W, C) -> (h, w, C)."""
    f = max(1, math.floor(min(image.shape[:2]) / 256 + 0.5))
    anchor = (f - 1) // 2  # of a window, as MATLAB's conv2 has it
    means = cv2.blur(image, (f, f), anchor=(anchor, anchor), borderType=cv2.BORDER_CONSTANT)
    return means.reshape(image.shape)[::f, ::f]


def _gradient(plane: np.ndarray) -> np.ndarray:
    """The magnitude of Scharr's gradient; beyond the border is black."""
    plane = np.ascontiguousarray(plane)
    x, y = (cv2.filter2D(plane, cv2.CV_64F, kernel, borderType=cv2.BORDER_CONSTANT) for kernel in (SCHARR, SCHARR.T))
    return np.hypot(x, y)


class _Filters(NamedTuple):
    """gabor: transfer functions, (orientation, scale, H, W). power, overlap: of each orientation, what white noise of power
    1 in its finest filter leaves in the sum of all, squared.
    """

    gabor: np.ndarray
    power: np.ndarray
    overlap: np.ndarray


@lru_cache(maxsize=2)
def _filters(height: int, width: int) -> _Filters:
    y, x = np.meshgrid(_frequencies(height), _frequencies(width), indexing="ij")
    radius, theta = np.hypot(x, y), np.arctan2(-y, x)
    smooth = 1 / (1 + (radius / 0.45) ** 30)  # a Butterworth filter: none of the corners' frequencies
    radius[0, 0] = 1
    centres = [1 / (SHORTEST * 2**scale) for scale in range(SCALES)]
    radial = np.stack([np.exp(-(np.log(radius / f) ** 2) / (2 * math.log(BANDWIDTH) ** 2)) * smooth for f in centres])
    radial[:, 0, 0] = 0
    angles = [math.pi * o / ORIENTATIONS for o in range(ORIENTATIONS)]
    apart = np.stack([np.abs(np.angle(np.exp(1j * (theta - angle)))) for angle in angles])
    gabor = np.exp(-(apart**2) / (2 * SPREAD**2))[:, None] * radial
    responses = np.fft.ifft2(gabor).real * math.sqrt(height * width)
    squares = np.square(responses).sum(axis=(1, 2, 3))
    cross = (np.square(responses.sum(axis=1)).sum(axis=(1, 2)) - squares) / 2  # products of two different scales
    return _Filters(gabor, np.square(gabor[:, 0]).sum(axis=(1, 2)), 2 * squares + 4 * cross)


def _frequencies(n: int) -> np.ndarray:
    """Cycles a pixel in the order of fft2. For odd n they are n / (n - 1) too large, as in Kovesi's code."""
    return np.fft.ifftshift(np.arange(-(n // 2), n - n // 2) / (n - n % 2))


def phase_congruency(plane: np.ndarray) -> np.ndarray:
    """Where the Fourier components of a plane are in phase, as at edges and lines: (H, W) -> the same shape, in 0..1."""
    filters = _filters(*plane.shape)
    spectrum = np.fft.fft2(plane)
    energy, amplitude = np.zeros_like(plane), np.zeros_like(plane)
    for gabor, power, overlap in zip(*filters, strict=True):
        responses = np.fft.ifft2(spectrum * gabor)  # (scale, H, W): even parts are real, odd ones imaginary
        total = responses.sum(axis=0)
        mean = total / (np.abs(total) + 1e-4)
        turned = responses * mean.conj()  # the part in phase with the mean is real, the part across it imaginary
        noise = np.median(np.abs(responses[0]) ** 2) / math.log(2) / power * overlap
        tau = math.sqrt(noise / 2)  # of a Rayleigh distribution
        threshold = (tau * math.sqrt(math.pi / 2) + NOISE_SIGMAS * math.sqrt((2 - math.pi / 2) * tau**2)) / 1.7
        energy += np.maximum((turned.real - np.abs(turned.imag)).sum(axis=0) - threshold, 0)
        amplitude += np.abs(responses).sum(axis=0)
    return np.divide(energy, amplitude, out=np.zeros_like(plane), where=amplitude > 0)
