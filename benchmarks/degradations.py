"""CPU milliseconds of the degradations beside straight ways to compute the same, and the limit that memory sets.

    OMP_NUM_THREADS=1 python benchmarks/degradations.py [--rounds 7]

Interleaved, median of the rounds; synthetic images of the sizes of BSDS500 (grey), DIV2K (RGB) and 2000x3000.

- imresize: per row, the way of the well-known NumPy ports of MATLAB's function: for each output row gather its taps,
  weight them and sum, then the same for each column; per row, BLAS: with a matrix-vector product for each row and column.
  Both have their taps computed beforehand, as memoir has from the second image of a size on. lowres is down and up again.
- planes: the float product of pixels and weights, rounded; it may differ by 1 where the exact sum is a half.
- JPEG: Pillow, to memory and back.

The limit: the bytes of the input and the output, at the speed at which a copy in memory reads and writes. Targets: imresize
3 times faster than per row, equal to 1e-6.
"""

import argparse
import functools
import io
import math
import time
from collections.abc import Callable

import cv2
import numpy as np
from PIL import Image

from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.scale import bicubic_lowres, imresize, modcrop

SHAPES = {"BSDS500": (321, 481, 1), "DIV2K": (1356, 2040, 3), "large": (2000, 3000, 1)}
Ways = dict[str, Callable[[], np.ndarray]]


@functools.cache
def taps(source: int, length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each output row: the input rows (n,) and their weights (n,)."""
    scale = length / source
    stretch = min(scale, 1.0)
    found = []
    for row in range(length):
        centre = (row + 0.5) / scale - 0.5
        n = np.arange(math.floor(centre - 2 / stretch), math.ceil(centre + 2 / stretch) + 1)
        x = np.abs(n - centre) * stretch
        near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
        weight = np.where(x <= 1, near, np.where(x <= 2, far, 0))
        used = np.abs(weight) > 1e-12
        n, weight = n[used] % (2 * source), weight[used] / weight[used].sum()
        found.append((np.minimum(n, 2 * source - 1 - n), weight))
    return found


def per_row(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Gather, weight, sum: (H, W, C) to (height, width, C)."""
    rows = np.empty((height, *image.shape[1:]))
    for y, (n, weight) in enumerate(taps(image.shape[0], height)):
        rows[y] = (image[n] * weight[:, None, None]).sum(axis=0)
    resized = np.empty((height, width, image.shape[2]))
    for x, (n, weight) in enumerate(taps(image.shape[1], width)):
        resized[:, x] = (rows[:, n] * weight[:, None]).sum(axis=1)
    return resized


def per_row_blas(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Gather, then a matrix-vector product: (H, W, C) to (height, width, C)."""
    rows = np.empty((height, *image.shape[1:]))
    for y, (n, weight) in enumerate(taps(image.shape[0], height)):
        rows[y] = np.tensordot(weight, image[n], 1)
    resized = np.empty((height, width, image.shape[2]))
    for x, (n, weight) in enumerate(taps(image.shape[1], width)):
        resized[:, x] = np.tensordot(rows[:, n], weight, (1, 0))
    return resized


def down_and_up(resize: Callable[..., np.ndarray], image: np.ndarray, factor: int) -> np.ndarray:
    """Shrink and enlarge an image (H, W, C), as bicubic_lowres does."""
    height, width = image.shape[:2]
    return resize(resize(image, height // factor, width // factor), height, width)


def product(colours: np.ndarray, weights: np.ndarray, offset: int) -> np.ndarray:
    """A plane as (H, W, 1), rounded half up."""
    return (colours @ weights + (offset + 0.5)).astype(np.uint8)[..., None]


def pillow(image: np.ndarray, quality: int, subsampling: str) -> np.ndarray:
    """JPEG and back."""
    file = io.BytesIO()
    Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(file)).reshape(image.shape)


def cases(shape: tuple[int, int, int]) -> dict[str, tuple[np.ndarray, Ways]]:
    """What is timed on an image of this shape: name -> (input, ways to the same output; the first is memoir's)."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    pixels = cv2.GaussianBlur(pixels, (7, 7), 1.5).reshape(shape)  # a file of random pixels is no photograph
    found: dict[str, tuple[np.ndarray, Ways]] = {}
    for s in (2, 3, 4):
        image = modcrop(pixels, s) / 255
        height, width = image.shape[:2]
        small = image[: height // s, : width // s].copy()
        sizes = {f"down x{s}": (image, small.shape[:2]), f"up x{s}": (small, image.shape[:2])}
        for name, (x, size) in sizes.items():
            scale = 1 / s if x is image else float(s)
            found[f"imresize {name}"] = (
                x,
                {
                    "memoir": functools.partial(imresize, x, scale),
                    "per row": functools.partial(per_row, x, *size),
                    "per row, BLAS": functools.partial(per_row_blas, x, *size),
                },
            )
        found[f"lowres x{s}"] = (
            image,
            {
                "memoir": functools.partial(bicubic_lowres, image, s),
                "per row": functools.partial(down_and_up, per_row, image, s),
                "per row, BLAS": functools.partial(down_and_up, per_row_blas, image, s),
            },
        )
    colours = np.repeat(pixels, 3 // shape[2], axis=2)
    for name, plane, weights, offset in (
        ("Y plane", rgb2ycbcr_y, np.array([65.481, 128.553, 24.966]) / 255, 16),
        ("grey plane", rgb2gray, np.array([589_399, 1_157_447, 224_810]) / 1_971_656, 0),
    ):
        found[name] = (
            colours,
            {
                "memoir": functools.partial(plane, colours),
                "float product": functools.partial(product, colours, weights, offset),
            },
        )
    for name, image, subsampling in (
        ("JPEG q10 grey", colours[..., :1].copy(), "4:2:0"),
        ("JPEG q10 4:2:0", colours, "4:2:0"),
        ("JPEG q10 4:4:4", colours, "4:4:4"),
    ):
        found[name] = (
            image,
            {
                "memoir": functools.partial(jpeg, image, 10, subsampling),  # type: ignore[arg-type]
                "Pillow": functools.partial(pillow, image, 10, subsampling),
            },
        )
    return found


def measure(ways: Ways, rounds: int) -> dict[str, float]:
    """Median CPU seconds of each way."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            began = time.process_time()
            way()
            times[name].append(time.process_time() - began)
    return {name: float(np.median(each)) for name, each in times.items()}


def copy_speed() -> float:
    """Bytes that a copy in memory reads and writes in a second: 64 MiB, far more than a cache holds."""
    source = np.ones(2**26, np.uint8)
    target = np.zeros_like(source)
    seconds = []
    for _ in range(9):
        began = time.process_time()
        target[...] = source
        seconds.append(time.process_time() - began)
    return 2 * source.nbytes / float(np.median(seconds))


def main() -> None:
    """Print a row for each degradation and size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    speed = copy_speed()
    print(f"CPU ms, median of {arguments.rounds} rounds; a copy reads and writes {speed / 1e9:.1f} GB/s")
    for title, shape in SHAPES.items():
        print(f"\n{title} {shape[0]}x{shape[1]}x{shape[2]}")
        print(f"{'':>18} {'memoir':>8} {'limit':>7}   peers: ms (times memoir's), largest difference")
        for name, (image, ways) in cases(shape).items():
            results = {way: run() for way, run in ways.items()}  # also prepares the taps
            own = results["memoir"].astype(np.float64)
            rounds = arguments.rounds * (10 if own.size < 10**6 else 1)
            seconds = measure(ways, rounds)
            limit = (image.nbytes + results["memoir"].nbytes) / speed
            peers = [
                f"{way} {1e3 * seconds[way]:.2f} ({seconds[way] / seconds['memoir']:.1f}x), {np.abs(own - result).max():.0e}"
                for way, result in results.items()
                if way != "memoir"
            ]
            print(f"{name:>18} {1e3 * seconds['memoir']:>8.2f} {1e3 * limit:>7.2f}   {'; '.join(peers)}")


if __name__ == "__main__":
    main()
