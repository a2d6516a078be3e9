"""provenance.json of a published version: where a model comes from."""

from typing import Any

from jobs.project import author, now
from jobs.restoring.checkpoint import Checkpoint
from jobs.source import is_own
from jobs.training.record import libraries, recorded
from pipeline.console import tell
from pipeline.storage import storage

CODE = ("who", "when", "repository", "commit", "dirty", "diff")  # of began.json


def provenance(checkpoint: Checkpoint, parent: str | None) -> dict[str, Any]:
    """Where a model comes from, as JSON.

    who, when, repository, commit, dirty, diff, machine: of the training, as it recorded them when it began; null, and one line
    on stderr, where it did not. published: who and when. parent: the recipe's latest version until now. started_from: the
    weights that the training started from, where it did. libraries: those of the training, or of this machine for a training
    that did not record them.
    """
    pointer, trained = checkpoint.pointer, checkpoint.recipe["training"]
    began, machine = recorded(storage(f"{checkpoint.root.uri}/runs/{pointer['run']}"))
    if not began or machine is None:
        line = f"{checkpoint.store.uri}: its training did not record {'who began it' if not began else 'its machine'}"
        tell(f"{line}; the provenance says what is known")
    return {
        "recipe": checkpoint.name,
        **{name: began.get(name) for name in CODE},
        "data": {
            **{name: pointer["data"][name] for name in ("task", "digest", "mixed_with") if name in pointer["data"]},
            "location": began.get("data"),
            **{name: began.get(name) for name in ("shard_bytes", "codec", "datasets")},
            "licences": began.get("licences", {}),
        },
        "run": pointer["run"],
        "overrides": pointer.get("overrides", []),
        "parent": parent,
        **({"started_from": start} if (start := began.get("started_from")) else {}),
        "published": {"who": author(), "when": now()},
        **(_network(checkpoint.recipe["model"], pointer) if is_own(checkpoint.recipe["model"].get("name")) else {}),
        "step": pointer["step"],
        "notes": pointer.get("notes", []),
        "world_size": trained["workers"],
        "precision": pointer.get("precision"),
        "portable": trained.get("portable", False),
        "machine": machine,
        "libraries": machine["libraries"] if machine else libraries(),
    }


def _network(model: dict[str, Any], pointer: dict[str, Any]) -> dict[str, Any]:
    """What provenance.json says of a network of one's own: source is the digest of its files when it was trained."""
    options = {key: value for key, value in model.items() if key != "name"}
    return {"network": {"name": model["name"], "options": options, "source": pointer.get("source")}}
