"""The build stage: a task's shards, by Ray Data over the plan, one task per shard."""

import fcntl
import itertools
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import scipy
import simplejpeg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cluster import address_to_join, connect, explained
from pipeline.config import bare_name, parse_json
from pipeline.cpus import available_cpus
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.raw.manifest import licences, read_manifest, write_table
from pipeline.raw.sources import is_remote
from pipeline.shards.encode import UnusableImagesError, samples, shard_negatives
from pipeline.shards.format import (
    Shard,
    dataset_digest,
    file_sha256,
    write_shard,
)
from pipeline.shards.plan import FORMAT, File, Group, ShardPlan, plan, recipe_digest, unused
from pipeline.storage import Storage, storage
from pipeline.tables import INDEX_SCHEMA, NEGATIVES_SCHEMA, PAIRS_SCHEMA, check_index
from pipeline.task import Task, read_task

STORE = Path(".cache/shards")  # built shards by content, and the recipe of each; it survives the stage's output
LOGS = Path(".cache/logs")
FEW = 256  # images that are built in the time that Ray takes to start
AHEAD = 1024  # shards that the driver holds the orders of
ROW_GROUP = 100_000  # rows of the index that are in memory as Python objects
ENTRY_BYTES = 2**30  # the most bytes of a recipe's entry in a shared store: a row of the index takes some 300
DOWNLOADS = 8  # downloads at a time from a shared store
REJECTS_SCHEMA = pa.schema([("path", pa.string()), ("part", pa.string()), ("reason", pa.string())])
SHOWN = 5  # failures that the error names


def versions() -> dict[str, str]:
    """The versions of the libraries that decide a shard's bytes: those that decode images and those that change them."""
    libraries = {"opencv": cv2, "numpy": np, "scipy": scipy, "pillow": PIL, "simplejpeg": simplejpeg}
    return {name: library.__version__ for name, library in libraries.items()}


def build(
    task_name: str, manifest: Path, out: Path, *, cpus: int | None = None, store: str | None = None
) -> dict[str, Any]:
    """Build a task's shards into out/<split>/, with out/index.parquet, out/shards.json and out/versions.json.

    Shards that an earlier or killed build finished are taken from the store. The bytes depend on the images, the task,
    `versions` and the format; not on cpus, block counts or kills.

    cpus: shards made at a time; None: as many as there are CPUs. store: a URI where built shards are also kept for other
    machines; a cluster without a common file system needs it.

    Returns what shards.json holds, with "encoded": how many shards were not in the store, "reasons": why images are not used
    (reason -> number, the first path), and "smallest": the size (width, height) of the smallest image to train on. Raises
    UserError if an image cannot be used; then nothing new is under `out`'s name, and all such images are in
    .cache/logs/<task>-rejects.parquet.
    """
    task = read_task(task_name)
    started = time.monotonic()
    table = read_manifest(manifest)
    shards = plan(table, task)
    recipes = [recipe_digest(shard, task, versions()) for shard in shards]
    with _claimed(STORE):
        shared = storage(store) if store else None
        built = _stored(recipes, shared)
        todo = {recipe: shard for recipe, shard in zip(recipes, shards, strict=True) if recipe not in built}
        failures: set[str] = set()
        rejects: list[dict[str, str]] = []
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        ) as progress:
            bar = progress.add_task(f"build {task_name}", total=len(shards), completed=len(shards) - len(todo))
            for result in _run(todo, task, cpus, store) if todo else ():
                failures |= set(result.get("error", []))
                rejects += result.get("rejects", [])
                if "error" not in result:
                    built.add(result["recipe"])
                progress.advance(bar)
        if not built.issuperset(recipes):
            raise UserError(
                f"build {task_name}: {sum(recipe not in built for recipe in recipes)} of {len(shards)} shards failed: "
                f"{_listed(failures, rejects, LOGS / f'{bare_name(task_name)}-rejects.parquet')}"
            )
        if shared:
            lost = todo.keys() - _download(list(todo), shared)
            if lost:
                raise UserError(
                    f"{store}: {len(lost)} of the shards that were just built are not there whole; build again"
                )
        listing = _assemble(task_name, task, table, list(zip(shards, recipes, strict=True)), out)
    log = {"task": task_name, "shards": len(shards), "encoded": len(todo), "seconds": time.monotonic() - started}
    write_bytes(LOGS / f"build-{bare_name(task_name)}.json", json.dumps(log).encode())
    return listing | {"encoded": len(todo), "reasons": _reasons(out), "smallest": _smallest(table, task, shards)}


def _reasons(out: Path) -> dict[str, tuple[int, str]]:
    """Why images of the task's sources are not used: for each reason the number of images, and the first."""
    found: dict[str, tuple[int, str]] = {}
    for row in pq.read_table(out / "rejects.parquet").to_pylist():
        number, first = found.get(row["reason"], (0, row["path"]))
        found[row["reason"]] = (number + 1, first)
    return found


def _smallest(manifest: pa.Table, task: Task, shards: list[ShardPlan]) -> tuple[int, int]:
    """The (width, height) of the image to train on that has the shortest shorter side."""
    if side := task.degradation.side:
        return side, side
    rows = np.concatenate([shard.rows for shard in shards if shard.split == "train"])
    width, height = (manifest[name].combine_chunks().to_numpy()[rows] for name in ("width", "height"))
    least = np.minimum(width, height).argmin()
    return int(width[least]), int(height[least])


def _listed(failures: set[str], rejects: list[dict[str, str]], table: Path) -> str:
    """The first failures, as the tail of an error. rejects: all images that cannot be used; they go into `table`."""
    if rejects:
        write_table(table, pa.Table.from_pylist(sorted(rejects, key=lambda each: each["path"]), REJECTS_SCHEMA))
    more = f"; and {len(failures) - SHOWN} more{f', in {table}' if rejects else ''}" if len(failures) > SHOWN else ""
    return "; ".join(sorted(failures)[:SHOWN]) + more


@contextmanager
def _claimed(store: Path) -> Iterator[None]:
    """Let other builds know that this one works in the store, and remove what killed ones left unfinished there.

    The lock ends with its process: a build that gets it exclusively knows that all temporary files are of dead builds.
    """
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("a") as lock:
        with suppress(OSError):  # another build runs, or the file system has no locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in (*store.glob(".*.tmp"), *store.glob("recipes/.*.tmp")):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _entry(recipe: str) -> dict[str, Any]:
    """What the store remembers of a recipe: the shard, and its rows of the index.

    Raises FileNotFoundError, and UserError for an entry that no build wrote: it may come from a shared store.
    """
    path = STORE / "recipes" / f"{recipe}.json"
    entry = parse_json(path.read_bytes(), str(path))
    try:
        rows, groups = entry.pop("rows"), entry.pop("groups")
        shard = Shard.model_validate(entry | {"split": "train", "groups": groups, "members": len(rows)})
        if not all(isinstance(row, dict) and row.keys() <= set(INDEX_SCHEMA.names) for row in rows):
            raise ValueError("a row of another kind")
        table = pa.Table.from_pylist([row | {"split": "train"} for row in rows], INDEX_SCHEMA)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, pa.ArrowException):
        raise UserError(f"{path}: not what a build writes; remove it, and build again") from None
    codec = "png" if any(row["member"].endswith(".png") for row in rows if row.get("member")) else "raw"
    bits = 16 if any(row.get("dtype") == "uint16" for row in rows) else 8
    check_index(table, {f"train/{shard.name}": shard.bytes}, codec, bits, str(path))
    if pc.count_distinct(table["key"]).as_py() != groups:
        raise UserError(f"{path}: its rows are not of {groups} groups; remove it, and build again")
    return shard.model_dump(include={"name", "bytes", "sha256", "groups"}) | {"rows": rows}


def _stored(recipes: list[str], shared: Storage | None) -> set[str]:
    """The recipes that have whole shards in the store. shared: a store where other machines may have put more of them."""
    found = {recipe for recipe in recipes if _whole(recipe)}
    if shared:
        there = set(shared.names("recipes/"))
        wanted = [recipe for recipe in recipes if recipe not in found and f"recipes/{recipe}.json" in there]
        found |= _download(wanted, shared)
    return found


def _whole(recipe: str) -> bool:
    try:
        entry = _entry(recipe)
        path = STORE / entry["name"]
        return path.stat().st_size == entry["bytes"] and file_sha256(path) == entry["sha256"]
    except (OSError, UserError):
        return False


def _download(recipes: list[str], shared: Storage) -> set[str]:
    """Copy shards of a shared store into this machine's; returns the recipes that are then whole."""

    def fetch(recipe: str) -> bool:
        try:
            remembered = f"recipes/{recipe}.json"
            shared.download(remembered, STORE / remembered, limit=ENTRY_BYTES)
            if _whole(recipe):
                return True
            entry = _entry(recipe)
            shared.download(entry["name"], STORE / entry["name"], limit=entry["bytes"])
        except (FileNotFoundError, UserError):
            return False
        return _whole(recipe)

    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return {recipe for recipe, whole in zip(recipes, pool.map(fetch, recipes), strict=True) if whole}


def _run(todo: dict[str, ShardPlan], task: Task, cpus: int | None, store: str | None) -> Iterator[dict[str, Any]]:
    """Write the shards: as tasks of Ray Data, or by threads of this process if there are few images on this machine."""
    if not address_to_join() and sum(len(shard.rows) for shard in todo.values()) <= FEW:
        yield from _run_here(todo, task, cpus, store)
    else:
        yield from _run_on_ray(todo, task, cpus, store)


def _run_here(todo: dict[str, ShardPlan], task: Task, cpus: int | None, store: str | None) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(cpus or available_cpus()) as pool:
        for row in pool.map(_build_shard, [{"item": order} for order in _orders(todo, task, store)]):
            yield json.loads(row["result"])


def _run_on_ray(
    todo: dict[str, ShardPlan], task: Task, cpus: int | None, store: str | None
) -> Iterator[dict[str, Any]]:
    """One block and one task for each shard; only these small rows pass through Ray."""
    embedded = not address_to_join()
    connect(cpus or (available_cpus() if embedded else 1))
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    orders = _orders(todo, task, store)
    while ahead := list(itertools.islice(orders, AHEAD)):  # the driver never holds the orders of all shards
        dataset = ray.data.from_items(ahead, override_num_blocks=len(ahead))
        built = dataset.map(_build_shard, num_cpus=1, compute=ray.data.TaskPoolStrategy(cpus)).iter_rows()
        with explained():
            for row in built:
                yield json.loads(row["result"])


def _orders(todo: dict[str, ShardPlan], task: Task, store: str | None) -> Iterator[str]:
    """What a worker must know about each shard, as JSON."""
    common = {"task": task.model_dump(mode="json"), "store": store or str(STORE.resolve()), "versions": versions()}
    common["here"] = str(Path.cwd())
    for recipe, shard in todo.items():
        groups = []
        for group in shard.groups:
            files = [asdict(file) for file in group.files]
            for file in files:
                file["path"] = file["path"] if is_remote(file["path"]) else str(Path(file["path"]).resolve())
            groups.append([group.key, files])
        yield json.dumps({"recipe": recipe, "groups": groups, **common})


def _build_shard(row: dict[str, str]) -> dict[str, str]:
    """Build one shard, in a Ray worker. A failure that a retry cannot mend is a result, so that all of them are listed."""
    order = json.loads(row["item"])
    task = Task.model_validate(order["task"])
    groups = [Group(key, tuple(File(**file) for file in files)) for key, files in order["groups"]]
    result: dict[str, Any] = {"recipe": order["recipe"]}
    try:
        task = task.model_copy(update={"degradation": task.degradation.found(Path(order["here"]))})
        if versions() != order["versions"]:
            raise UserError(
                f"node {platform.node()} has {versions()}, the build needs {order['versions']}: install the same"
            )
        shared = None if Path(order["store"]).is_absolute() else storage(order["store"])
        with nullcontext(order["store"]) if shared is None else TemporaryDirectory(prefix="memoir-build-") as folder:
            shard = write_shard(samples(groups, task), Path(folder))
            entry = json.dumps({"groups": len(groups), **shard}).encode()
            remembered = f"recipes/{order['recipe']}.json"
            if shared is None:
                write_bytes(Path(folder, remembered), entry)
            else:
                shared.write(shard["name"], Path(folder, shard["name"]))
                shared.write(remembered, entry)
    except UnusableImagesError as error:
        result["rejects"] = [{"path": path, "reason": reason} for path, reason in error.images]
        result["error"] = [f"{path}: {reason}" for path, reason in error.images]
    except UserError as error:
        result["error"] = [str(error)]
    except OSError as error:
        result["error"] = [f"{error.filename or order['store']}: {error.strerror}"]
    return {"result": json.dumps(result)}


def _assemble(
    task_name: str, task: Task, manifest: pa.Table, built: list[tuple[ShardPlan, str]], out: Path
) -> dict[str, Any]:
    """Link the shards into `out` with their index; the whole folder appears at once."""
    partial, old = out.with_name(f".{out.name}.tmp"), out.with_name(f".{out.name}.old")
    with (STORE / ".assemble").open("a") as lock:
        with suppress(OSError):  # the file system may have no locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # another build of this task uses the same two names
        try:
            shutil.rmtree(partial, ignore_errors=True)
            listing = _fill(partial, task_name, task, manifest, built)
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    return listing


def _fill(
    folder: Path, task_name: str, task: Task, manifest: pa.Table, built: list[tuple[ShardPlan, str]]
) -> dict[str, Any]:
    """Write shards, tables and shards.json into `folder`; returns what shards.json holds. built: shards and their recipes."""
    shards: list[dict[str, Any]] = []
    folder.mkdir(parents=True)
    with ExitStack() as stack:
        index = stack.enter_context(Rows(folder / "index.parquet", INDEX_SCHEMA))
        beside = None
        if task.negatives is not None:
            beside = stack.enter_context(Rows(folder / "negatives.parquet", NEGATIVES_SCHEMA))
        elif task.degradation.of_frames:
            beside = stack.enter_context(Rows(folder / "pairs.parquet", PAIRS_SCHEMA))
        for shard, recipe in built:
            entry = _entry(recipe)
            if pc.unique(shard.files["group"]).to_pylist() != list(dict.fromkeys(row["key"] for row in entry["rows"])):
                raise UserError(
                    f"{STORE}/recipes/{recipe}.json: has other images than the plan; remove it, and build again"
                )
            target = folder / shard.split / entry["name"]
            target.parent.mkdir(exist_ok=True)
            try:
                os.link(STORE / entry["name"], target)
            except OSError:  # it is another file system, or one without hard links
                shutil.copyfile(STORE / entry["name"], target)
            index.write([{"split": shard.split, **row} for row in entry["rows"]])
            if beside is not None:
                beside.write([{"split": shard.split, **row} for row in _beside(shard.groups, task)])
            listed = {"split": shard.split, **{name: entry[name] for name in ("name", "bytes", "sha256", "groups")}}
            shards.append(listed | {"members": len(entry["rows"])})
    images, rejects = _accounted(manifest, task, [shard for shard, _ in built])
    known = licences(manifest)
    named = {source.partition("/")[0] for sources in task.splits.values() for source in sources}
    write_table(folder / "rejects.parquet", rejects)
    tables = {path.stem: path for path in (folder / "pairs.parquet", folder / "negatives.parquet") if path.exists()}
    listing = {
        "task": bare_name(task_name),
        "format": FORMAT,
        "colour": task.colour,
        "codec": task.codec,
        **({} if task.bits == 8 else {"bits": task.bits}),  # the default is left out, as in older builds
        "degradation": task.degradation.model_dump(mode="json"),
        "negatives": task.negatives.model_dump(mode="json") if task.negatives else None,
        "splits": {split: list(sources) for split, sources in task.splits.items()},
        "licences": {name: known.get(name) for name in sorted(named)},
        "images": images,
        "digest": dataset_digest(shards),
        "index_sha256": file_sha256(folder / "index.parquet"),
        "pairs_sha256": file_sha256(tables["pairs"]) if "pairs" in tables else None,
        "negatives_sha256": file_sha256(tables["negatives"]) if "negatives" in tables else None,
        "shards": shards,
    }
    # The versions lie beside: other ones that give the same bytes are the same dataset to all who look at shards.json.
    for name, value in (("versions.json", versions()), ("shards.json", listing)):
        write_bytes(folder / name, (json.dumps(value, indent=1) + "\n").encode())
    return listing


def _beside(groups: list[Group], task: Task) -> Iterator[dict[str, Any]]:
    """The rows of pairs.parquet or negatives.parquet that one shard has."""
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


class Rows:
    """A Parquet file that is written row by row; equal rows give equal bytes under one version of pyarrow."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.schema = schema
        self.writer = pq.ParquetWriter(path, schema, compression="zstd")
        self.rows: list[dict[str, Any]] = []

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows; they are written in groups of ROW_GROUP, whatever the size of a call."""
        self.rows += rows
        while len(self.rows) >= ROW_GROUP:
            self._flush()

    def _flush(self) -> None:
        self.writer.write_table(pa.Table.from_pylist(self.rows[:ROW_GROUP], self.schema))
        del self.rows[:ROW_GROUP]

    def __enter__(self) -> "Rows":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self.rows:
            self._flush()
        self.writer.close()
