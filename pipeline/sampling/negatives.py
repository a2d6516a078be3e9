"""Mixup negatives: the worse images that each degraded image is contrasted with (DRCNet, section 3.3)."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipeline.depth import fixed, unit
from pipeline.errors import UserError
from pipeline.keyed import digest64
from pipeline.task import Negatives


class Negative(NamedTuple):
    """One row of the table of negatives: N = (permille I + (1000 - permille) J) / 1000.

    key, level: those of the degraded image that it belongs to; J is its target. k: the negative's number there, from 0 on.
    partner, partner_level: those of I, which is the degraded image itself where negatives are intra.
    """

    key: str
    level: int
    k: int
    permille: int
    partner: str
    partner_level: int


def negatives(samples: Sequence[tuple[str, int]], sampling: Negatives) -> Iterator[Negative]:
    """The negatives of the degraded images of one shard, `sampling.number` for each, in their order.

    samples: (key, level) of each. Weights and partners are drawn by the samples' own names. So a sample that is added or
    removed changes no weight of another, and the partners of at most `number` others at each level.
    Raises UserError for extra negatives in a shard that has too few groups.
    """
    if sampling.kind == "intra":
        for key, level in samples:
            for k, permille in enumerate(_weights(key, level, sampling)):
                yield Negative(key, level, k, permille, key, level)
        return
    rank = {sample: digest64("negative", sampling.seed, *sample) for sample in samples}
    ring = sorted(samples, key=lambda sample: (rank[sample], sample))
    place = {sample: i for i, sample in enumerate(ring)}
    for key, level in samples:
        after = (ring[(place[key, level] + i) % len(ring)] for i in range(1, len(ring)))
        others = [other for other in after if other[0] != key][: sampling.number]
        if len(others) < sampling.number:
            raise UserError(
                f"{key}: its shard has {len(others)} other degraded images, and {sampling.number} extra negatives are "
                "asked for: raise shard_bytes, or lower negatives.number"
            )
        for k, (partner, partner_level) in enumerate(others):
            yield Negative(key, level, k, 1000, partner, partner_level)


def _weights(key: str, level: int, sampling: Negatives) -> list[int]:
    """The weights in thousandths, in the task's order; if the task has more than are needed, they are drawn."""
    permille = [round(1000 * weight) for weight in sampling.lambdas]
    rank = [digest64("lambda", sampling.seed, key, level, i) for i in range(len(permille))]
    chosen = sorted(range(len(permille)), key=rank.__getitem__)[: sampling.number]
    return [permille[i] for i in sorted(chosen)]


def mix(I: Any, J: Any, permille: Any) -> Any:  # noqa: E741 the paper's symbols
    """Thousandths of I and the rest of J, not rounded. I, J: floating, NumPy arrays or torch tensors."""
    return (permille * I + (1000 - permille) * J) / 1000


def mixed_image(lq: np.ndarray, gt: np.ndarray, permille: int) -> np.ndarray:
    """`mix` of two images as it is stored: `pipeline.depth.fixed` numbers, at most 1/32768 off.

    lq: uint8, uint16 or int16. gt: uint8 or uint16 of the same shape. The mixture of two levels is no level: rounded to one,
    it would be up to half a level off, and 0.95 I + 0.05 J differs from I by less than that in most places.
    """
    return fixed(mix(unit(lq).astype(np.float64), unit(gt).astype(np.float64), permille))
