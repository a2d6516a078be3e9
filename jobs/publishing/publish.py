"""Put an evaluated checkpoint into a store, and say what a store holds."""

import hashlib
import json
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from jobs.documents import Provenance, read_document
from jobs.evaluation.metrics import measured
from jobs.evaluation.scores import Metrics, read_scores
from jobs.project import in_experiment, pointers_only
from jobs.publishing.card import card
from jobs.publishing.promote import point
from jobs.publishing.provenance import provenance
from jobs.recipe import named_here
from jobs.restoring.checkpoint import (
    AGAIN,
    LATEST,
    SUMS,
    WEIGHTS,
    assemble,
    find_version,
    labelled_version,
    labels,
    read_checkpoint,
    versions,
)
from jobs.variant import reference
from pipeline.config import bare_name, parse_json, parse_yaml
from pipeline.console import tell
from pipeline.errors import UserError
from pipeline.files import write_bytes
from pipeline.storage import Storage, storage

LINEAGE = ("run", "repository", "commit", "dirty", "who", "when", "parent")
FROM_ELSEWHERE = ("started_from", "imported")  # of few versions: weights that did not begin here
FILES = (WEIGHTS, "recipe.yaml", "task.yaml", "metrics.json", "provenance.json", "card.md")


def publish(recipe: str, to: str, runs: Path, store: str | None = None) -> dict[str, Any]:
    """Put the evaluated checkpoint of a recipe into a store, as <to>/models/<recipe>/<version>, and make it the latest.

    recipe: or a variant of one. to: a folder, file:///path or s3://bucket/prefix. store: where the checkpoint is, see
    `load_model`. The version is 12 hex digits over the weights, the resolved recipe and task, and the scores. A version is
    written once: publishing it again, from another commit too, changes nothing in it, and finishes what a killed publisher
    left. SHA256SUMS is written last, then latest.json beside the version, unless this is a stage of an experiment.
    Writes runs/<recipe>/published.json (`model`: the version's place in the store; version; sha256 of the weights) and returns
    it, with `uri`: the version's, `new`: whether it was not there yet, and `latest`: whether it is now the latest. Raises
    UserError for a recipe that is not trained or not evaluated, and for a version whose files are not these.
    """
    given, name = reference(recipe)
    trust = named_here(given, bare_name(given))
    checkpoint = read_checkpoint(name, runs, store)
    scores = _results(lambda mend: read_scores(runs / name, mend), f"memoir evaluate --model {name}")
    path = runs / name / "metrics.json"
    training = _results(
        lambda mend: read_document(path.read_bytes(), dict[str, Any], str(path), mend), f"memoir train {name}"
    )
    sha256 = checkpoint.pointer["sha256"]
    if any(row.get("weights", sha256) != sha256 for row in scores.values()):
        raise UserError(
            f"{runs / name}/protocols.json: scores of other weights; run `memoir evaluate --model {name}` again"
        )
    content = Content(
        name=name,
        recipe=checkpoint.recipe,
        task=checkpoint.task,
        metrics={"scores": scores, "training": training},
        sha256=sha256,
        where=checkpoint.store.uri,
        download=checkpoint.download,
        provenance=lambda parent: provenance(checkpoint, parent),
    )
    stored = put_version(content, to, trust)
    latest = not in_experiment()
    if latest:
        point(storage(to), name, LATEST, stored["version"], sha256)
    published = {key: stored[key] for key in ("model", "version", "sha256")}
    write_bytes(runs / name / "published.json", _json(published))
    return stored | {"latest": latest}


@dataclass(frozen=True)
class Content:
    """What a version is to hold.

    name: of the recipe in the store. recipe: resolved. task: see `jobs.restoring.checkpoint.Trained`. metrics: `scores` and
    `training`. sha256: of the weights, which `download` copies to a path; where: their place, for messages. provenance: what
    provenance.json says, given the latest version until now. origin: what else makes it another version.
    """

    name: str
    recipe: dict[str, Any]
    task: dict[str, Any]
    metrics: dict[str, Any]
    sha256: str
    where: str
    download: Callable[[Path], object]
    provenance: Callable[[str | None], dict[str, Any]]
    origin: dict[str, Any] = field(default_factory=dict)


def put_version(content: Content, to: str, trust: Collection[str] = ()) -> dict[str, Any]:
    """Write <to>/models/<name>/<version> unless it is there; returns its model, version, sha256, uri, and `new`.

    trust: see `load_model`. Raises UserError for a version whose files are not these.
    """
    made_of = {"model": content.sha256, "recipe": content.recipe, "task": content.task}
    made_of |= {"scores": content.metrics["scores"], **content.origin}
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:12]
    target = storage(to)
    model = f"models/{content.name}/{digest}"
    place = storage(f"{target.uri}/{model}")
    new = not place.names(SUMS)
    if new:
        try:
            parent = labelled_version(target, LATEST, f"models/{content.name}/")
        except UserError:  # a damaged one is replaced by whoever publishes
            parent = None
        _upload(content, place, trust, None if parent == digest else parent)
    else:
        _compare(content, place)
    if line := pointers_only(to):
        tell(line)
    return {"model": model, "version": digest, "sha256": content.sha256, "uri": place.uri, "new": new}


def models(uri: str) -> list[dict[str, Any]]:
    """The published models of a store, sorted by recipe and version; half-published ones are left out.

    Each is {"recipe", "version", "latest" (whether latest.json names it), "names" (all that name it, sorted), "uri", "sha256"
    (of the weights), "task", "lineage" (data, run, repository, commit, dirty, who, when, parent: of its training, null where that
    is not known; and started_from or imported, where its weights began elsewhere), "scores": {"<data set>/<benchmark>": its
    metrics}}. Raises UserError for a store without models, and for a
    damaged version.
    """
    store = storage(uri)
    found = []
    named: dict[str, dict[str, str]] = {}
    for name in versions(store):
        recipe, number = name.split("/")
        if recipe not in named:
            named[recipe] = labels(store, f"models/{recipe}/")
        held = find_version(f"{store.uri}/models/{name}")
        scores = read_document(held.read("metrics.json"), Metrics, f"{held.store.uri}/metrics.json", AGAIN)["scores"]
        origin = read_document(held.read("provenance.json"), Provenance, f"{held.store.uri}/provenance.json", AGAIN)
        names = sorted(label for label, version in named[recipe].items() if version == number)
        found.append(
            {
                "recipe": recipe,
                "version": number,
                "latest": LATEST in names,
                "names": names,
                "uri": held.store.uri,
                "sha256": held.sums[WEIGHTS],
                "task": origin["data"].get("task"),
                "lineage": {
                    "data": origin["data"].get("digest"),
                    **{key: origin.get(key) for key in LINEAGE},
                    **{key: origin[key] for key in FROM_ELSEWHERE if origin.get(key)},
                },
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


def _upload(content: Content, place: Storage, trust: Collection[str], parent: str | None) -> None:
    """Write a version, or what is missing of it; files that another publisher of the same version wrote are kept."""
    sums = {WEIGHTS: content.sha256}

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
        content.download(weights)
        model = assemble(content.recipe, weights, content.where, trust)
        try:
            place.write_new(WEIGHTS, weights)
        except FileExistsError:
            if place.sha256(WEIGHTS) != sums[WEIGHTS]:
                raise _conflict(place, WEIGHTS) from None
    _check(place, "recipe.yaml", put("recipe.yaml", _yaml(content.recipe)), content.recipe)
    _check(place, "task.yaml", put("task.yaml", _yaml(content.task)), content.task)
    scores = content.metrics["scores"]
    _check(place, "metrics.json", put("metrics.json", _json(content.metrics)), scores)
    told = put("provenance.json", _json(content.provenance(parent)))
    try:
        origin = read_document(told, Provenance, f"{place.uri}/provenance.json", AGAIN)
    except UserError:
        raise _conflict(place, "provenance.json") from None
    put("card.md", card(place.uri, model, content.recipe, content.task, scores, origin).encode())
    lines = "".join(f"{sums[name]}  {name}\n" for name in sorted(FILES)).encode()
    if put(SUMS, lines) != lines:
        raise _conflict(place, SUMS)


def _compare(content: Content, place: Storage) -> None:
    """Raise UserError unless a whole version holds this model."""
    held = find_version(place.uri)
    if lacking := sorted(set(FILES) - set(place.names())):
        raise UserError(f"{place.uri}: lacks {', '.join(lacking)}; remove the version and publish again")
    if held.sums[WEIGHTS] != content.sha256:
        raise _conflict(place, WEIGHTS)
    expected = {"recipe.yaml": content.recipe, "task.yaml": content.task, "metrics.json": content.metrics["scores"]}
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
