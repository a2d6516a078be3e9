"""What a run validates on that has images of its own for it: a benchmark, under its protocol, spread over the ranks."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from jobs.evaluation.benchmark import benchmark
from jobs.evaluation.items import items
from jobs.evaluation.protocols import Score, mean
from jobs.evaluation.scoring import Asked, restorer, score_image
from jobs.models import Network
from jobs.recipe import BenchmarkRun, Validation
from pipeline.depth import Bits
from pipeline.errors import UserError, nearest, some
from pipeline.shards.format import file_sha256


class Validator:
    """The images of a recipe's validation.

    Raises UserError for a benchmark that there is not, that does not measure the metric, or that has no images here.
    """

    def __init__(self, validation: Validation) -> None:
        assert validation.run is not None
        self.benchmark = benchmark(validation.run.benchmark)
        check_metric(validation)
        self.items, _ = items(self.benchmark, validation.run)

    def scores(
        self, model: Network, bits: Bits, rank: int, world_size: int, beat: Callable[[], None], shown: int = 0
    ) -> tuple[list[tuple[int, Score]], dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]:
        """This rank's images, each with its number: a share of them, so that all ranks together have all.

        model: in eval mode. bits: a channel of the images may have. beat: called at each image. Returns also input, output and
        target of its first `shown` images, by their keys: float32 (H, W, C) in [0, 1].
        """
        restore, found = restorer(model), []
        pictures: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
        for place in range(rank, len(self.items), world_size):
            beat()
            wanted = len(pictures) < shown
            (scored,) = score_image(restore, bits, (Asked(0, place, self.benchmark, self.items[place], wanted),))
            found.append((place, scored.output))
            if wanted:
                pictures[scored.key] = (scored.pair.lq, scored.restored, scored.pair.gt)
        return found, pictures


def means(scores: Sequence[tuple[int, Score]]) -> dict[str, float]:
    """The mean of each metric over the images of all ranks, in the images' order: the same for any number of ranks."""
    return mean([score for _, score in sorted(scores, key=lambda each: each[0])]).values


def check_metric(validation: Validation) -> None:
    """Raise UserError for a benchmark that there is not, or that does not measure what the weights are chosen by."""
    assert validation.run is not None
    which = benchmark(validation.run.benchmark)
    names = [metric.name for metric in which.protocol.metrics]
    if validation.metric not in names:
        raise UserError(
            f"validation.metric: {which.name} has no {validation.metric}; {nearest(validation.metric, names)}"
        )


def check_apart(validation: Validation, tests: Sequence[BenchmarkRun]) -> None:
    """Raise UserError if images to validate on are test images, as far as the folders are here.

    Weights that were chosen on the images that they are scored on have a better score than they deserve.
    """
    assert validation.run is not None
    mine = _files(validation.run)
    sizes = {path.stat().st_size for path in mine}
    digests = {file_sha256(path): path for path in mine}
    for test in tests:
        same = [
            f"{digests[digest]} is {path}"
            for path in _files(test)
            if path.stat().st_size in sizes and (digest := file_sha256(path)) in digests
        ]
        if same:
            raise UserError(
                f"validation: {len(same):,} of its {len(mine):,} images are test images of evaluation.benchmarks ({some(same)}); "
                "validate on others"
            )


def _files(run: BenchmarkRun) -> list[Path]:
    """All files of the images of a benchmark; none where they are not here."""
    try:
        found, _ = items(benchmark(run.benchmark), run)
    except UserError:
        return []
    return list(dict.fromkeys(file.path for item in found for file in item.files))
