"""Deterministic training batches from built shards, for any world size and thread count.

"The same global batches if the dataset digest, the sampling, the global batch size and the seed are equal; nothing else
matters: not the number of ranks, not the number of threads, not where the run was resumed."

An epoch is an enumeration of (image, level, patch, dihedral view): `len` is exact, every sample comes once. Patches are
views cut from the mapped shards; floats and noise are made on the device.
"""

import json
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.keyed import philox
from pipeline.sampling.order import Order
from pipeline.shards import INDEX_SCHEMA, file_sha256, read_shards_json

WINDOW = 16  # shards whose samples are mixed


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next batch to take. With the loader's digest, all that a resume needs."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Version:
    """One (image, level) of the enumeration: arrays are uint8 (H, W, C), mapped from the shard."""

    key: str
    level: int
    gt: np.ndarray
    lq: np.ndarray | None  # None: noise of this level is added online


class ShardSet:
    """The images of one split, mapped. Raises UserError when index and shards are of different builds."""

    def __init__(self, folder: Path, split: str) -> None:
        listing = read_shards_json(folder)
        self.digest: str = listing["digest"]
        self.colour: str = listing["colour"]
        self.online_noise = listing["degradation"]["kind"] == "noise"
        self.kind: str = listing["degradation"]["kind"]
        index = folder / "index.parquet"
        if not index.exists() or file_sha256(index) != listing["index_sha256"]:
            raise UserError(f"{index}: missing, or of another build than shards.json; run `memoir build` again")
        rows = pq.read_table(index, schema=INDEX_SCHEMA, filters=[("split", "=", split)]).to_pylist()
        if not rows:
            raise UserError(f"{folder}: no split {split!r}; the task names the splits that are built")
        self.shards: list[list[Version]] = []
        rows_of: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            rows_of.setdefault(row["shard"], []).append(row)
        for shard in (s for s in listing["shards"] if s["split"] == split):
            path = folder / split / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: missing or truncated; run `memoir build` again, or `dvc pull`")
            mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))  # slices of the subclass cost thrice as much
            samples: dict[str, dict[int | None, np.ndarray]] = {}
            for row in (r for r in rows_of[shard["name"]] if r["role"] != "json"):
                begin = row["offset"] + row["header"]
                pixels = mapped[begin : row["offset"] + row["length"]].reshape(row["shape"])
                samples.setdefault(row["key"], {})[row["level"] if row["role"] == "lq" else None] = pixels
            self.shards.append(
                [
                    Version(key, level, arrays[None], arrays.get(level))
                    for key, arrays in samples.items()
                    for level in (
                        listing["degradation"]["sigma"] if self.online_noise else [k for k in arrays if k is not None]
                    )
                ]
            )

    def versions(self) -> list[Version]:
        """Every (image, level), in the order of the index."""
        return [version for shard in self.shards for version in shard]


class Loader:
    """Batches of the patches of one split, in the epoch's order.

    folder: what `memoir build` wrote. batch: the global batch B; rank r of W takes positions [r*B/W, (r+1)*B/W) of each.
    patch, stride: the grid of square patches, in pixels. dihedral: each patch in its 8 flips and rotations.
    threads: cut ahead by so many threads. Raises UserError for a batch that W does not divide and for a split whose images
    are all smaller than a patch.
    """

    def __init__(
        self,
        folder: Path,
        split: str = "train",
        *,
        batch: int,
        patch: int,
        stride: int,
        dihedral: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
    ) -> None:
        if batch % world_size:
            divisors = ", ".join(str(w) for w in range(1, batch + 1) if batch % w == 0)
            raise UserError(f"{world_size} workers do not divide the global batch of {batch}; these do: {divisors}")
        self.shard_set = ShardSet(folder, split)
        self.split = split
        self.batch, self.patch, self.seed, self.threads = batch, patch, seed, threads
        self.views = 8 if dihedral else 1
        self.rank, self.world_size = rank, world_size
        versions = self.shard_set.versions()
        self.versions = versions
        rows, columns = [], []
        for version in versions:
            height, width = (version.gt if version.lq is None else version.lq).shape[:2]
            rows.append(max(0, (height - patch) // stride + 1))
            columns.append(max(0, (width - patch) // stride + 1))
        self.stride = stride
        self.columns = np.array(columns, np.int64)
        counts = np.array(rows, np.int64) * self.columns * self.views
        self.first = np.concatenate(([0], np.cumsum(counts)))  # sample number at which each version begins
        sizes = np.cumsum([0] + [len(shard) for shard in self.shard_set.shards])
        self.per_shard = np.diff(self.first[sizes])
        self.samples = int(self.first[-1])
        if not self.samples:
            raise UserError(f"{folder}: no image of split {split!r} holds a patch of {patch}x{patch}")
        self.channels = max(version.gt.shape[2] for version in versions)

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank; the last may be padded."""
        return -(-self.samples // self.batch)

    @property
    def digest(self) -> str:
        """What the batches depend on beside the position: shards, sampling, global batch and seed."""
        sampling = [
            self.shard_set.digest,
            self.split,
            self.batch,
            self.patch,
            self.stride,
            self.views,
            self.seed,
            WINDOW,
        ]
        return json.dumps(sampling)

    def batches(self, start: Position = Position()) -> Generator[tuple[Position, dict[str, Tensor]], None, None]:
        """Batches from `start` on, without end: (position of the batch, batch), as `cut` makes them."""
        ahead: deque[Future[tuple[Position, dict[str, Tensor]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="loader") as pool:
            try:
                position = start
                order = self._order(position.epoch)
                while True:
                    while len(ahead) < 2 * self.threads:
                        if position.batch >= len(self):
                            position = Position(position.epoch + 1, 0)
                            order = self._order(position.epoch)
                        ahead.append(pool.submit(self._cut, order, position))
                        position = Position(position.epoch, position.batch + 1)
                    yield ahead.popleft().result()
            finally:
                for future in ahead:
                    future.cancel()

    def cut(self, position: Position) -> dict[str, Tensor]:
        """This rank's part of one global batch.

        gt, lq: uint8 (B/W, C, H, W) (no lq when noise is online); level: int64 (B/W,); weight: float32 (B/W,), 0 for the
        padding of the last batch; sample: int64 (B/W,), number in the enumeration; epoch: int64 ();
        count: float32 (), true samples in the global batch / W.
        """
        return self._cut(self._order(position.epoch), position)[1]

    def _order(self, epoch: int) -> Order:
        return Order(self.per_shard, window=WINDOW, seed=self.seed, epoch=epoch)

    def _cut(self, order: Order, position: Position) -> tuple[Position, dict[str, Tensor]]:
        share = self.batch // self.world_size
        begin = position.batch * self.batch
        positions = begin + self.rank * share + np.arange(share)
        weight = (positions < self.samples).astype(np.float32)
        samples = order.samples(positions % self.samples)
        which = np.searchsorted(self.first, samples, side="right") - 1
        cell, view = np.divmod(samples - self.first[which], self.views)
        top, left = (side * self.stride for side in np.divmod(cell, self.columns[which]))
        p = self.patch
        gt = np.empty((share, p, p, self.channels), np.uint8)
        lq = None if self.shard_set.online_noise else np.empty_like(gt)
        level = np.empty(share, np.int64)
        for i, (v, y, x, d) in enumerate(zip(which, top, left, view, strict=True)):
            version = self.versions[v]
            gt[i] = dihedral(version.gt[y : y + p, x : x + p], d)
            if lq is not None:
                assert version.lq is not None
                lq[i] = dihedral(version.lq[y : y + p, x : x + p], d)
            level[i] = version.level
        true = min(self.batch, self.samples - begin)
        batch = {
            "gt": torch.from_numpy(gt).permute(0, 3, 1, 2),
            "level": torch.from_numpy(level),
            "weight": torch.from_numpy(weight),
            "sample": torch.from_numpy(samples),
            "epoch": torch.tensor(position.epoch),
            "count": torch.tensor(true / self.world_size, dtype=torch.float32),
        }
        if lq is not None:
            batch["lq"] = torch.from_numpy(lq).permute(0, 3, 1, 2)
        return position, batch

    def to_device(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The batch as a model takes it: gt and lq float32 in [0, 1], online noise added (not clipped, not rounded)."""
        out = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        out["gt"] = out["gt"].float() / 255
        if "lq" in out:
            out["lq"] = out["lq"].float() / 255
        else:
            # Keyed by (seed, epoch, sample): the noise of a sample is its own, whichever rank draws it.
            shape = tuple(batch["gt"].shape[1:])
            epoch = int(batch["epoch"])
            noise = np.stack(
                [philox(self.seed, "noise", epoch, int(s)).standard_normal(shape, np.float32) for s in batch["sample"]]
            )
            sigma = out["level"].float().view(-1, 1, 1, 1) / 255
            out["lq"] = out["gt"] + sigma * torch.from_numpy(noise).to(device)
        return out


def dihedral(patch: np.ndarray, view: int) -> np.ndarray:
    """One of the 8 views of (H, W, C): view % 4 quarter turns, mirrored left to right first from 4 on."""
    return np.rot90(patch[:, ::-1] if view >= 4 else patch, view % 4)


def validation_pair(version: Version, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A whole image of a split as (lq, gt), float32 (H, W, C) in [0, 1]; online noise keyed by image and level."""
    if version.lq is None:
        gt = version.gt.astype(np.float32) / 255
        noise = philox(seed, "validation", version.key, version.level).standard_normal(gt.shape, np.float32)
        return gt + np.float32(version.level / 255) * noise, gt
    height, width = version.lq.shape[:2]
    return version.lq.astype(np.float32) / 255, version.gt[:height, :width].astype(np.float32) / 255
