"""Which group goes into which shard: a pure function of manifest and task.

In columns from end to end, since there may be 10 million groups and more.
"""

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, nearest
from pipeline.layouts.base import DIGITS, LONGEST_KEY, Split, safe_key
from pipeline.task import Jpeg, Scale, Task

FORMAT = 2  # of shards and index: raise it when equal inputs would give other bytes

# Roles that a kind of task reads, in the order of a group's members; the other kinds degrade the gt themselves.
ROLES = {"paired": ("gt", "lq", "mask"), "timelapse": ("frame",)}


@dataclass(frozen=True)
class File:
    """One image of a group. name: of the member it becomes, without its suffix: gt, lq-0, mask-0, frame-12.

    part, sha256: as in the manifest.
    """

    name: str
    path: str
    sha256: str
    part: str | None = None


@dataclass(frozen=True)
class Group:
    """The unit that is never split: a clean image, a target with its inputs and masks, or the frames of a scene."""

    key: str  # of the sample in the shard: <dataset>-<split>-<key>
    files: tuple[File, ...]


@dataclass(frozen=True)
class ShardPlan:
    """The groups of one shard, in order. files: a row for each image, with the columns `group` and those of `File`."""

    split: Split
    files: pa.Table

    @property
    def groups(self) -> list[Group]:
        """The same, as objects."""
        rows = self.files.to_pylist()
        return [
            Group(key, tuple(File(row["name"], row["path"], row["sha256"], row["part"]) for row in members))
            for key, members in itertools.groupby(rows, key=lambda row: row["group"])
        ]


def plan(manifest: pa.Table, task: Task) -> list[ShardPlan]:
    """Cut the task's groups, in natural order of (dataset, key), into shards at content-defined places.

    The order of the manifest's rows does not matter. Raises UserError for a source that the manifest lacks, for an
    image in two splits, and for a key used twice.
    """
    splits: dict[Split, pa.Table] = {}
    for split, sources in task.splits.items():
        tables = [_files(manifest, source, task) for source in sources]
        _check_keys(tables)
        splits[split] = pa.concat_tables(tables)
    _check_splits(splits)
    shards = []
    for split, files in splits.items():
        first = _firsts(files["group"])
        nbytes = np.add.reduceat(files["nbytes"].to_numpy(), first)
        keys = files["group"].take(pa.array(first)).to_pylist()
        columns = files.select(["group", "name", "path", "sha256", "part"])
        ends = [int(first[cut + 1]) for cut in _cuts(keys, nbytes, task.shard_bytes)]
        for begin, end in itertools.pairwise([0, *ends, len(files)]):
            shards.append(ShardPlan(split, columns.slice(begin, end - begin)))
    return shards


def _files(manifest: pa.Table, source: str, task: Task) -> pa.Table:
    """The images of one source, in the order of the shards. Columns: group, role, name, path, sha256, part, nbytes."""
    degradation = task.degradation
    kind = degradation.kind
    roles = ROLES.get(kind, ("gt",))
    dataset, split = source.split("/")
    usable = manifest.filter(pc.field("role").isin(roles))
    rows = usable.filter((pc.field("dataset") == dataset) & (pc.field("split") == split))
    if not len(rows):
        pairs = usable.select(["dataset", "split"]).group_by(["dataset", "split"]).aggregate([]).to_pylist()
        what = {"paired": "pairs", "timelapse": "scenes"}.get(kind, "images")
        known = nearest(source, [f"{row['dataset']}/{row['split']}" for row in pairs])
        raise UserError(f"the manifest has no {what} in {source!r}; {known}")
    group = rows["group" if kind in ROLES else "key"]
    rank = pc.index_in(rows["role"], pa.array(roles))
    order = {"g": _natural(group), "group": group, "rank": rank, "frame": rows["frame"], "k": _natural(rows["key"])}
    order["key"] = rows["key"]
    if kind not in ROLES:
        order = {"g": order["g"], "group": group}
    rows = rows.take(pc.sort_indices(pa.table(order), sort_keys=[(name, "ascending") for name in order]))
    group = rows["group" if kind in ROLES else "key"]
    levels = len(degradation.levels) if isinstance(degradation, Jpeg | Scale) else 0
    planes = np.where((rows["channels"].to_numpy() == 3) & (task.colour == "rgb"), 3, 1)
    nbytes = rows["width"].to_numpy().astype(np.int64) * rows["height"].to_numpy() * planes * (1 + levels)
    return pa.table(
        {
            "group": _group_keys(dataset, split, group),
            "name": _names(rows, kind),
            "path": rows["path"],
            "sha256": rows["sha256"],
            "part": rows["part"],
            "nbytes": nbytes,
        }
    )


def _natural(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first part of `pipeline.layouts.base.natural`, of each."""
    padded = pc.replace_substring_regex(names, "([0-9]+)", "0" * (DIGITS - 1) + r"\1")
    return pc.replace_substring_regex(padded, f"[0-9]*([0-9]{{{DIGITS}}})", r"\1")


def _group_keys(dataset: str, split: str, groups: pa.ChunkedArray) -> pa.ChunkedArray:
    """<dataset>-<split>-<group>, shortened by `safe_key` where that is too long for the header of a tar member."""
    keys = pc.binary_join_element_wise(f"{dataset}-{split}", groups, "-")
    if pc.max(pc.binary_length(keys)).as_py() <= LONGEST_KEY:
        return keys
    return pa.chunked_array([[safe_key(key) for key in keys.to_pylist()]])


def _names(rows: pa.Table, kind: str) -> pa.Array:
    """gt, frame-<n>, lq-<n> or mask-<n>, where n counts the inputs of a target. rows: in the order of the shards.

    Raises UserError for a group without input or target.
    """
    if kind not in ROLES:
        return pa.array(["gt"]).take(pa.array(np.zeros(len(rows), np.int8)))
    if kind == "timelapse":
        return pc.binary_join_element_wise("frame", pc.cast(rows["frame"], pa.string()), "-")
    role, first = np.array(rows["role"].to_pylist()), _firsts(rows["group"])
    for what, lacking in (("lq", "input"), ("gt", "target")):
        without = np.flatnonzero(np.add.reduceat((role == what).astype(np.int64), first) == 0)
        if len(without):
            path = rows["path"][int(first[without[0]])].as_py()
            raise UserError(f"{path}: has no {lacking}, and the task is of pairs; leave its split out")
    # Both in natural order of their keys; an input has one mask or none.
    number = {}
    names = []
    count = 0
    for role_, group, key in zip(role, rows["group"].to_pylist(), rows["key"].to_pylist(), strict=True):
        if role_ == "gt":
            count = 0
            names.append("gt")
            continue
        if role_ == "lq":
            number[group, key] = count
            count += 1
        names.append(f"{role_}-{number[group, key]}")
    return pa.array(names)


def _firsts(keys: pa.ChunkedArray) -> np.ndarray:
    """Where each run of equal keys begins."""
    if len(keys) < 2:
        return np.zeros(len(keys), np.int64)
    new = pc.not_equal(keys.slice(1), keys.slice(0, len(keys) - 1)).to_numpy(zero_copy_only=False)
    return np.concatenate(([0], np.flatnonzero(new) + 1))


def _check_keys(sources: list[pa.Table]) -> None:
    """Raises UserError if groups of two sources of a split have one key."""
    first = pa.concat_tables(
        files.select(["group", "path"]).take(pa.array(_firsts(files["group"]))) for files in sources
    )
    counts = first["group"].value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))
    if len(twice):
        key = twice[0]["values"].as_py()
        paths = first.filter(pc.field("group") == key)["path"].to_pylist()
        raise UserError(f"{paths[1]} and {paths[0]} have the same key {key}: rename one of them")


def _check_splits(splits: dict[Split, pa.Table]) -> None:
    """Raises UserError if an image is in two splits."""
    names = list(splits)
    files = pa.concat_tables(
        table.select(["sha256"]).append_column("split", pa.array(np.full(len(table), i, np.int8)))
        for i, table in enumerate(splits.values())
    )
    spans = files.group_by("sha256").aggregate([("split", "min"), ("split", "max")])
    shared = spans.filter(pc.field("split_min") != pc.field("split_max"))
    if len(shared):
        same = pc.field("sha256") == shared["sha256"][0].as_py()
        where = [(splits[name].filter(same)["path"], name) for name in reversed(names)]
        (a, b, *_) = [f"{paths[0].as_py()} ({name})" for paths, name in where if len(paths)]
        raise UserError(f"{a} and {b} are the same image: remove one of them")


def _cuts(keys: Sequence[str], nbytes: np.ndarray, average: int) -> list[int]:
    """The groups after which a shard ends: those whose hash is the least within half an average shard to either side.

    Such local minima are at least half an average apart, and one of them depends on nothing that is further away than
    that: an edit in one place changes three shards at the most.
    """
    salt = hashlib.blake2b(f"cut {FORMAT} ".encode(), digest_size=8)
    hashes = []
    for key in keys:
        hashed = salt.copy()
        hashed.update(key.encode())
        hashes.append(int.from_bytes(hashed.digest(), "little"))
    return _minima(hashes, np.cumsum(nbytes).tolist(), average // 2)


def _minima(hashes: Sequence[int], ends: Sequence[int], window: int) -> list[int]:
    """The positions whose hash is below all others less than `window` away, and which are that far from both ends.

    ends: ascending, where each position ends.
    """
    minima: list[int] = []
    rising: list[tuple[int, bool]] = []  # of ascending hashes; whether nothing lower lies within the window before
    for i, value in enumerate(hashes):
        while rising and hashes[rising[-1][0]] > value:
            j, lowest = rising.pop()
            if lowest and ends[i] - ends[j] >= window:
                minima.append(j)
        rising.append((i, ends[i] - (ends[rising[-1][0]] if rising else 0) >= window))
    minima += [j for j, lowest in rising if lowest and ends[-1] - ends[j] >= window]
    return sorted(minima)


def recipe_digest(shard: ShardPlan, task: Task, versions: dict[str, str]) -> str:
    """Everything that a shard's bytes depend on, as 64 hex digits: format, sources, degradation, encoder versions."""
    recipe = {
        "format": FORMAT,
        "colour": task.colour,
        "degradation": None if task.degradation.kind == "timelapse" else task.degradation.model_dump(mode="json"),
        "groups": [shard.files[name].to_pylist() for name in ("group", "name", "sha256", "part")],
        "versions": versions,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
