"""`memoir doctor`: is everything here that the stages need?"""

import shutil
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from jobs.recipe import read_recipe
from jobs.sharing.health import Finding, examine_sharing
from pipeline.cpus import available_cpus
from pipeline.errors import UserError
from pipeline.layouts import layout
from pipeline.params import Params, read_params
from pipeline.raw.manifest import Source
from pipeline.raw.sources import is_remote
from pipeline.storage import storage
from pipeline.task import read_task

PACKAGES = ("torch", "ray", "dvc", "webdataset", "pyarrow", "opencv-python-headless", "numpy", "boto3")


def examine(params_file: Path) -> Iterator[Finding]:
    """Look at the installation, the datasets, the recipes, the store and the cluster; one finding each."""
    yield Finding(True, "python", sys.version.split()[0])
    for package in PACKAGES:
        try:
            yield Finding(True, package, version(package))
        except PackageNotFoundError:
            yield Finding(False, package, "not installed; run `make setup`")
    yield _precision()
    free = shutil.disk_usage(Path.cwd()).free
    yield Finding(free > 2**30, "disk", f"{free / 2**30:.1f} GiB free here")
    try:
        params = read_params(params_file)
    except UserError as error:
        yield Finding(False, "params", str(error))
        return
    yield from _data(params)
    for recipe in params.recipes:
        try:
            task = read_recipe(recipe).data.task
            known = task == params.recipes[recipe].task and task in params.tasks
            detail = f"task {task}" if known else f"{params_file} must name its task {task!r} under recipes and tasks"
            yield Finding(known, f"recipe {recipe}", detail)
        except UserError as error:
            yield Finding(False, f"recipe {recipe}", str(error))
    yield from examine_sharing(Path.cwd(), params, Path("runs"))
    yield _cluster()


def _precision() -> Finding:
    import torch

    from jobs.arithmetic import native_bf16

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = "bf16" if native_bf16(device) else "fp32"
    return Finding(True, "precision", f"auto is {chosen} on this machine's {'GPU' if device.type == 'cuda' else 'CPU'}")


def _data(params: Params) -> Iterator[Finding]:
    for name, source in params.datasets.items():
        try:
            yield Finding(True, f"dataset {name}", _found(name, source))
        except UserError as error:
            yield Finding(False, f"dataset {name}", str(error))
    for task in params.tasks:
        try:
            read_task(task)
            yield Finding(True, f"task {task}", "valid")
        except UserError as error:
            yield Finding(False, f"task {task}", str(error))


def _found(name: str, source: Source) -> str:
    """What is at the root of a dataset; nothing is copied from a bucket. Raises UserError as `ingest` does."""
    if is_remote(source.root):
        objects = storage(source.root).names()
        if not objects:
            raise UserError(f"{source.root}: nothing there; check the name, or upload the data set")
        return f"{len(objects)} objects in the bucket, which `memoir ingest` will copy and look through"
    rows = list(layout(source.layout, name, Path(source.root), source.variant).rows())
    rejected = sum(row.reject_reason is not None for row in rows)
    return f"{len(rows)} files, {rejected} of them rejected by the layout"


def _cluster() -> Finding:
    from pipeline.cluster import address_to_join, connect, jobs_address, rays_folder

    try:
        if jobs_address():
            from jobs.training.submit import client

            return Finding(True, "cluster", f"takes training jobs, Ray {client().ray_version()}")
        address = address_to_join()
        if not address:
            folder = rays_folder() or "TMPDIR, or /tmp"
            return Finding(
                True, "cluster", f"none named by RAY_ADDRESS: embedded, {available_cpus()} CPUs, its files in {folder}"
            )
        connect(0)
    except UserError as error:
        return Finding(False, "cluster", str(error))
    import ray

    return Finding(True, f"cluster {address}", f"{ray.cluster_resources().get('CPU', 0):g} CPUs")
