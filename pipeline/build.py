"""The build stage: a task's shards, by Ray Data over the plan, one task per shard."""

import fcntl
import hashlib
import json
import logging
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cluster import connect
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.scale import bicubic_lowres, modcrop
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, decode_image, source_image, write_bytes
from pipeline.manifest import read_manifest, write_table
from pipeline.plan import FORMAT, File, Group, ShardPlan, plan, recipe_digest
from pipeline.sampling.scene_pairs import scene_pairs
from pipeline.shards import (
    INDEX_SCHEMA,
    PAIRS_SCHEMA,
    Member,
    dataset_digest,
    file_sha256,
    json_member,
    npy_member,
    write_shard,
)
from pipeline.task import Jpeg, Scale, Task, TimeLapse, read_task

STORE = Path(".cache/shards")  # built shards by content, and which recipe gave which; survives the stage's output
SHOWN = 5  # failures that the error names


def versions() -> dict[str, str]:
    """Of the libraries that decide the bytes of a shard."""
    return {"opencv": cv2.__version__, "numpy": np.__version__}


def build(task_name: str, manifest: Path, out: Path, *, cpus: int | None = None) -> dict[str, Any]:
    """Build a task's shards into out/<split>/, with out/index.parquet and out/shards.json.

    Shards that an earlier or killed build finished are taken from the store. The bytes depend on the images, the task
    and the versions of opencv, numpy and the format; not on cpus, block counts or kills. cpus: shards made at a time;
    None: as many as there are CPUs. Returns what shards.json holds, and as "encoded" how many shards were not in the
    store. Raises UserError with the failures; then nothing new is under `out`'s name.
    """
    task = read_task(task_name)
    started = time.monotonic()
    shards = plan(read_manifest(manifest), task)
    recipes = [recipe_digest(shard, task, versions()) for shard in shards]
    with _claimed(STORE):
        built = {recipe: entry for recipe in recipes if (entry := _stored(recipe))}
        todo = {recipe: shard for recipe, shard in zip(recipes, shards, strict=True) if recipe not in built}
        failures: set[str] = set()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(
            *columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()
        ) as progress:
            bar = progress.add_task(f"build {task_name}", total=len(shards), completed=len(built))
            for result in _run(todo, task, cpus) if todo else ():
                if "error" in result:
                    failures.add(result["error"])
                else:
                    built[result["recipe"]] = result
                progress.advance(bar)
        missing = len(shards) - len(built)
        if missing:
            shown = sorted(failures)[:SHOWN]
            more = f"; and {len(failures) - SHOWN} more" if len(failures) > SHOWN else ""
            raise UserError(f"build {task_name}: {missing} of {len(shards)} shards failed: {'; '.join(shown)}{more}")
        listing = _assemble(task_name, task, [(shard, built[r]) for shard, r in zip(shards, recipes, strict=True)], out)
    log = {"task": task_name, "shards": len(shards), "encoded": len(todo), "seconds": time.monotonic() - started}
    write_bytes(Path(f".cache/logs/build-{Path(task_name).stem}.json"), json.dumps(log).encode())
    return listing | {"encoded": len(todo)}


@contextmanager
def _claimed(store: Path) -> Iterator[None]:
    """Let other builds know that this one works in the store, and remove what killed ones left unfinished there.

    The lock dies with its process: who gets it alone knows that every temporary file is a dead build's.
    """
    store.mkdir(parents=True, exist_ok=True)
    with (store / ".lock").open("a") as lock:
        with suppress(OSError):  # another build runs, or a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in (*store.glob(".*.tmp"), *store.glob("recipes/.*.tmp")):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_SH)
        yield


def _stored(recipe: str) -> dict[str, Any] | None:
    """What the store holds for a recipe, if its shard is there and whole."""
    try:
        entry = json.loads((STORE / "recipes" / f"{recipe}.json").read_bytes())
        return entry if file_sha256(STORE / entry["name"]) == entry["sha256"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(todo: dict[str, ShardPlan], task: Task, cpus: int | None) -> Iterator[dict[str, Any]]:
    """Write the shards as Ray Data tasks, one block and one task per shard; only these small rows pass through Ray."""
    embedded = not os.environ.get("RAY_ADDRESS")
    connect(cpus or (os.cpu_count() or 1 if embedded else 1))
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    dataset = ray.data.from_items(_orders(todo, task), override_num_blocks=len(todo))
    for row in dataset.map(_build_shard, num_cpus=1, compute=ray.data.TaskPoolStrategy(cpus)).iter_rows():
        yield json.loads(row["result"])


def _orders(todo: dict[str, ShardPlan], task: Task) -> list[str]:
    """What a worker must know of each shard, as JSON."""
    common = {"task": task.model_dump(mode="json"), "store": str(STORE.resolve()), "versions": versions()}
    return [
        json.dumps(
            {
                "recipe": recipe,
                "groups": [
                    [group.key, [asdict(file) | {"path": str(Path(file.path).resolve())} for file in group.files]]
                    for group in shard.groups
                ],
                **common,
            }
        )
        for recipe, shard in todo.items()
    ]


def _build_shard(row: dict[str, str]) -> dict[str, str]:
    """One shard, in a Ray worker. A failure that a retry cannot mend is a result, so that all of them are listed."""
    order = json.loads(row["item"])
    store = Path(order["store"])
    task = Task.model_validate(order["task"])
    groups = [Group(key, tuple(File(**file) for file in files)) for key, files in order["groups"]]
    try:
        if versions() != order["versions"]:
            raise UserError(
                f"node {platform.node()} has {versions()}, the build needs {order['versions']}: install the same"
            )
        shard = write_shard(((group.key, sample_members(group, task)) for group in groups), store)
        entry = {"recipe": order["recipe"], "groups": len(groups), **shard}
        write_bytes(store / "recipes" / f"{order['recipe']}.json", json.dumps(entry).encode())
    except UserError as error:
        entry = {"error": str(error)}
    except OSError as error:
        entry = {"error": f"{error.filename or store}: {error.strerror}"}
    return {"result": json.dumps(entry)}


def sample_members(group: Group, task: Task) -> list[Member]:
    """The members of one sample: the planes of its images, their degraded versions, and where they come from.

    Raises UserError for a file that is not the one that was ingested, and for one that the degradation does not take.
    """
    members: list[Member] = []
    for file in group.files:
        image = _ingested(file)
        role, _, number = file.name.partition("-")
        if task.colour == "y" and role != "mask":
            planes = rgb2ycbcr_y(image)
        else:
            planes = image if task.colour == "rgb" and role != "mask" else rgb2gray(image)
        level = {"level": int(number)} if number else {}
        members.append(npy_member(f"{file.name}.npy", planes, role=role, **level))
        if role == "gt":
            try:
                members += _degraded(planes, task)
            except UnusableImageError as error:
                raise UserError(f"{file.path}: {error}") from None
    origin = {"sources": {file.name: file.sha256 for file in group.files}, "colour": task.colour}
    return [*members, json_member(origin)]


def _ingested(file: File) -> np.ndarray:
    """The pixels of an image that is still what was ingested; of a whole file its bytes are compared, which is quicker."""
    try:
        if file.part is not None:
            image, sha256 = source_image(Path(file.path), file.part)
        else:
            data = Path(file.path).read_bytes()
            sha256 = hashlib.sha256(data).hexdigest()
            image = decode_image(data) if sha256 == file.sha256 else np.empty(0)
    except UnusableImageError as error:
        raise UserError(f"{file.path}: {error}") from None
    except OSError as error:
        raise UserError(f"{file.path}: {error.strerror}; run `memoir ingest` again") from None
    if sha256 != file.sha256:
        raise UserError(f"{file.path}: changed since it was ingested; run `memoir ingest` again")
    return image


def _degraded(planes: np.ndarray, task: Task) -> list[Member]:
    degradation = task.degradation
    if not isinstance(degradation, Jpeg | Scale):
        return []  # published, or drawn by the loader
    members = []
    for level in degradation.levels:
        if isinstance(degradation, Jpeg):
            name, parameters, lq = f"lq-q{level}.npy", {"jpeg": level}, jpeg(planes, level)
        else:
            # The papers keep this input in float; 8 bits cost it 0.3 grey levels rms.
            lowres = bicubic_lowres(modcrop(planes, level) / 255.0, level)
            lowres *= 255
            lq = np.rint(lowres, out=lowres).clip(0, 255, out=lowres).astype(np.uint8)
            name, parameters = f"lq-x{level}.npy", {"bicubic": level}
        members.append(npy_member(name, lq, role="lq", level=level, parameters=json.dumps(parameters)))
    return members


def _assemble(task_name: str, task: Task, built: list[tuple[ShardPlan, dict[str, Any]]], out: Path) -> dict[str, Any]:
    """Link the shards into `out` with their index; the whole folder appears at once."""
    partial, old = out.with_name(f".{out.name}.tmp"), out.with_name(f".{out.name}.old")
    with (STORE / ".assemble").open("a") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)  # another build of this task uses the same two names
        try:
            shutil.rmtree(partial, ignore_errors=True)
            listing = _fill(partial, task_name, task, built)
            shutil.rmtree(old, ignore_errors=True)
            if out.exists():
                out.rename(old)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
    return listing


def _fill(folder: Path, task_name: str, task: Task, built: list[tuple[ShardPlan, dict[str, Any]]]) -> dict[str, Any]:
    """Shards, index.parquet and shards.json in `folder`; returns what the last holds."""
    rows: list[dict[str, Any]] = []
    shards: list[dict[str, Any]] = []
    for shard, entry in built:
        split = shard.split
        target = folder / split / entry["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(STORE / entry["name"], target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(STORE / entry["name"], target)
        rows += [{"split": split, **row} for row in entry["rows"]]
        listed = {"split": split, **{name: entry[name] for name in ("name", "bytes", "sha256", "groups")}}
        shards.append(listed | {"members": len(entry["rows"])})
    write_table(folder / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
    if isinstance(task.degradation, TimeLapse):
        pairs = [
            {"split": shard.split, "key": group.key, "v": v, "w": w}
            for shard, _ in built
            for group in shard.groups
            for v, w in _scene_pairs(group, task.degradation)
        ]
        write_table(folder / "pairs.parquet", pa.Table.from_pylist(pairs, PAIRS_SCHEMA))
    listing = {
        "task": Path(task_name).stem,
        "format": FORMAT,
        "versions": versions(),
        "colour": task.colour,
        "degradation": task.degradation.model_dump(mode="json"),
        "splits": {split: list(sources) for split, sources in task.splits.items()},
        "digest": dataset_digest(shards),
        "index_sha256": file_sha256(folder / "index.parquet"),
        "pairs_sha256": file_sha256(folder / "pairs.parquet") if (folder / "pairs.parquet").exists() else None,
        "shards": shards,
    }
    write_bytes(folder / "shards.json", (json.dumps(listing, indent=1) + "\n").encode())
    return listing


def _scene_pairs(scene: Group, sampling: TimeLapse) -> Iterator[tuple[int, int]]:
    """The sampled pairs of a scene, by the numbers of their frames."""
    numbers = [int(file.name.partition("-")[2]) for file in scene.files]
    frames = [file.sha256 for file in scene.files]
    for v, w in scene_pairs(frames, sampling.pairs_per_scene, seed=sampling.seed, scene=scene.key):
        yield numbers[v], numbers[w]
