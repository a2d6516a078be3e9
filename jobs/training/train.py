"""Ray Train around the loop: DDP workers, checkpoints in the store, resume by the run's own name."""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.documents import SMALL, Done, State, read_document, read_records
from jobs.recipe import Recipe, Training, packed, read_recipe, unpacked
from jobs.training.arithmetic import COST, PORTABLE, native_bf16
from jobs.training.origin import begin, digest, origin, own_source
from jobs.training.resume import Checkpoints
from pipeline.cluster import address_to_join, connect, jobs_address, taken, trouble, wait_for
from pipeline.cpus import available_cpus
from pipeline.errors import MENDABLE, UserError
from pipeline.images import write_bytes
from pipeline.shards.format import read_shards_json, samples_digest
from pipeline.storage import Folder, Storage, UnavailableError, storage

if TYPE_CHECKING:
    from jobs.training.loop import Run

WITHOUT_ROOM_S = 600  # in which workers found no room again and again, until the run ends
PAUSE_S = 10  # between two starts of the workers, after one that failed


class Planned(NamedTuple):
    """A training run before it begins.

    name: of the recipe. run: its name in the store, with a digest of data, recipe and code, its origin. built: the dataset, and what its
    shards.json lists. place: the run's folder in the store.
    """

    name: str
    recipe: Recipe
    run: str
    origin: dict[str, Any]
    built: Storage
    listing: dict[str, Any]
    store: Storage
    place: Storage


def plan_run(recipe_name: str, *, data: str, store: str, overrides: list[str] | None = None) -> Planned:
    """What `train` would do. Raises UserError for a mistake in the recipe, data or store."""
    recipe = read_recipe(recipe_name, overrides)
    name = Path(recipe_name).stem
    built = storage(f"{data.rstrip('/')}/{recipe.data.task}")
    listing = read_shards_json(built)
    made_of = origin(recipe, samples_digest(listing))
    run = f"{name}-{digest(made_of)}"
    place = storage(f"{store.rstrip('/')}/runs/{run}")
    return Planned(name, recipe, run, made_of, built, listing, storage(store), place)


def train(
    recipe_name: str,
    *,
    data: str,
    store: str,
    runs: Path,
    overrides: list[str] | None = None,
    run: str | None = None,
) -> dict[str, Any]:
    """Train a recipe on data/<task> and leave its final checkpoint in <store>/runs/<run>; returns the pointer to it.

    data, store: a folder or s3://bucket/prefix. The run's name carries a digest of data, recipe and code: the same command
    continues a killed run, finds a finished one and never mixes two. With an http(s) address of a Ray cluster it trains
    there. run: that it must be, of a job on that cluster. Writes runs/<recipe>/checkpoint.json (the pointer),
    metrics.json and curve.tsv. Raises UserError for a mistake in the recipe, data, store or cluster.
    """
    planned = plan_run(recipe_name, data=data, store=store, overrides=overrides)
    name, place = planned.name, planned.place
    if run not in (None, planned.run):
        raise UserError(f"{recipe_name}: here it is the run {planned.run}, not {run}: other code, shards or recipe")
    if "done.json" not in place.names("done.json"):
        if run is None and jobs_address():
            from jobs.training.submit import train_there

            train_there(planned)
        else:
            recipe = planned.recipe
            if run is not None:
                from jobs.training.submit import with_weights

                recipe = with_weights(recipe, planned.store)
            if line := begin(planned.store, name, planned.origin):
                sys.stderr.write(f"{line}\n")
            shards = str(planned.built.root.resolve()) if isinstance(planned.built, Folder) else planned.built.uri
            place.write_new("done.json", json.dumps({"checkpoint": _fit(recipe, planned.run, shards, place)}).encode())
    try:
        pointer, records = _result(planned)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, of a run that has ended; bring it back, or remove {place.uri} and train again"
        ) from None
    final = {key: value for record in records for key, value in record.items()}
    metrics = {key: final[key] for key in ("step", "loss", "psnr", "val_psnr") if key in final}
    write_bytes(runs / name / "checkpoint.json", _json(pointer))
    write_bytes(runs / name / "metrics.json", _json(metrics))
    write_bytes(runs / name / "curve.tsv", _curve(records).encode())
    return pointer


def _result(planned: Planned) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The pointer to the final checkpoint of a run that has ended, and its records. Raises FileNotFoundError, UserError."""
    place, listing = planned.place, planned.listing
    done = read_document(place.read("done.json", SMALL), Done, f"{place.uri}/done.json", "train again")
    checkpoint = storage(f"{place.uri}/{done['checkpoint']}")
    state = read_document(checkpoint.read("state.json", SMALL), State, f"{checkpoint.uri}/state.json", "train again")
    pointer = {
        "recipe": planned.name,
        "run": planned.run,
        "uri": checkpoint.uri,
        "sha256": checkpoint.sha256("model.safetensors"),
        "step": state["step"],
        "precision": state["precision"],
        "notes": state.get("notes", []),
        **({"source": source} if (source := own_source(planned.origin)) else {}),
        "data": {
            name: listing[name] for name in ("task", "digest", "colour", "bits", "degradation", "negatives", "splits")
        },
    }
    records = read_records(place.read("metrics.jsonl"), f"{place.uri}/metrics.jsonl", "train again")
    return pointer, records


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _curve(records: list[dict[str, Any]]) -> str:
    """The curve for `dvc plots`: one row per logged step; a validation falls on the row of its step."""
    columns = ("step", "loss", "psnr", "val_psnr", "lr")
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        rows.setdefault(record["step"], {}).update(record)
    lines = ["\t".join(str(row.get(column, "")) for column in columns) for _, row in sorted(rows.items())]
    return "\n".join(["\t".join(columns), *lines]) + "\n"


def _fit(recipe: Recipe, run: str, data: str, place: Storage) -> str:
    """Run Ray Train to the end and return the name of the final checkpoint's folder in `place`."""
    training = recipe.training
    patience = float(os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120"))
    embedded = not address_to_join()
    cpus = training.most * training.cpus_per_worker
    needed = max(cpus, available_cpus()) if embedded else training.fewest * training.cpus_per_worker
    gpus = training.fewest if training.gpu else 0
    connect(needed, gpus=gpus, wait_seconds=patience)
    if training.most > training.fewest:  # else Ray waits as long for a worker whose node it does not know to be lost
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    import ray
    import ray.train
    from ray.train.torch import TorchConfig

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    where = str(place.root.resolve()) if isinstance(place, Folder) else place.uri
    feed = ray.remote(num_cpus=0)(Feed).options(scheduling_strategy=_here()).remote()
    stop = threading.Event()
    bar = threading.Thread(target=_show, args=(run, feed, stop), daemon=True)
    with tempfile.TemporaryDirectory(prefix="memoir-ray-") as scratch:
        trainer = _trainer_class(recipe)(
            _worker,
            train_loop_config={
                "sent": packed(recipe),
                "data": data,
                "place": where,
                "feed": feed,
                "here": str(Path.cwd()),
            },
            torch_config=TorchConfig(
                backend="nccl" if training.gpu else "gloo", timeout_s=int(2 * training.hang_s) + 1
            ),
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
                worker_runtime_env={"env_vars": PORTABLE} if training.portable else None,
            ),
        )
        bar.start()
        try:
            returned = _fit_again(trainer, feed, training.max_failures, cpus=needed, gpus=gpus)
        except (ray.train.TrainingFailedError, ray.exceptions.RayError) as error:
            fatal: dict[str, str] = {}
            with suppress(ray.exceptions.RayError):  # the feed is lost with its node
                fatal = ray.get(feed.fatal.remote(), timeout=10)
            if fatal:
                raise _ended(run, fatal) from None
            if line := _said(error, run, place, training):
                raise UserError(line) from None
            raise RuntimeError(f"training {run} failed and its {training.max_failures} restarts are used up") from error
        finally:
            stop.set()
            bar.join()
    if "checkpoint" not in returned:
        raise _ended(run, returned)
    return str(returned["checkpoint"])


def _said(error: Exception, run: str, place: Storage, training: Training) -> str | None:
    """What of the user's, or of the cluster's, ended Ray Train, in one line; None of a defect.

    Everything that `fit` can raise comes here: Ray Train's errors with the causes that they wrap, and Ray's own.
    """
    from ray import exceptions as e

    spent = (
        e.OutOfMemoryError,
        e.OutOfDiskError,
        e.ObjectStoreFullError,
        e.RuntimeEnvSetupError,
        e.AuthenticationError,
    )
    if mendable := _mendable(error):
        return f"{place.uri}: training failed: {mendable}; mend it, and the same command continues"
    if _without_room(error):
        return f"{run}: the cluster had no room for {training.workers} workers; {_room(training)}"
    for cause in _causes(error):  # before the loss of a worker, which is what follows from it
        if isinstance(cause, spent) and (line := trouble(cause)):
            return f"{run}: {line}"
    if _lost(error):
        return (
            f"{run}: workers or their nodes were lost, more often than the {training.max_failures} times that "
            "training.max_failures allows, or with the node of this process; the same command continues"
        )
    line = next((line for cause in _causes(error) if (line := trouble(cause))), None)
    return line and f"{run}: {line}"


def _ended(run: str, fatal: dict[str, str]) -> Exception:
    """What to raise for what `Feed.fatal` says."""
    if "error" in fatal:
        return UserError(fatal["error"])
    return RuntimeError(f"training {run} failed: {fatal['defect']}")


def _trainer_class(recipe: Recipe) -> Any:
    """Ray's TorchTrainer with two changes of what is inside it (Ray 2.60).

    Of [min, max] workers it takes numbers that divide the global batch, not whatever the cluster has free.

    Its PlacementGroupCleaner is left out. It is detached from the job to free the room of a lost controller, which
    `_remove_placement_groups` does, and the end of the job; and it stays for good if the job ends before it has begun.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

    B = recipe.data.batch

    class Policy(ElasticScalingPolicy):
        def _count_possible_workers(self, reserved_resources: Any) -> int:
            W = super()._count_possible_workers(reserved_resources)
            return max((fewer for fewer in range(1, W + 1) if B % fewer == 0), default=0)

    class Trainer(TorchTrainer):
        def _initialize_and_run_controller(self, **options: Any) -> Any:
            if isinstance(options["scaling_policy"], ElasticScalingPolicy):
                options["scaling_policy"] = Policy(self.scaling_config)
            return super()._initialize_and_run_controller(**options)

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if not isinstance(each, PlacementGroupCleanerCallback)]

    return Trainer


def _fit_again(trainer: Any, feed: Any, max_failures: int, *, cpus: int, gpus: int) -> Any:
    """What the workers return; where they do not start, or their controller is lost, they are started again by a new one.

    A controller of Ray's that tries again by itself waits for room that the workers of a start which failed halfway still
    hold (Ray 2.60). Raises Ray's TrainingFailedError or RayActorError when that happened max_failures times in a row after
    the first, or when they found no room, which nobody had taken, for WITHOUT_ROOM_S.
    """
    import ray
    import ray.train

    on_sigint = signal.getsignal(signal.SIGINT)
    reached, since, failed = None, time.monotonic(), 0
    while True:
        try:
            return trainer.fit().return_value
        except (ray.train.ControllerError, ray.exceptions.RayActorError) as error:
            failure: Exception = error
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, on_sigint)  # Ray's exits with 0 from now on
        _remove_placement_groups()
        before = reached
        with suppress(ray.exceptions.RayError):  # the feed is lost with its node
            reached = ray.get(feed.get.remote(0), timeout=10)
        if reached != before:  # they trained meanwhile
            since, failed = time.monotonic(), 0
        if not _without_room(failure):
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
    """Free what the workers of this job held: Ray does so when the job ends, and not when their controller has."""
    import ray
    from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

    job = ray.get_runtime_context().get_job_id()
    for name, group in placement_group_table().items():
        if name.endswith(job) and group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(name)))


def _without_room(error: Exception) -> bool:
    """Whether workers were not started, for want of CPUs or GPUs."""
    from ray.train.v2._internal.exceptions import InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError

    failure = getattr(error, "controller_failure", None)
    return isinstance(failure, (InsufficientClusterResourcesError, WorkerGroupStartupTimeoutError))


def _causes(error: Exception) -> Iterator[BaseException]:
    """What is behind a failure of Ray Train: of each worker, and of the controller, down to the first cause."""
    for cause in (*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None), error):
        while cause is not None:
            yield cause
            inner = getattr(cause, "_base_exc", None) or getattr(cause, "health_check_failure", None)  # Ray's wrappers
            cause = inner or cause.__cause__ or cause.__context__


def _lost(error: Exception) -> bool:
    """Whether processes went away, whatever the others then ran into."""
    from ray.exceptions import NodeDiedError, RayActorError, WorkerCrashedError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    lost = (NodeDiedError, RayActorError, WorkerCrashedError, WorkerGroupStartupFailedError)
    return any(isinstance(cause, lost) for cause in _causes(error))


def _here() -> Any:
    """Scheduling on the driver's node and no other, with which it would be lost."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def _room(training: Training) -> str:
    """What the cluster has, of what the workers need."""
    import ray

    there = ray.cluster_resources()
    needed = {"CPU": training.cpus_per_worker, **({"GPU": 1} if training.gpu else {})}
    return ", ".join(
        f"{name}: each needs {number}, and there are {there.get(name, 0):g}" for name, number in needed.items()
    )


def _mendable(error: Exception) -> str | None:
    """What the user can mend, in a failure of Ray Train's workers or controller: a full disk, a store that is away."""
    for cause in _causes(error):
        if isinstance(cause, OSError) and cause.errno in MENDABLE:
            return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
        if isinstance(cause, UserError):
            return str(cause)
    return None


class Feed:
    """An actor between the workers and the process that shows what they say."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}
        self.notes: list[str] = []
        self.error: str | None = None
        self.defect: str | None = None
        self.met: set[tuple[int, int, str]] = set()

    def put(self, record: dict[str, Any]) -> None:
        """Merge a record of rank 0 into what is shown."""
        self.last |= record

    def note(self, line: str) -> None:
        """Something to be told once."""
        self.notes.append(line)

    def get(self, told: int) -> tuple[dict[str, Any], list[str]]:
        """The latest values, and the notes after the first so many."""
        return self.last, self.notes[told:]

    def fail(self, error: str) -> None:
        """A mistake of the user's that one rank has met: the others learn of it when they start again."""
        self.error = error

    def defects(self, rank: int, step: int, error: str, trace: str) -> None:
        """A defect that a rank has met at a step: if it has met it there before, no start will get beyond it."""
        if (rank, step, error) in self.met:
            self.defect = f"rank {rank} met it again at step {step}, so there is no use in another start:\n{trace}"
        self.met.add((rank, step, error))

    def fatal(self) -> dict[str, str]:
        """What ended the run: {"error": a mistake of the user's} or {"defect": one of ours}; or nothing."""
        ends = {"error": self.error, "defect": self.defect}
        return {name: text for name, text in ends.items() if text}


def _show(run: str, feed: Any, stop: threading.Event) -> None:
    """A progress bar of the latest values until `stop` is set; plain lines where there is no terminal."""
    import ray

    text = "{task.fields[shown]}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn(text)
    ) as bar:
        task = bar.add_task(run, total=None, shown="starting workers")
        printed, told = 0, 0
        over = False
        while not over:
            over = stop.wait(0.5)
            try:
                values, notes = ray.get(feed.get.remote(told), timeout=5)
            except Exception:  # the bar must never end a run
                continue
            told += len(notes)
            for note in notes:
                bar.console.print(f"{run}: {note}", soft_wrap=True, markup=False, highlight=False)
            if values.get("step", 0) < printed:  # a restart
                printed = 0
            if values.get("step", 0) > printed:
                printed = values["step"]
                bar.update(task, completed=printed, total=values["total"], shown=_line(values))
                if not bar.console.is_terminal:
                    bar.console.print(f"{run} {printed}/{values['total']} {_line(values)}", soft_wrap=True)


def _line(values: dict[str, Any]) -> str:
    forms = {
        "loss": "loss {:.4g}",
        "psnr": "psnr {:.2f} dB",
        "val_psnr": "val {:.2f} dB",
        "images_per_s": "{:.0f} images/s",
        "wait_s": "waited {:.1f} s for data",
        "network_s": "{:.1f} s for the network",
    }
    return "  ".join(form.format(values[key]) for key, form in forms.items() if key in values)


class Board:
    """TensorBoard's event file of this process: in the run's folder at once, in a bucket with each checkpoint."""

    def __init__(self, place: Storage, step: int) -> None:
        """step: what an earlier process logged beyond it is struck out, for it comes again."""
        from tensorboardX import SummaryWriter

        self._copy = None if isinstance(place, Folder) else tempfile.TemporaryDirectory(prefix="memoir-board-")
        self.folder = Path(self._copy.name if self._copy else place.root, "tensorboard")  # type: ignore[attr-defined]
        self._writer = SummaryWriter(str(self.folder), purge_step=step + 1)

    def add(self, record: dict[str, Any]) -> None:
        """Every number of a record, as a curve."""
        for name, value in record.items():
            if isinstance(value, (int, float)) and name != "step":
                self._writer.add_scalar(name, value, record["step"])
        self._writer.flush()

    def files(self) -> dict[str, bytes]:
        """What is not in the run's folder yet: contents by name."""
        return {f"tensorboard/{path.name}": path.read_bytes() for path in self.folder.iterdir()} if self._copy else {}


def _worker(config: dict[str, Any]) -> dict[str, str]:
    """One DDP rank: the name of the final checkpoint, or the user's mistake that ended the run.

    Whatever a rank meets, it raises: only so does Ray Train end the other ranks, which wait for it. All start again then
    from the last checkpoint, unless it was a mistake of the user's, which each of them then returns.
    """
    import ray

    feed = config["feed"]
    if fatal := ray.get(feed.fatal.remote(), timeout=60):
        return fatal
    running: list[Run] = []
    try:
        return _rank(**config, running=running)
    except UnavailableError:  # may be over when all have started again
        raise
    except UserError as error:
        ray.get(feed.fail.remote(str(error)), timeout=60)
        raise
    except OSError as error:
        if error.errno in MENDABLE:
            where = error.filename or config["place"]
            ray.get(feed.fail.remote(f"{where}: {error.strerror}; mend it, and the same command continues"), timeout=60)
        raise
    except Exception as error:
        if running and not _of_another_rank(error):
            met = (running[0].rank, running[0].state.step, f"{type(error).__name__}: {error}", traceback.format_exc())
            ray.get(feed.defects.remote(*met), timeout=60)
        raise


def _of_another_rank(error: Exception) -> bool:
    """Whether a collective failed, which it does when another rank is gone."""
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error) or "nccl" in str(error).lower()


def _rank(sent: dict[str, Any], data: str, place: str, feed: Any, here: str, running: "list[Run]") -> dict[str, str]:
    """Train to the end. running: where the run is put as soon as there is one."""
    import ray
    import ray.train
    import ray.train.torch
    import torch
    from ray.train.v2._internal.execution.context import get_train_context

    from jobs.training.loop import Run, Watchdog, json_lines

    with suppress(FileNotFoundError):  # on another machine
        os.chdir(here)  # a recipe's relative paths are the project's
    recipe = unpacked(sent)
    training = recipe.training
    torch.set_num_threads(training.cpus_per_worker)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    context = get_train_context()
    store = storage(place)
    checkpoints = Checkpoints(store, keep_last=training.keep_last, keep_best=training.keep_best)
    run = Run(recipe, data, ray.train.torch.get_device())
    running.append(run)

    def note(line: str) -> None:
        feed.note.remote(line)

    with tempfile.TemporaryDirectory(prefix="memoir-checkpoint-") as copy:
        newest = [checkpoints.newest(Path(copy), note) if run.rank == 0 else None]
        torch.distributed.broadcast_object_list(newest)  # rank 0's
        if name := newest[0]:
            if run.rank > 0:
                checkpoints.fetch(name, Path(copy))
            run.load(Path(copy))
    live: Path | None = None
    board: Board | None = None
    if run.rank == 0:
        instructions = " by the instructions that all CPUs with AVX2 have" if training.portable else ""
        started = f"{run.world_size} workers, from {name or 'the beginning'}"
        computed = f"convolutions in {run.precision}{instructions}"
        costs = [COST] if run.precision == "bf16" and not native_bf16(run.device) else []
        for line in (started, computed, *costs, *run.notes):
            note(line)
        board = Board(store, run.state.step)
        if isinstance(store, Folder):
            live = store.root / "metrics.jsonl"
            write_bytes(live, json_lines(run.records).encode())  # what was logged beyond the checkpoint comes again
    warned = False

    def log(record: dict[str, Any]) -> None:
        nonlocal warned
        checkpoints.check()
        if board:
            board.add(record)
            feed.put.remote({"total": run.total, **record})
        if live:
            with live.open("a") as file:
                file.write(json_lines([record]))
        # ray.train.get_preemption_info() asks the other ranks through an actor: a cut in the network loses the answer, and
        # the rank would wait for it without end.
        preempted = context.preemption_context.preemption_info
        if preempted and run.rank == 0 and not warned:
            warned = True
            save(run)
            note(f"the nodes of ranks {preempted.preempted_ranks} will be taken: saving step {run.state.step}")

    def save(run: Run) -> None:
        if board:
            beside = board.files() if live else {"metrics.jsonl": json_lines(run.records).encode(), **board.files()}
            checkpoints.save(run.state.step, run.save(), run.scores, beside)

    def hung(stacks: str) -> None:
        file = f"hung/step-{run.state.step + 1:08d}-rank-{run.rank}.txt"
        writer = threading.Thread(target=store.write, args=(file, stacks.encode()), daemon=True)
        writer.start()
        writer.join(30)  # the store may be what it waits for
        line = f"rank {run.rank} stood still for {training.hang_s:g} s; its stacks: {place}/{file}"
        with suppress(Exception):
            ray.get(feed.note.remote(line), timeout=10)
        os._exit(1)

    with Watchdog(training.hang_s, hung) as watchdog:
        run.train(save, log, watchdog.beat)
        if board:  # with the validation after the last checkpoint
            beside = {"metrics.jsonl": json_lines(run.records).encode(), **board.files()}
            checkpoints.finish(run.state.step, run.scores, beside)
    return {"checkpoint": checkpoints.name(run.state.step)}
