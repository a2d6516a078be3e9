"""Deterministic training batches from built shards, for any world size and thread count.

"The same global batches if the dataset digest, the sampling, the global batch size and the seed are equal; nothing else
matters: not the number of ranks, not the number of threads, not where the run was resumed."

An epoch is an enumeration of (image, level, patch, dihedral view) or (scene, two frames, patch, view): `len` is exact,
every sample comes once. Patches are views cut from the mapped shards; floats, noise and mixed negatives are made on the
device.
"""

import json
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.degradations.noise import awgn
from pipeline.errors import UserError
from pipeline.keyed import philox
from pipeline.sampling.negatives import mix
from pipeline.sampling.order import Order
from pipeline.sampling.patches import Grid, RandomCrops
from pipeline.shards import INDEX_SCHEMA, NEGATIVES_SCHEMA, PAIRS_SCHEMA, file_sha256, read_shards_json

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
    online; v and w of a time-lapse scene. level: as in the index. quantised: online noise is rounded and clipped to 8 bits.
    permille: of the lq in each of its negatives, in thousandths. negatives: their images, uint8 (H, W, C) of any size; none
    where they are still to be mixed of lq and gt.
    """

    key: str
    level: int
    planes: dict[str, np.ndarray]
    quantised: bool = False
    permille: tuple[int, ...] = ()
    negatives: tuple[np.ndarray, ...] = ()

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
        degradation = listing["degradation"]
        self.kind: str = degradation["kind"]
        self.online_noise = self.kind == "noise" and degradation["drawn"] == "online"
        self.quantised = bool(degradation.get("quantised"))
        rows = _table(folder / "index.parquet", listing["index_sha256"], INDEX_SCHEMA, split)
        if not rows:
            raise UserError(f"{folder}: no split {split!r}; the task names the splits that are built")
        # What is not in the shards and yet makes other batches of them.
        if self.online_noise:
            self.digest += f" {json.dumps(degradation)}"
        pairs: dict[str, list[tuple[int, int]]] = {}
        if listing["pairs_sha256"]:
            self.digest += f" {listing['pairs_sha256']}"
            for row in _table(folder / "pairs.parquet", listing["pairs_sha256"], PAIRS_SCHEMA, split):
                pairs.setdefault(row["key"], []).append((row["v"], row["w"]))
        negatives: dict[tuple[str, int], list[dict[str, Any]]] = {}
        if listing["negatives_sha256"]:
            self.digest += f" {listing['negatives_sha256']}"
            for row in _table(folder / "negatives.parquet", listing["negatives_sha256"], NEGATIVES_SCHEMA, split):
                negatives.setdefault((row["key"], row["level"]), []).append(row)
        self.shards: list[list[Version]] = []
        rows_of: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            rows_of.setdefault(row["shard"], []).append(row)
        for shard in (s for s in listing["shards"] if s["split"] == split):
            path = folder / split / shard["name"]
            if not path.exists() or path.stat().st_size != shard["bytes"]:
                raise UserError(f"{path}: missing or truncated; run `memoir build` again, or `dvc pull`")
            mapped = np.asarray(np.memmap(path, np.uint8, mode="r"))  # slices of the subclass cost thrice as much
            samples: dict[str, dict[str, np.ndarray]] = {}
            for row in (r for r in rows_of[shard["name"]] if r["role"] != "json"):
                begin = row["offset"] + row["header"]
                pixels = mapped[begin : row["offset"] + row["length"]].reshape(row["shape"])
                name = (
                    row["member"].removesuffix(".npy")
                    if row["role"] == "negative"
                    else _name(row["role"], row["level"])
                )
                samples.setdefault(row["key"], {})[name] = pixels
            versions = [version for key, arrays in samples.items() for version in self._versions(key, arrays, pairs)]
            if negatives:
                versions = [self._with_negatives(v, negatives[v.key, v.level], samples) for v in versions]
            self.shards.append(versions)

    def _versions(
        self, key: str, arrays: dict[str, np.ndarray], pairs: dict[str, list[tuple[int, int]]]
    ) -> Iterator[Version]:
        """The rows of the enumeration that one sample of the shard makes. arrays: by `_name`."""
        if self.kind == "timelapse":
            for v, w in pairs[key]:
                yield Version(key, v, {"v": arrays[_name("frame", v)], "w": arrays[_name("frame", w)]})
        elif self.online_noise:
            for level in self.listing["degradation"]["sigma"]:
                yield Version(key, level, {"gt": arrays["gt"]}, quantised=self.quantised)
        else:
            for name in arrays:
                role, _, number = name.partition("-")
                if role == "lq":
                    mask = {"mask": arrays[f"mask-{number}"]} if f"mask-{number}" in arrays else {}
                    yield Version(key, int(number), {"gt": arrays["gt"], "lq": arrays[name], **mask})

    def _with_negatives(
        self, version: Version, rows: list[dict[str, Any]], samples: dict[str, dict[str, np.ndarray]]
    ) -> Version:
        """rows: of negatives.parquet. samples: of the shard, by key."""
        sampling = self.listing["negatives"]
        images: tuple[np.ndarray, ...] = ()
        if sampling["kept"] == "stored":
            images = tuple(samples[version.key][f"negative-{version.level}-{row['k']}"] for row in rows)
        elif sampling["kind"] == "extra":
            images = tuple(samples[row["partner"]][_name("lq", row["partner_level"])] for row in rows)
        return replace(version, permille=tuple(row["permille"] for row in rows), negatives=images)

    def versions(self) -> list[Version]:
        """Every row of the enumeration, in the order of the index."""
        return [version for shard in self.shards for version in shard]


def _name(role: str, level: int | None) -> str:
    """A plane within its sample."""
    return role if level is None else f"{role}-{level}"


def _table(path: Path, sha256: str, schema: pa.Schema, split: str) -> list[dict[str, Any]]:
    """The rows of one split of a table that belongs to shards.json."""
    if not path.exists() or file_sha256(path) != sha256:
        raise UserError(f"{path}: missing, or of another build than shards.json; run `memoir build` again")
    return pq.read_table(path, schema=schema, filters=[("split", "=", split)]).to_pylist()


class Loader:
    """Batches of the patches of one split, in the epoch's order.

    folder: what `memoir build` wrote. batch: the global batch B; rank r of W takes positions [r*B/W, (r+1)*B/W) of each.
    sampling: which patches of an image. threads: cut ahead by so many threads.
    Raises UserError for a batch that W does not divide and for a split whose images are all smaller than a patch.
    """

    def __init__(
        self,
        folder: Path,
        split: str = "train",
        *,
        batch: int,
        sampling: Grid | RandomCrops,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 1,
    ) -> None:
        if batch % world_size:
            divisors = ", ".join(str(w) for w in range(1, batch + 1) if batch % w == 0)
            raise UserError(f"{world_size} workers do not divide the global batch of {batch}; these do: {divisors}")
        self.shard_set = ShardSet(folder, split)
        self.split, self.sampling = split, sampling
        self.batch, self.seed, self.threads = batch, seed, threads
        self.rank, self.world_size = rank, world_size
        self.versions = versions = self.shard_set.versions()
        self.sizes = np.array([version.size for version in versions], np.int64)
        counts = sampling.counts(self.sizes)
        self.first = np.concatenate(([0], np.cumsum(counts)))  # sample number at which each version begins
        starts = np.cumsum([0] + [len(shard) for shard in self.shard_set.shards])
        self.per_shard = np.diff(self.first[starts])
        self.samples = int(self.first[-1])
        p = sampling.patch
        if not self.samples:
            raise UserError(f"{folder}: no image of split {split!r} holds a patch of {p}x{p}")
        names = [name for name in versions[0].planes if all(name in version.planes for version in versions)]
        self.planes = {name: max(version.planes[name].shape[2] for version in versions) for name in names}
        self.channels = self.planes.get("gt") or self.planes["v"]
        self.negatives = len(versions[0].negatives)
        used = (v for v, n in zip(versions, counts, strict=True) if n)
        small = next((v.key for v in used for image in v.negatives if min(image.shape[:2]) < p), None)
        if small is not None:
            raise UserError(f"{folder}: a negative of {small} is smaller than a patch of {p}x{p}; leave that image out")

    @property
    def unused(self) -> list[str]:
        """The keys of images that are smaller than a patch, and so in no sample."""
        return sorted({version.key for version, n in zip(self.versions, np.diff(self.first), strict=True) if not n})

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank; the last may be padded."""
        return -(-self.samples // self.batch)

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
        count: float32 (), true samples in the global batch / W. Of tasks with n negatives, permille: int32 (B/W, n),
        thousandths of the lq in each; and negatives: uint8 (B/W, n, C, H, W), unless they are to be mixed of lq and gt.
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
        places = self.sampling.place(samples - self.first[which], self.sizes[which], samples, self.seed, position.epoch)
        p = self.sampling.patch
        cut = {name: np.empty((share, p, p, channels), np.uint8) for name, channels in self.planes.items()}
        negatives = np.empty((share, self.negatives, p, p, self.channels), np.uint8)
        for i, (v, y, x, view) in enumerate(zip(which, *places, strict=True)):
            version = self.versions[v]
            for name, patches in cut.items():
                patches[i] = dihedral(version.planes[name][y : y + p, x : x + p], view)
            for k, image in enumerate(version.negatives):  # of another size than the planes where it is another's
                top, left = y % (image.shape[0] - p + 1), x % (image.shape[1] - p + 1)
                negatives[i, k] = dihedral(image[top : top + p, left : left + p], view)
        versions = [self.versions[v] for v in which]
        true = min(self.batch, self.samples - begin)
        batch = {name: torch.from_numpy(patches).permute(0, 3, 1, 2) for name, patches in cut.items()}
        if "v" in batch:
            batch = {"frames": torch.stack((batch["v"], batch["w"]), 1)}
        if versions[0].permille:
            batch["permille"] = torch.tensor([version.permille for version in versions], dtype=torch.int32)
        if self.negatives:
            batch["negatives"] = torch.from_numpy(negatives).permute(0, 1, 4, 2, 3)
        batch |= {
            "level": torch.tensor([version.level for version in versions]),
            "weight": torch.from_numpy(weight),
            "sample": torch.from_numpy(samples),
            "epoch": torch.tensor(position.epoch),
            "count": torch.tensor(true / self.world_size, dtype=torch.float32),
        }
        return position, batch

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
            shape = tuple(batch["gt"].shape[1:])
            epoch = int(batch["epoch"])
            noise = np.stack(
                [philox(self.seed, "noise", epoch, int(s)).standard_normal(shape, np.float32) for s in batch["sample"]]
            )
            sigma = out["level"].float().view(-1, 1, 1, 1) / 255
            out["lq"] = out["gt"] + sigma * torch.from_numpy(noise).to(device)
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


def validation_pair(version: Version, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A whole image of a split as (lq, gt), float32 (H, W, C) in [0, 1]; online noise keyed by image and level."""
    height, width = version.size
    gt = version.planes["gt"][:height, :width].astype(np.float32) / 255
    if "lq" in version.planes:
        return version.planes["lq"].astype(np.float32) / 255, gt
    lq = awgn(gt, version.level, (seed, "validation", version.key, version.level))
    if version.quantised:
        lq = np.rint(lq * 255).clip(0, 255) / np.float32(255)
    return lq, gt
