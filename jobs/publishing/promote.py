"""Names of published versions, such as `stable`: <store>/models/<recipe>/<name>.json says which version has it."""

import json
import os
import re
from typing import Any

from jobs.documents import SMALL, Promotion, read_document
from jobs.project import author, now
from jobs.restoring.checkpoint import AGAIN, LABEL, WEIGHTS, find_version, labelled_version
from pipeline.errors import UserError
from pipeline.storage import Storage, storage

RECORDS = "promotions"  # the folder of the records, beside the versions


def promote(version: str, label: str, store_uri: str, why: str | None = None) -> dict[str, Any]:
    """Give a name to a version, <recipe>/<version>, of a store, and leave a record of it there; returns the record.

    The record says who did it, when (UTC), why, and which version had the name before. It is an object of its own, so that
    none is lost if two promote at a time. Raises UserError for a version that is not there or damaged, and for a name that
    is none.
    """
    found = re.fullmatch(r"([^/]+)/([0-9a-f]{12})", version)
    if not found:
        raise UserError(f"{version}: not a version; expected RECIPE/VERSION as `memoir models` lists them")
    if not re.fullmatch(LABEL, label):
        raise UserError(f"{label!r}: not a name for a version; expected small letters, digits and '-', e.g. stable")
    if why is not None and not (why.isprintable() and 0 < len(why) <= 1000):
        raise UserError("--why: expected one line of up to 1,000 characters")
    store = storage(store_uri)
    recipe, number = found[1], found[2]
    held = find_version(f"{store.uri}/models/{version}")
    record = {
        "name": label,
        "version": number,
        "before": labelled_version(store, label, f"models/{recipe}/"),
        "who": author(),
        "when": now(),
        "why": why,
    }
    stamp = re.sub("[^0-9TZ]", "", str(record["when"]))
    name = f"models/{recipe}/{RECORDS}/{stamp}-{os.urandom(4).hex()}.json"
    store.write_new(name, _json(record))  # before it is so: there is no promotion without its record
    point(store, recipe, label, number, held.sums[WEIGHTS])
    return record


def point(store: Storage, recipe: str, label: str, number: str, sha256: str) -> None:
    """Have a name mean this version from now on. sha256: of its weights."""
    store.write(f"models/{recipe}/{label}.json", _json({"version": number, "sha256": sha256}))


def promotions(store: Storage, recipe: str) -> list[dict[str, Any]]:
    """The records of a recipe's promotions, the oldest first. Raises UserError for a damaged one."""
    names = sorted(store.names(f"models/{recipe}/{RECORDS}/"))
    return [read_document(store.read(name, SMALL), Promotion, f"{store.uri}/{name}", AGAIN) for name in names]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
