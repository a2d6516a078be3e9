"""CPU milliseconds of Real-ESRGAN's degradations for one patch, beside the same order of operations in plain cv2 and NumPy.

    OMP_NUM_THREADS=1 python benchmarks/chain.py [--rounds 7]

Interleaved, median of the rounds, one thread; the task is photos-real-esrgan. The peer has the steps of the task written out as
a script would have them: np.random.default_rng once, kernels by NumPy and SciPy, cv2.filter2D, cv2.resize, Gaussian or Poisson
noise and rounding, cv2.imencode and cv2.imdecode, with the same distributions of the parameters. It has no keys, so no sample
has its own draws; and its numbers are PCG64's, which come twice as fast as Philox's.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np
from scipy.special import j1

from pipeline.degradations.chain import Chain
from pipeline.task import read_task

FILTERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
PATCHES = 100  # of a round
KERNELS = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)


def low_pass(cutoff: float, size: int) -> np.ndarray:
    """A sinc kernel. cutoff: in radians."""
    at = np.arange(size) - size // 2
    r = np.hypot(at[:, None], at)
    r[size // 2, size // 2] = 1
    kernel = cutoff * j1(cutoff * r) / (2 * np.pi * r)
    kernel[size // 2, size // 2] = cutoff**2 / (4 * np.pi)
    return kernel / kernel.sum()


def kernel(rng: np.random.Generator, sigma: float) -> np.ndarray:
    """A kernel of one of the blurs. sigma: the most."""
    size = 2 * int(rng.integers(3, 11)) + 1
    if rng.random() < 0.1:
        return low_pass(rng.uniform(np.pi / 3 if size < 13 else np.pi / 5, np.pi), size)
    which = int(rng.choice(6, p=KERNELS))
    first = second = rng.uniform(0.2, sigma)
    turn = 0.0
    if which % 2:
        second, turn = rng.uniform(0.2, sigma), rng.uniform(-np.pi, np.pi)
    at = np.arange(size) - size // 2
    u = np.cos(turn) * at + np.sin(turn) * at[:, None]
    v = np.cos(turn) * at[:, None] - np.sin(turn) * at
    q = (u / first) ** 2 + (v / second) ** 2
    if which < 2:
        values = np.exp(-q / 2)
    elif which < 4:
        values = np.exp(-(q ** (rng.uniform(0.5, 1) if rng.random() < 0.5 else rng.uniform(1, 4))) / 2)
    else:
        values = 1 / (1 + q ** (1 if rng.random() < 0.5 else rng.uniform(1, 2)))
    return values / values.sum()


def noisy(x: np.ndarray, rng: np.random.Generator, sigma: float, scale: float) -> np.ndarray:
    """The image with Gaussian or Poisson noise. sigma, scale: the most."""
    grey = rng.random() < 0.4
    if rng.random() < 0.5:
        shape = (*x.shape[:2], 1) if grey else x.shape
        noise = rng.standard_normal(shape, np.float32) * np.float32(rng.uniform(1, sigma))
    else:
        seen = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None] if grey else x
        photons = 2 ** np.ceil(np.log2(np.count_nonzero(np.bincount(seen.ravel()))))
        light = seen / 255
        noise = (rng.poisson(light * photons) / photons - light) * (255 * rng.uniform(0.05, scale))
    return np.clip(np.rint(x + noise), 0, 255).astype(np.uint8)


def jpeg(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image after JPEG."""
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 96))]
    coded = cv2.imencode(".jpg", cv2.cvtColor(x, cv2.COLOR_RGB2BGR), quality)[1]
    return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def plain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The steps of photos-real-esrgan, written out."""
    height, width = image.shape[:2]

    def resized(x: np.ndarray, factor: float) -> np.ndarray:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return cv2.resize(x, size, interpolation=FILTERS[rng.integers(3)])

    def factor(up: float, down: float, most: float, least: float) -> float:
        way = rng.random()
        return rng.uniform(1, most) if way < up else rng.uniform(least, 1) if way < up + down else 1.0

    def brought_back(x: np.ndarray) -> np.ndarray:
        x = resized(x, 0.25)
        if rng.random() < 0.8:
            low = low_pass(rng.uniform(np.pi / 3, np.pi), 2 * int(rng.integers(3, 11)) + 1)
            x = cv2.filter2D(x, -1, low.astype(np.float32))
        return x

    x = cv2.filter2D(image, -1, kernel(rng, 3).astype(np.float32))
    by = factor(0.2, 0.7, 1.5, 0.15)
    x = x if by == 1 else resized(x, by)
    x = jpeg(noisy(x, rng, 30, 3), rng)
    if rng.random() < 0.8:
        x = cv2.filter2D(x, -1, kernel(rng, 1.5).astype(np.float32))
    x = noisy(resized(x, factor(0.3, 0.4, 1.2, 0.3) / 4), rng, 25, 2.5)
    x = jpeg(brought_back(x), rng) if rng.random() < 0.5 else brought_back(jpeg(x, rng))
    return cv2.resize(x, (width, height), interpolation=cv2.INTER_CUBIC)


def seconds(degrade: Callable[[int], np.ndarray]) -> float:
    """CPU seconds for a patch."""
    start = time.process_time()
    for i in range(PATCHES):
        degrade(i)
    return (time.process_time() - start) / PATCHES


def main() -> None:
    """Print a row for each size of patch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    cv2.setNumThreads(1)
    chain = read_task("photos-real-esrgan").degradation
    assert isinstance(chain, Chain)
    print(f"{'patch':>6} {'memoir':>10} {'plain cv2':>10} {'ratio':>6}")
    for side in (64, 128, 256):
        pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        image = cv2.GaussianBlur(pixels, (7, 7), 1.5)  # a file of random pixels is no photograph
        rng = np.random.default_rng(0)
        ways = {
            "memoir": lambda i, image=image: chain.degraded(image, (0, "chain", 0, i))[0],
            "plain": lambda i, image=image, rng=rng: plain(image, rng),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                taken[name].append(seconds(way))
        ours, theirs = (1000 * float(np.median(taken[name])) for name in ("memoir", "plain"))
        print(f"{side:>6} {ours:>7.2f} ms {theirs:>7.2f} ms {ours / theirs:>6.2f}")


if __name__ == "__main__":
    main()
