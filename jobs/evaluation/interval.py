"""How sure a mean over images is: half the width of its 95 % confidence interval.

Student's t, and no bootstrap: benchmarks have few images (Classic5 has 5, Set5 too), where the percentile bootstrap covers the
true mean in about 83 of 100 cases instead of 95, and its bounds would depend on a seed. t takes the images for a sample of
all that might have been chosen, and their figures for about normal, which PSNR in dB and SSIM are near enough.

The interval says how far another choice of images could move a mean. It does not compare two models, whose figures rise
and fall with the same images: `memoir compare` does, by the interval of their differences.
"""

import math
from collections.abc import Sequence

from scipy.special import stdtrit

from jobs.evaluation.protocols import Score

LEVEL = 0.95


def margin(values: Sequence[float], weights: Sequence[float] | None = None) -> float | None:
    """Half the width of the interval of a mean, or of a weighted mean, e.g. of errors per pixel: the interval is mean ± margin.

    Returns None where there is none: for fewer than two values, and for those of which one is not finite.
    Source of the weighted one, a ratio of two sums: Cochran, Sampling Techniques, 1977, section 2.11.
    """
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    weights = weights or [1.0] * n
    share = [weight * n / math.fsum(weights) for weight in weights]
    mean = math.fsum(s * value for s, value in zip(share, values, strict=True)) / n
    variance = math.fsum((s * (value - mean)) ** 2 for s, value in zip(share, values, strict=True)) / (n - 1)
    return float(stdtrit(n - 1, (1 + LEVEL) / 2)) * math.sqrt(variance / n)


def margins(scores: Sequence[Score]) -> dict[str, float | None]:
    """The `margin` of each figure of `jobs.evaluation.protocols.mean`. scores: of the images, at least one."""
    return {
        name: margin([each.values[name] for each in scores], [each.weights.get(name, 1.0) for each in scores])
        for name in scores[0].values
    }
