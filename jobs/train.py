"""Ray Train around the loop: DDP workers, checkpoints in the store, resume by the run's own name."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.recipe import Recipe, read_recipe
from pipeline.cluster import connect
from pipeline.errors import MENDABLE, UserError
from pipeline.images import write_bytes
from pipeline.shards import file_sha256, read_listing, samples_digest
from pipeline.storage import Bucket, Folder, Storage, storage

CODE = (
    "jobs/loop.py",
    "jobs/models/batchnorm.py",
    "jobs/models/vgg.py",
    "pipeline/keyed.py",
    "pipeline/loader.py",
    "pipeline/sampling/negatives.py",
    "pipeline/sampling/order.py",
    "pipeline/sampling/patches.py",
    "pipeline/shard_set.py",
)


def train(recipe_name: str, *, data: str, store: str, runs: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Train a recipe on data/<task> and leave its final checkpoint in <store>/runs/<run>; returns the pointer to it.

    data, store: a folder or s3://bucket/prefix. The run's name carries a digest of data, recipe and code: the same command
    continues a killed run, finds a finished one and never mixes two. Writes runs/<recipe>/checkpoint.json (the pointer),
    metrics.json and curve.tsv. Raises UserError for a mistake in the recipe, data, store or cluster.
    """
    recipe = read_recipe(recipe_name, overrides)
    name = Path(recipe_name).stem
    built = storage(f"{data.rstrip('/')}/{recipe.data.task}")
    try:
        listing = read_listing(built.read("shards.json"), f"{built.uri}/shards.json")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{built.uri}/shards.json: not found; `memoir build {recipe.data.task}` writes it") from None
    shards = str(built.root.resolve()) if isinstance(built, Folder) else built.uri
    run = f"{name}-{run_digest(recipe, samples_digest(listing))}"
    place = storage(f"{store.rstrip('/')}/runs/{run}")
    if "done.json" not in place.names("done.json"):
        place.write_new("done.json", json.dumps({"checkpoint": _fit(recipe, run, shards, place)}).encode())
    checkpoint = storage(f"{place.uri}/{json.loads(place.read('done.json'))['checkpoint']}")
    pointer = {
        "recipe": name,
        "run": run,
        "uri": checkpoint.uri,
        "sha256": checkpoint.sha256("model.safetensors"),
        "step": json.loads(checkpoint.read("state.json"))["step"],
        "data": {name: listing[name] for name in ("task", "digest", "colour", "degradation", "negatives", "splits")},
    }
    records = [json.loads(line) for line in checkpoint.read("metrics.jsonl").splitlines()]
    final = {key: value for record in records for key, value in record.items()}
    metrics = {key: final[key] for key in ("step", "loss", "psnr", "val_psnr") if key in final}
    write_bytes(runs / name / "checkpoint.json", _json(pointer))
    write_bytes(runs / name / "metrics.json", _json(metrics))
    write_bytes(runs / name / "curve.tsv", _curve(records).encode())
    return pointer


def run_digest(recipe: Recipe, data_digest: str) -> str:
    """12 hex digits over what the weights depend on: shards, recipe (all but how the run is carried out) and code."""
    root = Path(__file__).parent.parent
    parts = recipe.model_dump(mode="json", include={"model", "data", "optimisation"}) | {
        "seed": recipe.training.seed,
        "shards": data_digest,
        "code": {path: file_sha256(root / path) for path in (*CODE, f"jobs/models/{recipe.model.name}.py")},
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


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
    cpus = training.workers * training.cpus_per_worker
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    embedded = not os.environ.get("RAY_ADDRESS")
    connect(max(cpus, os.cpu_count() or 1) if embedded else cpus, gpus=training.workers if training.gpu else 0)
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    storage_path, filesystem = _ray_storage(place)
    live = str(Path(storage_path, run, "metrics.jsonl")) if filesystem is None else None
    feed = ray.remote(num_cpus=0)(Feed).remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe, "data": data, "live": live, "feed": feed, "here": str(Path.cwd())},
        torch_config=TorchConfig(backend="nccl" if training.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": 1} if training.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=run,
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=training.max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    stop = threading.Event()
    bar = threading.Thread(target=_show, args=(run, feed, stop), daemon=True)
    bar.start()
    try:
        result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        mendable = _mendable(error)
        if mendable:
            raise UserError(
                f"{place.uri}: training failed: {mendable}; mend it, and the same command continues"
            ) from None
        raise RuntimeError(f"training {run} failed and its {training.max_failures} restarts are used up") from error
    finally:
        stop.set()
        bar.join()
    if result.return_value:
        raise UserError(result.return_value["error"])
    return Path(result.checkpoint.path).name


def _mendable(error: Exception) -> str | None:
    """What the user can mend, in a failure of Ray Train's workers or controller: a full disk, a missing permission."""
    causes = [*getattr(error, "worker_failures", {}).values(), getattr(error, "controller_failure", None), error]
    for cause in causes:
        cause = getattr(cause, "_base_exc", cause)  # Ray's wrapper of what a worker raised
        while cause is not None:
            if isinstance(cause, OSError) and cause.errno in MENDABLE:
                return f"{cause.filename}: {cause.strerror}" if cause.filename else cause.strerror
            cause = cause.__cause__ or cause.__context__
    return None


def _ray_storage(place: Storage) -> tuple[str, Any]:
    """Where Ray Train keeps the runs: an absolute path, or bucket/prefix with pyarrow's file system for it."""
    if isinstance(place, Folder):
        path = place.root.resolve()
        path.mkdir(parents=True, exist_ok=True)
        return str(path.parent), None
    assert isinstance(place, Bucket)
    from pyarrow.fs import S3FileSystem

    place.names()  # a missing bucket or credential is told in one line here, and not by a worker
    os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")  # else older S3-compatible stores refuse
    # pyarrow does not read the endpoint that boto3 takes from the environment.
    endpoint = None if place.endpoint == "AWS" else place.endpoint
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    filesystem = S3FileSystem(endpoint_override=endpoint, **({"region": region} if region else {}))
    return f"{place.bucket}/{place.prefix.rstrip('/').rpartition('/')[0]}", filesystem


class Feed:
    """An actor that carries rank 0's records to the process that shows them."""

    def __init__(self) -> None:
        self.last: dict[str, Any] = {}

    def put(self, record: dict[str, Any]) -> None:
        """Merge a record into what is shown."""
        self.last |= record

    def get(self) -> dict[str, Any]:
        """The latest values."""
        return self.last


def _show(run: str, feed: Any, stop: threading.Event) -> None:
    """A progress bar of the latest values until `stop` is set; plain lines where there is no terminal."""
    import ray

    text = "{task.fields[shown]}"
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn(text)
    ) as bar:
        task = bar.add_task(run, total=None, shown="starting workers")
        printed = 0
        while not stop.wait(0.5):
            try:
                values = ray.get(feed.get.remote(), timeout=5)
            except Exception:  # the bar must never end a run
                continue
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
    }
    return "  ".join(form.format(values[key]) for key, form in forms.items() if key in values)


def _worker(config: dict[str, Any]) -> dict[str, str] | None:
    """One DDP rank. A mistake of the user's is a result, the same on every rank; anything else raises and is restarted."""
    import ray.train
    import ray.train.torch
    import torch

    from jobs.loop import Run, json_lines

    recipe: Recipe = config["recipe"]
    torch.set_num_threads(recipe.training.cpus_per_worker)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32
    live, feed = config["live"], config["feed"]
    with suppress(FileNotFoundError):  # on another machine
        os.chdir(config["here"])  # a recipe's relative paths are the project's
    try:
        run = Run(recipe, config["data"], ray.train.torch.get_device())
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                run.load(Path(folder))
        if run.rank == 0 and live:  # the records up to the checkpoint: what a killed run logged beyond it comes again
            write_bytes(Path(live), json_lines(run.records).encode())

        def log(record: dict[str, Any]) -> None:
            if run.rank == 0:
                if live:
                    with Path(live).open("a") as file:
                        file.write(json_lines([record]))
                feed.put.remote({"total": run.total, **record})

        def save(run: Run) -> None:
            step = {"step": run.state.step}
            if run.rank == 0:
                temporary = Path(tempfile.mkdtemp(prefix="memoir-checkpoint-"))
                try:
                    run.save(temporary)
                    ray.train.report(
                        step,
                        checkpoint=ray.train.Checkpoint.from_directory(temporary),
                        checkpoint_dir_name=f"step-{run.state.step:08d}",
                    )
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
            else:
                ray.train.report(step)
            # A reported checkpoint is durable only once the controller has taken it up: wait for that.
            ray.train.get_all_reported_checkpoints()

        run.train(save, log)
    except UserError as error:
        return {"error": str(error)}
    return None
