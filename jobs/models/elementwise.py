"""Replacements for functions of torch that MKL's vector library computes on a CPU by approximations of its maker.

MKL computes sqrt, log10, log2, atan and acos of a tensor. The functions here give the same bits everywhere (see
jobs/arithmetic.py), as divisions, their square roots and `log` do.
"""

import math

from torch import Tensor


def root(x: Tensor) -> Tensor:
    """The square root of x >= 0; it has the gradient of torch's sqrt, but at 0 that is not a number."""
    return x.rsqrt().reciprocal()


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB from the mean squared error of values in [0, 1]; 100 dB at the most."""
    return mse.clamp_min(1e-10).log() * (-10 / math.log(10))
