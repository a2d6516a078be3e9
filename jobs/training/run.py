"""What would be trained, and under which name: a recipe, its datasets and the code together are a run."""

import hashlib
import json
from typing import Any, NamedTuple

from jobs.options import evaluation_options
from jobs.origin import digest, origin
from jobs.recipe import Recipe, read_recipe
from jobs.training.start import Begins, Start
from jobs.variant import overriding, variant
from pipeline.config import bare_name
from pipeline.errors import UserError
from pipeline.revisions.revision import dataset_of_task
from pipeline.shards.format import read_shards_json, samples_digest
from pipeline.storage import Storage, storage


class Dataset(NamedTuple):
    """What `memoir build` made of a task: place, digest of what is trained on, and what its shards.json lists."""

    built: Storage
    samples: str
    listing: dict[str, Any]


class Planned(NamedTuple):
    """A training run before it begins.

    name: the recipe's. variant: the name of its folder in runs/, which is another one if values were replaced; overrides: those
    that make the difference. run: the run's name in the store, with a digest of its origin: data, recipe and code. datasets: by
    task, that of `data.task` first. place: the run's folder in the store. start: the weights that it starts from, where this
    process has read them.
    """

    name: str
    variant: str
    overrides: list[str]
    recipe: Recipe
    run: str
    origin: dict[str, Any]
    datasets: dict[str, Dataset]
    store: Storage
    place: Storage
    start: Start | None = None

    @property
    def samples(self) -> str:
        """The digest of all that is trained on."""
        return _together(self.datasets)

    @property
    def built(self) -> Storage:
        """The dataset of `data.task`."""
        return next(iter(self.datasets.values())).built

    @property
    def listing(self) -> dict[str, Any]:
        """What the dataset of `data.task` lists."""
        return next(iter(self.datasets.values())).listing


def _together(datasets: dict[str, Dataset]) -> str:
    if len(datasets) == 1:
        return next(iter(datasets.values())).samples
    each = {task: dataset.samples for task, dataset in datasets.items()}
    return hashlib.sha256(json.dumps(each).encode()).hexdigest()


def plan_run(
    recipe_name: str,
    *,
    data: str,
    store: str,
    overrides: list[str] | None = None,
    begins: Begins | None = None,
) -> Planned:
    """What `train` would do.

    data: as `dataset_of_task` takes it. begins: has the weights that the recipe's run starts from, or their sha256. Raises
    UserError for a mistake in the recipe, data, store or weights.
    """
    recipe = read_recipe(recipe_name, overrides)
    _refuse_settings(recipe, overrides or [])
    if recipe.validation is not None and recipe.validation.run is not None:
        from jobs.evaluation.validating import check_apart, check_metric

        check_metric(recipe.validation)
        check_apart(recipe.validation, recipe.evaluation.benchmarks)
    name = bare_name(recipe_name)
    datasets = {}
    for task in recipe.data.tasks:
        built = dataset_of_task(data, task)
        listing = read_shards_json(built)
        datasets[task] = Dataset(built, samples_digest(listing), listing)
    start = None if begins is None else begins(recipe)
    sha256 = start.sha256 if isinstance(start, Start) else start
    made_of = origin(recipe, _together(datasets), sha256)
    run = f"{name}-{digest(made_of)}"
    place = storage(f"{store.rstrip('/')}/runs/{run}")
    changed = overriding(overrides or [])
    named = variant(name, recipe, changed) + (f"+from={sha256[:8]}" if sha256 else "")
    read = start if isinstance(start, Start) else None
    return Planned(name, named, changed, recipe, run, made_of, datasets, storage(store), place, read)


def _refuse_settings(recipe: Recipe, overrides: list[str]) -> None:
    """Raise UserError for an option that changes no weights, which would train the same run under another name."""
    of_model = [each for each in overrides if each.startswith("model.")]  # without any, torch need not be imported
    for each in of_model:
        if each.partition("=")[0] in evaluation_options(recipe.model.name):
            raise UserError(f"--set {each}: changes no weights; train without it, and give it to `memoir evaluate`")
