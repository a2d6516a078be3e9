"""A run in this process alone, without Ray and without a store: for what is measured of a recipe."""

import torch

from jobs.recipe import Recipe
from jobs.training.loop import Run
from pipeline.revisions.revision import dataset_of_task
from pipeline.storage import Folder


def run_here(recipe: Recipe, data: str) -> Run:
    """A recipe of one worker, or this rank of torch's process group, on its threads and device. data: as `dataset_of_task` takes it. Raises UserError as `Run` does."""
    places = {}
    for task in recipe.data.tasks:
        built = dataset_of_task(data, task)
        places[task] = built.root if isinstance(built, Folder) else built.uri
    torch.set_num_threads(recipe.training.cpus_per_worker)
    device = torch.device("cuda" if recipe.training.gpu and torch.cuda.is_available() else "cpu")
    return Run(recipe, places, device)
