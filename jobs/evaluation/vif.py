"""Visual information fidelity (VIF): the share of the target's information that is still in the output.

Source: Sheikh and Bovik, Image Information and Visual Quality, TIP 2006, as its authors' vifvec.m computes it: vectors of 3x3
coefficients of a steerable pyramid (Simoncelli and Freeman, ICIP 1995). The faster version "in the pixel domain", which many
libraries have, gives other numbers.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from pipeline.images import UnusableImageError

LEVELS = 3
BLOCK = 3  # a vector is that many coefficients a side
NOISE = 0.4  # variance of what the eye adds to each coefficient, on the scale 0..255
TINY = 1e-15  # variances below count as none
SMALLEST = 36  # pixels a side: the 9 of the pyramid's filter after two halvings


def _mirrored(quarter: list[list[float]], odd: bool = False) -> np.ndarray:
    """A filter of which one quarter is given, from its upper left corner to its centre. odd: in its rows."""
    upper = np.array(quarter)
    upper = np.concatenate([upper, upper[:, -2::-1]], axis=1)
    return np.concatenate([upper, (-1 if odd else 1) * upper[-2::-1]])


# The filters with five vanishing derivatives: before the pyramid, between its levels, and across horizontal edges. The other
# orientation that VIF looks at is the last one turned by 90 degrees.
LOW_FIRST = _mirrored(
    [[0.00341614, -0.01551246, -0.03848215], [-0.01551246, 0.05586982, 0.1592557], [-0.03848215, 0.1592557, 0.40304148]]
)
LOW = _mirrored(
    [
        [0.00170808, -0.00489834, -0.00775624, -0.01888864, -0.01924108],
        [-0.00489834, -0.01046562, -0.01322234, 0.008212, 0.02005976],
        [-0.00775624, -0.01322234, 0.02793492, 0.06554076, 0.07962786],
        [-0.01888864, 0.008212, 0.06554076, 0.12852666, 0.16339236],
        [-0.01924108, 0.02005976, 0.07962786, 0.16339236, 0.2019308],
    ]
)
EDGES = _mirrored(
    [
        [0.00277643, 0.00496194, 0.01026699, 0.01455399],
        [-0.00986904, -0.00893064, 0.01189859, 0.02755155],
        [-0.01021852, -0.03075356, -0.08226445, -0.11732297],
        [0, 0, 0, 0],
    ],
    odd=True,
)


def vif(output: np.ndarray, target: np.ndarray, noise: float = NOISE, block: int = BLOCK) -> float:
    """VIF of two planes, (H, W), on the scale 0..255: 1 if they are equal, 0 if nothing is left, above 1 for more contrast.

    noise, block: other values than those of vifvec.m. Raises ValueError for other shapes; UnusableImageError for less than
    36x36 pixels, and for a target without structure, in which there is no information.
    """
    if output.shape != target.shape or target.ndim != 2:
        raise ValueError(f"expected two planes of one size, got {output.shape} and {target.shape}")
    if min(target.shape) < SMALLEST:
        raise UnusableImageError(
            f"{target.shape[1]}x{target.shape[0]} pixels to score, VIF needs {SMALLEST}x{SMALLEST}"
        )
    kept = there = 0.0
    for level, reference, distorted in _bands(target, output):
        size = [side // block * block for side in reference.shape]
        x, y = (band[: size[0], : size[1]] for band in (reference, distorted))
        window = 2 ** (LEVELS - level) + 1
        inner = -(-(window // 2) // block)  # blocks at the border whose windows leave the band
        gain, error = _channel(x, y, window, block)
        strength, eigenvalues = _source(x, block)
        gain, error, strength = (each[inner:-inner, inner:-inner] for each in (gain, error, strength))
        for eigenvalue in eigenvalues:
            signal = strength * eigenvalue
            kept += float(np.log2(1 + gain**2 * signal / (error + noise)).sum())
            there += float(np.log2(1 + signal / noise).sum())
    if not there > 0:
        raise UnusableImageError("its target has no structure, and VIF is not defined")
    return kept / there


def _bands(*planes: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(level, band of the first plane, of the second) of the two orientations, level 0 being the finest."""
    low = [_filtered(plane.astype(np.float64), LOW_FIRST) for plane in planes]
    for level in range(LEVELS):
        for edges in (EDGES, EDGES.T):
            first, second = (_filtered(plane, edges) for plane in low)
            yield level, first, second
        low = [_filtered(plane, LOW)[::2, ::2] for plane in low]


def _filtered(plane: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.filter2D(np.ascontiguousarray(plane), cv2.CV_64F, kernel, borderType=cv2.BORDER_REFLECT_101)


def _channel(x: np.ndarray, y: np.ndarray, window: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The model y = gain * x + error at each block's centre: the gain, and the variance of the error. (h, w) each."""

    def means(band: np.ndarray) -> np.ndarray:
        mean = cv2.blur(np.ascontiguousarray(band), (window, window), borderType=cv2.BORDER_REFLECT_101)
        return mean[block // 2 :: block, block // 2 :: block]

    count = window**2
    mean_x, mean_y = means(x), means(y)
    covariance = count * (means(x * y) - mean_x * mean_y)
    ss_x = np.maximum(count * (means(x * x) - mean_x**2), 0)
    ss_y = np.maximum(count * (means(y * y) - mean_y**2), 0)
    gain = covariance / (ss_x + TINY)
    error = (ss_y - gain * covariance) / count
    flat = ss_x < TINY
    gain[flat], error[flat] = 0, ss_y[flat]
    flat = ss_y < TINY
    gain[flat], error[flat] = 0, 0
    opposed = gain < 0
    gain[opposed], error[opposed] = 0, ss_y[opposed]
    return gain, np.maximum(error, TINY)


def _source(x: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The target as a Gaussian scale mixture: the strength of each block, (h, w), and the eigenvalues of the covariance."""
    every = np.lib.stride_tricks.sliding_window_view(x, (block, block)).reshape(-1, block**2)
    covariance = np.cov(every, rowvar=False, bias=True)
    vectors = every.reshape(x.shape[0] - block + 1, -1, block**2)[::block, ::block]  # those that do not overlap
    try:
        inverse = np.linalg.inv(covariance)
    except np.linalg.LinAlgError:
        raise UnusableImageError("its target has no structure, and VIF is not defined") from None
    strength = np.einsum("hwi,ij,hwj->hw", vectors, inverse, vectors, optimize=True) / block**2
    return strength, np.linalg.eigvalsh(covariance)
