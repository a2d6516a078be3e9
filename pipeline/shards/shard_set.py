"""The images of one split of a built dataset, mapped from its shards: the samples, and where their pixels lie.

Everything is in columns: an image costs tens of bytes here, not an object.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.degradations.base import Degradation
from pipeline.degradations.colour import with_channels
from pipeline.degradations.orientation import MADE
from pipeline.depth import unit
from pipeline.dvc_objects import dataset_storage
from pipeline.errors import UserError
from pipeline.shards.cache import Lease, ShardCache
from pipeline.shards.format import (
    PART_BYTES,
    damaged,
    described,
    file_sha256,
    parts,
    read_part,
    read_shards_json,
    samples_digest,
    shard_file,
    store_of_shards,
    table_file,
)
from pipeline.storage import Folder
from pipeline.task import recorded

CACHE = Path(os.environ.get("MEMOIR_CACHE", ".cache/remote"))  # copies of remote shards, by content
TABLES_AT_A_TIME = 8  # parts of a table that are read at a time
OPEN = 64  # shards that are mapped at a time
DECODED = 256 * 2**20  # bytes of decoded PNG members that are kept


@dataclass(frozen=True)
class Version:
    """One row of the enumeration: an image at a level, a published pair, a frame with its target, or two frames of a scene.

    planes: uint8 or uint16 (H, W, C), lq also int16, mapped from the shard, by role: gt, lq and mask; gt alone where the loader draws the lq
    at this level; v and w of a time-lapse scene. level: as in the index. degradation: the task's.
    """

    key: str
    level: int
    planes: dict[str, np.ndarray]
    degradation: Degradation

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) that all planes have; an input may lack the rows that its scale does not divide."""
        shapes = [plane.shape for plane in self.planes.values()]
        return min(shape[0] for shape in shapes), min(shape[1] for shape in shapes)


class ShardSet:
    """What `memoir build` made of one split, by rows of the index and by versions, the rows of the enumeration.

    Each row of the index has, int64 (rows,): shard (which of `shards`), begin and length (of its contents in bytes, without
    the header), height, width, channels; and fixed, bool (rows,), whether it holds int16 numbers and not levels. Each version has, int64 (n,): level, and in `planes` the row of each of its planes
    by name, -1 where it has none. With k negatives for each version: permille, int32 (n, k), and negatives, the rows of
    their images, int64 (n, k), or None where they are to be mixed from lq and gt.
    """

    def __init__(self, place: Path | str, split: str, *, cache: ShardCache | None = None, quarantine: int = 0) -> None:
        """place: a folder, or the URI of one. cache: where shards of a bucket are copied to; CACHE by default.

        quarantine: how many damaged members are recorded in `quarantined` before one is an error.
        Raises UserError if the tables and shards.json are from different builds, and for a split that was not built.
        """
        self.source = dataset_storage(str(place))
        self.place, self.split = str(place).rstrip("/"), split
        self.cache = cache
        self.listing = listing = read_shards_json(self.source)
        self.store = store_of_shards(self.source, listing)
        if cache is None and not isinstance(self.store, Folder):
            self.cache = ShardCache(CACHE)
        self.digest = samples_digest(listing)
        self.colour: str = listing["colour"]
        self.degradation = recorded(listing["degradation"])
        self.png = listing["codec"] == "png"
        self.dtype = np.dtype("u1" if listing["bits"] == 8 else "<u2")  # the dtype of levels
        self.shards: list[dict[str, Any]] = [shard for shard in listing["shards"] if shard["split"] == split]
        if not self.shards:
            raise UserError(f"{self.place}: no split {split!r}; the task names the splits that are built")
        if isinstance(self.store, Folder):
            for i in range(len(self.shards)):
                self._local(i)  # it is better to know now than an hour later
        self.quarantine = quarantine
        self.quarantined: dict[int, str] = {}  # by row of the index: what is wrong with it
        self._lock = threading.Lock()
        self._opening: dict[int, threading.Lock] = {}
        self._mapped: OrderedDict[int, np.ndarray] = OrderedDict()
        self._leases: dict[int, Lease] = {}
        self._checked: dict[int, tuple[int, int, int]] = {}
        self._decoded: OrderedDict[int, np.ndarray] = OrderedDict()
        self._decoded_bytes = 0
        self._rows(self._table("index"))
        self._versions()
        if listing["negatives"]:
            self._negatives(self._table("negatives"))
        else:
            self.permille = np.empty((len(self), 0), np.int32)
            self.negatives: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of versions."""
        return len(self.level)

    # what there is

    def _table(self, name: str) -> pa.Table:
        """The rows of this split in a table that belongs to shards.json."""

        def read(part: dict[str, Any], shards: list[dict[str, Any]]) -> pa.Table:
            file = table_file(name, part[name])
            where = f"{self.store.uri}/{file}"
            try:
                data = self.store.read(file, PART_BYTES)
            except FileNotFoundError:
                raise UserError(f"{where}: missing; run `memoir build` again, or `dvc pull`") from None
            held = read_part(data, name, part, shards, self.listing, where)
            return held.filter(pc.equal(held["split"], self.split))

        wanted = [
            (part, shards)
            for part, shards in parts(self.listing)
            if any(shard["split"] == self.split for shard in shards)
        ]
        with ThreadPoolExecutor(TABLES_AT_A_TIME) as pool:  # a bucket takes its time to answer
            return pa.concat_tables(pool.map(read, *zip(*wanted, strict=True))).combine_chunks()

    def _rows(self, index: pa.Table) -> None:
        names = pa.array([shard["name"] for shard in self.shards])
        self.shard = pc.index_in(index["shard"], names).to_numpy().astype(np.int64)
        header = index["header"].fill_null(0).to_numpy()
        self._offset, self._contents = index["offset"].to_numpy(), index["length"].to_numpy()
        self.begin, self.length = self._offset + header, self._contents - header
        pixels = pc.not_equal(index["role"], "json").to_numpy()
        shape = np.zeros((len(index), 3), np.int64)
        shape[pixels] = index["shape"].filter(pa.array(pixels)).combine_chunks().flatten().to_numpy().reshape(-1, 3)
        self.height, self.width, self.channels = np.ascontiguousarray(shape.T)
        self._header, self._dtype = header, index["dtype"]
        self.fixed = pc.equal(index["dtype"], "int16").fill_null(False).to_numpy()
        self._member = index["member"]
        self._sha256 = index["sha256"]
        key = index["key"]
        new = np.ones(len(index), bool)
        new[1:] = pc.not_equal(key.slice(1), key.slice(0, len(key) - 1)).to_numpy() | (np.diff(self.shard) != 0)
        self._sample = np.cumsum(new) - 1  # the sample of each row
        self._keys = key.filter(pa.array(new)).combine_chunks()  # the key of each sample
        self._role = index["role"]
        self._level = index["level"].fill_null(-1).to_numpy().astype(np.int64)
        self._of: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for role in pc.unique(self._role).to_pylist():
            rows = np.flatnonzero(pc.equal(self._role, role).to_numpy())
            code = self._code(self._sample[rows], self._level[rows])
            order = np.argsort(code, kind="stable")
            self._of[role] = code[order], rows[order]

    @staticmethod
    def _code(sample: np.ndarray, level: np.ndarray) -> np.ndarray:
        return (sample << 32) + level + 1

    def _find(self, role: str, sample: np.ndarray, level: np.ndarray) -> np.ndarray:
        """The first row of the index with this role in each sample, at each level (-1: none); -1 where there is none."""
        codes, rows = self._of.get(role, (np.empty(0, np.int64), np.empty(0, np.int64)))
        if not len(codes):
            return np.full(len(sample), -1, np.int64)
        wanted = self._code(sample, level)
        place = np.minimum(np.searchsorted(codes, wanted), len(codes) - 1)
        return np.where(codes[place] == wanted, rows[place], -1)

    def _versions(self) -> None:
        none = np.full(len(self._keys), -1, np.int64)
        if self.degradation.of_frames:
            pairs = self._table("pairs")
            self.sample = self._samples(pairs["key"], "pairs")
            v, w = (pairs[name].to_numpy().astype(np.int64) for name in ("v", "w"))
            self.level = v
            self.planes = {"v": self._find("frame", self.sample, v), "w": self._find("frame", self.sample, w)}
        elif self.degradation.online:
            levels = np.array(self.degradation.levels, np.int64)
            self.sample = np.repeat(np.arange(len(self._keys)), len(levels))
            self.level = np.tile(levels, len(self._keys))
            self.planes = {"gt": self._find("gt", self.sample, none[self.sample])}
        else:
            lq = np.sort(self._of["lq"][1]) if "lq" in self._of else none[:0]
            self.sample, self.level = self._sample[lq], self._level[lq]
            gt, mask = self._find("gt", self.sample, none[self.sample]), self._find("mask", self.sample, self.level)
            self.planes = {"gt": gt, "lq": lq} | ({"mask": mask} if (mask >= 0).any() else {})
        if not len(self) or any((rows < 0).any() for name, rows in self.planes.items() if name != "mask"):
            raise UserError(f"{self.place}: its tables are of two builds; run `memoir build` again")
        self.version_shard = self.shard[next(iter(self.planes.values()))]

    def _samples(self, keys: pa.ChunkedArray, table: str) -> np.ndarray:
        """The samples that the rows of a table name by their keys."""
        sample = pc.index_in(keys, self._keys)
        if sample.null_count:
            raise UserError(f"{self.place}/{table}: not of these images; run `memoir build` again")
        return sample.to_numpy().astype(np.int64)

    def _negatives(self, table: pa.Table) -> None:
        k = self.listing["negatives"]["number"]
        sample = self._samples(table["key"], "negatives")
        refusal = UserError(f"{self.place}/negatives: not of these images; run `memoir build` again")
        fits = len(table) == k * len(self) and (sample == np.repeat(self.sample, k)).all()
        if not fits or (table["level"].to_numpy() != np.repeat(self.level, k)).any():
            raise refusal
        self.permille = table["permille"].to_numpy().reshape(-1, k)
        self.negatives = None
        if self.listing["negatives"]["kept"] == "stored":
            codes, rows = self._of["negative"] if "negative" in self._of else (np.empty(0, np.int64),) * 2
            wanted = self._code(self.sample, self.level)[:, None]  # of one image at one level in the order of k
            places = np.searchsorted(codes, wanted) + np.arange(k)
            if len(codes) < k or (places >= len(codes)).any() or (codes[places] != wanted).any():
                raise refusal
            self.negatives = rows[places]
        elif self.listing["negatives"]["kind"] == "extra":
            partner = self._samples(table["partner"], "negatives")
            level = table["partner_level"].to_numpy().astype(np.int64)
            self.negatives = self._find("lq", partner, level).reshape(-1, k)
        if self.negatives is not None:
            deepest = max(int(self.channels[rows[rows >= 0]].max()) for rows in self.planes.values())
            if (self.negatives < 0).any() or (self.channels[self.negatives] > deepest).any():
                raise refusal

    def turned(self) -> np.ndarray:
        """For each of the 8 views, how many rows after an input, or a stored negative, the one for this view lies: int64 (8,).

        Raises UserError if the split was built without the views that the degradation tells apart.
        """
        steps = np.zeros(8, np.int64)
        if self.degradation.online:
            return steps
        views = self.degradation.views
        for step, view in enumerate(views[1:], 1):
            steps[[made == view for made in MADE[self.degradation.turns]]] = step
            for role in ("lq", "negative"):
                rows = self._of[role][1] if role in self._of else np.empty(0, np.int64)
                there = rows[rows + step < len(self.shard)]
                named = pc.equal(self._role.take(pa.array(there + step)), f"{role}{view}").to_numpy()
                same = (self._sample[there] == self._sample[there + step]) & (
                    self._level[there] == self._level[there + step]
                )
                if len(there) < len(rows) or not (named & same).all():
                    raise UserError(
                        f"{self.place}: the inputs of split {self.split!r} cannot be turned, for {self.degradation.kind} makes "
                        "others of turned images, and they were built for training only, by this version of memoir: run "
                        "`memoir build` again, or say dihedral: false"
                    )
        return steps

    @property
    def sizes(self) -> np.ndarray:
        """Heights and widths that all planes of each version have, int64 (n, 2)."""
        least = np.full((len(self), 2), np.iinfo(np.int64).max)
        for rows in self.planes.values():
            there = rows >= 0
            size = np.stack((self.height[rows], self.width[rows]), 1)
            least[there] = np.minimum(least[there], size[there])
        return least

    def smaller_than(self, patch: int) -> list[str]:
        """The keys of images smaller than a square of this side; with the level if the image is large enough at another one."""
        small = (self.sizes < patch).any(1)
        never = ~np.isin(self.sample, self.sample[~small])
        found = [(self.key(i), int(self.level[i]), never[i]) for i in np.flatnonzero(small).tolist()]
        return list(dict.fromkeys(key if whole else f"{key} at level {level}" for key, level, whole in found))

    def key(self, version: int) -> str:
        """The key of a version's sample."""
        return str(self._keys[int(self.sample[version])].as_py())

    def versions(self) -> Iterator[Version]:
        """Every row of the enumeration, in the order of the index."""
        for i in range(len(self)):
            planes = {name: self.pixels(int(rows[i])) for name, rows in self.planes.items() if rows[i] >= 0}
            yield Version(self.key(i), int(self.level[i]), planes, self.degradation)

    # where it lies

    def mapped(self, shard: int) -> np.ndarray:
        """The bytes of a shard, uint8 (bytes,), which is fetched first if it is in a bucket.

        A shard is compared with its sha256 when it is opened for the first time, and whenever the file has changed since.
        Raises UserError for a shard that is missing or damaged, and names the damaged members.
        """
        with self._lock:
            found = self._mapped.get(shard)
            if found is not None:
                self._mapped.move_to_end(shard)
                return found
            opening = self._opening.setdefault(shard, threading.Lock())
        with opening:
            with self._lock:
                if shard in self._mapped:
                    return self._mapped[shard]
            path, lease = self._local(shard)
            stat = path.stat()
            seen = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._checked.get(shard) != seen:
                self._check(shard, path)
                self._checked[shard] = seen
            found = np.asarray(np.memmap(path, np.uint8, mode="r"))  # slices of a memmap cost three times as much
            with self._lock:
                self._mapped[shard] = found
                if lease is not None:
                    self._leases[shard] = lease
                while len(self._mapped) > OPEN:
                    old, _ = self._mapped.popitem(last=False)
                    if old in self._leases:
                        self._leases.pop(old).release()
            return found

    def prefetch(self, shards: list[int]) -> None:
        """Have remote shards copied in the background, in the order in which they will be needed."""
        if self.cache is not None:
            wanted = [self.shards[shard] for shard in shards]
            self.cache.prefetch(
                self.store, [(shard_file(each, self.listing), each["bytes"], each["sha256"]) for each in wanted]
            )

    def close(self) -> None:
        """Unmap everything, and let go of the copies of remote shards."""
        with self._lock:
            self._mapped.clear()
            for lease in self._leases.values():
                lease.release()
            self._leases.clear()

    def _local(self, shard: int) -> tuple[Path, Lease | None]:
        """The file of a shard, and the lease that keeps it there."""
        each = self.shards[shard]
        if self.cache is not None:
            lease = self.cache.get(self.store, shard_file(each, self.listing), each["bytes"], each["sha256"])
            return lease.path, lease
        assert isinstance(self.store, Folder)
        path = self.store.root / shard_file(each, self.listing)
        if not path.exists() or path.stat().st_size != each["bytes"]:
            raise UserError(f"{path}: missing or truncated; run `memoir build` again, or `dvc pull`")
        return path, None

    def _check(self, shard: int, path: Path) -> None:
        rows = np.flatnonzero(self.shard == shard)
        if file_sha256(path) == self.shards[shard]["sha256"]:
            self._check_headers(rows, path)
            return
        columns = (self._offset[rows].tolist(), self._contents[rows].tolist(), self._sha256.take(rows).to_pylist())
        bad = [int(rows[i]) for i in damaged(path, zip(*columns, strict=True))]
        named = [
            f"{self._keys[int(self._sample[row])]}.{self._member[row]} at byte {self._offset[row]:,}" for row in bad
        ]
        with self._lock:
            if bad and len(self.quarantined) + len(bad) <= self.quarantine:
                self.quarantined |= {row: f"{path}: {name}" for row, name in zip(bad, named, strict=True)}
                return
        where = f", in {named[0]}" + (f" and {len(named) - 1} more members" if len(named) > 1 else "") if named else ""
        raise UserError(f"{path}: changed since it was built{where}; run `memoir build` again, or `dvc checkout`")

    def _check_headers(self, rows: np.ndarray, path: Path) -> None:
        """Raise UserError unless the images of these rows begin as the index says."""
        rows = rows[self.height[rows] > 0]
        shapes = np.stack((self.height[rows], self.width[rows], self.channels[rows]), 1).tolist()
        columns = (self._offset[rows].tolist(), self._header[rows].tolist(), self._dtype.take(rows).to_pylist())
        with path.open("rb") as file:
            for row, shape, offset, header, dtype in zip(rows.tolist(), shapes, *columns, strict=True):
                file.seek(offset)
                if not described(file.read(header or 32), header, tuple(shape), dtype):
                    member = f"{self._keys[int(self._sample[row])]}.{self._member[row]}"
                    raise UserError(
                        f"{path}: {member} at byte {offset:,} is no {dtype} array of {tuple(shape)}; build again"
                    )

    # pixels

    def dtype_of(self, rows: Any) -> np.dtype:
        """The dtype of the pixels of one row, or of several. Raises UserError if some are levels and some are not."""
        fixed = np.unique(self.fixed[rows])
        if len(fixed) > 1:
            raise UserError(f"{self.place}: its tables are of two builds; run `memoir build` again")
        return np.dtype("<i2") if fixed.any() else self.dtype

    def pixels(self, row: int) -> np.ndarray:
        """The image of a row of the index, (H, W, C), of `dtype` or int16: mapped, or decoded where the codec is png.

        Raises UserError as `mapped` does, and for a PNG that cannot be decoded.
        """
        shape = (int(self.height[row]), int(self.width[row]), int(self.channels[row]))
        begin, length = int(self.begin[row]), int(self.length[row])
        dtype = self.dtype_of(row)
        if not self.png:
            return np.ndarray(shape, dtype, self.mapped(int(self.shard[row])), begin)
        with self._lock:
            found = self._decoded.get(row)
            if found is not None:
                self._decoded.move_to_end(row)
                return found
        data = self.mapped(int(self.shard[row]))[begin : begin + length]
        colour = cv2.IMREAD_GRAYSCALE if shape[2] == 1 else cv2.IMREAD_COLOR_RGB
        image = cv2.imdecode(data, colour | cv2.IMREAD_ANYDEPTH)
        if image is not None and image.dtype == np.uint16 and self.fixed[row]:
            image = (image ^ np.uint16(2**15)).view(np.int16)
        if image is None or image.size != np.prod(shape) or image.dtype != dtype:
            shard = shard_file(self.shards[int(self.shard[row])], self.listing)
            member = f"{self._keys[int(self._sample[row])]}.{self._member[row]}"
            raise UserError(f"{self.place}/{shard}: {member} at byte {begin:,} is no PNG of {shape}; build again")
        image = image.reshape(shape)
        with self._lock:
            self._decoded_bytes += image.nbytes if row not in self._decoded else 0
            self._decoded[row] = image
            while self._decoded_bytes > DECODED:
                self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return image


def validation_pair(version: Version, channels: int | None = None, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A whole image of a split as (lq, gt), float32 (H, W, C) in [0, 1], both of the size that all its planes have.

    channels: C; grey is repeated, as it is among colour in a batch. None: as stored. Inputs that the loader draws are keyed
    by image and level. Raises ValueError for colour where grey is wanted.
    """
    height, width = version.size
    cut = {name: plane[:height, :width] for name, plane in version.planes.items() if name in ("lq", "gt")}
    if channels is not None:
        cut = {name: with_channels(plane, channels) for name, plane in cut.items()}
    gt = unit(cut["gt"])
    if "lq" in cut:
        return unit(cut["lq"]), gt
    return version.degradation.whole(cut["gt"], version.level, version.key, seed), gt
