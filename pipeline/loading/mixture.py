"""Batches that are mixed of several tasks, or of the levels of one, in fixed proportions.

The slots of all batches are numbered through the run. Blocks of as many slots as the weights have together hold each source
as often as its weight says, in an order that is drawn for the block; so the k-th sample of a source, and the slot that it
comes in, are computed and not counted. A source goes through its own epochs: each of its samples comes once in each of them.
As with `Loader`, the batches depend neither on the number of ranks and threads nor on where a run was resumed.
"""

import json
from collections.abc import Generator, Iterable, Sequence
from functools import lru_cache
from math import gcd
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError, some
from pipeline.keyed import digest64, hashed
from pipeline.loading.loader import Loader, Places, Position, ahead
from pipeline.loading.pool import Batch
from pipeline.sampling.order import Order

BEGINNING = Position()
ONE_FOR_ALL = ("epoch", "count")  # of what a batch has: not one for each sample


class Source(NamedTuple):
    """What a mixture takes from: name, in words; loader; weight, its share of the samples, relative to the others'."""

    name: str
    loader: Loader
    weight: int


class Piece(NamedTuple):
    """Samples of one source and one of its epochs, and their slots in a rank's part of a batch."""

    source: int
    epoch: int
    slots: np.ndarray
    places: Places


class MixedBatch:
    """This rank's part of a global batch, in pieces: images of different sources may differ in their dtype until
    `Mixture.to_device` makes one batch of them.
    """

    def __init__(self, pieces: list[tuple[Piece, Batch]], epoch: int) -> None:
        self.pieces, self.epoch = pieces, epoch

    def hand_back(self) -> None:
        """As Batch.hand_back."""
        for _, batch in self.pieces:
            batch.hand_back()
        self.pieces = []


class Mixture:
    """Batches of several sources. Its methods are those of `Loader`, with the same arguments.

    sources: two or more loaders, or one; their batch, rank and world size are the mixture's. seed: of the order of the sources.
    Raises UserError for sources whose samples do not fit into one batch.
    """

    def __init__(self, sources: Sequence[Source], *, seed: int = 0) -> None:
        first = sources[0].loader
        for name, loader, _ in sources[1:]:
            for what, one, other in (
                ("image channels", first.channels, loader.channels),
                ("images", sorted(first.delivers), sorted(loader.delivers)),
                ("negatives", first.shard_set.permille.shape[1], loader.shard_set.permille.shape[1]),
            ):
                if one != other:
                    raise UserError(
                        f"a mixture of tasks with other {what}: {sources[0].name} has {_words(one)}, and {name} {_words(other)}"
                    )
        divisor = gcd(*(source.weight for source in sources))
        self.sources = [Source(s.name, s.loader, s.weight // divisor) for s in sources]
        self.weights = np.array([source.weight for source in self.sources])
        self.block = int(self.weights.sum())
        self.batch, self.share, self.rank, self.world_size = first.batch, first.share, first.rank, first.world_size
        self.threads, self.seed = first.threads, seed
        self.channels, self.delivers, self.planes = first.channels, first.delivers, first.planes
        self.samples = sum(source.loader.samples for source in self.sources)
        self.sizes = np.concatenate([source.loader.sizes for source in self.sources])
        self.first = np.cumsum([0, *(source.loader.samples for source in self.sources)])
        self._one_of_each = np.repeat(np.arange(len(self.sources)), self.weights)
        self._order = lru_cache(4 * len(self.sources))(self._new_order)

    def __len__(self) -> int:
        """Batches in an epoch of the mixture: as many samples as its sources have together."""
        return -(-self.samples // self.batch)

    @property
    def notes(self) -> list[str]:
        """As Loader.notes, of each source."""
        return [f"{source.name}: {note}" for source in self.sources for note in source.loader.notes]

    @property
    def quarantined(self) -> list[str]:
        """As Loader.quarantined, of all sources."""
        return sorted({name for source in self.sources for name in source.loader.quarantined})

    @property
    def digest(self) -> str:
        """As Loader.digest."""
        return json.dumps([self.seed, *([source.weight, source.loader.digest] for source in self.sources)])

    def name(self, sample: int) -> str:
        """A sample in words: its task, image, level and number there."""
        source = int(np.searchsorted(self.first, sample, side="right")) - 1
        return f"{self.sources[source].name}: {self.sources[source].loader.name(sample - int(self.first[source]))}"

    def names(self, position: Position) -> list[str]:
        """The samples of a global batch, of all ranks, in words."""
        found = [""] * self.batch
        for piece in self._pieces(position, np.arange(self.batch)):
            first = int(self.first[piece.source])
            for slot, sample in zip(piece.slots.tolist(), piece.places.sample.tolist(), strict=True):
                found[slot] = self.name(first + sample)
        return found

    def batches(self, start: Position = BEGINNING) -> Generator[tuple[Position, MixedBatch], None, None]:
        """As Loader.batches."""
        return ahead(self._work(start), lambda where: [(where[0], self._cut(*where))], self.threads)

    def cut(self, position: Position) -> MixedBatch:
        """This rank's part of one global batch."""
        return self._cut(position, self._pieces(position, self._own))

    def _work(self, start: Position) -> Generator[tuple[Position, list[Piece]], None, None]:
        epoch, batch = start.epoch, start.batch
        while True:
            if batch >= len(self):
                epoch, batch = epoch + 1, 0
            yield Position(epoch, batch), self._pieces(Position(epoch, batch), self._own)
            batch += 1

    @property
    def _own(self) -> np.ndarray:
        """The slots of a batch that this rank has."""
        return np.arange(self.rank * self.share, (self.rank + 1) * self.share)

    def _pieces(self, position: Position, slots: np.ndarray) -> list[Piece]:
        """What comes in these slots of a batch; the slots of a piece count from the first of them."""
        source, number = self.drawn((position.epoch * len(self) + position.batch) * self.batch + slots)
        pieces = []
        for i in np.unique(source).tolist():
            loader = self.sources[i].loader
            where = np.flatnonzero(source == i)
            epochs, positions = np.divmod(number[where], loader.samples)
            for epoch in np.unique(epochs).tolist():
                chosen = epochs == epoch
                order = self._order(i, epoch)
                loader.prefetch(order, int(positions[chosen][0]))
                pieces.append(Piece(i, epoch, where[chosen], loader.places(order, positions[chosen])))
        return pieces

    def drawn(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which source each slot takes from, and how often that one was taken from before; int64 (k,) each.

        slots: int64 (k,), numbered through the run, in ascending order.
        """
        blocks = np.arange(slots[0] // self.block, slots[-1] // self.block + 1)
        inside = blocks[:, None] * self.block + np.arange(self.block)
        order = np.argsort(hashed(digest64("mixture", self.seed), inside), axis=1, kind="stable")
        sources = self._one_of_each[order]  # (blocks, block)
        before = np.empty_like(sources)  # in the same block
        for i in range(len(self.sources)):
            taken = sources == i
            before[taken] = (np.cumsum(taken, axis=1) - 1)[taken]
        row, column = slots // self.block - blocks[0], slots % self.block
        source = sources[row, column]
        return source, slots // self.block * self.weights[source] + before[row, column]

    def _new_order(self, source: int, epoch: int) -> Order:
        return self.sources[source].loader.order(epoch)

    def _cut(self, position: Position, pieces: Iterable[Piece]) -> MixedBatch:
        cut = [(piece, self.sources[piece.source].loader.cut_some(piece.places, piece.epoch)) for piece in pieces]
        return MixedBatch(cut, position.epoch)

    def to_device(self, batch: MixedBatch, device: torch.device) -> dict[str, Tensor]:
        """As Loader.to_device; what comes of each source is in its own slots, whose order is the batch's."""
        out: dict[str, Tensor] = {}
        for piece, part in batch.pieces:
            slots = torch.from_numpy(piece.slots).to(device)
            moved = self.sources[piece.source].loader.to_device(part, device)
            moved["sample"] = moved["sample"] + int(self.first[piece.source])
            for name, value in moved.items():
                if name in ONE_FOR_ALL:
                    continue
                if name not in out:
                    layout = torch.channels_last if value.dim() == 4 else torch.contiguous_format
                    out[name] = value.new_empty((self.share, *value.shape[1:])).contiguous(memory_format=layout)
                out[name][slots] = value
        epoch = torch.tensor(batch.epoch, device=device)
        return out | {"epoch": epoch, "count": torch.tensor(float(self.share), device=device)}


def _words(value: int | list[str]) -> str:
    return some(value) if isinstance(value, list) else str(value)
