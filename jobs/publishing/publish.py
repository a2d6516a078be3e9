"""Put an evaluated checkpoint into a store, and say what a store holds."""

import hashlib
import json
import subprocess
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
import torch
import yaml

from jobs.documents import Provenance, read_document
from jobs.evaluation.metrics import measured
from jobs.evaluation.scores import Metrics, read_scores
from jobs.publishing.card import card
from jobs.recipe import named_here
from jobs.restoring.checkpoint import (
    AGAIN,
    LATEST,
    SUMS,
    WEIGHTS,
    Checkpoint,
    assemble,
    find_version,
    latest_version,
    read_checkpoint,
    versions,
)
from jobs.source import is_own
from pipeline.config import bare_name, parse_json, parse_yaml
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.storage import Storage, storage

FILES = (WEIGHTS, "recipe.yaml", "task.yaml", "metrics.json", "provenance.json", "card.md")


def publish(recipe: str, to: str, runs: Path) -> dict[str, Any]:
    """Put the evaluated checkpoint of a recipe into a store, as <to>/models/<recipe>/<version>, and make it the latest.

    to: a folder, file:///path or s3://bucket/prefix. The version is 12 hex digits over the weights, the resolved recipe
    and task, and the scores. A version is written once: publishing it again, from another commit too, changes nothing in
    it, and finishes what a killed publisher left. SHA256SUMS is written last, then latest.json beside the version.
    Writes runs/<recipe>/published.json (uri, version, sha256 of the weights) and returns it, with `new`: whether the
    version was not there yet. Raises UserError for a recipe that is not trained or not evaluated, and for a version whose
    files are not these.
    """
    name, trust = bare_name(recipe), named_here(recipe, bare_name(recipe))
    checkpoint = read_checkpoint(name, runs)
    scores = _results(lambda mend: read_scores(runs / name, mend), f"memoir evaluate --model {name}")
    path = runs / name / "metrics.json"
    training = _results(
        lambda mend: read_document(path.read_bytes(), dict[str, Any], str(path), mend), f"memoir train {name}"
    )
    task = checkpoint.task
    sha256 = checkpoint.pointer["sha256"]
    if any(row.get("weights", sha256) != sha256 for row in scores.values()):
        raise UserError(
            f"{runs / name}/protocols.json: scores of other weights; run `memoir evaluate --model {name}` again"
        )
    content = {"model": sha256, "recipe": checkpoint.recipe, "task": task, "scores": scores}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    store = storage(to)
    place = storage(f"{store.uri}/models/{name}/{digest}")
    metrics = {"scores": scores, "training": training}
    new = not place.names(SUMS)
    if new:
        _upload(checkpoint, place, task, metrics, trust)
    else:
        _compare(checkpoint, place, task, metrics)
    store.write(f"models/{name}/{LATEST}", _json({"version": digest, "sha256": sha256}))
    published = {"uri": place.uri, "version": digest, "sha256": sha256}
    write_bytes(runs / name / "published.json", _json(published))
    return published | {"new": new}


def models(uri: str) -> list[dict[str, Any]]:
    """The published models of a store, sorted by recipe and version; half-published ones are left out.

    Each is {"recipe", "version", "latest" (whether latest.json names it), "uri", "sha256" (of the weights), "scores":
    {"<data set>/<benchmark>": its metrics}}. Raises UserError for a store without models, and for a damaged version.
    """
    store = storage(uri)
    found = []
    for name in versions(store):
        recipe, number = name.split("/")
        held = find_version(f"{store.uri}/models/{name}")
        where = f"{held.store.uri}/metrics.json"
        scores = read_document(held.read("metrics.json"), Metrics, where, AGAIN)["scores"]
        found.append(
            {
                "recipe": recipe,
                "version": number,
                "latest": latest_version(store, f"models/{recipe}/") == number,
                "uri": held.store.uri,
                "sha256": held.sums[WEIGHTS],
                "scores": {key: {m.name: row[m.name] for m in measured(row)} for key, row in scores.items()},
            }
        )
    if not found:
        raise UserError(
            f"{store.uri}: no published models in it; `memoir publish RECIPE --to {store.uri}` puts one there"
        )
    return found


def _results(read: Callable[[str], dict[str, Any]], command: str) -> dict[str, Any]:
    """What an earlier stage wrote. read: takes what a message ends with. Raises UserError if there is none."""
    try:
        return read(f"run `{command}` again")
    except FileNotFoundError as error:
        raise UserError(f"{error.filename}: not found; `{command}` writes it") from None


def _upload(
    checkpoint: Checkpoint, place: Storage, task: dict[str, Any], metrics: dict[str, Any], trust: Collection[str]
) -> None:
    """Write a version, or what is missing of it; files that another publisher of the same version wrote are kept."""
    sums = {WEIGHTS: checkpoint.pointer["sha256"]}

    def put(name: str, data: bytes) -> bytes:
        """What the version holds under this name in the end."""
        try:
            place.write_new(name, data)
        except FileExistsError:
            data = place.read(name)
        sums[name] = hashlib.sha256(data).hexdigest()
        return data

    with TemporaryDirectory(prefix="memoir-") as folder:
        weights = Path(folder, WEIGHTS)
        checkpoint.download(weights)
        model = assemble(checkpoint.recipe, weights, checkpoint.store.uri, trust)
        try:
            place.write_new(WEIGHTS, weights)
        except FileExistsError:
            if place.sha256(WEIGHTS) != sums[WEIGHTS]:
                raise _conflict(place, WEIGHTS) from None
    _check(place, "recipe.yaml", put("recipe.yaml", _yaml(checkpoint.recipe)), checkpoint.recipe)
    _check(place, "task.yaml", put("task.yaml", _yaml(task)), task)
    _check(place, "metrics.json", put("metrics.json", _json(metrics)), metrics["scores"])
    provenance = put("provenance.json", _json(_provenance(checkpoint)))
    try:
        origin = read_document(provenance, Provenance, f"{place.uri}/provenance.json", AGAIN)
    except UserError:
        raise _conflict(place, "provenance.json") from None
    put("card.md", card(place.uri, model, checkpoint.recipe, task, metrics["scores"], origin).encode())
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(FILES)).encode()
    if put(SUMS, lines) != lines:
        raise _conflict(place, SUMS)


def _compare(checkpoint: Checkpoint, place: Storage, task: dict[str, Any], metrics: dict[str, Any]) -> None:
    """Raise UserError unless a whole version holds this model."""
    held = find_version(place.uri)
    if lacking := sorted(set(FILES) - set(place.names())):
        raise UserError(f"{place.uri}: lacks {', '.join(lacking)}; remove the version and publish again")
    if held.sums[WEIGHTS] != checkpoint.pointer["sha256"]:
        raise _conflict(place, WEIGHTS)
    expected = {"recipe.yaml": checkpoint.recipe, "task.yaml": task, "metrics.json": metrics["scores"]}
    for name, value in expected.items():
        _check(place, name, held.read(name), value)


def _check(place: Storage, name: str, held: bytes, expected: Any) -> None:
    """Raise UserError unless a stored file says what is expected; in metrics.json only the scores count."""
    with suppress(UserError, KeyError, TypeError):
        if (parse_json(held, name)["scores"] if name == "metrics.json" else parse_yaml(held, name)) == expected:
            return
    raise _conflict(place, name)


def _conflict(place: Storage, name: str) -> UserError:
    return UserError(
        f"{place.uri}/{name}: is there with other contents, changed since; remove the version and publish again"
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, width=120).encode()


def _provenance(checkpoint: Checkpoint) -> dict[str, Any]:
    """Where a model comes from. commit, dirty: the state of the git repository in which `publish` runs; null outside one.

    libraries: those of this machine, which need not be the one that trained.
    """
    commit = _git("rev-parse", "HEAD")
    # dvc.lock is rewritten while the stages run, and holds nothing that a model is made from
    changes = _git("status", "--porcelain", "--", ":/", ":(top,exclude)dvc.lock")
    pointer = checkpoint.pointer
    return {
        "recipe": checkpoint.name,
        "commit": commit,
        "dirty": None if commit is None or changes is None else bool(changes),
        "data": {name: pointer["data"][name] for name in ("task", "digest")},
        "run": pointer["run"],
        **(_network(checkpoint.recipe["model"], pointer) if is_own(checkpoint.recipe["model"].get("name")) else {}),
        "step": pointer["step"],
        "notes": pointer.get("notes", []),
        "world_size": checkpoint.recipe["training"]["workers"],
        "precision": pointer.get("precision"),
        "portable": checkpoint.recipe["training"].get("portable", False),
        "libraries": {
            "memoir": version("memoir"),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "opencv": cv2.__version__,
            "ray": version("ray"),
        },
    }


def _network(model: dict[str, Any], pointer: dict[str, Any]) -> dict[str, Any]:
    """What provenance.json says of a network of one's own: source is the digest of its files when it was trained."""
    options = {key: value for key, value in model.items() if key != "name"}
    return {"network": {"name": model["name"], "options": options, "source": pointer.get("source")}}


def _git(*arguments: str) -> str | None:
    """The output of git; None where it does not apply."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None
