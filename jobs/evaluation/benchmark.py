"""Benchmarks: a degradation or a published set of pairs, and the protocol by which it is scored."""

import re
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from jobs.evaluation.protocols import GRAY_FLOAT, PAIRS, Y_MATLAB, Protocol, Score, score
from jobs.evaluation.published import beside
from pipeline.degradations.base import Degradation
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y, with_channels
from pipeline.degradations.jpeg import Jpeg
from pipeline.degradations.noise import Noise
from pipeline.degradations.scale import Scale, imresize, modcrop
from pipeline.depth import levels, unit
from pipeline.errors import UserError, nearest
from pipeline.images import UnusableImageError


class Pair(NamedTuple):
    """A degraded image and its target: float32, (H, W, C), on the scale [0, 1]; lq may leave it, gt does not.

    mask: where the shadow is, uint8 (H, W, 1), not 0 in it; None where a benchmark needs none.
    """

    lq: np.ndarray
    gt: np.ndarray
    mask: np.ndarray | None = None


DEGRADATIONS: dict[str, type[Degradation]] = {"jpeg": Jpeg, "sr": Scale, "noise": Noise}  # by a benchmark's kind


@dataclass(frozen=True)
class Benchmark:
    """One column of the published tables: a degradation at one level, and the protocol that measures it.

    level: the quality of JPEG, the factor of super-resolution, the sigma of noise (0..255 scale); published pairs have none.
    column: its name in the papers' tables, which does not say how a model is run.
    """

    name: str
    kind: Literal["jpeg", "sr", "noise", "pairs"]
    level: float
    protocol: Protocol
    plane: Literal["rgb2ycbcr", "rgb2gray", "rgb"]  # the planes used of an RGB image; a grey image is used as it is
    half: bool = False  # clean image first shrunk to half by MATLAB's bicubic, as RED and MemNet do with BSD200
    tile: int | None = None  # the model sees tiles of this many pixels a side, see jobs.restoring.tiles.restore_grid

    @property
    def column(self) -> str:
        return self.name.partition("-tile")[0]

    @property
    def channels(self) -> int:
        """What a model gets: 3 or 1."""
        return 3 if self.plane == "rgb" else 1

    def prepare(self, image: np.ndarray) -> list[Pair]:
        """The pairs to restore and score: one, or three draws for noise.

        image: uint8 or uint16, (H, W, 1) or (H, W, 3) RGB. The degraded image has the target's size; super-resolution cuts
        both to multiples of the factor.
        Raises UnusableImageError for an image smaller than the factor, and for 16 bits where the degradation is JPEG.
        """
        if self.half:
            image = imresize(image, scale=0.5)
        plane = rgb2ycbcr_y(image) if self.plane == "rgb2ycbcr" else rgb2gray(image)
        inputs, gt = DEGRADATIONS[self.kind].benchmark(plane, self.level)
        return [Pair(lq, gt) for lq in inputs]

    def pair(self, lq: np.ndarray, gt: np.ndarray, mask: np.ndarray | None = None) -> Pair:
        """The Pair of a published input, its target and, where the protocol has regions, the mask.

        lq, gt: uint8 or uint16, (H, W, 1) or (H, W, 3) RGB. Raises UnusableImageError for sizes that differ.
        """
        images = [lq, gt] if mask is None else [lq, gt, levels(unit(mask.max(axis=2, keepdims=True)), np.uint8)]
        if len({image.shape[:2] for image in images}) > 1:
            sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in images)
            raise UnusableImageError(f"{sizes} pixels, an input and its target (and mask) are of one size")
        if self.protocol.border == "modulo4":
            images = [modcrop(image, 4) for image in images]
        lq, gt = (unit(with_channels(image, 3)) for image in images[:2])
        return Pair(lq, gt, *images[2:])

    def score(self, output: np.ndarray, pair: Pair) -> Score:
        """The score of `output`, restored from a pair's `lq`, against its `gt`: floating, of gt's shape. Raises as `score`."""
        return score(self.protocol, output, pair.gt, int(self.level) if self.kind == "sr" else 1, pair.mask)

    def paper(self, dataset: str) -> dict[str, dict[str, float]]:
        """The published rows on this data set: method -> metric -> value, for the metrics that were published."""
        names = [metric.name for metric in self.protocol.published]
        return {
            method: dict(zip(names, row, strict=False))
            for method, row in beside().get((dataset, self.column), {}).items()
        }


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name: `jpeg-q1` to `jpeg-q100`, `sr-x2`, `sr-x3`, `sr-x4`, `noise-SIGMA` with SIGMA > 0 and
    `noise-SIGMA-half`, on the images at half size; for published pairs the names in PAIRS, each also with `-tileN`,
    where the model sees tiles of N pixels a side, 16 or more.

    Raises UserError for another name.
    """
    if (match := re.fullmatch(r"jpeg-q([1-9]\d?|100)", name, re.ASCII)) is not None:
        return Benchmark(name, "jpeg", int(match[1]), GRAY_FLOAT, "rgb2ycbcr")
    if (match := re.fullmatch(r"sr-x([234])", name)) is not None:
        return Benchmark(name, "sr", int(match[1]), Y_MATLAB, "rgb2ycbcr")
    # one name for one level: no leading zeros, no trailing ones
    if (match := re.fullmatch(r"noise-((?!0$)(?:0|[1-9]\d*)(?:\.\d*[1-9])?)(-half)?", name, re.ASCII)) is not None:
        return Benchmark(name, "noise", float(match[1]), GRAY_FLOAT, "rgb2gray", half=match[2] is not None)
    tiles = r"(?:-tile(1[6-9]|[2-9]\d|[1-9]\d\d+))?"
    if (match := re.fullmatch(f"({'|'.join(PAIRS)}){tiles}", name, re.ASCII)) is not None:
        return Benchmark(name, "pairs", 0, PAIRS[match[1]], "rgb", tile=int(match[2]) if match[2] else None)
    known = [
        *PAIRS,
        "pairs-rgb-tile256",
        "jpeg-q10",
        "jpeg-q20",
        "sr-x2",
        "sr-x3",
        "sr-x4",
        "noise-30",
        "noise-50",
        "noise-70",
    ]
    raise UserError(
        f"no benchmark {name!r}: {nearest(name, known)} "
        "(and any jpeg-q1 to jpeg-q100, any noise-SIGMA or noise-SIGMA-half, any pairs-...-tileN)"
    )
