"""The stage `memoir train`: a run that is trained here or on a cluster, and the pointer to what came of it."""

import json
import os
from pathlib import Path
from typing import Any

from jobs.documents import SMALL, Done, State, read_document, read_records
from jobs.origin import begin, own_source
from jobs.project import pointers_only
from jobs.recipe import Recipe
from jobs.training.record import began, on_this_machine
from jobs.training.run import Planned, plan_run
from jobs.training.start import Begins, keep_start, keeper
from pipeline.cluster import address_to_join, connect, jobs_address
from pipeline.console import tell
from pipeline.cpus import available_cpus
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.shards.format import check_present
from pipeline.storage import Folder, storage


def train(
    recipe_name: str,
    *,
    data: str,
    store: str,
    runs: Path,
    overrides: list[str] | None = None,
    run: str | None = None,
    begins: Begins | None = None,
) -> dict[str, Any]:
    """Train a recipe on data/<task> and leave its final checkpoint in <store>/runs/<run>; returns the pointer to it.

    data, store: a folder or s3://bucket/prefix; data may be dvc://REVISION. The run's name carries a digest of data, recipe and code: the same command
    continues a killed run, finds a finished one and never mixes two. With an http(s) address of a Ray cluster it trains
    there. run: the name that it must have, for a job on that cluster. begins: has what the run starts from, which is part of what
    its name says; a run that continues has its own. Writes runs/<recipe>/checkpoint.json (the pointer, which
    names the checkpoint by its path in the store, so that it is the same for all who share the store), metrics.json and
    curve.tsv; with overrides that make another model, into a folder of its own (see `jobs.variant`). Raises UserError for a
    mistake in the recipe, data, store, cluster or weights. Of a run that pauses, see `training.until`, it returns
    {"run": its name, "step": where, "paused": True}, and writes nothing.
    """
    if run is not None:
        begins = keeper(f"{store.rstrip('/')}/runs/{run}")
    planned = plan_run(recipe_name, data=data, store=store, overrides=overrides, begins=begins)
    name, place = planned.name, planned.place
    if run not in (None, planned.run):
        raise UserError(f"{recipe_name}: here it is the run {planned.run}, not {run}: other code, shards or recipe")
    if "done.json" not in place.names("done.json"):
        # Modules that use Ray or torch are imported from here on: that takes seconds, and a finished run needs neither.
        if jobs_address() and planned.recipe.training.until is not None:
            raise UserError(
                "training.until: a job of a cluster does not pause; train here, or on a node of the cluster with "
                "RAY_ADDRESS=host:port"
            )
        if run is None and jobs_address():
            from jobs.training.submit import train_there

            train_there(planned)
        else:
            for dataset in planned.datasets.values():
                check_present(dataset.built, dataset.listing)
            recipe = planned.recipe
            if run is None:
                keep_start(planned.place, planned.start)
                began(planned)
            else:
                from jobs.training.submit import with_weights

                recipe = with_weights(recipe, planned.store)
            if line := begin(planned.store, name, planned.origin):
                tell(line)
            on_this_machine(place)
            if (checkpoint := _train_here(planned, recipe)) is None:
                return _paused(planned)
            place.write_new("done.json", json.dumps({"checkpoint": checkpoint}).encode())
    try:
        pointer, records = _result(planned)
    except FileNotFoundError as error:
        raise UserError(
            f"{error.filename}: missing, of a run that has ended; bring it back, or remove {place.uri} and train again"
        ) from None
    if line := pointers_only(store):
        tell(line)
    folder = runs / planned.variant
    final = {key: value for record in records if record["step"] <= pointer["step"] for key, value in record.items()}
    metrics = {key: final[key] for key in final if key in ("step", "loss", "psnr") or key.startswith("val_")}
    write_bytes(folder / "checkpoint.json", _json(pointer))
    write_bytes(folder / "metrics.json", _json(metrics))
    write_bytes(folder / "curve.tsv", _curve(records).encode())
    return pointer


def _paused(planned: Planned) -> dict[str, Any]:
    return {"run": planned.run, "step": records_of(planned)[-1]["step"], "paused": True}


def records_of(planned: Planned) -> list[dict[str, Any]]:
    """The records of a run so far. Raises FileNotFoundError, UserError."""
    return read_records(planned.place.read("metrics.jsonl"), f"{planned.place.uri}/metrics.jsonl", "train again")


def _train_here(planned: Planned, recipe: Recipe) -> str | None:
    """Train with a Ray of this process or one that it joins; returns the name of the final checkpoint's folder, None if it pauses."""
    training = recipe.training
    patience = float(os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120"))
    embedded = not address_to_join()
    cpus = training.most * training.cpus_per_worker
    cpus = max(cpus, available_cpus()) if embedded else training.fewest * training.cpus_per_worker
    gpus = training.fewest if training.gpu else 0
    connect(cpus, gpus=gpus, wait_seconds=patience)
    if training.most > training.fewest:  # else Ray waits as long for a worker whose node it does not know to be lost
        os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "15"
    from jobs.training.ray_train import fit  # imports Ray, which must not be before `connect`

    data = {
        task: str(built.root.resolve()) if isinstance(built, Folder) else built.uri
        for task, (built, _, _) in planned.datasets.items()
    }
    return fit(_rank, recipe, planned.run, data, planned.place, cpus=cpus, gpus=gpus)


def _rank(config: dict[str, Any]) -> dict[str, str]:
    """`train_rank`, whose module, and so torch, only the workers import."""
    from jobs.training.worker import train_rank

    return train_rank(config)


def _result(planned: Planned) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The pointer to the final checkpoint of a run that has ended, and its records. Raises FileNotFoundError, UserError."""
    place, listing = planned.place, planned.listing
    mixed_with = {task: other.listing["digest"] for task, other in planned.datasets.items() if task != listing["task"]}
    done = read_document(place.read("done.json", SMALL), Done, f"{place.uri}/done.json", "train again")
    checkpoint = storage(f"{place.uri}/{done['checkpoint']}")
    state = read_document(checkpoint.read("state.json", SMALL), State, f"{checkpoint.uri}/state.json", "train again")
    pointer = {
        "recipe": planned.name,
        **({"overrides": planned.overrides} if planned.overrides else {}),
        "run": planned.run,
        "checkpoint": f"runs/{planned.run}/{done['checkpoint']}",
        "sha256": checkpoint.sha256("model.safetensors"),
        "step": state["step"],
        "precision": state["precision"],
        "notes": state.get("notes", []),
        "samples": planned.samples,
        **({"source": source} if (source := own_source(planned.origin)) else {}),
        **({"started_from": start} if (start := planned.origin.get("started_from")) else {}),
        "data": {
            name: listing[name] for name in ("task", "digest", "colour", "bits", "degradation", "negatives", "splits")
        }
        | ({"mixed_with": mixed_with} if mixed_with else {}),
    }
    return pointer, records_of(planned)


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
