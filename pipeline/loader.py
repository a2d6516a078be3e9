"""Deterministic training batches from built shards, for any world size and thread count.

"The same global batches if the dataset digest, the sampling, the global batch size and the seed are equal; nothing else
matters: not the number of ranks, not the number of threads, not where the run was resumed."

An epoch is an enumeration of (image, level, patch, dihedral view) or (scene, two frames, patch, view): `len` is exact,
every sample comes once. Patches are views cut from the mapped shards; floats, noise and mixed negatives are made on the
device.
"""

import json
import math
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.keyed import digest64, hashed
from pipeline.sampling.negatives import mix
from pipeline.sampling.order import Order
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shard_set import ShardSet

if TYPE_CHECKING:
    from pipeline.cache import ShardCache

WINDOW = 16  # shards whose samples are mixed
BLOCK = (
    4096  # positions whose places are computed at a time: for a batch of 16 that alone would cost as much as cutting
)


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next batch to take. With the loader's digest, all that a resume needs."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Places:
    """Where samples are cut. All (k,): sample, its number in the enumeration; version, its row there; top, left, view; and
    weight, float32, 0 for the padding of the last batch.
    """

    sample: np.ndarray
    version: np.ndarray
    top: np.ndarray
    left: np.ndarray
    view: np.ndarray
    weight: np.ndarray

    def __getitem__(self, part: slice) -> "Places":
        return Places(*(getattr(self, name)[part] for name in self.__dataclass_fields__))


class Loader:
    """Batches of the patches of one split, in the epoch's order.

    place: what `memoir build` wrote, a folder or a URI. batch: the global batch B; rank r of W takes positions
    [r*B/W, (r+1)*B/W) of each. sampling: which patches of an image. threads: cut ahead by so many threads. cache,
    quarantine: as ShardSet takes them; a sample of a damaged member has weight 0.
    Raises UserError for a batch that W does not divide and for a split whose images are all smaller than a patch.
    """

    def __init__(
        self,
        place: Path | str,
        split: str = "train",
        *,
        batch: int,
        sampling: Grid | RandomCrops,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
        cache: "ShardCache | None" = None,
        quarantine: int = 0,
    ) -> None:
        if batch % world_size:
            divisors = ", ".join(str(w) for w in range(1, batch + 1) if batch % w == 0)
            raise UserError(f"{world_size} workers do not divide the global batch of {batch}; these do: {divisors}")
        self.shard_set = ShardSet(place, split, cache=cache, quarantine=quarantine)
        self.split, self.sampling = split, sampling
        self.batch, self.seed, self.threads = batch, seed, threads
        self.rank, self.world_size = rank, world_size
        self.share = batch // world_size
        s = self.shard_set
        self.sizes = s.sizes
        counts = sampling.counts(self.sizes)
        self.first = np.concatenate(([0], np.cumsum(counts)))  # sample number at which each version begins
        self.per_shard = np.zeros(len(s.shards), np.int64)
        np.add.at(self.per_shard, s.version_shard, counts)
        self.samples = int(self.first[-1])
        p = sampling.patch
        if not self.samples:
            raise UserError(f"{place}: no image of split {split!r} holds a patch of {p}x{p}")
        # only what all samples have can be in a batch
        self.planes = {name: int(s.channels[rows].max()) for name, rows in s.planes.items() if (rows >= 0).all()}
        self.channels = self.planes.get("gt") or self.planes["v"]
        if s.negatives is not None:
            small = (np.minimum(s.height, s.width)[s.negatives] < p).any(1) & (counts > 0)
            if small.any():
                key = s.key(int(np.flatnonzero(small)[0]))
                raise UserError(
                    f"{place}: a negative of {key} is smaller than a patch of {p}x{p}; leave that image out"
                )

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank; the last may be padded."""
        return -(-self.samples // self.batch)

    @property
    def unused(self) -> list[str]:
        """The keys of images that are smaller than a patch, and so in no sample."""
        return sorted({self.shard_set.key(int(i)) for i in np.flatnonzero(np.diff(self.first) == 0)})

    @property
    def digest(self) -> str:
        """What the batches depend on beside the position: shards, sampling, global batch and seed."""
        made = [self.shard_set.digest, self.split, self.batch, self.seed, WINDOW, str(self.sampling)]
        return json.dumps(made)

    def batches(self, start: Position = Position()) -> Generator[tuple[Position, dict[str, Tensor]], None, None]:
        """Batches from `start` on, without end: (position of the batch, batch), as `cut` makes them."""
        ahead: deque[Future[tuple[Position, dict[str, Tensor]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            try:
                work = self._work(start)
                while True:
                    while len(ahead) < 2 * self.threads:
                        ahead.append(pool.submit(self._cut, *next(work)))
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def _work(self, start: Position) -> Generator[tuple[Position, Places], None, None]:
        """The batches from `start` on, without end, and where their samples lie."""
        epoch, batch = start.epoch, start.batch
        while True:
            if batch >= len(self):
                epoch, batch = epoch + 1, 0
            order = self._order(epoch)
            while batch < len(self):
                many = min(max(1, BLOCK // self.share), len(self) - batch)
                self._prefetch(order, batch)
                places = self._places(order, batch, many)
                for i in range(many):
                    yield Position(epoch, batch + i), places[i * self.share : (i + 1) * self.share]
                batch += many

    def _prefetch(self, order: Order, batch: int) -> None:
        """Ask for the shards of this window and the next."""
        if self.shard_set.cache is not None:
            first = int(np.searchsorted(order.position, batch * self.batch, side="right") - 1) // WINDOW * WINDOW
            wanted = [int(shard) for shard in order.shard_order[first : first + 2 * WINDOW]]
            if len(wanted) < 2 * WINDOW:
                following = self._order(order.epoch + 1).shard_order[: 2 * WINDOW - len(wanted)]
                wanted += [int(shard) for shard in following if shard not in wanted]
            self.shard_set.prefetch(wanted)

    def cut(self, position: Position) -> dict[str, Tensor]:
        """This rank's part of one global batch.

        gt, lq: uint8 (B/W, C, H, W) (no lq when noise is online); mask: uint8 (B/W, 1, H, W) where all samples have one;
        instead of these, of time-lapse scenes, frames: uint8 (B/W, 2, C, H, W); level: int64 (B/W,); weight: float32
        (B/W,), 0 for the padding of the last batch; sample: int64 (B/W,), number in the enumeration; epoch: int64 ();
        count: float32 (), true samples in the global batch / W. Of tasks with n negatives, permille: int32 (B/W, n),
        thousandths of the lq in each; and negatives: uint8 (B/W, n, C, H, W), unless they are to be mixed of lq and gt.
        """
        return self._cut(position, self._places(self._order(position.epoch), position.batch, 1))[1]

    def _order(self, epoch: int) -> Order:
        return Order(self.per_shard, window=WINDOW, seed=self.seed, epoch=epoch)

    def _places(self, order: Order, batch: int, many: int) -> Places:
        """Of this rank's samples in so many batches from `batch` on."""
        starts = np.arange(batch, batch + many)[:, None] * self.batch + self.rank * self.share
        positions = (starts + np.arange(self.share)).ravel()
        sample = order.samples(positions % self.samples)
        version = np.searchsorted(self.first, sample, side="right") - 1
        number = sample - self.first[version]
        place = self.sampling.place(number, self.sizes[version], sample, self.seed, order.epoch)
        return Places(sample, version, *place, (positions < self.samples).astype(np.float32))

    def _cut(self, position: Position, places: Places) -> tuple[Position, dict[str, Tensor]]:
        s, p = self.shard_set, self.sampling.patch
        n = len(places.sample)
        rows = {name: s.planes[name][places.version] for name in self.planes}
        batch: dict[str, Tensor] = {}
        if "v" in rows:
            frames = self._empty(n, 2, p, p, self.channels)
            for i, name in enumerate(("v", "w")):
                self._cut_plane(rows[name], places, places.top, places.left, frames[:, i])
            batch["frames"] = torch.from_numpy(frames).permute(0, 1, 4, 2, 3)
        else:
            for name, channels in self.planes.items():
                patches = self._empty(n, p, p, channels)
                self._cut_plane(rows[name], places, places.top, places.left, patches)
                batch[name] = torch.from_numpy(patches).permute(0, 3, 1, 2)
        if s.permille.shape[1]:
            batch["permille"] = torch.from_numpy(s.permille[places.version])
        if s.negatives is not None:
            negatives = self._empty(n, s.negatives.shape[1], p, p, self.channels)
            for k in range(s.negatives.shape[1]):
                rows[f"negative {k}"] = row = s.negatives[places.version, k]
                # of another size than the planes where it is another's
                top, left = places.top % (s.height[row] - p + 1), places.left % (s.width[row] - p + 1)
                self._cut_plane(row, places, top, left, negatives[:, k])
            batch["negatives"] = torch.from_numpy(negatives).permute(0, 1, 4, 2, 3)
        weight = places.weight
        if s.quarantined:
            bad = np.array(list(s.quarantined))
            weight = weight * ~np.logical_or.reduce([np.isin(row, bad) for row in rows.values()])
        true = min(self.batch, self.samples - position.batch * self.batch)
        batch |= {
            "level": torch.from_numpy(s.level[places.version]),
            "weight": torch.from_numpy(weight),
            "sample": torch.from_numpy(places.sample),
            "epoch": torch.tensor(position.epoch),
            "count": torch.tensor(true / self.world_size, dtype=torch.float32),
        }
        return position, batch

    def _empty(self, *shape: int) -> np.ndarray:
        """uint8; in memory that a GPU copies from by itself, where there is one."""
        return torch.empty(shape, dtype=torch.uint8, pin_memory=torch.cuda.is_available()).numpy()

    def _cut_plane(self, rows: np.ndarray, places: Places, top: np.ndarray, left: np.ndarray, out: np.ndarray) -> None:
        """Cut a patch of each row of the index into `out`, (k, p, p, C)."""
        s, p = self.shard_set, self.sampling.patch
        channels = out.shape[3]
        views = places.view.tolist()
        if s.png:
            for i, (row, y, x) in enumerate(zip(rows.tolist(), top.tolist(), left.tolist(), strict=True)):
                turn(s.pixels(row)[y : y + p, x : x + p], views[i], out[i])
            return
        shards = s.shard[rows]
        mapped = {int(shard): s.mapped(int(shard)) for shard in np.unique(shards)}
        c, line = s.channels[rows], s.channels[rows] * s.width[rows]
        begin = s.begin[rows] + top * line + left * c
        where = zip(shards.tolist(), begin.tolist(), line.tolist(), c.tolist(), views, out, strict=True)
        for shard, offset, stride, depth, view, patch in where:
            source = np.ndarray((p, p, depth), np.uint8, mapped[shard], offset, (stride, depth, 1))
            if depth == channels:
                turn(source, view, patch)
            else:  # grey among colour
                patch[...] = dihedral(source, view)

    def to_device(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The batch as a model takes it: images float32 in [0, 1], online noise added (not clipped unless the task says so).

        Of tasks with negatives, lambdas: float32 (B/W, n), the share of the lq; negatives: float32 (B/W, n, C, H, W).
        """
        moved = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        out = {
            name: value.float() / 255 if name in ("gt", "lq", "mask", "frames", "negatives") else value
            for name, value in moved.items()
        }
        if self.shard_set.online_noise:
            # Keyed by (seed, epoch, sample): the noise of a sample is its own, whichever rank draws it.
            key = digest64("noise", self.seed, int(batch["epoch"]))
            keys = torch.from_numpy(hashed(key, batch["sample"].numpy()).view(np.int64)).to(device)
            shape = out["gt"].shape
            noise = counter_normal(keys, math.prod(shape[1:])).view(shape)
            out["lq"] = out["gt"] + out["level"].float().view(-1, 1, 1, 1) / 255 * noise
            if self.shard_set.quantised:
                out["lq"] = (out["lq"] * 255).round().clamp(0, 255) / 255
        if "permille" in moved:
            permille = out.pop("permille").view(*moved["permille"].shape, 1, 1, 1)
            out["lambdas"] = moved["permille"].float() / 1000
            if "negatives" not in out and self.shard_set.online_noise:
                out["negatives"] = (permille * out["lq"][:, None] + (1000 - permille) * out["gt"][:, None]) / 1000
            elif "negatives" not in out:
                out["negatives"] = mix(moved["lq"][:, None].int(), moved["gt"][:, None].int(), permille).float() / 255
        return out


def dihedral(patch: np.ndarray, view: int) -> np.ndarray:
    """One of the 8 views of (H, W, C): view % 4 quarter turns, mirrored left to right first from 4 on."""
    return np.rot90(patch[:, ::-1] if view >= 4 else patch, view % 4)


def turn(patch: np.ndarray, view: int, out: np.ndarray) -> None:
    """`dihedral` of a square patch, uint8 (p, p, C), into `out` of its shape; many times faster for a patch with colours."""
    if view == 0:
        out[...] = patch
    elif view < 4:
        cv2.rotate(patch, (cv2.ROTATE_90_COUNTERCLOCKWISE, cv2.ROTATE_180, cv2.ROTATE_90_CLOCKWISE)[view - 1], out)
    elif view == 4:
        cv2.flip(patch, 1, out)
    elif view == 5:
        cv2.transpose(patch, out)
    elif view == 6:
        cv2.flip(patch, 0, out)
    else:
        cv2.flip(cv2.transpose(patch), -1, out)


def counter_normal(keys: Tensor, n: int) -> Tensor:
    """n standard normal numbers for each key: float32 (k, n), of keys int64 (k,) of 64 random bits each.

    Counter-based: number i of a key depends on the two alone, so that on the CPU they are the same to the last bit
    whichever keys stand beside it. Source: splitmix64 on a Weyl sequence, then Box-Muller; none is beyond 6.7.
    """
    # Pieces that torch computes in one thread, whole vector registers at a time: their last bits do not depend on a place.
    half = -(-(n + 1) // 2 // 64) * 64
    piece, many = (half, len(keys)) if keys.is_cuda else (min(half, 2**14), max(1, 2**14 // half))
    counter = torch.arange(half, device=keys.device) * _signed(0x9E3779B97F4A7C15)
    out = torch.empty(len(keys), 2, half, device=keys.device)
    for top in range(0, len(keys), many):
        for left in range(0, half, piece):
            bits = counter[left : left + piece] + keys[top : top + many, None]
            bits = (bits ^ _shifted(bits, 30)) * _signed(0xBF58476D1CE4E5B9)
            bits = (bits ^ _shifted(bits, 27)) * _signed(0x94D049BB133111EB)
            bits = bits ^ _shifted(bits, 31)
            radius = (((bits & 0xFFFFFFFF).float() + 0.5) * 2**-32).clamp_max(1).log().mul(-2).sqrt()
            angle = _shifted(bits, 32).float() * (2 * math.pi * 2**-32)
            torch.mul(radius, angle.cos(), out=out[top : top + many, 0, left : left + piece])
            torch.mul(radius, angle.sin(), out=out[top : top + many, 1, left : left + piece])
    return out.view(len(keys), -1)[:, :n].contiguous() if half * 2 != n else out.view(len(keys), n)


def _shifted(bits: Tensor, places: int) -> Tensor:
    """To the right, with zeros from the left: torch's own keeps the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)


def _signed(value: int) -> int:
    """64 bits as torch takes them."""
    return value - 2**64 if value >= 2**63 else value
