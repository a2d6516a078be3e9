"""The build stage: a task's shards, by Ray Data over the plan, one task per shard."""

import itertools
import json
import logging
import platform
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import scipy
import simplejpeg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cluster import address_to_join, connect, explained
from pipeline.config import bare_name
from pipeline.cpus import available_cpus
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.raw.manifest import read_manifest, write_table
from pipeline.raw.sources import is_remote
from pipeline.shards import kept
from pipeline.shards.assemble import REJECTS_SCHEMA, assemble
from pipeline.shards.encode import UnusableImagesError, samples
from pipeline.shards.format import write_shard
from pipeline.shards.plan import File, Group, ShardPlan, degraded_views, plan, recipe_digest
from pipeline.storage import Storage, storage
from pipeline.task import Task, read_task

LOGS = Path(".cache/logs")
FEW = 256  # images that are built in the time that Ray takes to start
AHEAD = 1024  # shards that the driver holds the orders of
SHOWN = 5  # failures that the error names


def versions() -> dict[str, str]:
    """The versions of the libraries that decide a shard's bytes: those that decode images and those that change them."""
    libraries = {"opencv": cv2, "numpy": np, "scipy": scipy, "pillow": PIL, "simplejpeg": simplejpeg}
    return {name: library.__version__ for name, library in libraries.items()}


def build(
    task_name: str, manifest: Path, out: Path, *, cpus: int | None = None, store: str | None = None
) -> dict[str, Any]:
    """Build a task's shards into out/<split>/, with their tables, out/shards.json, out/versions.json and out/recipes.json.

    Shards that an earlier or killed build finished are taken from .cache/shards; from what `out` holds, or held when DVC
    last saw it, which somebody else may have built; and from the store. The bytes depend on the images, the task,
    `versions` and the format; not on cpus, block counts or kills.

    cpus: shards made at a time; None: as many as there are CPUs. store: a URI where built shards are also kept for other
    machines; a cluster without a common file system needs it.

    Returns what shards.json holds, with "encoded": how many shards were in none of these, "others": with which other versions
    the build was made that `out` held, if that is why, "reasons": why images are not used
    (reason -> number, the first path), and "smallest": the size (width, height) of the smallest image to train on. Raises
    UserError if an image cannot be used; then nothing new is under `out`'s name, and all such images are in
    .cache/logs/<task>-rejects.parquet.
    """
    task = read_task(task_name)
    started = time.monotonic()
    table = read_manifest(manifest)
    shards = plan(table, task)
    recipes = [recipe_digest(shard, task, versions()) for shard in shards]
    with kept.claimed():
        shared = storage(store) if store else None
        built, others = kept.stored(dict(zip(recipes, shards, strict=True)), out, shared, versions())
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
            _bring_back(todo, shared)
        listing = assemble(task_name, task, table, list(zip(shards, recipes, strict=True)), versions(), out)
    log = {"task": task_name, "shards": len(shards), "encoded": len(todo), "seconds": time.monotonic() - started}
    write_bytes(LOGS / f"build-{bare_name(task_name)}.json", json.dumps(log).encode())
    found = {
        "encoded": len(todo),
        "others": others if todo else None,
        "reasons": _reasons(out),
        "smallest": _smallest(table, task, shards),
    }
    return listing | found


def _bring_back(recipes: Iterable[str], shared: Storage) -> None:
    """Download the shards that another node has just built. Raises UserError if the store does not have them whole."""
    elsewhere = [recipe for recipe in recipes if not kept.whole(recipe)]
    if lost := set(elsewhere) - kept.download(elsewhere, shared):
        raise UserError(
            f"{shared.uri}: {len(lost)} of the shards that were just built are not there whole; build again"
        )


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
    common = {"task": task.model_dump(mode="json"), "store": store, "versions": versions(), "here": str(Path.cwd())}
    # The nodes of a cluster have no folder in common with this machine, if it names a store.
    common["kept"] = None if store and address_to_join() else str(kept.STORE.resolve())
    for recipe, shard in todo.items():
        groups = []
        for group in shard.groups:
            files = [asdict(file) for file in group.files]
            for file in files:
                file["path"] = file["path"] if is_remote(file["path"]) else str(Path(file["path"]).resolve())
            groups.append([group.key, files])
        yield json.dumps({"recipe": recipe, "groups": groups, "views": degraded_views(shard.split, task), **common})


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
        where = nullcontext(order["kept"]) if order["kept"] else TemporaryDirectory(prefix="memoir-build-")
        with where as folder:
            shard = write_shard(samples(groups, task, order["views"]), Path(folder))
            entry = json.dumps({"groups": len(groups), **shard}).encode()
            name = kept.remembered(order["recipe"])
            if order["store"]:
                shared = storage(order["store"])
                shared.write(shard["name"], Path(folder, shard["name"]))
                shared.write(name, entry)
            if order["kept"]:
                write_bytes(Path(folder, name), entry)
    except UnusableImagesError as error:
        result["rejects"] = [{"path": path, "reason": reason} for path, reason in error.images]
        result["error"] = [f"{path}: {reason}" for path, reason in error.images]
    except UserError as error:
        result["error"] = [str(error)]
    except OSError as error:
        result["error"] = [f"{error.filename or order['kept'] or order['store']}: {error.strerror}"]
    return {"result": json.dumps(result)}
