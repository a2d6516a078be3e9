"""CPU milliseconds of the second-order chain for one patch, beside the same order of operations in plain cv2 and NumPy.

    OMP_NUM_THREADS=1 python benchmarks/chain.py [--rounds 7]

Interleaved, median of the rounds, one thread; the task is realistic-sample. The peer has the steps of the task written out as
a script would have them: np.random.default_rng once, cv2.GaussianBlur, cv2.resize, Gaussian noise and rounding,
cv2.imencode and cv2.imdecode, with the same distributions of the parameters. It has no keys, so no sample has its own draws;
and its numbers are PCG64's, which come twice as fast as Philox's.
"""

import argparse
import time
from collections.abc import Callable

import cv2
import numpy as np

from pipeline.degradations.chain import Chain
from pipeline.task import read_task

FILTERS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
PATCHES = 100  # of a round


def plain(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The steps of realistic-sample, written out."""
    height, width = image.shape[:2]

    def resize(x: np.ndarray, factor: float) -> np.ndarray:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        return cv2.resize(x, size, interpolation=FILTERS[rng.integers(3)])

    def noise(x: np.ndarray, low: float, high: float) -> np.ndarray:
        shape = (*x.shape[:2], 1) if rng.random() < 0.4 else x.shape
        drawn = rng.standard_normal(shape, np.float32) * np.float32(rng.uniform(low, high))
        return np.clip(np.rint(x + drawn), 0, 255).astype(np.uint8)

    def jpeg(x: np.ndarray) -> np.ndarray:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(30, 96))]
        coded = cv2.imencode(".jpg", cv2.cvtColor(x, cv2.COLOR_RGB2BGR), quality)[1]
        return cv2.cvtColor(cv2.imdecode(coded, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)

    x = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.2, 3))
    x = jpeg(noise(resize(x, rng.uniform(0.15, 1.5)), 1, 30))
    if rng.random() < 0.8:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.2, 1.5))
    x = noise(resize(x, rng.uniform(0.075, 0.3)), 1, 25)
    x = jpeg(resize(x, 0.25))
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
    chain = read_task("realistic-sample").degradation
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
