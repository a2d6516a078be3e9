"""Functions of torch in other words: those that MKL's vector library computes on a CPU by approximations of its maker.

sqrt, log10, log2, atan and acos of a tensor are in its hands. What stands here has the same bits everywhere, see
jobs/training/arithmetic.py: divisions, their square roots and `log` have.
"""

import math

from torch import Tensor


def root(x: Tensor) -> Tensor:
    """The square root, of x >= 0; its gradient is that of torch's sqrt, and at 0 not a number."""
    return x.rsqrt().reciprocal()


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB, of the mean squared error of values in [0, 1]; 100 dB at the most."""
    return mse.clamp_min(1e-10).log() * (-10 / math.log(10))
