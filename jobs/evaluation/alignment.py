"""RealBlur's scores: the output is brought onto its target first, for the two photographs of a pair never lie quite alike.

Its author measures by the script of Köhler's benchmark, MPRNet by a copy of it: one gain for the whole output, a homography
by the enhanced correlation coefficient (Evangelidis and Psarakis, TPAMI 2008), and then only the pixels of the target
that the moved output covers.
"""

from typing import NamedTuple

import cv2
import numpy as np

from jobs.evaluation.metrics import ssim_map
from pipeline.errors import UserError

ITERATIONS = 100  # of ECC, and no other end: its tolerance is 0
GAUSS = 5  # pixels a side of the filter that ECC smooths both images with
OUTSIDE = "cannot be aligned with its target: what ECC finds moves it out of the image"


class Aligned(NamedTuple):
    """Two images on the scale [0, 1], float32 (H, W, C), both black where mask is 0; mask: float32 (H, W), 0 or 1."""

    output: np.ndarray
    target: np.ndarray
    mask: np.ndarray


def aligned(output: np.ndarray, target: np.ndarray) -> Aligned:
    """The output, with its gain matched and moved by the homography that fits the target best.

    output, target: floating, (H, W, 3), on the scale [0, 1]. Raises UserError for an output that cannot be aligned: one
    without any structure, or with none of the target's.
    """
    a, b = output.astype(np.float32), target.astype(np.float32)
    energy = float(np.sum(a * a))
    a = np.float32(float(np.sum(b * a)) / energy if energy else 1.0) * a
    start = np.eye(3, dtype=np.float32)
    end = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, ITERATIONS, 0)
    try:
        _, warp = cv2.findTransformECC(
            cv2.cvtColor(b, cv2.COLOR_RGB2GRAY), cv2.cvtColor(a, cv2.COLOR_RGB2GRAY), start, cv2.MOTION_HOMOGRAPHY, end, None, GAUSS
        )  # fmt: skip
    except cv2.error:
        warp = None
    if warp is None or not np.isfinite(warp).all():
        raise UserError("cannot be aligned with its target: the two show nothing in common (ECC does not converge)")
    size = (b.shape[1], b.shape[0])
    moved = cv2.warpPerspective(
        a, warp, size, flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REFLECT
    )
    covered = cv2.warpPerspective(
        np.ones(b.shape[:2], np.float32), warp, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP
    )
    if not covered.any():
        raise UserError(OUTSIDE)
    mask = covered[..., None]
    return Aligned(moved * mask, b * mask, covered)


def masked_psnr(images: Aligned) -> float:
    """PSNR in dB over the pixels of the mask; infinite if the images are equal there. Source: MPRNet's script."""
    error = np.square(images.output.astype(np.float64) - images.target).sum()
    pixels = float(images.mask.sum()) * images.target.shape[2]
    return 10 * float(np.log10(pixels / error)) if error else float("inf")


def masked_ssim(images: Aligned) -> float:
    """The mean of SSIM's index over the pixels of the mask, of each channel, and of the channels.

    Gaussian windows of 11x11, sigma 1.5, that lie inside the images, which are black outside the mask. Raises
    UnusableImageError for less than 11x11 pixels, UserError if no such window is centred in the mask. Source: MPRNet's script.
    """
    a, b = (255 * np.moveaxis(image.astype(np.float64), 2, 0) for image in images[:2])
    index = np.stack([ssim_map(*planes) for planes in zip(a, b, strict=True)])  # (C, H - 10, W - 10)
    mask = images.mask[5:-5, 5:-5]
    if not mask.any():
        raise UserError(OUTSIDE)
    return float((index * mask).sum() / (mask.sum() * len(index)))
