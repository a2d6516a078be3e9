"""Standard normal numbers on the device, by key."""

import math

import torch
from torch import Tensor


def counter_normal(keys: Tensor, n: int) -> Tensor:
    """n standard normal numbers for each key: float32 (k, n). keys: int64 (k,), 64 random bits each.

    Counter-based: number i of a key depends on i and the key only, so on the CPU it is the same to the last bit
    whichever keys stand beside it. Source: splitmix64 on a Weyl sequence, then Box-Muller; none is beyond 6.7.
    """
    # Pieces that torch computes in one thread, whole vector registers at a time: their last bits do not depend on a place.
    half = -(-(n + 1) // 2 // 64) * 64
    piece, many = (half, len(keys)) if keys.is_cuda else (min(half, 2**14), max(1, 2**14 // half))
    counter = torch.arange(half, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    out = torch.empty(len(keys), 2, half, device=keys.device)
    for top in range(0, len(keys), many):
        for left in range(0, half, piece):
            bits = counter[left : left + piece] + keys[top : top + many, None]
            bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
            bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
            bits = bits ^ _shifted(bits, 31)
            radius = (((bits & 0xFFFFFFFF).float() + 0.5) * 2**-32).clamp_max(1).log().mul(-2).rsqrt().reciprocal()
            angle = _shifted(bits, 32).float() * (2 * math.pi * 2**-32)
            torch.mul(radius, angle.cos(), out=out[top : top + many, 0, left : left + piece])
            torch.mul(radius, angle.sin(), out=out[top : top + many, 1, left : left + piece])
    return out.view(len(keys), -1)[:, :n].contiguous() if half * 2 != n else out.view(len(keys), n)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """Bits shifted to the right, with zeros from the left: torch's own shift keeps the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(value: int) -> int:
    """64 bits as the signed integer that torch takes."""
    return value - 2**64 if value >= 2**63 else value
