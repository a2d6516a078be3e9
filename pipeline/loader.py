"""Deterministic training batches from built shards, for any world size and thread count.

"The same global batches if the dataset digest, the sampling, the global batch size and the seed are equal; nothing else
matters: not the number of ranks, not the number of threads, not where the run was resumed."

An epoch is an enumeration of (image, level, patch, dihedral view) or (scene, two frames, patch, view): `len` is exact, every sample comes once. Patches are
views cut from the mapped shards; floats and noise are made on the device.
"""

import json
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.keyed import philox
from pipeline.sampling.order import Order
from pipeline.shards import INDEX_SCHEMA, PAIRS_SCHEMA, file_sha256, read_shards_json

WINDOW = 16  # shards whose samples are mixed


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next batch to take. With the loader's digest, all that a resume needs."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class Version:
    """One row of the enumeration: an image at a level, a published pair, or two frames of a scene.

    planes: uint8 (H, W, C), mapped from the shard, by role: gt, lq and mask; gt alone where noise of this level is added
    online; v and w of a time-lapse scene. level: as in the index.
    """

    key: str
    level: int
    planes: dict[str, np.ndarray]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that all planes have; an input may lack the rows that its scale does not divide."""
        shapes = [plane.shape for plane in self.planes.values()]
        return min(shape[0] for shape in shapes), min(shape[1] for shape in shapes)


class ShardSet:
    """The images of one split, mapped. Raises UserError when index and shards are of different builds."""

    def __init__(self, folder: Path, split: str) -> None:
        self.listing = listing = read_shards_json(folder)
        self.digest: str = listing["digest"]
        self.colour: str = listing["colour"]
        self.kind: str = listing["degradation"]["kind"]
        self.online_noise = self.kind == "noise"
        rows = _table(folder / "index.parquet", listing["index_sha256"], INDEX_SCHEMA, split)
        if not rows:
            raise UserError(f"{folder}: no split {split!r}; the task names the splits that are built")
        pairs: dict[str, list[tuple[int, int]]] = {}
        if self.kind == "timelapse":
            self.digest += f" {listing['pairs_sha256']}"  # other pairs of the same frames are other batches
            for row in _table(folder / "pairs.parquet", listing["pairs_sha256"], PAIRS_SCHEMA, split):
                pairs.setdefault(row["key"], []).append((row["v"], row["w"]))
        self.shards: list[list[Version]] = []
        rows_of: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            rows_of.setdefault(row["shard"], []).append(row)
        for shard in (s for s in listing["shards"] if s["split"] == split):
            path = folder / split / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: missing or truncated; run `memoir build` again, or `dvc pull`")
            mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))  # slices of the subclass cost thrice as much
            samples: dict[str, dict[tuple[str, int | None], np.ndarray]] = {}
            for row in (r for r in rows_of[shard["name"]] if r["role"] != "json"):
                begin = row["offset"] + row["header"]
                pixels = mapped[begin : row["offset"] + row["length"]].reshape(row["shape"])
                samples.setdefault(row["key"], {})[row["role"], row["level"]] = pixels
            self.shards.append(
                [version for key, arrays in samples.items() for version in self._versions(key, arrays, pairs)]
            )

    def _versions(
        self, key: str, arrays: dict[tuple[str, int | None], np.ndarray], pairs: dict[str, list[tuple[int, int]]]
    ) -> Iterator[Version]:
        """The rows of the enumeration that one sample of the shard makes. arrays: by role and level."""
        if self.kind == "timelapse":
            for v, w in pairs[key]:
                yield Version(key, v, {"v": arrays["frame", v], "w": arrays["frame", w]})
        elif self.online_noise:
            for level in self.listing["degradation"]["sigma"]:
                yield Version(key, level, {"gt": arrays["gt", None]})
        else:
            for role, level in arrays:
                if role == "lq" and level is not None:
                    mask = {"mask": arrays["mask", level]} if ("mask", level) in arrays else {}
                    yield Version(key, level, {"gt": arrays["gt", None], "lq": arrays["lq", level], **mask})

    def versions(self) -> list[Version]:
        """Every row of the enumeration, in the order of the index."""
        return [version for shard in self.shards for version in shard]


def _table(path: Path, sha256: str, schema: pa.Schema, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a table that belongs to shards.json."""
    if not path.exists() or file_sha256(path) != sha256:
        raise UserError(f"{path}: missing, or of another build than shards.json; run `memoir build` again")
    return pq.read_table(path, schema=schema, filters=[("split", "=", split)]).to_pylist()


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
            height, width = version.size
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
        names = [name for name in versions[0].planes if all(name in version.planes for version in versions)]
        self.planes = {name: max(version.planes[name].shape[2] for version in versions) for name in names}
        self.channels = self.planes.get("gt") or self.planes["v"]

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

        gt, lq: uint8 (B/W, C, H, W) (no lq when noise is online); mask: uint8 (B/W, 1, H, W) where all samples have one;
        instead of these, of time-lapse scenes, frames: uint8 (B/W, 2, C, H, W); level: int64 (B/W,); weight: float32 (B/W,), 0 for the
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
        cut = {name: np.empty((share, p, p, channels), np.uint8) for name, channels in self.planes.items()}
        level = np.empty(share, np.int64)
        for i, (v, y, x, d) in enumerate(zip(which, top, left, view, strict=True)):
            version = self.versions[v]
            for name, patches in cut.items():
                patches[i] = dihedral(version.planes[name][y : y + p, x : x + p], d)
            level[i] = version.level
        true = min(self.batch, self.samples - begin)
        tensors = {name: torch.from_numpy(patches).permute(0, 3, 1, 2) for name, patches in cut.items()}
        if "v" in tensors:
            tensors = {"frames": torch.stack((tensors["v"], tensors["w"]), 1)}
        batch = tensors | {
            "level": torch.from_numpy(level),
            "weight": torch.from_numpy(weight),
            "sample": torch.from_numpy(samples),
            "epoch": torch.tensor(position.epoch),
            "count": torch.tensor(true / self.world_size, dtype=torch.float32),
        }
        return position, batch

    def to_device(self, batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """The batch as a model takes it: images float32 in [0, 1], online noise added (not clipped, not rounded)."""
        out = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        for name in ("gt", "lq", "mask", "frames"):
            if name in out:
                out[name] = out[name].float() / 255
        if self.shard_set.online_noise:
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
    height, width = version.size
    gt = version.planes["gt"][:height, :width].astype(np.float32) / 255
    if "lq" in version.planes:
        return version.planes["lq"].astype(np.float32) / 255, gt
    noise = philox(seed, "validation", version.key, version.level).standard_normal(gt.shape, np.float32)
    return gt + np.float32(version.level / 255) * noise, gt
