"""Which group goes into which shard: a pure function of manifest and task.

It works on whole columns, since there may be 10 million groups and more.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.cuts import PART, minima
from pipeline.errors import UserError, nearest
from pipeline.layouts.base import Split
from pipeline.layouts.files import LONGEST_KEY, natural, safe_key
from pipeline.task import Task

FORMAT = 2  # the version of shards: raise it when equal inputs would give other bytes
SHARDS = 128  # the least number of shards that the size which follows a split aims at
SMALLEST, LARGEST = 2**16, 2**26  # bytes: the limits of that size. A shard may have four times the average, hardly more

# The columns of the manifest that a plan needs.
COLUMNS = ["dataset", "split", "key", "group", "role", "frame", "path", "part", "sha256", "width", "height", "channels"]
COLUMNS += ["bit_depth", "scene"]
BATCH = 100_000  # values that are Python objects at a time


@dataclass(frozen=True)
class File:
    """One image of a group. name: the name of its member without the suffix: gt, lq-0, mask-0, frame-12.

    part, sha256: as in the manifest.
    """

    name: str
    path: str
    sha256: str
    part: str | None = None


@dataclass(frozen=True)
class Group:
    """The unit that is never split: a clean image, a target with its inputs and masks, or the frames of a scene."""

    key: str  # the sample's key in the shard: <dataset>-<split>-<key>
    files: tuple[File, ...]


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """The groups of one shard, in order.

    manifest: the table of all images. rows: the shard's rows in it, those of a group adjacent. names: the names of their
    members, as in `File`; None if all are gt. cut: the hash of its last group.
    """

    split: Split
    manifest: pa.Table
    rows: np.ndarray
    names: tuple[str, ...] | None
    cut: int

    @property
    def files(self) -> pa.Table:
        """A row for each image: its `group`, which is the sample's key, and the columns of `File`."""
        rows = self.manifest.select(["path", "sha256", "part"]).take(pa.array(self.rows))
        keys = _group_keys(self.manifest, self.rows, "key" if self.names is None else "group")
        names = ["gt"] * len(rows) if self.names is None else list(self.names)
        return rows.append_column("group", pa.array(keys)).append_column("name", pa.array(names))

    @property
    def groups(self) -> list[Group]:
        """The groups as objects."""
        return [
            Group(key, tuple(File(row["name"], row["path"], row["sha256"], row["part"]) for row in members))
            for key, members in itertools.groupby(self.files.to_pylist(), key=lambda row: row["group"])
        ]


def plan(manifest: pa.Table, task: Task) -> list[ShardPlan]:
    """Cut the task's groups, in natural order of (dataset, key), into shards at content-defined places.

    The order of the manifest's rows does not matter. Raises UserError for a source that the manifest lacks, for an
    image in two splits, and for a key used twice.
    """
    manifest = manifest.select(COLUMNS).combine_chunks()  # else each `take` of rows copies all chunks
    grouped = task.degradation.grouped
    by = "group" if grouped else "key"
    shards = []
    splits: dict[Split, np.ndarray] = {}
    for split, sources in task.splits.items():
        rows = np.concatenate([_rows(manifest, source, task) for source in sources])
        splits[split] = rows
        first = _firsts(manifest, rows) if grouped else np.arange(len(rows))
        hashes = _hashes(manifest, rows[first], by)
        _check_keys(manifest, rows[first], by, hashes)
        names = task.degradation.names(manifest, rows, first)
        nbytes = _nbytes(manifest, rows, first, task, len(degraded_views(split, task)))
        group_ends = np.cumsum(np.add.reduceat(nbytes, first)).tolist()
        average = task.shard_bytes or average_bytes(group_ends[-1])
        cuts = minima(hashes, group_ends, average // 2)
        ends = [int(first[cut + 1]) for cut in cuts]
        for begin, end, cut in zip([0, *ends], [*ends, len(rows)], [*cuts, -1], strict=True):
            members = None if names is None else tuple(names[begin:end])
            shards.append(ShardPlan(split, manifest, rows[begin:end], members, hashes[cut]))
    _check_splits(manifest, splits)
    return shards


def degraded_views(split: Split, task: Task) -> tuple[int, ...]:
    """The views of clean images that are degraded: only patches are turned, and only images to train on become patches."""
    return task.degradation.views if split == "train" else (0,)


def average_bytes(total: int) -> int:
    """The size that shards of a split have on average where the task does not say one. total: bytes of the split.

    It is the greatest power of two of which the split has at least SHARDS, within SMALLEST and LARGEST: some 85 to 256
    shards, or as many as there are groups, up to 8 GiB, and more shards of LARGEST beyond.
    It depends on the total alone, and as a power of two it stays while the total grows from one power to the next: until
    then an edit of k images changes some 3k shards at most. Where the total passes a power of two, the size doubles. Every
    second cut or so falls away, and no new one appears: nearly all shards are encoded and pushed again, once for each
    doubling of the split. `shard_bytes` in the task avoids that.
    """
    power = 1 << (max(total // SHARDS, 1).bit_length() - 1)
    return min(LARGEST, max(SMALLEST, power))


def parts(shards: list[ShardPlan]) -> list[int]:
    """How many shards, one after the other, each part of a dataset's tables describes: their sum is that of all shards.

    A part ends at a shard whose own cut is the least nearby, so it stays where it is while its shards change.
    """
    ends = np.cumsum([len(shard.rows) for shard in shards]).tolist()
    cuts = minima([shard.cut for shard in shards], ends, PART // 2)
    return [b - a for a, b in itertools.pairwise([0, *(cut + 1 for cut in cuts), len(shards)])]


def _rows(manifest: pa.Table, source: str, task: Task) -> np.ndarray:
    """The rows of one source in the manifest, in the order of the shards."""
    roles = task.degradation.roles
    dataset, split = source.split("/")
    usable = pc.is_in(manifest["role"], pa.array(roles))
    chosen = pc.and_(usable, pc.and_(pc.equal(manifest["dataset"], dataset), pc.equal(manifest["split"], split)))
    rows = np.flatnonzero(chosen.to_numpy())
    if not len(rows):
        there = manifest.select(["dataset", "split"]).filter(usable).group_by(["dataset", "split"]).aggregate([])
        known = nearest(source, [f"{row['dataset']}/{row['split']}" for row in there.to_pylist()])
        raise UserError(f"the manifest has no {task.degradation.images} in {source!r}; {known}")
    lost = _lost(manifest, rows, task)
    if lost.all():
        paths, reasons = (unused(manifest, rows, task)[name] for name in ("path", "reason"))
        raise UserError(f"nothing is left of {source} to build from, the first image: {paths[0]}: {reasons[0]}")
    rows = rows[~lost]
    taken = manifest.select(["key", "group", "role", "frame"]).take(pa.array(rows))
    if task.degradation.grouped:
        rank = pc.index_in(taken["role"], pa.array(roles))
        order = {"g": _natural(taken["group"]), "group": taken["group"], "rank": rank, "frame": taken["frame"]}
        order |= {"k": _natural(taken["key"]), "key": taken["key"]}
    else:
        order = {"k": _natural(taken["key"]), "key": taken["key"]}
    return rows[pc.sort_indices(pa.table(order), sort_keys=[(name, "ascending") for name in order]).to_numpy()]


def _lost(manifest: pa.Table, rows: np.ndarray, task: Task) -> np.ndarray:
    """Which rows of one source are not used: bool, (n,). `unused` says why.

    These are images with more bits than the task's shards, and their partners, as for images that `ingest` rejects.
    """
    deep = pc.greater(manifest["bit_depth"].take(pa.array(rows)), task.bits).to_numpy()
    return task.degradation.lost(manifest, rows, deep)


def unused(manifest: pa.Table, rows: np.ndarray, task: Task) -> pa.Table:
    """Path, part and reason of the images in the task's sources that no shard holds. rows: their rows in the manifest."""
    taken = manifest.select(["path", "part", "role", "bit_depth"]).take(pa.array(rows))
    roles = task.degradation.roles
    deep = "16 bits a channel, and the task's shards have 8: say bits: 16 in the task, or convert it to 8"
    why = pa.scalar(f"a task of kind {task.degradation.kind} takes {' and '.join(roles)}")
    reason = pc.if_else(
        pc.invert(pc.is_in(taken["role"], pa.array(roles))),
        pc.binary_join_element_wise(taken["role"], why, ": "),
        pc.if_else(
            pc.greater(taken["bit_depth"], task.bits),
            deep,
            pc.if_else(pc.equal(taken["role"], "frame"), task.degradation.left_out, f"its partner has {deep}"),
        ),
    )
    return taken.select(["path", "part"]).append_column("reason", reason)


def _natural(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first part of `natural` for each name."""
    return pa.chunked_array(
        [[natural(name)[0] for name in batch.to_pylist()] for batch in _batches(names)], pa.string()
    )


def _batches(column: pa.ChunkedArray) -> Iterator[pa.ChunkedArray]:
    """The values in lists of at most BATCH Python objects."""
    return (column.slice(start, BATCH) for start in range(0, len(column), BATCH))


def _group_keys(manifest: pa.Table, rows: np.ndarray, by: str) -> list[str]:
    """<dataset>-<split>-<key or group> of some rows, shortened where that is too long for the header of a tar member."""
    taken = manifest.select(["dataset", "split", by]).take(pa.array(rows))
    keys = pc.binary_join_element_wise(taken["dataset"], taken["split"], taken[by], "-")
    return [key if len(key) <= LONGEST_KEY else safe_key(key) for key in keys.to_pylist()]


def _hashes(manifest: pa.Table, rows: np.ndarray, by: str) -> list[int]:
    """64 bits of each group's key, which decide where shards end."""
    salt = hashlib.blake2b(f"cut {FORMAT} ".encode(), digest_size=8)
    hashes = []
    for start in range(0, len(rows), BATCH):
        for key in _group_keys(manifest, rows[start : start + BATCH], by):
            hashed = salt.copy()
            hashed.update(key.encode())
            hashes.append(int.from_bytes(hashed.digest(), "little"))
    return hashes


def _nbytes(manifest: pa.Table, rows: np.ndarray, first: np.ndarray, task: Task, views: int = 1) -> np.ndarray:
    """The bytes of the pixels that each image puts into its shard. first: where groups begin in rows. views: see `nbytes`."""
    taken = manifest.select(["width", "height", "channels"]).take(pa.array(rows))
    width, height, channels = (column.to_numpy().astype(np.int64) for column in taken.columns)
    planes = np.where((channels == 3) & (task.colour == "rgb"), 3, 1)
    return task.degradation.nbytes(width, height, first, task.bits, views) * planes


def _firsts(manifest: pa.Table, rows: np.ndarray) -> np.ndarray:
    """Where each group begins: rows are in the order of the shards."""
    taken = manifest.select(["dataset", "split", "group"]).take(pa.array(rows))
    new = np.zeros(len(rows) - 1, bool)
    for column in taken.columns:
        new |= pc.not_equal(column.slice(1), column.slice(0, len(column) - 1)).to_numpy()
    return np.concatenate(([0], np.flatnonzero(new) + 1))


def _check_keys(manifest: pa.Table, rows: np.ndarray, by: str, hashes: list[int]) -> None:
    """Raises UserError if two groups of a split have one key. rows: the first of each group."""
    values = np.array(hashes, np.uint64)
    order = np.argsort(values, kind="stable")
    for i in np.flatnonzero(values[order[1:]] == values[order[:-1]]):
        pair = rows[order[i : i + 2]]
        keys = _group_keys(manifest, pair, by)
        if keys[0] == keys[1]:
            a, b = (manifest["path"][int(row)].as_py() for row in pair)
            raise UserError(f"{b} and {a} have the same key {keys[0]}: rename one of them")


def _check_splits(manifest: pa.Table, splits: dict[Split, np.ndarray]) -> None:
    """Raises UserError if an image is in two splits."""
    if len(splits) < 2:
        return
    rows = np.concatenate(list(splits.values()))
    split = np.repeat(np.arange(len(splits)), [len(each) for each in splits.values()])
    contents = manifest["sha256"].take(pa.array(rows))
    values = np.concatenate([np.fromiter(map(hash, b.to_pylist()), np.int64) for b in _batches(contents)])
    order = np.argsort(values, kind="stable")
    same = (values[order[1:]] == values[order[:-1]]) & (split[order[1:]] != split[order[:-1]])
    for i in np.flatnonzero(same):
        a, b = (int(each) for each in order[i : i + 2])
        if contents[a].as_py() == contents[b].as_py():
            names = list(splits)
            first, second = (f"{manifest['path'][int(rows[each])].as_py()} ({names[split[each]]})" for each in (a, b))
            raise UserError(f"{second} and {first} are the same image: remove one of them")


def recipe_digest(shard: ShardPlan, task: Task, versions: dict[str, str]) -> str:
    """Everything that a shard's bytes depend on, as 64 hex digits: format, sources, degradation, encoder versions."""
    recipe = {
        "format": FORMAT,
        "colour": task.colour,
        "codec": task.codec,
        "degradation": task.degradation.stored(),
        "groups": shard.files.select(["group", "name", "sha256", "part"]).to_pydict(),
        "versions": versions,
    }
    if len(views := degraded_views(shard.split, task)) > 1:
        recipe["views"] = views
    if task.bits != 8:
        recipe["bits"] = task.bits
    if task.negatives is not None and task.negatives.kept == "stored":
        recipe["negatives"] = task.negatives.model_dump(mode="json") | {"mixed": "int16"}
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
