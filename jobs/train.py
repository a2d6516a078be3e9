"""Ray Train around the loop: DDP workers, checkpoints in the store, resume by the run's own name."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
import threading
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jobs.recipe import Recipe, read_recipe
from pipeline.cluster import connect
from pipeline.errors import UserError
from pipeline.images import write_bytes
from pipeline.shards import file_sha256, read_shards_json

CODE = (
    "jobs/loop.py",
    "jobs/models/batchnorm.py",
    "pipeline/loader.py",
    "pipeline/sampling/order.py",
    "pipeline/keyed.py",
)


def train(
    recipe_name: str, *, data: Path, store: Path, runs: Path, overrides: list[str] | None = None
) -> dict[str, Any]:
    """Train a recipe on data/<task> and leave its final checkpoint in store/runs/<run>; returns the pointer to it.

    The run's name carries a digest of data, recipe and code: the same command continues a killed run, finds a finished one
    and never mixes two. Writes runs/<recipe>/checkpoint.json (the pointer), metrics.json and curve.tsv.
    """
    recipe = read_recipe(recipe_name, overrides)
    name = Path(recipe_name).stem
    folder = data / recipe.data.task
    listing = read_shards_json(folder)
    run = f"{name}-{run_digest(recipe, listing['digest'])}"
    run_dir = (store / "runs" / run).resolve()
    done = run_dir / "done.json"
    if not done.exists():
        checkpoint = _fit(recipe, run, folder.resolve(), run_dir)
        write_bytes(done, json.dumps({"checkpoint": checkpoint.name}).encode())
    checkpoint = run_dir / json.loads(done.read_text())["checkpoint"]
    state = json.loads((checkpoint / "state.json").read_text())
    pointer = {
        "recipe": name,
        "run": run,
        "uri": (store / "runs" / run / checkpoint.name).as_posix(),
        "sha256": file_sha256(checkpoint / "model.safetensors"),
        "step": state["step"],
        "data": {"task": recipe.data.task, "digest": listing["digest"]},
    }
    records = read_records(run_dir / "metrics.jsonl")
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


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line that a kill cut short is dropped."""
    records = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def _curve(records: list[dict[str, Any]]) -> str:
    """The curve for `dvc plots`: one row per logged step; a validation falls on the row of its step."""
    columns = ("step", "loss", "psnr", "val_psnr", "lr")
    rows: dict[int, dict[str, Any]] = {}
    for record in records:
        rows.setdefault(record["step"], {}).update(record)
    lines = ["\t".join(str(row.get(column, "")) for column in columns) for _, row in sorted(rows.items())]
    return "\n".join(["\t".join(columns), *lines]) + "\n"


def _fit(recipe: Recipe, run: str, data: Path, run_dir: Path) -> Path:
    """Run Ray Train to the end and return the folder of the final checkpoint."""
    training = recipe.training
    cpus = training.workers * training.cpus_per_worker
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")
    embedded = not os.environ.get("RAY_ADDRESS")
    connect(max(cpus, os.cpu_count() or 1) if embedded else cpus, gpus=training.workers if training.gpu else 0)
    import ray
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    feed = ray.remote(num_cpus=0)(Feed).remote()
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"recipe": recipe, "data": str(data), "run_dir": str(run_dir), "feed": feed},
        torch_config=TorchConfig(backend="nccl" if training.gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=training.workers,
            use_gpu=training.gpu,
            resources_per_worker={"CPU": training.cpus_per_worker, **({"GPU": 1} if training.gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name=run,
            storage_path=str(run_dir.parent),
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
        raise RuntimeError(f"training {run} failed and its {training.max_failures} restarts are used up") from error
    finally:
        stop.set()
        bar.join()
    if result.return_value:
        raise UserError(result.return_value["error"])
    return Path(result.checkpoint.path)


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
    parts = (("loss", "loss {:.4g}"), ("psnr", "psnr {:.2f} dB"), ("val_psnr", "val {:.2f} dB"))
    parts += (("images_per_s", "{:.0f} images/s"), ("wait_s", "waited {:.1f} s"))
    return "  ".join(form.format(values[key]) for key, form in parts if key in values)


def _worker(config: dict[str, Any]) -> dict[str, str] | None:
    """One DDP rank. A mistake of the user's is a result, the same on every rank; anything else raises and is restarted."""
    import ray.train
    import ray.train.torch
    import torch

    from jobs.loop import Run

    recipe: Recipe = config["recipe"]
    torch.set_num_threads(recipe.training.cpus_per_worker)
    torch.backends.cuda.matmul.allow_tf32 = False
    run_dir, feed = Path(config["run_dir"]), config["feed"]
    try:
        run = Run(recipe, Path(config["data"]), ray.train.torch.get_device())
        checkpoint = ray.train.get_checkpoint()
        if checkpoint:
            with checkpoint.as_directory() as folder:
                run.load(Path(folder))
        metrics = run_dir / "metrics.jsonl"
        if run.rank == 0:
            kept = [record for record in read_records(metrics) if record["step"] <= run.state.step]
            write_bytes(metrics, "".join(json.dumps(record) + "\n" for record in kept).encode())

        def log(record: dict[str, Any]) -> None:
            if run.rank == 0:
                with metrics.open("a") as file:
                    file.write(json.dumps(record) + "\n")
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
