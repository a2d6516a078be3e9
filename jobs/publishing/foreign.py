"""Make a version of weights that somebody else has published: `memoir import`."""

import hashlib
from typing import Any

from safetensors.torch import save

from jobs.importing.weights import read_foreign
from jobs.project import author, in_experiment, now
from jobs.publishing.promote import point
from jobs.publishing.publish import Content, put_version
from jobs.recipe import read_recipe
from jobs.restoring.checkpoint import LATEST, labelled_version
from jobs.training.record import libraries
from jobs.variant import overriding, variant
from pipeline.config import bare_name
from pipeline.errors import UserError
from pipeline.revisions.revision import dataset_of_task
from pipeline.shards.format import read_shards_json
from pipeline.storage import storage
from pipeline.task import TASKS, read_task

TASK = ("colour", "degradation", "bits", "splits", "negatives")  # what a version says of its task


def import_version(
    file: str,
    recipe_name: str,
    to: str,
    *,
    data: str = "data",
    overrides: list[str] | None = None,
    licence: str | None = None,
    source: str | None = None,
) -> dict[str, Any]:
    """Put a published checkpoint into a store, as <to>/models/<recipe>/<version>.

    file: a path or URI. recipe_name: whose network, task and benchmarks are the checkpoint's. to: a folder, file:///path or
    s3://bucket/prefix. data: where the recipe's data set is built, if its task is no file of pipeline/tasks. licence, source:
    what provenance and card say, as it is stated by the caller. The version is the recipe's latest only if there is none: what
    was trained here stays. Returns what `put_version` does, with `release` and `latest`. Raises UserError for what
    `read_foreign` refuses.
    """
    for option, text in (("FILE", file), ("--licence", licence), ("--source", source)):
        if text is not None and not (text.isprintable() and 0 < len(text) <= 1000):
            raise UserError(f"{option}: expected one line of up to 1,000 characters")
    recipe = read_recipe(recipe_name, overrides)
    changed = overriding(overrides or [])
    name = variant(bare_name(recipe_name), recipe, changed)
    task = _task(recipe.data.task, data)
    foreign = read_foreign(file, recipe)
    weights = save(foreign.weights)
    stated = {"licence": licence, "source": source}
    imported = {"file": foreign.file, "sha256": foreign.sha256, "release": foreign.release, **stated}
    told = {
        "recipe": name,
        "imported": {**imported, "location": file},
        "data": {"task": recipe.data.task, "digest": None},
        "overrides": changed,
        "published": {"who": author(), "when": now()},
        "step": 0,
        "libraries": libraries(),
    }
    content = Content(
        name=name,
        recipe=recipe.model_dump(mode="json"),
        task=task,
        metrics={"scores": {}, "training": {}},
        sha256=hashlib.sha256(weights).hexdigest(),
        where=file,
        download=lambda path: path.write_bytes(weights),
        provenance=lambda parent: {**told, "parent": parent},
        origin={"imported": imported},
    )
    stored = put_version(content, to, {recipe.model.name})
    target = storage(to)
    latest = labelled_version(target, LATEST, f"models/{name}/")
    if latest is None and not in_experiment():
        latest = stored["version"]
        point(target, name, LATEST, latest, stored["sha256"])
    return stored | {"release": foreign.release, "latest": latest == stored["version"]}


def _task(name: str, data: str) -> dict[str, Any]:
    """What a version says of its recipe's task: by the task's file, or for a user's own by the data set that is built of it."""
    if (TASKS / f"{name}.yaml").is_file():
        task = read_task(name).model_dump(mode="json")
    else:
        task = read_shards_json(dataset_of_task(data, name))
    return {key: task[key] for key in TASK if task.get(key) is not None}
