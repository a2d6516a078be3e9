"""What `memoir doctor` and `memoir share status` say of the team's bucket: settings, rights, and pointers that resolve."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from jobs.documents import Document, Line, read_document
from jobs.restoring.checkpoint import SUMS as VERSION_SUMS
from jobs.restoring.checkpoint import WEIGHTS
from jobs.sharing.probe import rights
from jobs.sharing.remote import configuration, remote
from pipeline.errors import UserError
from pipeline.params import ENDPOINT, Params, in_project
from pipeline.storage import Bucket, storage


class Finding(NamedTuple):
    """One line: whether it is well, what was looked at, and what was found or how to mend it."""

    ok: bool
    what: str
    detail: str


class CheckpointPlace(Document):
    """What checkpoint.json says of the place of a trained model: a folder of the store."""

    checkpoint: Line | None = None


class ModelPlace(Document):
    """What published.json says of the place of a published model: a folder of the store."""

    model: Line | None = None


def examine_sharing(repository: Path, params: Params, runs: Path) -> Iterator[Finding]:
    """Look at DVC's remote, the store and the shards, and at the pointers in `runs`; one finding each."""
    yield _remote(repository, params)
    store = in_project(params.store)
    for what, uri in (("store", store), ("shards", in_project(params.shards) if params.shards else None)):
        if uri is not None:
            yield _place(what, uri)
    yield from _pointers(store, runs)


def _remote(repository: Path, params: Params) -> Finding:
    """The default remote of DVC, which only a team needs."""
    try:
        settings = configuration(repository)
        shared = "://" in params.store
        if not settings["core"].get("remote") and not shared:
            return Finding(
                True, "remote", "none; `memoir share init s3://bucket/prefix` shares data and models with a team"
            )
        found = remote(repository)
        what = f"remote {found.name}"
        if not found.verify:
            mend = f"`dvc remote modify {found.name} verify true`"
            return Finding(False, what, f"DVC does not check what it downloads; run {mend}")
        if isinstance(found.store, Bucket):
            endpoint = found.store.named_endpoint
            if params.endpoint != endpoint and (params.endpoint or not os.environ.get(ENDPOINT)):
                own = f"has the endpoint {params.endpoint}" if params.endpoint else "has no endpoint"
                return Finding(
                    False, what, f"is at {endpoint or 'AWS'}, and params.yaml {own}; write the same into both"
                )
            return Finding(True, what, f"{found.store.uri}: {rights(found.store.uri, endpoint)}")
        found.store.names("files/md5/00/")
        return Finding(True, what, f"{found.store.uri}: a folder of this machine")
    except UserError as error:
        return Finding(False, "remote", str(error))


def _place(what: str, uri: str) -> Finding:
    """A store, and what may be done in it. A folder is tried by what is in it: `memoir doctor` leaves none behind."""
    try:
        place = storage(uri)
        detail = ""
        if what == "store":
            versions = sum(name.endswith(f"/{VERSION_SUMS}") for name in place.names("models/"))
            detail = f"{versions} published versions"
        if isinstance(place, Bucket):
            may = rights(f"{uri}/models" if what == "store" else uri)
            detail = f"{detail}; {may}".removeprefix("; ")
        return Finding(True, f"{what} {uri}", detail or "a folder of this machine")
    except UserError as error:
        return Finding(False, f"{what} {uri}", str(error))


def _pointers(store: str, runs: Path) -> Iterator[Finding]:
    """Whether what runs/*/checkpoint.json and published.json point to is in the store."""
    broken, whole = [], 0
    kinds = (
        ("checkpoint.json", CheckpointPlace, "checkpoint", WEIGHTS),
        ("published.json", ModelPlace, "model", VERSION_SUMS),
    )
    try:
        place = storage(store)
        for name, kind, key, file in kinds:
            for path in sorted(runs.glob(f"*/{name}")):
                target = read_document(path.read_bytes(), kind, str(path), "run its stage again").get(key)
                if target is None:
                    broken.append(f"{path}: names no {key} of the store: an older form; run `dvc repro` again")
                elif ".." in target.split("/") or target.startswith("/"):
                    broken.append(f"{path}: {key} {target} leads out of the store; run its stage again")
                elif f"{target}/{file}" not in place.names(f"{target}/{file}"):
                    broken.append(
                        f"{path}: {target} is not in {store}; `memoir store copy` brings it from another store"
                    )
                else:
                    whole += 1
    except UserError as error:
        broken.append(str(error))
    for line in broken:
        yield Finding(False, "pointer", line)
    if whole or not broken:
        yield Finding(True, "pointers", f"{whole} of {runs}/ are in the store")
