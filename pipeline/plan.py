"""Which group goes into which shard: a pure function of manifest and task."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import UserError, nearest
from pipeline.keyed import digest64
from pipeline.layouts.base import natural, safe_key
from pipeline.task import Noise, Task

FORMAT = 1  # of shards and index: raise it when equal inputs would give other bytes


@dataclass(frozen=True)
class Group:
    """The unit that is never split; here one clean image, which all its degraded versions accompany."""

    key: str  # of the sample in the shard: <dataset>-<split>-<key of the image>
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

    The order of the manifest's rows does not matter. Raises UserError for a source that the manifest lacks, for an
    image in two splits, and for a key used twice.
    """
    shards: list[ShardPlan] = []
    split_of: dict[str, tuple[str, str]] = {}
    for split, sources in task.splits.items():
        groups: dict[str, Group] = {}
        for row in _rows(manifest, sources):
            group = _group(row, task)
            other, path = split_of.setdefault(group.sha256, (split, group.path))
            if other != split:
                raise UserError(f"{group.path} ({split}) and {path} ({other}) are the same image: remove one of them")
            same = groups.setdefault(group.key, group)
            if same is not group:
                raise UserError(f"{group.path} and {same.path} have the same key {group.key}: rename one of them")
        shards += [ShardPlan(split, tuple(cut)) for cut in _cut(groups.values(), task.shard_bytes)]
    return shards


def _rows(manifest: pa.Table, sources: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    clean = manifest.filter(pc.field("role") == "gt")
    for source in sources:
        dataset, split = source.split("/")
        chosen = clean.filter((pc.field("dataset") == dataset) & (pc.field("split") == split)).to_pylist()
        if not chosen:
            known = {f"{row['dataset']}/{row['split']}" for row in clean.select(["dataset", "split"]).to_pylist()}
            raise UserError(f"the manifest has no images in {source!r}; {nearest(source, list(known))}")
        yield from sorted(chosen, key=lambda row: natural(row["key"]))


def _group(row: dict[str, Any], task: Task) -> Group:
    planes = 3 if task.colour == "rgb" and row["channels"] == 3 else 1
    versions = 1 if isinstance(task.degradation, Noise) else 1 + len(task.degradation.levels)
    nbytes = row["width"] * row["height"] * planes * versions
    return Group(safe_key(f"{row['dataset']}-{row['split']}-{row['key']}"), row["path"], row["sha256"], nbytes)


def _cut(groups: Iterable[Group], average: int) -> Iterator[list[Group]]:
    """Cut after a group by a hash of its own key, so that an edit moves the boundaries near it and no others.

    The chance of a cut is the group's share of the average size, halved below the average and fourfold above it
    (the normalised chunking of FastCDC, over keys); never below 0.4 of the average, always from twice on. So every
    shard but the last has at least 0.4 averages, and without its last group less than 2.
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
