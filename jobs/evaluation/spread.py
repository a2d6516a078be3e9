"""Scoring images on the workers of a Ray cluster, where one is at hand.

The scores are the same, bit for bit, on any number of workers and in one process, if the machines are of one kind and the
versions of the libraries are equal, which the workers check: a worker computes with as many threads as this process would,
an image is one task, and results are taken in the order of the images. With a recipe that is portable, machines may differ.

No Ray is started for it: torch keeps the CPUs of one machine busy by itself, so workers beside each other pay only where a
cluster has more CPUs than a worker has threads.
"""

import os
import platform
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import chdir, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch

from jobs.arithmetic import PORTABLE, THREADS
from jobs.evaluation.scoring import Each, Image, Restorer, Scored, restorer, score_image
from jobs.recipe import resolved_model
from jobs.restoring.checkpoint import Trained
from jobs.restoring.restore import on_device
from jobs.source import receive, send
from pipeline.cluster import address_to_join, connect, trouble
from pipeline.cpus import available_cpus
from pipeline.depth import Bits
from pipeline.errors import UserError
from pipeline.shards.build import versions
from pipeline.shared_ray import offered

AHEAD = 256  # images that Ray knows of at a time
RETRIES = 3  # of an image whose worker was lost


class Job(NamedTuple):
    """What a worker must know beside the image. sent: the model's reference in Ray, in a list, so that it stays one.

    here: the folder in which relative paths begin. libraries: their versions in the process that asks.
    """

    sent: list[Any]
    bits: Bits
    here: str
    threads: int
    libraries: dict[str, str]


def libraries() -> dict[str, str]:
    """The versions of what decides a score."""
    return versions() | {"torch": torch.__version__, "scikit-image": version("scikit-image")}


def spread(trained: Trained) -> Each | None:
    """Score images with a model on the Ray at hand; None where there is none, or none that has room for two workers.

    At hand is the cluster of RAY_ADDRESS=host:port, and what `memoir with-ray` offers. Raises UserError for a cluster that
    cannot be reached.
    """
    threads = torch.get_num_threads()
    joined = bool(address_to_join())
    together = available_cpus() // threads * threads
    if not joined and (together < 2 * threads or not offered(together)):
        return None
    connect(1 if joined else 0)  # 0: without waiting for what others use of this machine
    import ray

    if not joined and ray.available_resources().get("CPU", 0) < 2 * threads:
        return None
    name = trained.recipe["model"]["name"]
    weights = {key: tensor.cpu() for key, tensor in trained.model.state_dict().items()}
    sent = ray.put({"recipe": trained.recipe, "source": send(name), "weights": weights})
    gpu = ray.cluster_resources().get("GPU", 0) >= 1
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
    arithmetic = {key: os.environ[key] for key in PORTABLE | THREADS if key in os.environ}
    task = ray.remote(score_there).options(
        num_cpus=1 if gpu else max(1, min(threads, int(largest))),
        num_gpus=1 if gpu else 0,
        max_retries=RETRIES,
        runtime_env={"env_vars": arithmetic} if arithmetic else None,
    )
    job = Job([sent], trained.bits, str(Path.cwd()), threads, libraries())
    return partial(_each, task, job)


def _each(task: Any, job: Job, images: Iterable[Image]) -> Iterator[list[Scored]]:
    """The results of the images in their order."""
    import ray

    waiting: deque[tuple[Image, Any]] = deque()
    try:
        for image in images:
            waiting.append((image, task.remote(job, image)))
            if len(waiting) == AHEAD:
                yield _result(*waiting.popleft())
        while waiting:
            yield _result(*waiting.popleft())
    finally:
        for _, reference in waiting:  # after a failure
            ray.cancel(reference)


def _result(image: Image, reference: Any) -> list[Scored]:
    import ray
    from ray.exceptions import RayError

    try:
        found = ray.get(reference)
    except RayError as error:
        if (line := trouble(error)) is None:
            raise
        line = line.removesuffix("; the same command continues")
        raise UserError(f"{image[0].item.files[0].path}: {line}; it was tried {1 + RETRIES} times") from None
    if isinstance(found, str):
        raise UserError(found)
    return found


# in a worker


def score_there(job: Job, image: Image) -> list[Scored] | str:
    """Score an image in a worker of Ray; a failure that a retry cannot mend is a line of text."""
    if (there := libraries()) != job.libraries:
        differ = [
            f"{name} {there[name]} for {wanted}" for name, wanted in job.libraries.items() if there[name] != wanted
        ]
        return f"node {platform.node()} has {', '.join(differ)}, and scores may differ: install the same"
    for file in (file for asked in image for file in asked.item.files):
        if not Path(job.here, file.path).exists():  # nor may a relative path be found in the folder of the worker
            return (
                f"{file.path}: not on node {platform.node()}, where a worker of Ray would score it; have the images under "
                "one path on all nodes, or leave RAY_ADDRESS out"
            )
    torch.set_num_threads(job.threads)
    with chdir(job.here) if Path(job.here).is_dir() else nullcontext():
        try:
            return score_image(_restorer(job), job.bits, image)
        except UserError as error:
            return str(error)


_held: dict[str, Restorer] = {}  # the last model of this process, by its reference


def _restorer(job: Job) -> Restorer:
    key = job.sent[0].hex()
    if key not in _held:
        import ray

        held = ray.get(job.sent[0])
        name = held["recipe"]["model"]["name"]
        receive(name, held["source"])
        model = resolved_model(held["recipe"], {name})
        model.load_state_dict(held["weights"])
        _held.clear()
        _held[key] = restorer(on_device(model.eval()))
    return _held[key]
