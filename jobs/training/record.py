"""What a run leaves beside its checkpoints on who trained it, with which code, on which data and machine.

began.json is written where the command is given, and machine.json where the computation is led: for a job on a cluster these
are two machines. Both are written once, by whoever is first; nothing is computed from them.
"""

import json
import platform
from contextlib import suppress
from importlib.metadata import version
from typing import Any

from jobs.documents import SMALL, Began, Machine, read_document
from jobs.project import author, code, now
from jobs.training.run import Planned
from pipeline.cpus import cpu_name
from pipeline.errors import UserError
from pipeline.params import FILE, read_params
from pipeline.storage import Folder, Storage
from pipeline.task import read_task

BEGAN, MACHINE = "began.json", "machine.json"
LIBRARIES = {"memoir": "memoir", "torch": "torch", "numpy": "numpy", "opencv": "opencv-python-headless", "ray": "ray"}


def began(planned: Planned) -> None:
    """Record who begins the run, when, with which code and on which data, unless that is recorded."""
    if BEGAN in planned.place.names(BEGAN):
        return
    built, listing = planned.built, planned.listing
    shard_bytes = None
    with suppress(UserError):  # the task may be of another checkout
        shard_bytes = read_task(listing["task"]).shard_bytes
    datasets = None
    with suppress(UserError):
        datasets = read_params(FILE).model_dump(mode="json")["datasets"]
    found = {
        "who": author(),
        "when": now(),
        **code()._asdict(),
        "data": str(built.root.resolve()) if isinstance(built, Folder) else built.uri,
        "shard_bytes": shard_bytes,
        "codec": listing["codec"],
        "licences": {name: of for each in planned.datasets.values() for name, of in each.listing["licences"].items()},
        "datasets": datasets,
        **({"started_from": planned.start.told()} if planned.start else {}),
    }
    _write(planned.place, BEGAN, found)


def on_this_machine(place: Storage) -> None:
    """Record Python, CPU and libraries of the process that leads a run's computation, unless that is recorded."""
    import torch

    found = {
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "libraries": libraries(),
    }
    _write(place, MACHINE, found)


def libraries() -> dict[str, str]:
    """The versions that are installed here."""
    return {name: version(package) for name, package in LIBRARIES.items()}


def recorded(place: Storage) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What a run has in began.json, {} if there is none, and in machine.json. Raises UserError for a damaged one."""
    found: list[dict[str, Any] | None] = []
    for name, kind in ((BEGAN, Began), (MACHINE, Machine)):
        try:
            data = place.read(name, SMALL)
        except FileNotFoundError:
            found.append(None)
        else:
            found.append(read_document(data, kind, f"{place.uri}/{name}", "remove it"))
    return found[0] or {}, found[1]


def _write(place: Storage, name: str, value: dict[str, Any]) -> None:
    with suppress(FileExistsError):
        place.write_new(name, (json.dumps(value, indent=1) + "\n").encode())
