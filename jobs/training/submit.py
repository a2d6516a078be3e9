"""Training on a remote Ray cluster through its Jobs API: submit or attach, print the log, honour the exit code."""

import asyncio
import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import aiohttp
import ray
import requests
import yaml
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from jobs.recipe import Recipe
from jobs.source import files, is_own
from jobs.training.record import began
from jobs.training.run import Dataset, Planned
from jobs.training.start import keep_start
from jobs.training.trackers import variables
from pipeline.cluster import TOKEN, jobs_address
from pipeline.console import tell
from pipeline.dvc_objects import DvcFolder
from pipeline.errors import UserError
from pipeline.patience import Pauses
from pipeline.shards.format import TABLES, file_sha256, table_file
from pipeline.storage import Bucket, Folder, Storage

CODE = ("memoir.py", "pipeline", "jobs")  # what a job is given
LIMIT = 100 * 2**20  # bytes that the Jobs API takes: Ray's DASHBOARD_CLIENT_MAX_SIZE
VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
)  # no secrets: Ray shows them
ANSWER_SECONDS = 30  # that the cluster may take for one answer
QUIET_SECONDS = 30  # without a word in the log, until we ask whether the job still runs
PATIENCE_SECONDS = 600  # without any answer, until the job is left to itself
STOP_SECONDS = 60  # that a job may take to end when it is told to; Ray kills it after 3
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 15.0  # seconds between two tries, doubled from the first to the longest
UPLOADS = 8  # at a time


class JobError(UserError):
    """A job that did not succeed, with the exit code to leave with."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class Client(JobSubmissionClient):
    """Ray's client, with a limit to the time that it waits for an answer.

    tests/jobs/test_ray_contract.py says when a new Ray moves what is private here.
    """

    def _do_request(self, *arguments: Any, **options: Any) -> requests.Response:
        # Private: all requests but the log's go through here, without a limit, and one through a cut network waits for ever.
        # Public instead: a timeout as an argument of JobSubmissionClient.
        return super()._do_request(*arguments, timeout=ANSWER_SECONDS, **options)

    def ray_version(self) -> str:
        """Ray's version on the cluster."""
        # Private: get_version() has the version of the Jobs API alone. Public instead: a method for Ray's.
        return str(self._do_request("GET", "/api/version").json()["ray_version"])


def client() -> Client:
    """A client of the cluster that RAY_API_SERVER_ADDRESS or RAY_ADDRESS names. Raises UserError unless it takes our jobs."""
    address = jobs_address()
    if address is None:
        raise UserError("no cluster is named that takes jobs; set RAY_ADDRESS=http://<head>:8265")
    # Private: Ray's loggers, which tell what is told here in one line. Public instead: one logger above them all.
    for name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with _explained():
        found = Client(address)
        theirs, ours = found.ray_version(), ray.__version__
    if theirs.split(".")[:2] != ours.split(".")[:2]:
        raise UserError(
            f"{_shown()}: the cluster has Ray {theirs}, here is Ray {ours}; install the same release on both"
        )
    return found


def train_there(planned: Planned) -> None:
    """Train on the cluster, with its log on stdout; returns when the checkpoint is in the store.

    Attaches to the run's job if there is one. SIGINT and SIGTERM stop the job. Raises JobError unless it succeeds, and
    UserError if it cannot be submitted or is out of reach for PATIENCE_SECONDS.
    """
    cluster = client()
    # Set anew: a process that a script starts in the background ignores SIGINT.
    handlers = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: lambda *_: signal.raise_signal(signal.SIGINT),
    }
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        job = submit(planned, cluster)
        ended = asyncio.run(_followed(cluster, job))
    except KeyboardInterrupt:
        raise _stopped(cluster, planned) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if (failure := failed(job, ended)) is not None:
        raise failure
    if "done.json" not in planned.place.names("done.json"):
        raise UserError(
            f"{planned.place.uri}: job {job} succeeded, but its checkpoint is not here; the store must be one that this "
            "machine and all nodes of the cluster have in common"
        )


def submit(planned: Planned, cluster: Client) -> str:
    """Submit the run as a job, unless one is on its way to the same store; returns the job's submission id.

    Who submits it is recorded, and shards and weights that the cluster needs and a bucket lacks are sent, first. Raises UserError.
    """
    store = _uri(planned.store)
    if not re.fullmatch(r"[\w.-]+", planned.run, re.ASCII):
        raise UserError(
            f"recipe {planned.name!r}: a job's name takes letters, digits, '.', '_' and '-'; rename the file"
        )
    data = None
    while True:
        with _explained():
            job, active = attempt(planned.run, store, cluster.list_jobs())
        if active:
            tell(f"{job}: attached to the job on {_shown()}")
            return job
        if data is None:
            keep_start(planned.place, planned.start)
            began(planned)
            data = _sent(planned)
        with working_dir(planned) as folder, _explained():
            environment = _environment(planned)
            try:
                cluster.submit_job(
                    entrypoint=entrypoint(planned, data, store),
                    submission_id=job,
                    runtime_env={"working_dir": str(folder), "env_vars": environment},
                    metadata={"run": planned.run, "store": store},
                )
            except RuntimeError as error:
                if "already exists" in str(error):  # another client was faster: attach to its job
                    continue
                raise
        tell(f"{job}: submitted to {_shown()}")
        return job


def _environment(planned: Planned) -> dict[str, str]:
    """The variables that a job is given: where trackers are, and the bucket, also where only this machine's ~/.aws/config says so."""
    environment = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    environment |= variables(planned.recipe.training.track)
    for place in (planned.store, *(planned.built.places if isinstance(planned.built, DvcFolder) else [planned.built])):
        if isinstance(place, Bucket) and place.endpoint != "AWS":
            region = place.client.meta.region_name
            environment |= {"AWS_ENDPOINT_URL_S3": place.endpoint}
            environment |= {"AWS_DEFAULT_REGION": region} if region != "aws-global" else {}
            break
    return environment


def attempt(run: str, store: str, jobs: list[JobDetails]) -> tuple[str, bool]:
    """The submission id <run>-a<N> of the job to follow, and whether it is there already and has not ended.

    It is the newest job that trains into this store; if there is none, it gets the first number that no job had.
    """
    mine = {}
    for job in jobs:
        if found := re.fullmatch(re.escape(run) + r"-a([1-9]\d*)", job.submission_id or ""):
            mine[int(found[1])] = job
    for number in sorted(mine, reverse=True):
        if not mine[number].status.is_terminal() and (mine[number].metadata or {}).get("store") == store:
            return f"{run}-a{number}", True
    return f"{run}-a{max(mine, default=0) + 1}", False


def entrypoint(planned: Planned, data: str, store: str) -> str:
    """The job's command, for a shell. MEMOIR_PYTHON: the cluster's Python, where it is not `python` on the PATH."""
    command = ["-m", "memoir", "train", f"{planned.name}.yaml", "--run", planned.run, "--data", data, "--store", store]
    return shlex.join([os.environ.get("MEMOIR_PYTHON", "python"), *command])


@contextmanager
def working_dir(planned: Planned) -> Iterator[Path]:
    """A folder with the code and the resolved recipe, and nothing else. Raises UserError where it is too large for Ray."""
    with TemporaryDirectory(prefix="memoir-job-") as temporary:
        folder, root = Path(temporary), Path(__file__).parents[2]
        for name in CODE:
            if (root / name).is_dir():
                shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            else:
                shutil.copy(root / name, folder / name)
        for name, source in (files(planned.recipe.model.name) if is_own(planned.recipe.model.name) else {}).items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
        recipe = yaml.safe_dump(planned.recipe.model_dump(mode="json"), sort_keys=False)
        (folder / f"{planned.name}.yaml").write_text(recipe, "utf-8")
        sizes = {path.relative_to(folder): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
        if sum(sizes.values()) > LIMIT:
            largest = sorted(sizes, key=lambda path: (-sizes[path], path))[:10]
            listed = ", ".join(f"{path} {sizes[path]:,}" for path in largest)
            raise UserError(
                f"{root}: {', '.join(CODE)} have {sum(sizes.values()):,} bytes, and Ray takes {LIMIT:,} as a job's code; "
                f"move away what is no code; the largest: {listed}"
            )
        yield folder


def failed(job: str, ended: JobDetails) -> JobError | None:
    """The error of a job that has ended, in the job's own words where it has some; None if it succeeded."""
    if ended.status == JobStatus.SUCCEEDED:
        return None
    if ended.status == JobStatus.STOPPED:
        return JobError(f"{job}: stopped; the same command continues the training", 130)
    code = ended.driver_exit_code or 1
    code = 128 - code if code < 0 else code  # of a killed one it is the signal, negative
    lines = [line for line in (ended.message or "").splitlines() if line.strip()] or ["no message"]
    told = [line.removeprefix("memoir: ") for line in lines if line.startswith("memoir: ")]
    if told:
        return JobError(told[-1], code)
    hint = ""
    if code == 127 or "ModuleNotFoundError" in lines[-1]:
        hint = "; MEMOIR_PYTHON names the Python on the cluster that has memoir's packages"
    return JobError(f"{job}: failed with exit code {code}: {lines[-1].strip()}{hint}", code)


class Log:
    """Writes a log to stdout, every part of it once, though each connection sends it from its beginning."""

    def __init__(self) -> None:
        self.written = self.at = 0  # characters

    def connected(self) -> None:
        """What comes next is the beginning."""
        self.at = 0

    def write(self, text: str) -> None:
        """Write the next part."""
        sys.stdout.write(text[max(0, self.written - self.at) :])
        sys.stdout.flush()
        self.at += len(text)
        self.written = max(self.written, self.at)


async def _followed(cluster: Client, job: str) -> JobDetails:
    """Print the job's log to its end; returns what the job then was. A connection that breaks is made again."""
    log = Log()
    contact, pauses, last_tries = time.monotonic(), Pauses(FIRST_PAUSE, LONGEST_PAUSE), 3
    while True:
        try:
            now = cluster.get_job_info(job)
        except (OSError, RuntimeError, AuthenticationError) as error:
            if "status code 404" in str(error):
                raise UserError(
                    f"{_shown()}: does not know job {job} any more, its head was restarted; the same command submits again"
                ) from None
            if time.monotonic() - contact > PATIENCE_SECONDS:
                raise UserError(
                    f"{_shown()}: no answer for {PATIENCE_SECONDS:g} s ({type(error).__name__}); job {job} goes on, and the "
                    "same command attaches to it"
                ) from None
        else:
            before = log.written
            whole = await _tailed(cluster, job, log)
            if now.status.is_terminal():  # it was so before, so that the whole log is the last of it
                last_tries -= 1
                if whole or not last_tries:
                    return now
            contact = time.monotonic()
            if log.written > before:
                pauses.begin_again()
        await asyncio.sleep(next(pauses))


async def _tailed(cluster: Client, job: str, log: Log) -> bool:
    """Print the job's log as it comes; returns whether it came to an end. It may break, or be silent for QUIET_SECONDS."""
    log.connected()
    with suppress(OSError, RuntimeError, aiohttp.ClientError):  # TimeoutError is an OSError
        async with aclosing(cluster.tail_job_logs(job)) as stream:
            while True:
                async with asyncio.timeout(QUIET_SECONDS):
                    text = await anext(stream, None)
                if text is None:
                    return True
                log.write(text)
    return False


def _stopped(cluster: Client, planned: Planned) -> JobError:
    """Stop the run's job, if there is one, and wait until it has ended."""
    with _explained():
        job, active = attempt(planned.run, _uri(planned.store), cluster.list_jobs())
        if not active:
            return JobError(f"{planned.run}: interrupted; no job of it is on {_shown()}", 130)
        cluster.stop_job(job)
        deadline = time.monotonic() + STOP_SECONDS
        while not (ended := cluster.get_job_info(job)).status.is_terminal():
            if time.monotonic() > deadline:
                return JobError(f"{job}: told to stop {STOP_SECONDS} s ago, and is {ended.status} still", 130)
            time.sleep(FIRST_PAUSE)
    return JobError(f"{job}: {str(ended.status).lower()}; the same command continues the training", 130)


# what the cluster cannot see


def with_weights(recipe: Recipe, store: Storage) -> Recipe:
    """In a job: the recipe with VGG19's weights where `submit` has put them."""
    if (file := _weights(recipe)) is None:
        return recipe
    model: Any = recipe.model
    vgg = model.contrastive.vgg.model_copy(update={"path": f"{store.uri}/{file.name}"})
    contrastive = model.contrastive.model_copy(update={"vgg": vgg})
    return recipe.model_copy(update={"model": model.model_copy(update={"contrastive": contrastive})})


def _weights(recipe: Recipe) -> Path | None:
    """The file of VGG19's weights that the recipe names; None: it names none, a stand-in or a URI."""
    from jobs.models.vgg import VGGOptions

    vgg = getattr(getattr(recipe.model, "contrastive", None), "vgg", None)
    if not isinstance(vgg, VGGOptions) or vgg.path == "stand-in" or "://" in vgg.path:
        return None
    return Path(vgg.path)


def _sent(planned: Planned) -> str:
    """Put into the store what the cluster needs of this machine; returns the job's --data."""
    built, store = planned.built, planned.store
    file = _weights(planned.recipe)
    if file is not None and file.is_file() and _held(store, file.name).get(file.name) != file.stat().st_size:
        store.write(file.name, file)
        tell(f"{store.uri}/{file.name}: {file.stat().st_size:,} bytes sent")
    if isinstance(built, DvcFolder):
        if len(planned.datasets) > 1:
            raise UserError(
                f"{planned.run}: a job takes one dataset of a revision, and this mixture has {len(planned.datasets)}; check the "
                "revision out, and submit with --data data"
            )
        return built.uri
    if isinstance(store, Bucket):
        return send(planned.datasets, store) if isinstance(built, Folder) else built.uri.rpartition("/")[0]
    for place in (built, store):
        if isinstance(place, Folder):
            tell(f"{_uri(place)}: a folder; all nodes of the cluster must have it under this path")
    return _uri(built).rpartition("/")[0]


def send(datasets: dict[str, Dataset], store: Bucket) -> str:
    """Put built datasets, which are folders here, into a bucket as far as they are not there; returns the --data to train from.

    Shards and the parts of the tables are shards/<name> and shards/<table>/<name>, by content, whichever datasets they are part
    of; data/<digest>/<task>/shards.json lists them. Raises UserError for a file that is missing or damaged here.
    """
    shards: dict[str, tuple[Path, str]] = {}  # the file here and its sha256, by name
    tables: dict[str, tuple[Path, str]] = {}
    for built, _, listing in datasets.values():
        assert isinstance(built, Folder)
        shards |= {
            shard["name"]: (built.root / shard["split"] / shard["name"], shard["sha256"]) for shard in listing["shards"]
        }
        tables |= {
            (name := table_file(table, part[table])): (built.root / name, part[table])
            for part in listing["parts"]
            for table in TABLES
            if part[table]
        }
    wanted = {f"shards/{name}": file for name, file in (shards | tables).items()}
    held = _held(store, "shards/")
    lacking = {name: file for name, file in wanted.items() if held.get(name) != _size(file[0])}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    console, total = Console(stderr=True), sum(_size(path) for path, _ in lacking.values())
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task(f"shards to {store.uri}", total=total)

        def put(name: str) -> None:
            path, sha256 = lacking[name]
            if not path.is_file() or file_sha256(path) != sha256:
                raise UserError(f"{path}: missing or damaged; run `memoir build` again, or `dvc pull`")
            store.write(name, path)
            progress.advance(bar, _size(path))

        with ThreadPoolExecutor(UPLOADS) as pool:
            list(pool.map(put, lacking))
    texts = {
        task: json.dumps(listing | {"shards_in": f"{store.uri}/shards"}, indent=1).encode()
        for task, (_, _, listing) in datasets.items()
    }
    data = f"data/{hashlib.sha256(b''.join(texts.values())).hexdigest()[:16]}"
    for task, text in texts.items():
        name = f"{data}/{task}/shards.json"
        if name not in _held(store, f"{data}/"):
            store.write(name, text)  # last: with it the dataset is whole
    sent = len(lacking.keys() & {f"shards/{name}" for name in shards})
    tell(
        f"{store.uri}: {sent} of {len(shards)} shards sent, with {len(lacking) - sent} of {len(tables)} tables of their rows; "
        f"{total:,} bytes"
    )
    return f"{store.uri}/{data}"


def _size(path: Path) -> int:
    """The bytes of a file; -1 if it is not there."""
    return path.stat().st_size if path.is_file() else -1


def _held(store: Storage, prefix: str) -> dict[str, int]:
    """The size in bytes of each file in a store, for names that begin with `prefix`."""
    return {entry.name: entry.size for entry in store.entries(prefix)}


def _uri(place: Storage) -> str:
    """The URI of a store; for a folder, its absolute path."""
    return str(place.root.resolve()) if isinstance(place, Folder) else place.uri


def _shown() -> str:
    """The address of the cluster without a password."""
    return re.sub("//[^/@]*@", "//", jobs_address() or "")


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what Ray's client raises into UserError in one line."""
    try:
        yield
    except AuthenticationError as error:
        first = re.split(r"\.+ Ensure|\n", str(error))[0]
        raise UserError(f"{_shown()}: {first}; {TOKEN}") from None
    except OSError as error:  # requests' errors too
        raise UserError(
            f"{_shown()}: no answer of a Ray cluster ({type(error).__name__}); check the address, the cluster and the network"
        ) from None
    except (RuntimeError, KeyError, TypeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{_shown()}: {first}") from None
