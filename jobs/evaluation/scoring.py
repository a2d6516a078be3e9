"""Scoring images in one pass: each is restored once for each input that the benchmarks make of it, whatever they measure on it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import track

from jobs.evaluation.benchmark import Benchmark, Pair
from jobs.evaluation.items import File, Item, items
from jobs.evaluation.protocols import Score, mean
from jobs.models import Network
from jobs.recipe import BenchmarkRun
from jobs.restoring.tiles import restore_grid, restore_plane
from pipeline.console import tell
from pipeline.depth import Bits
from pipeline.errors import UserError
from pipeline.images import UnusableImageError

# float32 (H, W, C) in [0, 1], and the side of the tiles that a benchmark wants or None -> the same shape
Restorer = Callable[[np.ndarray, int | None], np.ndarray]


@dataclass(frozen=True)
class Scored:
    """One image: its scores and those of its degraded input.

    pixels: the first pair, and what was made of it; None for images of which nobody asked for them, see `score_runs`.
    """

    key: str
    output: Score
    baseline: Score
    pixels: tuple[Pair, np.ndarray] | None

    @property
    def pair(self) -> Pair:
        """The first pair, of an image whose pixels were asked for."""
        assert self.pixels is not None
        return self.pixels[0]

    @property
    def restored(self) -> np.ndarray:
        """What was made of the first pair, of an image whose pixels were asked for."""
        assert self.pixels is not None
        return self.pixels[1]


class Asked(NamedTuple):
    """An image in one benchmark. run, place: of the benchmark in the list of `score_runs`, and of the image in the benchmark.

    pixels: whether they are wanted.
    """

    run: int
    place: int
    benchmark: Benchmark
    item: Item
    pixels: bool


Image = tuple[Asked, ...]  # all that is asked of the image whose first file is the same
Each = Callable[[Iterable[Image]], Iterator[list[Scored]]]  # scores images, in their order: see `here`


def identity(lq: np.ndarray, tile: int | None) -> np.ndarray:
    """The degraded input itself: its scores are the baseline rows of the papers."""
    return lq


def restorer(model: Network) -> Restorer:
    """A model, in eval mode, as a function on arrays: in the benchmark's tiles, or as the whole image."""

    def restore(lq: np.ndarray, tile: int | None) -> np.ndarray:
        return restore_plane(model, lq, whole=True) if tile is None else restore_grid(model, lq, tile)

    return restore


def here(restore: Restorer, bits: Bits) -> Each:
    """Score images one after the other in this process. bits: a channel of the images may have, as in the model's task."""
    return partial(map, partial(score_image, restore, bits))


def score_runs(
    each: Each, runs: Sequence[tuple[Benchmark, BenchmarkRun]], pixels: int | None = None
) -> list[list[Scored]]:
    """Restore and score every image of some benchmarks; for each benchmark its images in the order of their names.

    each: `here`, or `jobs.evaluation.spread.spread`. pixels: of so many first images of a benchmark the pair and what was
    restored are kept; None: of all, which takes memory. An image that several benchmarks begin with is looked at once.
    Raises UserError for a folder without images, and for an image that cannot be used: a mean over fewer images than the
    published set would not be comparable.
    """
    asked: dict[File, list[Asked]] = {}
    told: set[str] = set()
    for number, (which, run) in enumerate(runs):
        found, passed_by = items(which, run)
        for line in passed_by:
            if line not in told:
                tell(f"not scored: {line}")
            told.add(line)
        for place, item in enumerate(found):
            wanted = pixels is None or place < pixels
            asked.setdefault(item.files[0], []).append(Asked(number, place, which, item, wanted))
    images = [tuple(together) for together in asked.values()]
    scored: list[dict[int, Scored]] = [{} for _ in runs]
    bar = track(each(images), _title(runs), len(images), transient=True, console=Console(stderr=True))
    for image, found_scores in zip(images, bar, strict=True):  # stdout is for the scores
        for one, score in zip(image, found_scores, strict=True):
            scored[one.run][one.place] = score
    return [[of_run[place] for place in sorted(of_run)] for of_run in scored]


def _title(runs: Sequence[tuple[Benchmark, BenchmarkRun]]) -> str:
    return f"{runs[0][1].data} {', '.join(which.name for which, _ in runs)}"[:60] if runs else ""


def score_image(restore: Restorer, bits: Bits, image: Image) -> list[Scored]:
    """Score an image under all that is asked of it. Raises UserError with the image's name for one that cannot be used.

    An input is restored once: benchmarks that prepare equal pixels and want the same tiles share the result.
    """
    done: list[tuple[np.ndarray, int | None, np.ndarray]] = []

    def once(lq: np.ndarray, tile: int | None) -> np.ndarray:
        for known, tiles, output in done:
            if tiles == tile and np.array_equal(known, lq):
                return output
        done.append((lq, tile, restore(lq, tile)))
        return done[-1][2]

    scored = []
    for _, _, which, item, pixels in image:
        try:
            pairs = item.pairs(which, bits)
            outputs = [once(pair.lq, which.tile) for pair in pairs]
            scores = [which.score(output, pair) for output, pair in zip(outputs, pairs, strict=True)]
            baseline = [which.score(pair.lq, pair) for pair in pairs]
        except (UnusableImageError, UserError) as error:
            raise UserError(f"{item.files[0].path}: {error}") from None
        scored.append(Scored(item.key, mean(scores), mean(baseline), (pairs[0], outputs[0]) if pixels else None))
    return scored
