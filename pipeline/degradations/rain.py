"""Rain streaks rendered onto a clean image, in integers only: the same pixels on every machine."""

import numpy as np

from pipeline.keyed import philox

# Drops by distance, from the far drizzle to the near streaks. Lengths in pixels along the fall, half widths in 1/256
# pixel, opacities at the middle of a streak in 1/256; each is drawn evenly from its range.
DISTANCES = (
    # share of the drops in %, length, half width, opacity
    (50, (7, 16), (190, 280), (40, 110)),
    (35, (14, 34), (230, 330), (60, 150)),
    (15, (30, 64), (270, 420), (70, 170)),
)
JITTER = 5  # how far one drop's slope may deviate, in 1/256
MOST_OPAQUE = 200  # in 1/256: where streaks cross, the picture still shines through
LIGHT = 232  # a drop mirrors the sky


def rain(image: np.ndarray, key: tuple[int | str, ...], drops: int, slope: int) -> np.ndarray:
    """Add streaks of falling rain to an image.

    image: uint8, (H, W), (H, W, 1) or (H, W, 3). key: names the shower; equal keys give equal streaks, and the frames
    of a scene differ by their key only. drops: streaks on each 100x100 pixels (25 is light rain, 180 a downpour).
    slope: pixels to the right for 256 pixels of fall, -256..256.
    Returns the same shape and dtype: each pixel is moved towards LIGHT by the opacity of the streaks over it.
    Raises ValueError for another dtype, a negative number of drops or a slope beyond 45 degrees.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"expected uint8 (H, W[, C]), got {image.dtype} {image.shape}")
    if drops < 0 or abs(slope) > 256:
        raise ValueError(f"drops must be >= 0 and slope in -256..256, got {drops} and {slope}")
    opacity = np.minimum(streaks(image.shape[0], image.shape[1], key, drops, slope), MOST_OPAQUE)
    if image.ndim == 3:
        opacity = opacity[..., None]
    pixels = image.astype(np.int32)
    return (pixels + ((LIGHT - pixels) * opacity + 128 >> 8)).astype(np.uint8)


def streaks(height: int, width: int, key: tuple[int | str, ...], drops: int, slope: int) -> np.ndarray:
    """The summed opacity of all streaks in 1/256: int32, (height, width), not limited."""
    rng = philox("rain", *key)
    layer = np.zeros((height, width), np.int32)
    for share, lengths, widths, opacities in DISTANCES:
        longest = lengths[1]
        margin = longest + 2  # for drops that start outside and fall into the picture
        area = (height + margin) * (width + 2 * margin)
        n = area * drops * share // 1_000_000
        top = rng.integers(-margin, height, n)[:, None, None]  # (n, 1, 1)
        left = rng.integers(-margin * 256, (width + margin) * 256, n)[:, None, None]  # in 1/256 pixel
        length = rng.integers(*lengths, n, endpoint=True)[:, None, None]
        half = rng.integers(*widths, n, endpoint=True)[:, None, None]
        peak = rng.integers(*opacities, n, endpoint=True)[:, None, None]
        lean = slope + rng.integers(-JITTER, JITTER, n, endpoint=True)[:, None, None]
        row = np.arange(longest)[None, :, None]  # (1, L, 1), from the top of the streak
        centre = left + row * lean  # (n, L, 1)
        column = (centre >> 8) + np.arange(-1, 3)  # (n, L, 4): all that the widest streak can touch
        across = np.maximum(half - np.abs((column << 8) - centre), 0)  # a triangle, `half` at the centre
        along = np.maximum(4 * (row + 1) * (length - row), 0)  # a parabola, (length + 1)^2 in the middle
        value = peak * across * along // (256 * (length + 1) ** 2)
        y = np.broadcast_to(top + row, value.shape)
        inside = (value > 0) & (y >= 0) & (y < height) & (column >= 0) & (column < width)
        np.add.at(layer, (y[inside], column[inside]), value[inside].astype(np.int32))
    return layer
