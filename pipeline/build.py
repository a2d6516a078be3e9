"""The build stage: a task's shards, by Ray Data over the plan, one task per shard."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pipeline.cluster import connect
from pipeline.degradations.colour import rgb2gray, rgb2ycbcr_y
from pipeline.degradations.jpeg import jpeg
from pipeline.degradations.scale import bicubic_lowres, modcrop
from pipeline.errors import UserError
from pipeline.images import UnusableImageError, decode_image, write_bytes
from pipeline.manifest import read_manifest, write_table
from pipeline.plan import FORMAT, Group, ShardPlan, plan, recipe_digest
from pipeline.shards import (
    INDEX_SCHEMA,
    Member,
    dataset_digest,
    file_sha256,
    json_member,
    npy_member,
    write_shard,
)
from pipeline.task import Jpeg, Noise, Scale, Task, read_task

STORE = Path(".cache/shards")  # built shards by content, and which recipe gave which; survives the stage's output


def versions() -> dict[str, str]:
    """Of the libraries that decide the bytes of a shard."""
    return {"opencv": cv2.__version__, "numpy": np.__version__}


def build(task_name: str, manifest: Path, out: Path, *, cpus: int | None = None) -> dict[str, Any]:
    """Build a task's shards into out/<split>/, with out/index.parquet and out/shards.json; returns the latter.

    Shards that an earlier or killed build finished are taken from the store. The bytes depend on the images, the task and
    the versions of opencv, numpy and the format; not on cpus, block counts or kills.
    Raises UserError with every failing shard; then nothing is left under `out`'s name.
    """
    task = read_task(task_name)
    started = time.monotonic()
    shards = plan(read_manifest(manifest), task)
    recipes = [recipe_digest(shard, task, versions()) for shard in shards]
    built = {recipe: entry for recipe in recipes if (entry := _stored(recipe))}
    todo = {recipe: shard for recipe, shard in zip(recipes, shards, strict=True) if recipe not in built}
    failures: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task(f"build {task_name}", total=len(shards), completed=len(shards) - len(todo))
        for result in _run(todo, task, cpus or os.cpu_count() or 1) if todo else ():
            if "error" in result:
                failures.append(result["error"])
            else:
                built[result["recipe"]] = result
            progress.advance(bar)
    if failures:
        raise UserError(
            f"build {task_name}: {len(failures)} of {len(shards)} shards failed: " + "; ".join(sorted(failures))
        )
    listing = _assemble(
        task_name, task, [(shard.split, built[r]) for shard, r in zip(shards, recipes, strict=True)], out
    )
    log = {"task": task_name, "shards": len(shards), "encoded": len(todo), "seconds": time.monotonic() - started}
    write_bytes(Path(f".cache/logs/build-{Path(task_name).stem}.json"), json.dumps(log).encode())
    return listing | {"encoded": len(todo)}


def _stored(recipe: str) -> dict[str, Any] | None:
    """What the store holds for a recipe, if its shard is there and whole."""
    try:
        entry = json.loads((STORE / "recipes" / f"{recipe}.json").read_text())
        return entry if file_sha256(STORE / entry["name"]) == entry["sha256"] else None
    except (OSError, json.JSONDecodeError, KeyError):
        return None


def _run(todo: dict[str, ShardPlan], task: Task, cpus: int) -> Iterator[dict[str, Any]]:
    """Write the shards as Ray Data tasks, one block and one task per shard; only these small rows pass through Ray."""
    connect(cpus)
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    store = STORE.resolve()
    items = [
        {
            "recipe": recipe,
            "task": task.model_dump_json(),
            "groups": json.dumps([(g.key, str(Path(g.path).resolve()), g.sha256, g.nbytes) for g in shard.groups]),
            "store": str(store),
        }
        for recipe, shard in todo.items()
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    for row in dataset.map(_build_shard, num_cpus=1).iter_rows():
        yield json.loads(row["result"])


def _build_shard(item: dict[str, Any]) -> dict[str, Any]:
    """One shard, in a Ray worker. A failure that a retry cannot mend is a result, so that all of them are listed."""
    task = Task.model_validate_json(item["task"])
    groups = [Group(*fields) for fields in json.loads(item["groups"])]
    store = Path(item["store"])
    try:
        name, nbytes, rows = write_shard(((g.key, sample_members(g, task)) for g in groups), store)
        entry = {
            "recipe": item["recipe"],
            "name": name,
            "bytes": nbytes,
            "sha256": file_sha256(store / name),
            "groups": len(groups),
            "rows": rows,
        }
        write_bytes(store / "recipes" / f"{item['recipe']}.json", json.dumps(entry).encode())
    except UnusableImageError as error:
        return {"result": json.dumps({"error": str(error)})}
    except OSError as error:
        return {"result": json.dumps({"error": f"{error.filename or store}: {error.strerror}"})}
    return {"result": json.dumps(entry)}


def sample_members(group: Group, task: Task) -> list[Member]:
    """The members of one sample: the clean planes, their degraded version at each level, and where they come from."""
    try:
        data = Path(group.path).read_bytes()
    except OSError as error:
        raise UnusableImageError(f"{group.path}: {error.strerror}; run `memoir ingest` again") from None
    import hashlib

    if hashlib.sha256(data).hexdigest() != group.sha256:
        raise UnusableImageError(f"{group.path}: changed since it was ingested; run `memoir ingest` again")
    image = decode_image(data)
    planes = {"y": rgb2ycbcr_y, "gray": rgb2gray, "rgb": np.asarray}[task.colour](image)
    members = [npy_member("gt.npy", planes, role="gt")]
    degradation = task.degradation
    if isinstance(degradation, Jpeg):
        for quality in degradation.quality:
            lq = jpeg(planes, quality)
            parameters = json.dumps({"jpeg": quality})
            members.append(npy_member(f"lq-q{quality}.npy", lq, role="lq", level=quality, parameters=parameters))
    elif isinstance(degradation, Scale):
        for factor in degradation.factor:
            # The papers keep this input in float; 8 bits cost it 0.3 grey levels rms.
            lowres = bicubic_lowres(modcrop(planes, factor) / 255.0, factor)
            lq = np.clip(np.rint(lowres * 255), 0, 255).astype(np.uint8)
            parameters = json.dumps({"bicubic": factor})
            members.append(npy_member(f"lq-x{factor}.npy", lq, role="lq", level=factor, parameters=parameters))
    else:
        assert isinstance(degradation, Noise)  # drawn by the loader
    members.append(json_member({"source_sha256": group.sha256, "colour": task.colour}))
    return members


def _assemble(task_name: str, task: Task, built: list[tuple[str, dict[str, Any]]], out: Path) -> dict[str, Any]:
    """Link the shards into `out` with their index; the whole folder appears at once."""
    partial = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)
    rows: list[dict[str, Any]] = []
    for split, entry in built:
        target = partial / split / entry["name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(STORE / entry["name"], target)
        except OSError:  # another file system, or one without hard links
            shutil.copyfile(STORE / entry["name"], target)
        rows += [{"split": split, **row} for row in entry["rows"]]
    write_table(partial / "index.parquet", pa.Table.from_pylist(rows, INDEX_SCHEMA))
    shards = [
        {
            "split": split,
            "name": e["name"],
            "bytes": e["bytes"],
            "sha256": e["sha256"],
            "groups": e["groups"],
            "members": len(e["rows"]),
        }
        for split, e in built
    ]
    listing = {
        "task": Path(task_name).stem,
        "format": FORMAT,
        "versions": versions(),
        "colour": task.colour,
        "degradation": task.degradation.model_dump(mode="json"),
        "digest": dataset_digest(shards),
        "index_sha256": file_sha256(partial / "index.parquet"),
        "shards": shards,
    }
    write_bytes(partial / "shards.json", (json.dumps(listing, indent=1) + "\n").encode())
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    partial.rename(out)
    shutil.rmtree(old, ignore_errors=True)
    return listing
