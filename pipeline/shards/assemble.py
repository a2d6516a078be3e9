"""A built dataset as a folder: the shards, linked from the store, with their tables and shards.json."""

import fcntl
import itertools
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config import bare_name
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.raw.manifest import licences, write_table
from pipeline.shards import kept
from pipeline.shards.encode import shard_negatives
from pipeline.shards.format import LISTING, RECIPES, SCHEMAS, VERSIONS, dataset_digest, file_sha256, table_file
from pipeline.shards.plan import Group, ShardPlan, parts, unused
from pipeline.task import Task

ROW_GROUP = 100_000  # rows of a table that are in memory as Python objects
REJECTS_SCHEMA = pa.schema([("path", pa.string()), ("part", pa.string()), ("reason", pa.string())])


def assemble(
    task_name: str,
    task: Task,
    manifest: pa.Table,
    built: list[tuple[ShardPlan, str]],
    versions: dict[str, str],
    out: Path,
) -> dict[str, Any]:
    """Link the shards into `out` with their tables; the whole folder appears at once. Returns what shards.json holds.

    built: the shards in order, each with its recipe, by which the store has it. Raises UserError for a shard of the store that
    is of other images.
    """
    partial, old = out.with_name(f".{out.name}.tmp"), out.with_name(f".{out.name}.old")
    with (kept.STORE / ".assemble").open("a") as lock:
        with suppress(OSError):  # the file system may have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # another build of this task uses the same two names
        try:
            shutil.rmtree(partial, ignore_errors=True)
            listing = _fill(partial, task_name, task, manifest, built, versions)
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    return listing


def _fill(
    folder: Path,
    task_name: str,
    task: Task,
    manifest: pa.Table,
    built: list[tuple[ShardPlan, str]],
    versions: dict[str, str],
) -> dict[str, Any]:
    """Write shards, tables and shards.json into `folder`; returns what shards.json holds. built: shards and their recipes."""
    shards: list[dict[str, Any]] = []
    described: list[dict[str, Any]] = []
    recipes: dict[str, str] = {}
    folder.mkdir(parents=True)
    beside = "negatives" if task.negatives is not None else "pairs" if task.degradation.of_frames else None
    left = iter(built)
    for number in parts([shard for shard, _ in built]):
        with ExitStack() as stack:
            index = stack.enter_context(Table(folder, "index"))
            other = stack.enter_context(Table(folder, beside)) if beside else None
            for shard, recipe in itertools.islice(left, number):
                entry = _linked(folder, shard, recipe)
                index.write([{"split": shard.split, **row} for row in entry["rows"]])
                if other is not None:
                    other.write([{"split": shard.split, **row} for row in _beside(shard.groups, task)])
                listed = {"split": shard.split, **{name: entry[name] for name in ("name", "bytes", "sha256", "groups")}}
                shards.append(listed | {"members": len(entry["rows"])})
                recipes[f"{shard.split}/{entry['name']}"] = recipe
        described.append({"shards": number, **{table.name: table.sha256 for table in (index, other) if table}})
    known = licences(manifest)
    named = {source.partition("/")[0] for sources in task.splits.values() for source in sources}
    images, rejects = _accounted(manifest, task, [shard for shard, _ in built])
    write_table(folder / "rejects.parquet", rejects)
    listing = {
        "task": bare_name(task_name),
        "format": LISTING,
        "colour": task.colour,
        "codec": task.codec,
        **({} if task.bits == 8 else {"bits": task.bits}),  # the default is left out
        "degradation": task.degradation.model_dump(mode="json"),
        "negatives": task.negatives.model_dump(mode="json") if task.negatives else None,
        "splits": {split: list(sources) for split, sources in task.splits.items()},
        "licences": {name: known.get(name) for name in sorted(named)},
        "images": images,
        "digest": dataset_digest(shards),
        "parts": described,
        "shards": shards,
    }
    # These lie beside: other versions that give the same bytes are the same dataset to all who look at shards.json.
    for name, value in ((VERSIONS, versions), (RECIPES, recipes), ("shards.json", listing)):
        write_bytes(folder / name, (json.dumps(value, indent=1) + "\n").encode())
    return listing


def _linked(folder: Path, shard: ShardPlan, recipe: str) -> dict[str, Any]:
    """Link a shard from the store into the folder; returns what the store remembers of it."""
    entry = kept.entry(recipe)
    if not kept.same_groups(shard, entry["rows"]):
        raise UserError(
            f"{kept.STORE}/{kept.remembered(recipe)}: has other images than the plan; remove it, and build again"
        )
    target = folder / shard.split / entry["name"]
    target.parent.mkdir(exist_ok=True)
    try:
        os.link(kept.STORE / entry["name"], target)
    except OSError:  # it is another file system, or one without hard links
        shutil.copyfile(kept.STORE / entry["name"], target)
    return entry


def _beside(groups: list[Group], task: Task) -> Iterator[dict[str, Any]]:
    """The rows of the table of pairs or negatives that one shard has."""
    if task.negatives is not None:
        yield from (negative._asdict() for negative in shard_negatives(groups, task))
    else:
        for group in groups:
            names, contents = ([getattr(file, of) for file in group.files] for of in ("name", "sha256"))
            for v, w in task.degradation.pairs(group.key, names, contents):
                yield {"key": group.key, "v": v, "w": w}


def _accounted(manifest: pa.Table, task: Task, shards: list[ShardPlan]) -> tuple[dict[str, int], pa.Table]:
    """The images of the task's sources: how many exist, are used and are not used, and a table of those not used."""
    used = np.zeros(len(manifest), bool)
    for shard in shards:
        used[shard.rows] = True
    sources = pa.array([source for named in task.splits.values() for source in named])
    wanted = pc.is_in(pc.binary_join_element_wise(manifest["dataset"], manifest["split"], "/"), sources).to_numpy()
    rejects = unused(manifest, np.flatnonzero(wanted & ~used), task).cast(REJECTS_SCHEMA)
    return {"found": int(wanted.sum()), "used": int((wanted & used).sum()), "rejected": len(rejects)}, rejects


class Table:
    """A part of a table, written row by row under the name of its content; equal rows give equal bytes under one pyarrow.

    sha256: of the file, known at the end.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.schema = folder, name, SCHEMAS[name]
        self.path = folder / name / ".tmp"
        self.path.parent.mkdir(exist_ok=True)
        self.writer = pq.ParquetWriter(self.path, self.schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []
        self.sha256 = ""

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; they are written in groups of ROW_GROUP, whatever the size of a call."""
        self.rows += rows
        while len(self.rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows[:ROW_GROUP], self.schema))
        del self.rows[:ROW_GROUP]

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.rows:
            self._flush()
        self.writer.close()
        if kind is None:
            self.sha256 = file_sha256(self.path)
            self.path.rename(self.folder / table_file(self.name, self.sha256))
