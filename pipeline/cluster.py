"""Connecting to Ray: embedded in this process, or the cluster that RAY_ADDRESS names."""

import logging
import os
import platform
import re
import sys
import time

from pipeline.errors import UserError
from pipeline.shared_ray import offered

HTTP = ("http://", "https://")
TOKEN = (
    "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in "
    "~/.ray/auth_token"
)


def address_to_join() -> str:
    """RAY_ADDRESS, host:port or auto, of the cluster that Ray's tasks run on; "": embedded in this process.

    An http(s) address takes training jobs, see `jobs_address`; everything else then runs embedded.
    Raises UserError for Ray Client's ray://.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith("ray://"):
        raise UserError(
            f"RAY_ADDRESS={address}: Ray Client is not supported; http://<head>:8265 trains there through the Jobs API, "
            "and on a node of the cluster host:port joins it"
        )
    return "" if address.startswith(HTTP) else address


def jobs_address() -> str | None:
    """The http(s) address of a cluster's Jobs API, from RAY_API_SERVER_ADDRESS or RAY_ADDRESS; None where neither is one.

    Raises UserError for a RAY_API_SERVER_ADDRESS that is no http(s) address, and for Ray Client's ray://.
    """
    server = os.environ.get("RAY_API_SERVER_ADDRESS", "")
    if server and not server.startswith(HTTP):
        raise UserError(f"RAY_API_SERVER_ADDRESS={server}: not http://<head>:8265 or https://<host>")
    address_to_join()
    address = server or os.environ.get("RAY_ADDRESS", "")
    return address if address.startswith(HTTP) else None


def connect(cpus: int, *, gpus: int = 0, wait_seconds: float = 60) -> None:
    """Have Ray with at least this much free. Without a cluster to join, or a Ray that is offered (`memoir with-ray`), an
    embedded one of so many CPUs is started.

    What the cluster has and others use is waited for as long as it takes. Raises UserError when the cluster cannot be
    reached, or does not get as much within wait_seconds.
    """
    address = address_to_join()
    join = address or offered(cpus)  # before Ray is imported, which then looks whether it takes a token
    import ray
    from ray.exceptions import AuthenticationError

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES for CPU-only tasks
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a run beside anything else
    if ray.is_initialized():
        return
    try:
        if join:
            ray.init(address=join, logging_level=logging.ERROR, log_to_driver=False)
        else:
            ray.init(
                address="local",  # a cluster that `ray start` left on this machine is not joined by accident
                num_cpus=cpus,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=256 * 2**20,  # rows and records only: pixels never travel through it
                _temp_dir=_short_folder(),
            )
    except (OSError, RuntimeError, ValueError, AuthenticationError) as error:
        if other := re.search(r"cluster was started with:\s+Ray: (\S+)\s+Python: (\S+)", str(error)):
            raise UserError(
                f"{address}: the cluster has Ray {other[1]} and Python {other[2]}, here are Ray {ray.__version__} and "
                f"Python {platform.python_version()}; install the same releases on both"
            ) from None
        first = re.split(r"\.+ Ensure|\n", str(error).strip() or type(error).__name__)[0]
        hint = f"; if it takes a token, {TOKEN}" if address else ""
        raise UserError(f"cannot start or reach Ray ({address or 'embedded'}): {first}{hint}") from error
    wait_for(cpus, gpus=gpus, wait_seconds=wait_seconds if join else min(wait_seconds, 5))


def wait_for(cpus: int, *, gpus: int = 0, wait_seconds: float = 60) -> None:
    """Return when Ray has this much free, which others may use for as long as it takes.

    Raises UserError when it does not get as much within wait_seconds.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    address = address_to_join()
    deadline = time.monotonic() + wait_seconds
    told = asked = False
    for resource, needed in (("CPU", cpus), ("GPU", gpus)):
        while (free := ray.available_resources().get(resource, 0)) < needed:
            total = ray.cluster_resources().get(resource, 0)
            busy = bool(address) and total >= needed
            if address and not busy and not asked:
                request_resources(num_cpus=cpus, bundles=[{"GPU": 1}] * gpus)  # of an autoscaler, if there is one
                asked = True
            has = f"{needed} {resource}s are needed and Ray ({address or 'embedded'}) has {free:g} of {total:g} free"
            if not busy and time.monotonic() > deadline:
                raise UserError(
                    f"{has}: ask for fewer (build: --cpus; train: --set training.workers=..., training.gpu=false), add a "
                    "node, or wait"
                )
            if busy and not told:
                sys.stderr.write(f"{has}: waiting\n")
                told = True
            time.sleep(0.5)
    if asked:
        request_resources(num_cpus=0)  # from now on the work itself holds the nodes


def taken(cpus: int, *, gpus: int = 0) -> bool:
    """Whether the cluster that was joined has this much, and others use it."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    needed = {"CPU": cpus, "GPU": gpus}
    enough = all(total.get(name, 0) >= number for name, number in needed.items())
    return bool(address_to_join()) and enough and any(free.get(name, 0) < number for name, number in needed.items())
