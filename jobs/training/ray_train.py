"""Training with Ray Train: its workers, their restarts, and what its failures mean.

This is the only file that knows how Ray Train is made inside (Ray 2.60). What it uses of that is marked "Private", with the
reason and the public way that would do instead; tests/jobs/test_ray_contract.py says which of it a new Ray has moved.
"""

import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

import ray
import ray.train
from ray import exceptions as e
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import (
    InsufficientClusterResourcesError,
    WorkerGroupStartupFailedError,
    WorkerGroupStartupTimeoutError,
)
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, FixedScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.arithmetic import PORTABLE
from jobs.recipe import Recipe, Training, packed
from jobs.training.feed import Feed, shown
from jobs.training.trackers import variables
from pipeline.cluster import address_to_join, taken, trouble, wait_for
from pipeline.errors import MENDABLE, UserError
from pipeline.storage import Folder, Storage

WITHOUT_ROOM_S = 600  # after which the run ends if workers find no room again and again
PAUSE_S = 10  # between two starts of the workers, after one that failed

Worker = Callable[[dict[str, Any]], dict[str, str]]


def fit(
    worker: Worker, recipe: Recipe, run: str, data: dict[str, str], place: Storage, *, cpus: int, gpus: int
) -> str | None:
    """Run Ray Train to the end; returns the name of the final checkpoint's folder in `place`, or None for a run that pauses.

    data: datasets by task. worker: what each rank runs, on a dictionary of sent (the recipe, packed), data, place, feed and here; it returns
    {"checkpoint": name}, {"paused": name}, or what `Feed.fatal` says. cpus, gpus: what every start needs. Raises UserError for what the user
    can mend, and RuntimeError for a defect.
    """
    training = recipe.training
    logging.getLogger("ray.train").setLevel(logging.ERROR)
    if not address_to_join():  # a Ray of this machine alone
        os.environ.setdefault(
            "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0"
        )  # nobody gives notice that its node will be taken
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # and a look at its workers costs nothing
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    feed = ray.remote(num_cpus=0)(Feed).options(scheduling_strategy=here).remote()  # lost with this process's node
    with tempfile.TemporaryDirectory(prefix="memoir-ray-") as scratch:
        trainer = _trainer(worker, recipe, run, data, place, feed, scratch)
        with shown(run, feed):
            try:
                returned = _fit_again(trainer, feed, training.max_failures, cpus=cpus, gpus=gpus)
            except (ray.train.TrainingFailedError, e.RayError) as error:
                fatal: dict[str, str] = {}
                with suppress(e.RayError):  # the feed is lost with its node
                    fatal = ray.get(feed.fatal.remote(), timeout=10)
                if fatal:
                    raise _ended(run, fatal) from None
                failure = classify(error)
                if failure.kind is Kind.DEFECT:
                    raise RuntimeError(
                        f"training {run} failed and its {training.max_failures} restarts are used up"
                    ) from error
                raise UserError(told(failure, run, place, training)) from None
    if "paused" in returned:
        return None
    if "checkpoint" not in returned:
        raise _ended(run, returned)
    return str(returned["checkpoint"])


def _ended(run: str, fatal: dict[str, str]) -> Exception:
    """The exception for what `Feed.fatal` says."""
    if "error" in fatal:
        return UserError(fatal["error"])
    return RuntimeError(f"training {run} failed: {fatal['defect']}")


def _fit_again(trainer: "Trainer", feed: Any, max_failures: int, *, cpus: int, gpus: int) -> Any:
    """What the workers return; where they do not start, or their controller is lost, they are started again by a new one.

    A controller of Ray's that tries again by itself waits for room that the workers of a start which failed halfway still
    hold (Ray 2.60). Raises Ray's TrainingFailedError or RayActorError when that happened max_failures times in a row after
    the first, or when they found no room for WITHOUT_ROOM_S, although nobody had taken it.
    """
    on_sigint = signal.getsignal(signal.SIGINT)
    reached, since, failed = None, time.monotonic(), 0
    while True:
        try:
            return trainer.fit().return_value
        except (ray.train.ControllerError, e.RayActorError) as error:
            failure: Exception = error
        finally:
            if threading.current_thread() is threading.main_thread():
                # Private: `fit` leaves a handler behind that exits with 0. Public instead: one that `fit` takes away.
                signal.signal(signal.SIGINT, on_sigint)
        _remove_placement_groups()
        before = reached
        with suppress(e.RayError):  # the feed is lost with its node
            reached = ray.get(feed.get.remote(0), timeout=10)
        if reached != before:  # they trained meanwhile
            since, failed = time.monotonic(), 0
        if classify(failure).kind is not Kind.NO_ROOM:
            failed += 1
            if failed > max_failures:
                raise failure
            time.sleep(PAUSE_S)
        elif taken(cpus, gpus=gpus):  # another job was faster to take what was free
            wait_for(cpus, gpus=gpus, wait_seconds=WITHOUT_ROOM_S)
            since = time.monotonic()
        elif time.monotonic() - since > WITHOUT_ROOM_S:
            raise failure


def _remove_placement_groups() -> None:
    """Free what the workers of this job held: Ray does so when the job ends, but not when their controller ends."""
    # Private: a placement group's id ends with its job's. Public instead: the job in each row of the table.
    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


# what ended it


class Kind(Enum):
    """Whose fault a failure is, and so what to do."""

    MISTAKE = "the user's: a mistake that our code has told, a full disk, a store that is away"
    NO_ROOM = "workers were not started, for want of CPUs or GPUs"
    MENDABLE = "Ray's or a node's: its memory, its disk, a token, an answer that did not come"
    LOST = "processes or nodes went away, whatever the others then ran into"
    DEFECT = "ours"


class Failure(NamedTuple):
    """Why training ended. detail: what is known of it; one line for a MISTAKE and a MENDABLE."""

    kind: Kind
    detail: str = ""


# Private: only their classes tell a start without room from one that failed, and both from a defect of Ray's. Public instead:
# these three in ray.train, as TrainingFailedError is.
NO_ROOM = (InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError)
SPENT = (e.OutOfMemoryError, e.OutOfDiskError, e.ObjectStoreFullError, e.RuntimeEnvSetupError, e.AuthenticationError)
LOST = (e.NodeDiedError, e.RayActorError, e.WorkerCrashedError, WorkerGroupStartupFailedError)


def classify(error: BaseException) -> Failure:
    """Decide what ended Ray Train, from anything that `fit` can raise: its own errors with their causes, and Ray's."""
    causes = list(_causes(error))
    for cause in causes:
        if isinstance(cause, UserError):
            return Failure(Kind.MISTAKE, str(cause))
        if isinstance(cause, OSError) and cause.errno in MENDABLE:
            return Failure(Kind.MISTAKE, ": ".join(str(part) for part in (cause.filename, cause.strerror) if part))
    if isinstance(getattr(error, "controller_failure", None), NO_ROOM):
        return Failure(Kind.NO_ROOM)
    for cause in causes:  # before the loss of a worker, which is what follows from it
        if isinstance(cause, SPENT):
            return Failure(Kind.MENDABLE, trouble(cause) or "")
    if any(isinstance(cause, LOST) for cause in causes):
        return Failure(Kind.LOST)
    for cause in causes:
        if detail := trouble(cause):
            return Failure(Kind.MENDABLE, detail)
    return Failure(Kind.DEFECT)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The errors behind a failure of Ray Train, of each worker and of the controller, down to the first cause."""
    for cause in (*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None), error):
        while cause is not None:
            yield cause
            # Private: in these two Ray wraps what a worker raised, and what its health check met. Public instead: __cause__.
            inner = getattr(cause, "_base_exc", None) or getattr(cause, "health_check_failure", None)
            cause = inner or cause.__cause__ or cause.__context__


def told(failure: Failure, run: str, place: Storage, training: Training) -> str:
    """The message for a failure that is no defect."""
    again = "the same command continues"
    match failure.kind:
        case Kind.MISTAKE:
            return f"{place.uri}: training failed: {failure.detail}; mend it, and {again}"
        case Kind.NO_ROOM:
            return f"{run}: the cluster had no room for {training.workers} workers; {_room(training)}"
        case Kind.LOST:
            return (
                f"{run}: workers or their nodes were lost, more often than the {training.max_failures} times that "
                f"training.max_failures allows, or with the node of this process; {again}"
            )
    return f"{run}: {failure.detail}"


def _room(training: Training) -> str:
    """What the cluster has of the resources that the workers need."""
    there = ray.cluster_resources()
    needed = {"CPU": training.cpus_per_worker, **({"GPU": 1} if training.gpu else {})}
    return ", ".join(
        f"{name}: each needs {number}, and there are {there.get(name, 0):g}" for name, number in needed.items()
    )


# what is inside Ray Train


def _trainer(
    worker: Worker, recipe: Recipe, run: str, data: dict[str, str], place: Storage, feed: Any, scratch: str
) -> "Trainer":
    """Ray's trainer for a recipe. scratch: a folder for what Ray wants to keep, which is nothing."""
    training = recipe.training
    where = str(place.root.resolve()) if isinstance(place, Folder) else place.uri
    given = {**(PORTABLE if training.portable else {}), **variables(training.track)}
    return Trainer(
        worker,
        batch=math.gcd(
            *(data.batch for data in recipe.data.in_stages)
        ),  # what divides it divides the batch of each stage
        train_loop_config={"sent": packed(recipe), "data": data, "place": where, "feed": feed, "here": str(Path.cwd())},
        backend_config=Group("nccl" if training.gpu else "gloo", timeout_s=int(2 * training.hang_s) + 1),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers,
            elastic_resize_monitor_interval_s=training.resize_every_s,
            use_gpu=training.gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": 1} if training.gpu else {})},
            placement_strategy="SPREAD" if training.spread else "PACK",
        ),
        run_config=ray.train.RunConfig(
            name=run,
            # Nothing is left to Ray here: jobs.training.resume keeps the checkpoints, which then outlive Ray's versions,
            # are verified when they are read, and need no file system of pyarrow's.
            storage_path=scratch,
            failure_config=ray.train.FailureConfig(
                max_failures=training.max_failures,
                controller_failure_limit=0,  # see _fit_again
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
            worker_runtime_env={"env_vars": given} if given else None,
        ),
    )


class Group(BackendConfig):
    """torch's process group of the workers, as Ray's TorchConfig makes it.

    That one is in a module that imports torch, and so do the command and Ray's controller then, each for a second or two; only
    the workers compute.
    """

    def __init__(self, backend: str, timeout_s: int) -> None:
        """backend: gloo or nccl. timeout_s: of its collectives."""
        self.backend, self.timeout_s = backend, timeout_s

    @property
    def backend_cls(self) -> type[Backend]:
        """See BackendConfig."""
        return _Group


class _Group(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Group) -> None:
        """Have all workers join the group."""
        address = worker_group.execute_single(0, _address)
        W = len(worker_group)
        how = (backend_config.backend, address, W, backend_config.timeout_s)
        ray.get([worker_group.execute_single_async(rank, _join, rank, *how) for rank in range(W)])

    def on_shutdown(self, worker_group: Any, backend_config: Group) -> None:
        """Have them leave it, as far as they still can."""
        with suppress(e.GetTimeoutError):
            ray.get(worker_group.execute_async(_leave), timeout=5)


def _address() -> str:
    """Where the first rank can be reached, in its process."""
    host = ray.util.get_node_ip_address()
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"


def _join(rank: int, backend: str, address: str, world_size: int, timeout_s: int) -> None:
    import torch.distributed as dist

    dist.init_process_group(backend, address, timedelta(seconds=timeout_s), world_size, rank)


def _leave() -> None:
    import torch.distributed as dist

    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.destroy_process_group()


# Private: the class that TorchTrainer is made of, whose module has no torch. Public instead: the same with a name in ray.train.
class Trainer(DataParallelTrainer):
    """Ray's trainer with two changes of what is inside it."""

    def __init__(self, worker: Worker, *, batch: int, **options: Any) -> None:
        """batch: the size of the global batch, which the number of workers divides."""
        super().__init__(worker, **options)
        self.batch = batch

    def _initialize_and_run_controller(self, **options: Any) -> Any:
        # Private: `fit` makes the policy itself. Public instead: an argument for one, or of ScalingConfig for `Policy`.
        if isinstance(options["scaling_policy"], ElasticScalingPolicy):
            options["scaling_policy"] = Policy(self.scaling_config, self.batch)
        elif not address_to_join():
            options["scaling_policy"] = Alone(self.scaling_config)
        return super()._initialize_and_run_controller(**options)

    def _create_default_callbacks(self) -> list[Any]:
        # Private: Ray's PlacementGroupCleaner is left out. It is detached from the job to free the room of a lost controller,
        # which `_remove_placement_groups` does, and the end of the job; and it stays for good if the job ends before it has
        # begun. Public instead: a setting that leaves it out, or one that ends with its job.
        # Ray's datasets are left out, too: there are none, and their manager is a process that takes seconds to start.
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, (PlacementGroupCleanerCallback, DatasetsCallback))]


class Policy(ElasticScalingPolicy):
    """Takes a number of workers in [min, max] that divides the global batch, not whatever the cluster has free."""

    def __init__(self, scaling_config: ray.train.ScalingConfig, batch: int) -> None:
        super().__init__(scaling_config)
        self.batch = batch

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        # Private: the policy's own count. Public instead: a list of numbers in ScalingConfig, or a step between them.
        W = super()._count_possible_workers(reserved_resources)
        return max((fewer for fewer in range(1, W + 1) if self.batch % fewer == 0), default=0)


class Alone(FixedScalingPolicy):
    """Of a Ray of this machine alone: asks no autoscaler for room, whose coordinator is a process that takes seconds to start."""

    # Private: these two are what asks. Public instead: a setting that says that there is no autoscaler.
    def after_controller_start(self, train_run_context: Any) -> None: ...

    def _maybe_send_resource_request(self) -> None: ...


def preemption() -> Any:
    """In a worker: Ray's PreemptionInfo when the node of a rank will be taken, else None."""
    # Private: ray.train.get_preemption_info asks the other ranks through an actor: a cut in the network loses the answer,
    # and the rank would wait for it without end. Public instead: the same without asking, or with a timeout.
    return get_train_context().preemption_context.preemption_info
