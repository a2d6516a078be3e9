"""Bits a channel: 8 or 16 in files, shards and batches, and one scale for both, [0, 1], where numbers are computed.

Level v of 8 bits and level 257 v of 16 bits are the same number there, in float32 too, to the last bit.

Numbers that are no levels of a file, such as the enlarged inputs of super-resolution, are stored in int16: 16384 is 1,
so that they have steps of 1/64 of a level of 8 bits, and may lie outside [0, 1], within [-2, 2).
"""

from typing import Literal

import numpy as np

Bits = Literal[8, 16]


def peak(dtype: np.typing.DTypeLike) -> int:
    """The level of white: 255 for uint8, 65535 for uint16; 16384 for int16."""
    return 2**14 if np.dtype(dtype) == np.int16 else int(np.iinfo(dtype).max)


def widened(pixels: np.ndarray, bits: Bits) -> np.ndarray:
    """The same picture in `bits` bits: levels of 8 bits are widened, levels of 16 bits are kept. pixels: uint8 or uint16."""
    return pixels.astype(np.uint16) * np.uint16(257) if bits == 16 and pixels.dtype == np.uint8 else pixels


def unit(pixels: np.ndarray) -> np.ndarray:
    """Levels on the scale [0, 1]. pixels: uint8, uint16 or int16 of any shape; returns float32 of the same."""
    return pixels.astype(np.float32) / np.float32(peak(pixels.dtype))


def levels(values: np.ndarray, dtype: np.typing.DTypeLike) -> np.ndarray:
    """Numbers in [0, 1] as levels of uint8 or uint16, rounded half to even; numbers outside become black or white."""
    scaled = values * peak(dtype)
    return np.rint(scaled, out=scaled).clip(0, peak(dtype), out=scaled).astype(dtype)


def fixed(values: np.ndarray) -> np.ndarray:
    """Numbers as int16, of which 16384 is 1: rounded half to even, at most 1/32768 off; not clipped to [0, 1].

    values: floating, any shape. Raises ValueError for numbers outside [-2, 2).
    """
    scaled = np.rint(values * peak(np.int16))
    if scaled.size and not (scaled.min() >= -(2**15) and scaled.max() < 2**15):
        raise ValueError(f"numbers from {values.min()} to {values.max()}, expected [-2, 2)")
    return scaled.astype(np.int16)
