"""What tables add to the figures of single sets: the average over sets, and the reductions of error in brackets."""

import math
from collections.abc import Mapping, Sequence

from jobs.evaluation.metrics import METRICS


def over_sets(rows: Sequence[Mapping[str, float | None]]) -> dict[str, float]:
    """The average column of a table: for each metric that all sets have, the plain mean of their figures.

    A set counts once, however many images it has. rows: one for each set, at least one, with figures by metric; None is the
    infinite PSNR of identical images, and so is the mean with it. Other keys than metrics are ignored.
    """
    shared = [name for name in METRICS if all(name in row for row in rows)]
    figures = {name: [math.inf if (value := row[name]) is None else value for row in rows] for name in shared}
    return {name: math.fsum(values) / len(values) for name, values in figures.items()}


def rmse_reduction(psnr: float, reference: float) -> float:
    """By which share the root of the mean squared error is smaller at `psnr` than at `reference` (dB); negative if larger.

    Source: MPRNet and DRCNet, tables with figures in brackets, RMSE ∝ sqrt(10^(-PSNR/10)). There each method is the reference
    of the best one.
    """
    return 0.0 if psnr == reference else 1 - 10 ** ((reference - psnr) / 20)


def dssim_reduction(ssim: float, reference: float) -> float:
    """By which share DSSIM = (1 - SSIM) / 2 is smaller at `ssim` than at `reference`; negative if larger.

    -inf if `reference` is perfect and `ssim` is not. Source: as that of `rmse_reduction`.
    """
    if ssim == reference:
        return 0.0
    return 1 - (1 - ssim) / (1 - reference) if reference < 1 else -math.inf
