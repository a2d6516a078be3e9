"""Connecting to Ray: embedded in this process, or the cluster that RAY_ADDRESS names."""

import logging
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.console import tell
from pipeline.errors import UserError
from pipeline.shared_ray import offered

HTTP = ("http://", "https://")
TOKEN = (
    "set RAY_AUTH_MODE=token, and the cluster's token in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, or in "
    "~/.ray/auth_token"
)


START_S = 600  # seconds that an embedded Ray may take to start, on a machine with other work
# Settings of an embedded Ray, whose processes otherwise give up when the start of another takes longer than 5 to 100 s.
PATIENT = {
    "RAY_gcs_server_port_wait_time_s": START_S,
    "RAY_gcs_rpc_server_connect_timeout_s": START_S,
    "RAY_worker_register_timeout_seconds": START_S,
    "RAY_agent_register_timeout_ms": 1000 * START_S,
    "RAY_health_check_timeout_ms": 60_000,
}
# The bytes that the system allows for a socket's path, and the bytes that Ray appends to its folder, as in
# /session_2026-11-29_05-04-45_123456_4194304/sockets/plasma_store.
PATH_BYTES, SOCKET_BYTES = 103, 65


def address_to_join() -> str:
    """The RAY_ADDRESS, host:port or auto, of the cluster that runs Ray's tasks; "" if Ray is embedded in this process.

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
    """Connect to a Ray with at least this much free. Where there is no cluster to join and no Ray on offer
    (`memoir with-ray`), start an embedded Ray with this many CPUs.

    It waits without limit for what others use on the cluster, and START_S for an embedded Ray that starts late.
    Raises UserError when Ray cannot be started or reached, or does not get as much within wait_seconds.
    """
    address = address_to_join()
    join = address or offered(cpus)  # before Ray is imported, since the import checks whether a token is needed
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # keep CUDA_VISIBLE_DEVICES for CPU-only tasks
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 starves a run beside anything else
    if ray.is_initialized():
        return
    try:
        if join:
            ray.init(address=join, logging_level=logging.ERROR, log_to_driver=False)
        else:
            for variable, seconds in PATIENT.items():
                os.environ.setdefault(variable, str(seconds))
            folder = rays_folder()
            with _patiently():
                ray.init(
                    address="local",  # a cluster that `ray start` left on this machine is not joined by accident
                    num_cpus=cpus,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    log_to_driver=False,
                    object_store_memory=256 * 2**20,  # rows and records only: pixels never travel through it
                    _temp_dir=folder,  # documented, in spite of its name
                )
    except UserError:
        raise
    except Exception as error:  # Ray raises Exception itself here; no code of ours runs inside
        if other := re.search(r"cluster was started with:\s+Ray: (\S+)\s+Python: (\S+)", str(error)):
            raise UserError(
                f"{address}: the cluster has Ray {other[1]} and Python {other[2]}, here are Ray {ray.__version__} and "
                f"Python {platform.python_version()}; install the same releases on both"
            ) from None
        first = re.split(r"\.+ Ensure|\n", str(error).strip() or type(error).__name__)[0]
        hint = f"; if it takes a token, {TOKEN}" if address else ""
        raise UserError(f"cannot start or reach Ray ({address or 'embedded'}): {first}{hint}") from error
    if not address:
        wait_for(cpus, wait_seconds=START_S)  # they are ours, as soon as all of Ray runs
    wait_for(cpus, gpus=gpus, wait_seconds=wait_seconds if join else min(wait_seconds, 5))


@contextmanager
def _patiently() -> Iterator[None]:
    """Make `ray.init` wait for its own node as long as the node is starting, not 30 s (Ray 2.60 has no setting for it).

    And start none of the processes that nobody asks anything of here, each of which takes one or two seconds of a CPU.
    """
    import psutil

    # This uses a private function: Ray calls `services.get_node` repeatedly during the 30 s, so it waits if a call waits.
    # A setting for the 30 s would be public. tests/jobs/test_ray_contract.py fails when a new Ray moves the function.
    from ray._private import services

    get_node: Callable[..., Any] = services.get_node
    began, told = time.monotonic(), False

    def wait_for_node(*arguments: Any) -> Any:
        nonlocal told
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                running = [each.status() for each in psutil.Process().children() if "raylet" in each.name()]
                if time.monotonic() - began > START_S or not set(running) - {psutil.STATUS_ZOMBIE}:
                    raise
            if not told and time.monotonic() - began > 15:
                tell("Ray starts slowly, this machine has other work: waiting")
                told = True
            time.sleep(0.5)

    # Private, too: the API server, of which `include_dashboard=False` leaves usage statistics; the autoscaler, of a single node;
    # and what carries the workers' output, which `log_to_driver=False` throws away. Public instead: that these settings do.
    from ray._private.node import Node

    def start_none(node: Any, **_: Any) -> None:
        node._webui_url = None

    theirs = {name: getattr(Node, name) for name in ("start_api_server", "start_monitor", "start_log_monitor")}
    services.get_node = wait_for_node
    for name in theirs:
        setattr(Node, name, start_none)
    try:
        yield
    finally:
        services.get_node = get_node
        for name, start in theirs.items():
            setattr(Node, name, start)


def rays_folder() -> str | None:
    """Where an embedded Ray puts its files: RAY_TMPDIR, or below TMPDIR (None), or below /tmp where TMPDIR's path is long.

    Its sockets lie there, and the system limits their paths. Raises UserError for a long RAY_TMPDIR, or if /tmp does not help.
    """
    chosen = os.environ.get("RAY_TMPDIR")
    room = PATH_BYTES - SOCKET_BYTES
    if chosen:
        if len(os.fsencode(chosen)) > room:
            raise UserError(
                f"RAY_TMPDIR={chosen}: {len(os.fsencode(chosen))} characters, and Ray's sockets leave {room}; name a shorter "
                "folder, e.g. /tmp"
            )
        return chosen
    folder = os.environ.get("TMPDIR", "/tmp")
    if len(os.fsencode(f"{folder}/ray")) <= room:
        return None
    if not os.access("/tmp", os.W_OK):
        raise UserError(
            f"TMPDIR={folder}: too long for the paths of Ray's sockets, and /tmp cannot be written; name a folder of at most "
            f"{room} characters in RAY_TMPDIR"
        )
    short = Path(f"/tmp/ray-{os.getuid()}")
    short.mkdir(mode=0o700, exist_ok=True)
    if short.stat().st_uid != os.getuid():
        raise UserError(f"{short}: belongs to somebody else; name a short folder of your own in RAY_TMPDIR")
    return str(short)


@contextmanager
def explained() -> Iterator[None]:
    """Turn the errors of Ray itself, see `trouble`, into UserError."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        if line := trouble(error):
            raise UserError(line) from None
        raise


def trouble(error: BaseException) -> str | None:
    """One line that says what is wrong with Ray, its nodes or their space; None for errors of its tasks and for defects."""
    from ray import exceptions as e

    again = "the same command continues"
    lines: list[tuple[type[BaseException] | tuple[type[BaseException], ...], str]] = [
        (
            e.OutOfMemoryError,
            f"the memory of a node was full, and Ray ended a worker; use fewer CPUs or workers; {again}",
        ),
        (
            e.OutOfDiskError,
            f"the disk of Ray's folder is full; make room there, or name another in RAY_TMPDIR; {again}",
        ),
        (e.ObjectStoreFullError, f"Ray's object store is full; end what else uses it; {again}"),
        (e.RuntimeEnvSetupError, f"Ray could not prepare a worker's environment: {_first_line(error)}"),
        (e.AuthenticationError, f"{_first_line(error)}; {TOKEN}"),
        (e.PlasmaObjectNotAvailable, f"an object of Ray's is gone with its node; {again}"),
        (
            (e.NodeDiedError, e.LocalRayletDiedError, e.WorkerCrashedError, e.RayActorError, e.ObjectLostError),
            f"a worker of Ray or its node was lost ({type(error).__name__}); {again}",
        ),
        (
            (e.GetTimeoutError, e.RpcError, e.RaySystemError, e.TaskUnschedulableError, e.ActorUnschedulableError),
            f"Ray does not answer or has no room ({_first_line(error)}); {again}",
        ),
    ]
    return next((line for kind, line in lines if isinstance(error, kind)), None)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def wait_for(cpus: int, *, gpus: int = 0, wait_seconds: float = 60) -> None:
    """Return when Ray has this much free. It waits without limit while others use it.

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
                request_resources(num_cpus=cpus, bundles=[{"GPU": 1}] * gpus)  # asks the autoscaler, if there is one
                asked = True
            has = f"{needed} {resource}s are needed and Ray ({address or 'embedded'}) has {free:g} of {total:g} free"
            if not busy and time.monotonic() > deadline:
                raise UserError(
                    f"{has}: ask for fewer (build: --cpus; train: --set training.workers=..., training.gpu=false), add a "
                    "node, or wait"
                )
            if busy and not told:
                tell(f"{has}: waiting")
                told = True
            time.sleep(0.5)
    if asked:
        request_resources(num_cpus=0)  # from now on the work itself holds the nodes


def taken(cpus: int, *, gpus: int = 0) -> bool:
    """Whether the cluster that was joined has this much in total, but others use it."""
    import ray

    free, total = ray.available_resources(), ray.cluster_resources()
    needed = {"CPU": cpus, "GPU": gpus}
    enough = all(total.get(name, 0) >= number for name, number in needed.items())
    return bool(address_to_join()) and enough and any(free.get(name, 0) < number for name, number in needed.items())
