"""Which group goes into which shard: a pure function of manifest and task."""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from pipeline.errors import UserError, nearest
from pipeline.keyed import digest64
from pipeline.task import Noise, Task

FORMAT = 1  # of shards and index: raise it when equal inputs would give other bytes


@dataclass(frozen=True)
class Group:
    """The unit that is never split; here one clean image, which all its degraded versions accompany."""

    key: str  # of the sample in the shard: <dataset>-<key of the image>
    path: str
    sha256: str
    nbytes: int  # of the group's pixels in the shard


@dataclass(frozen=True)
class ShardPlan:
    """The groups of one shard, in order."""

    split: str
    groups: tuple[Group, ...]


def plan(manifest: pa.Table, task: Task) -> list[ShardPlan]:
    """Cut the task's groups, in natural order of (dataset, key), into shards at content-defined places.

    Raises UserError for a source that the manifest lacks, for an image in two splits, and for a key used twice.
    """
    shards: list[ShardPlan] = []
    split_of: dict[str, tuple[str, str]] = {}
    for split, sources in task.splits.items():
        rows = list(_rows(manifest, sources))
        for row in rows:
            other, path = split_of.setdefault(row["sha256"], (split, row["path"]))
            if other != split:
                raise UserError(f"{row['path']} ({split}) and {path} ({other}) are the same image: remove one of them")
        groups = [_group(row, task) for row in rows]
        keys = [group.key for group in groups]
        if len(set(keys)) < len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise UserError(f"split {split}: key {twice} comes from two of {', '.join(sources)}: rename one file")
        shards += [ShardPlan(split, tuple(cut)) for cut in _cut(groups, task.shard_bytes)]
    return shards


def _rows(manifest: pa.Table, sources: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    columns = manifest.select(["dataset", "split", "key", "role", "path", "sha256", "width", "height", "channels"])
    rows = [row for row in columns.to_pylist() if row["role"] == "gt"]
    known = {f"{row['dataset']}/{row['split']}" for row in rows}
    for source in sources:
        if source not in known:
            raise UserError(f"the manifest has no images in {source!r}; {nearest(source, list(known))}")
        chosen = [row for row in rows if f"{row['dataset']}/{row['split']}" == source]
        yield from sorted(chosen, key=lambda row: natural_key(row["key"]))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sort key that puts frame-2 before frame-10."""
    parts = re.findall(r"\d+|\D+", name)
    return (*((0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts),)


def _group(row: dict[str, Any], task: Task) -> Group:
    planes = 3 if task.colour == "rgb" and row["channels"] == 3 else 1
    versions = 1 if isinstance(task.degradation, Noise) else 1 + len(task.degradation.levels)
    nbytes = row["width"] * row["height"] * planes * versions
    return Group(f"{row['dataset']}-{row['split']}-{row['key']}", row["path"], row["sha256"], nbytes)


def _cut(groups: Iterable[Group], average: int) -> Iterator[list[Group]]:
    """Cut after a group by a hash of its own key, so that an edit moves the boundaries near it and no others.

    The chance of a cut is the group's share of the average size, halved below the average and fourfold above it
    (the normalised chunking of FastCDC, over keys); never below 0.4 of the average, always at twice.
    """
    shard: list[Group] = []
    size = 0
    for group in groups:
        shard.append(group)
        size += group.nbytes
        chance = group.nbytes / average * (0.5 if size < average else 4)
        if size >= 2 * average or (size >= 0.4 * average and digest64("cut", FORMAT, group.key) < chance * 2**64):
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def recipe_digest(shard: ShardPlan, task: Task, versions: dict[str, str]) -> str:
    """Everything that a shard's bytes depend on, as 64 hex digits: format, sources, degradation, encoder versions."""
    recipe = {
        "format": FORMAT,
        "colour": task.colour,
        "degradation": task.degradation.model_dump(mode="json"),
        "groups": [{k: v for k, v in asdict(group).items() if k != "path"} for group in shard.groups],
        "versions": versions,
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
